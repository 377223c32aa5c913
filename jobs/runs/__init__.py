"""Runs as their folders tell of them. Knows nothing of Redis."""
