"""Measures what classifies a data set's images without looking at their subject."""
