"""A converted network to a library: kernels chosen, functions lowered, memory laid out."""
