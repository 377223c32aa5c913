"""The HTML report of a run: one self-contained page of charts, images and tables."""
