"""Evaluation of a model on a split: predictions, metrics, confidence intervals, calibration."""
