"""Ray Train: starting workers, their tasks, and their process group."""
