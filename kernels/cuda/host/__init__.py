"""Generated CUDA source on the CPU, to be checked without a GPU."""
