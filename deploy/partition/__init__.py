"""A network in pieces: which engine computes what. No TVM."""
