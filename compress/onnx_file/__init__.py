"""Pruning of an .onnx file by calibration images alone: no code of the network, no training."""
