"""ONNX operators that kerf has own functions for, besides layers: what each node asks of them, or why they cannot."""
