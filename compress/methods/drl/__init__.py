"""Pruning by reinforcement learning: the method, its agent and what it looks at."""
