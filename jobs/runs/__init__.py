"""Runs, as the files in their folders describe them. Knows nothing of Redis."""
