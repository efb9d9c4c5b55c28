"""The search for the fastest kernels of a network, on top of deploy (which checks whose ``kernels`` are imported)."""
