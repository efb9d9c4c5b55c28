"""The loops that CPU kernels are made of."""
