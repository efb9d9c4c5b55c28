"""Convolutions and dense layers of 8-bit integers."""
