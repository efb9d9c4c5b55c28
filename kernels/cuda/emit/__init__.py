"""The parts that CUDA kernels are made of."""
