"""evopress."""
