"""Hyperparameter search with Ray Tune, an append-only trial journal, and the best model published as it is found."""
