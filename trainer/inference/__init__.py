"""Inference with published models: predictions and export formats."""
