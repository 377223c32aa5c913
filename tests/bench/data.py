"""Data for the benchmarks: the X-rays and weights in ../shared, and any number of random images."""

import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cluster.settings import Settings
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from jobs.queue.stack import Stack, start_stack
from tests.bench.measure import Absent

SHARED = Path(__file__).resolve().parents[3] / "shared"
XRAYS = SHARED / "data" / "chest_xray"
WEIGHTS = SHARED / "weights" / "efficientnet-b0-standin.pth"


def require_xrays() -> None:
    """Raise Absent if the X-rays or the weights are missing."""
    for place in (XRAYS, WEIGHTS):
        if not place.exists():
            raise Absent(f"needs {place.relative_to(SHARED.parent)} beside the checkout")


@contextmanager
def xrays_on_a_stack() -> Iterator[tuple[Path, Stack]]:
    """Pack the X-rays into `shards` of a new folder and run a stack beside them; yield both.

    Raises:
        Absent: The X-rays or the weights are missing.
    """
    require_xrays()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pack(XRAYS, folder / "shards", PackOptions(shard_bytes=1_500_000))
        with start_stack(Settings(storage=folder / "storage")) as stack:
            yield folder, stack


def draw_images(folder: Path, *, images: int, classes: int, size: int) -> None:
    """Write `split/class/N.png`: noise whose brightness depends on the class; a quarter of the images is in `valid`.

    The images are noise so that all differ: packing searches for the same image in two splits.
    """
    draw = partial(_draw_image, folder, classes=classes, size=size)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        for _ in processes.map(draw, range(images), chunksize=100):
            pass


def _draw_image(folder: Path, number: int, *, classes: int, size: int) -> None:
    label, split = number % classes, "valid" if number // classes % 4 == 0 else "train"
    random = np.random.default_rng(number)
    pixels = random.integers(0, 128, (size, size), dtype=np.uint8) + np.uint8(127 * label // max(1, classes - 1))
    target = folder / split / f"class-{label:02d}" / f"{number:06d}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode="L").save(target, compress_level=1)
