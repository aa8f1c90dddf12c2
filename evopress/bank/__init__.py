"""The bank: packed variants on disk, and how they are built."""
