"""Sample images that need no network: scikit-learn's handwritten digits, as `split/class/image.png`.

They are 1,797 scans of 8x8 pixels and 16 gray levels (UCI "Optical Recognition of Handwritten Digits"). Run as
`python -m data_shards.sample_data FOLDER`.
"""

import random
import sys
from pathlib import Path

from PIL import Image

PIXELS = 32  # the smallest input of the network, four times the scans' size
SHARES = (("train", 0.70), ("valid", 0.15), ("test", 0.15))


def write_sample(folder: Path, *, limit: int | None = None) -> int:
    """Write up to `limit` digits (all by default) below `folder` and return how many.

    Each class is shuffled, always in the same way, and divided 70/15/15 into train, valid and test. Safe to run twice.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 -- takes two seconds

    digits = load_digits()
    written = 0
    for label in range(10):
        of_label = [index for index, target in enumerate(digits.target[:limit]) if target == label]
        random.Random(f"0-{label}").shuffle(of_label)  # noqa: S311 -- a split, not a secret
        for split, numbers in _cut(of_label).items():
            target = folder / split / str(label)
            target.mkdir(parents=True, exist_ok=True)
            for number in numbers:
                scan = Image.fromarray((digits.images[number] * 255 / 16).round().astype("uint8"))
                scan.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(target / f"{number:04}.png")
                written += 1
    return written


def _cut(numbers: list[int]) -> dict[str, list[int]]:
    parts, start, total = {}, 0, 0.0
    for split, share in SHARES:
        total += share
        end = round(len(numbers) * total)
        parts[split], start = numbers[start:end], end
    return parts


if __name__ == "__main__":
    sys.stdout.write(f"{write_sample(Path(sys.argv[1]))} digits\n")
