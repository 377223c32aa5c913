"""People and the queue: the command line, RQ and its job workers. Nothing imports this package."""
