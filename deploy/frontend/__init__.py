"""An .onnx file to layers: read, refused with a reason, rewritten, fused."""
