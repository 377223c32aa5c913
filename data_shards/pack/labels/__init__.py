"""From tables of labels to labelled images."""
