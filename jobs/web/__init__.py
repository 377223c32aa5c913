"""The page of runs and searches that `nightshift ui` serves."""
