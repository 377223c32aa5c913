"""Digits to audit, and an audit as it is kept."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from data_shards.pack.options import EncodeOptions, PackOptions
from data_shards.pack.packing import pack

SIDE = 32  # pixels


def digits(*classes: int, seed: int, each: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Digits at four times their size, (N, 32, 32) uint8, and their classes from 0 on."""
    found = load_digits()
    random = np.random.default_rng(seed)
    rows = np.concatenate(
        [random.choice(np.flatnonzero(found.target == digit), each, replace=False) for digit in classes]
    )
    squares = np.kron(found.images[rows] * 255 / 16, np.ones((4, 4))).round().astype(np.uint8)
    return squares, np.searchsorted(classes, found.target[rows])


def packed(folder: Path, squares: np.ndarray, labels: np.ndarray, **encode: object) -> str:
    """A packed data set of images, a third of each class in each split."""
    for number, (square, label) in enumerate(zip(squares, labels, strict=True)):
        target = folder / "images" / ("train", "valid", "test")[number % 3] / f"class {label}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(square).save(target / f"{number:04}.png")
    options = PackOptions(encode=EncodeOptions(image_size=0, **encode), allow_leakage=True, processes=1)
    pack(folder / "images", folder / "shards", options)
    return str(folder / "shards")


CHECK = {"name": "rim", "explanation": "x", "auroc": 0.5, "low": 0.4, "high": 0.6, "alarm": False}
