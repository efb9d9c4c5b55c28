"""Folders of small images, a folder to a class, and files that are no images."""

import numpy as np
from PIL import Image


def write_folder(root, split, classes=3, images=4, size=32):
    random = np.random.default_rng(len(split))
    for c in range(classes):
        folder = root / split / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(images):
            pixels = random.integers(0, 256, (size, size + 8 * (size > 32), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")


def damage(root, *names):
    for name in names:
        (root / name).write_bytes(b"no image")
