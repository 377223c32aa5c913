"""Trackers of a run: TensorBoard and MLflow."""
