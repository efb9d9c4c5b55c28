"""Training: the loop, what presses on it, processes, checkpoints."""
