"""Token sets: named, seeded, digested, never overlapping. Offline first."""
