"""Bundles in programs that are not Python: libkerf as a folder for C and C++, and as operators of ONNX Runtime."""
