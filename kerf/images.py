"""What both stages know of images: which files are some, how networks take them, how ranges are taken of them."""

from __future__ import annotations

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})  # torchvision's
# Pixels reach a network as (RGB / 255 - mean) / std, by default ImageNet's
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = 224 / 256  # of the shorter side, what evaluation sees
RANGES = ("minmax", "percentile", "mse")  # how calibration takes them: kerf.deploy.quantise.ranges
RANGE = "mse"
