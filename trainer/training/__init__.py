"""The training loop, optimizer, EMA, gradient accumulation, preemption and checkpoints."""
