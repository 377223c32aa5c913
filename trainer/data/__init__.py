"""Batches of images and features, transforms, and the feature cache."""
