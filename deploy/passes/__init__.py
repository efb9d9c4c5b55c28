"""Rewrites of an ONNX graph, one to a file, each a function Graph -> None. deploy.convert lists their order."""
