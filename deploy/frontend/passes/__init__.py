"""Rewrites of an ONNX graph, one to a file, each a function Graph -> None. convert.py lists their order."""
