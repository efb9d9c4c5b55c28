"""Proof: outputs against ONNX Runtime, times against the dense engines, records of both."""
