"""Measure images/s from storage to normalised batches; the peers are WebDataset's own decoder and ImageFolder.

A pass is one epoch with startup, from creating the loader to the last batch `(B, 3, S, S) float32`. All use the same
number of loader workers. The films and X-rays of ../shared are copied several times, so that a pass takes seconds.
"""

import io
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from data_shards.index import ShardIndex, read_index
from data_shards.pack.options import EncodeOptions, PackOptions
from data_shards.pack.packing import pack
from data_shards.plan import EpochPlan
from data_shards.read.shard_files import ShardFiles
from data_shards.read.stream import open_batches
from data_shards.samples import Extent, read_square
from tests.bench.data import XRAYS, require_xrays
from tests.bench.measure import Row, in_turn, row, seconds
from tests.bench.peers.loader import image_folder_batches, webdataset_batches
from trainer.data.transforms import normalised
from trainer.model.head import HeadConfig

IMAGE_SIZE = 224
BATCH = 32
WORKERS = 2
PAIRS = 5
COPIES = {"chest_xray_1024": 4, "chest_xray": 2}
COMMAND = "python -m tests.bench loader"
FILM_GOAL, XRAY_GOAL = 2.5, 1.3  # compared with (a) on films, with both on X-rays


def run() -> list[Row]:
    """Measure both data sets with both peers."""
    require_xrays()
    with tempfile.TemporaryDirectory() as folder:
        films = _prepared(Path(folder), "chest_xray_1024", image_size=0)
        xrays = _prepared(Path(folder), "chest_xray", image_size=256)
        return [
            *_rows("films of 1024 px, original JPEG files", *films, goals=(FILM_GOAL, None)),
            *_rows("X-rays of 256 px", *xrays, goals=(XRAY_GOAL, XRAY_GOAL)),
        ]


def _prepared(folder: Path, name: str, *, image_size: int) -> tuple[Path, Path]:
    """Return a folder of classes with copies of the images, and about 12 shards to distribute over the workers."""
    images = folder / name
    for number, file in enumerate(sorted((XRAYS.parent / name).rglob("*.jpg"))):
        for copy in range(COPIES[name]):
            target = images / ("even", "odd")[number % 2] / f"{copy}-{number:04d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    size = sum(file.stat().st_size for file in images.rglob("*.jpg"))
    options = PackOptions(
        encode=EncodeOptions(image_size=image_size), split="100/0/0", shard_bytes=size // 12, allow_leakage=True
    )
    pack(images, folder / f"{name}-shards", options)
    return images, folder / f"{name}-shards"


def _rows(what: str, images: Path, shards: Path, *, goals: tuple[float | None, float | None]) -> list[Row]:
    index = read_index(str(shards))
    urls = [str(shards / shard.name) for shard in index.shards]
    options = {"image_size": IMAGE_SIZE, "batch_size": BATCH, "workers": WORKERS}
    peers: list[tuple[str, Callable[[], Iterable]]] = [
        ('(a) WebDataset .decode("pil") + torchvision', lambda: webdataset_batches(urls, **options)),
        ("(b) ImageFolder + DataLoader", lambda: image_folder_batches(images, **options)),
    ]
    total = index.samples_in("train")
    parity = f"lowest PSNR {lowest_psnr(shards, index):.1f} dB to a full decode"
    rows = []
    for (name, peer), goal in zip(peers, goals, strict=True):
        _drain(peer())
        _drain(_ours(shards, index))
        ours, others = in_turn(
            lambda: total / seconds(lambda: _drain(_ours(shards, index))),
            lambda peer=peer: total / seconds(lambda: _drain(peer())),
            pairs=PAIRS,
        )
        note = f"{total} images, {WORKERS} loader workers, batches of {BATCH}, {IMAGE_SIZE} px"
        words = {"what": what, "beside": name, "unit": "images/s", "goal": goal, "parity": parity}
        rows.append(row(ours, others, more_is_better=True, command=COMMAND, note=note, **words))
    return rows


def _ours(shards: Path, index: ShardIndex) -> Iterable[torch.Tensor]:
    config = HeadConfig(classes=index.classes, width=4, dropout=0, image_size=IMAGE_SIZE)
    plan = EpochPlan(index=index, split="train", batch_size=BATCH)
    for batch in open_batches(str(shards), index, plan, image_size=IMAGE_SIZE, loader_workers=WORKERS):
        yield normalised(batch.images, config)


def _drain(batches: Iterable) -> None:
    for _ in batches:
        pass


def lowest_psnr(shards: Path, index: ShardIndex, samples: int = 96) -> float:
    """Return the lowest PSNR, over some samples, of our pixels to a full decode with torchvision's geometry."""
    reference = v2.Compose([v2.Resize(IMAGE_SIZE), v2.CenterCrop(IMAGE_SIZE)])
    table = ShardFiles(str(shards), index).table_of(index.shards[0])
    found = []
    for number, edges in enumerate(table.extents.tolist()[:samples]):
        extent = Extent(index.shards[0].name, table.path, number, tuple(edges))
        sample, pixels = read_square(extent, index=index, size=IMAGE_SIZE)
        full = np.asarray(reference(_opened(sample.image, index.color)))
        found.append(_psnr(pixels[0] if index.color == "L" else pixels.transpose(1, 2, 0), full))
    return min(found)


def _opened(data: bytes, color: str) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert(color)


def _psnr(ours: np.ndarray, full: np.ndarray) -> float:
    error = np.mean((ours.astype(np.float64) - full.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
