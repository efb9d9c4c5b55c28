"""Kernels for CPUs, on images that lie plane by plane."""
