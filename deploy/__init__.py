"""From an .onnx file to a verified, fast bundle. Needs no torch (export.py alone does, and only when it is called)."""
