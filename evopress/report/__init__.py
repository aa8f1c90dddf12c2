"""What a person reads: statistics of comparisons, tables, the leaderboard, the profile as a map."""
