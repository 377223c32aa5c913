"""The queue in Redis, the job workers that serve it, and the reconciler."""
