"""A run as TensorBoard and MLflow show it."""
