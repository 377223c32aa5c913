"""The report of a run: one self-contained page of pictures and tables."""
