"""Pruning by second-order statistics of what layers read: which blocks go, and what the others become."""
