"""Pruning: a torch network in, a network with structured zeros and its numbers out. Never imports TVM."""
