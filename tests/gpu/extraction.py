"""`python -m tests.gpu.extraction`: images per second of the parts of an extraction of features, and of all of it.

The extraction is compared with that before its loader processes were few and its batches small: `PLAIN` sets it back.
Nothing in this process may use CUDA, because each measurement runs in a process that is forked from it.
"""

import functools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.nn import functional
from torch.utils.data import dataloader
from torchvision.io import ImageReadMode, decode_jpeg

from data_shards.index import read_index
from data_shards.pixels import decode_square
from data_shards.plan import EpochPlan
from data_shards.read.loader_processes import processes_for
from data_shards.read.stream import open_batches
from tests.bench.steps import CONFIG
from trainer.data import feature_extraction
from trainer.data.device_batches import DeviceBatches
from trainer.data.feature_extraction import COMPUTED_GPU, FeatureExtractor
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import Backbone
from trainer.model.folded_backbone import FoldedBackbone

IMAGES = {"train": 4500, "valid": 1500}
SIDE = 256  # as packed by default
WARM = 3
COUNTS = (3, 5, 8, 12)  # of loader processes
DEVICE = torch.device("cuda")
PACK = """
import sys
from pathlib import Path
from data_shards.pack.packing import PackOptions, pack
pack(Path(sys.argv[1]), Path(sys.argv[2]), PackOptions(shard_bytes=16_000_000, allow_leakage=True))
"""  # in a process without torch: each of its processes would import what it has imported

Normalise = partial(normalised, config=CONFIG)


def main() -> int:
    """Print what was measured as JSON."""
    cores = len(os.sched_getaffinity(0))
    most = max(1, min(12, cores - 1))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _pack(folder, cores)
        found: dict[str, Any] = {"torch": torch.__version__, "torchvision": torchvision.__version__, "cores": cores}
        for name, work in {
            "card": _card,
            "extraction_before": partial(_extraction, folder / "shards", most, plain=True),
            "extraction": partial(_extraction, folder / "shards", most, plain=False),
            "forward": _forward,
            "decoding_images_per_s": partial(_decoding, folder / "shards", most),
            "nvjpeg": partial(_nvjpeg, folder / "images"),
        }.items():
            started = time.perf_counter()
            found[name] = _in_own_process(work)
            took = time.perf_counter() - started
            print(f"{name}, {took:.1f} s: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))
    return 0


def _in_own_process(work: Callable[[], Any]) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(work).result()


def _card() -> str:
    return torch.cuda.get_device_name(0)


def _pack(folder: Path, processes: int) -> None:
    """Pack soft random images: JPEG files of about 20 kB, which are packed as they are."""
    chunks = [(folder / "images", split, first) for split, count in IMAGES.items() for first in range(0, count, 250)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(_draw, chunks))
    subprocess.run([sys.executable, "-c", PACK, folder / "images", folder / "shards"], check=True, stdout=sys.stderr)


def _draw(chunk: tuple[Path, str, int]) -> None:
    folder, split, first = chunk
    random = np.random.default_rng([len(split), first])
    for number in range(first, min(first + 250, IMAGES[split])):
        soft = Image.fromarray(random.integers(0, 256, (24, 24), dtype=np.uint8)).resize((SIDE, SIDE))
        pixels = np.asarray(soft, dtype=np.int16) // 2 + random.integers(0, 24, (SIDE, SIDE), dtype=np.int16)
        target = folder / split / "ab"[number % 2] / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(target, quality=95)


def _decoding(shards: Path, most: int) -> dict[str, int]:
    """Return the images per second of the loader alone, started anew, by its number of processes."""
    index, found = read_index(str(shards)), {}
    torch.zeros(1, device=DEVICE)  # pinned memory needs a context, which also makes forks slower
    for count in (most, *COUNTS):
        plan = EpochPlan(index=index, split="train", batch_size=64, shuffle=False)
        options = {"image_size": 224, "loader_workers": min(count, most), "pin_memory": DEVICE.type == "cuda"}
        seconds = _seconds(
            lambda plan=plan, options=options: list(_sizes(open_batches(str(shards), index, plan, **options)))
        )
        found[count] = round(IMAGES["train"] / seconds)
    return found


def _sizes(batches: Iterator[Any]) -> Iterator[int]:
    for batch in batches:
        yield len(batch.images)


def _forward() -> dict[str, Any]:
    """Return images per second by batch, and the milliseconds of the first batch of a size that was never seen."""
    network = FoldedBackbone(Backbone(224, CONFIG.layout).eval(), "bf16", DEVICE)
    pixels = torch.randint(0, 256, (1024, 1, 224, 224), dtype=torch.uint8, device=DEVICE)
    rates = {}
    for images in (64, 256, 1024):
        network.on_device(pixels[:images], Normalise)
        rates[images] = round(
            images
            / (_seconds(lambda images=images: [network.on_device(pixels[:images], Normalise) for _ in range(10)]) / 10)
        )
    first = {}
    for fills in (True, False):
        network.fills = fills
        first["filled" if fills else "not filled"] = [
            round(1e3 * _seconds(lambda images=images: network.on_device(pixels[:images], Normalise)), 1)
            for images in (33, 37, 43, 51, 33)
        ]
    return {"images_per_s": rates, "ms_of_the_first_batches_of_33_37_43_51_and_33_again": first}


def _nvjpeg(images: Path) -> dict[str, Any] | str:
    """Return what nvJPEG decodes and resizes in a second, and how its pixels and features differ from Pillow's."""
    files = [file.read_bytes() for file in sorted(images.glob("train/a/*.jpg"))[:COMPUTED_GPU]]
    raw = [torch.from_numpy(np.frombuffer(file, dtype=np.uint8).copy()) for file in files]

    def decoded() -> torch.Tensor:
        whole = torch.stack(decode_jpeg(raw, mode=ImageReadMode.GRAY, device=DEVICE)).float()
        small = functional.interpolate(whole, (224, 224), mode="bilinear", antialias=True, align_corners=False)
        return small.round().clamp(0, 255).to(torch.uint8)

    try:
        pixels = decoded()
    except RuntimeError as error:
        return f"cannot: {error}"[:300]
    pillow = torch.from_numpy(np.stack([decode_square(file, size=224, color="L") for file in files])).to(DEVICE)
    network = FoldedBackbone(Backbone(224, CONFIG.layout).eval(), "bf16", DEVICE)
    ours, theirs = (network.on_device(each, Normalise) for each in (pillow, pixels))
    return {
        "images_per_s": round(len(raw) / (_seconds(lambda: [decoded() for _ in range(5)]) / 5)),
        "decode_only_images_per_s": round(
            len(raw) / _seconds(lambda: decode_jpeg(raw, mode=ImageReadMode.GRAY, device=DEVICE))
        ),
        "mean_pixel_difference": round((pixels.float() - pillow.float()).abs().mean().item(), 4),
        "largest_pixel_difference": int((pixels.int() - pillow.int()).abs().max()),
        "relative_difference_of_features": round(((theirs - ours).norm() / ours.norm()).item(), 5),
    }


def _extraction(shards: Path, most: int, *, plain: bool) -> dict[str, Any]:
    """Return seconds and images per second of extractions of both splits by one process, the first one cold."""
    with _plain() if plain else _counted():
        found = {"cold": _once(shards, most, plain), "warm": [_once(shards, most, plain) for _ in range(WARM)]}
        if not plain:
            found["warm_by_processes"] = {count: _with_processes(count, shards, most) for count in COUNTS}
            found["warm_on_one_stream"] = _without_stream(shards, most)
    return found


def _with_processes(count: int, shards: Path, most: int) -> dict[str, Any]:
    feature_extraction.processes_for = lambda _, *, most: min(count, most)  # type: ignore[assignment]
    try:
        return _once(shards, most, plain=False)
    finally:
        feature_extraction.processes_for = processes_for


def _without_stream(shards: Path, most: int) -> dict[str, Any]:
    with _set(DeviceBatches, "__init__", _one_stream(DeviceBatches.__init__)):
        return _once(shards, most, plain=False)


def _once(shards: Path, most: int, plain: bool) -> dict[str, Any]:
    index = read_index(str(shards))
    extractor = FeatureExtractor(
        location=str(shards),
        index=index,
        config=CONFIG.model_copy(update={"precision": "bf16"}),
        backbone=_backbone(),
        process_group=ProcessGroup(0, 1, DEVICE),
        cache=None,
        loader_workers=most,
    )
    STARTS.clear()
    started = time.perf_counter()
    for splits in [(split,) for split in IMAGES] if plain else [tuple(IMAGES)]:
        extractor.extract(*splits)
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "images_per_s": round(sum(IMAGES.values()) / seconds),
        "loaders": [f"{name} {value:.3f}" for name, value in STARTS],
    }


@functools.cache
def _backbone() -> Backbone:
    return Backbone(224, CONFIG.layout).eval()


STARTS: list[
    tuple[str, float]
] = []  # of the loaders of an extraction: how many processes, and seconds of start and end


@contextmanager
def _counted() -> Iterator[None]:
    """Record the processes of each loader and the seconds that their start and their end take."""
    loader = dataloader._MultiProcessingDataLoaderIter
    start, end = loader.__init__, loader._shutdown_workers

    def counted_start(self: Any, of: Any) -> None:
        STARTS.append(("processes", of.num_workers))
        STARTS.append(("start", _seconds(lambda: start(self, of), wait=False)))

    def counted_end(self: Any) -> None:
        if (seconds := _seconds(lambda: end(self), wait=False)) > 1e-3:
            STARTS.append(("end", seconds))

    with _set(loader, "__init__", counted_start), _set(loader, "_shutdown_workers", counted_end):
        yield


@contextmanager
def _plain() -> Iterator[None]:
    """Extract as before: all processes for any number of images, 256 images at once, as they come, on one stream."""

    def own_sizes(self: FoldedBackbone, *given: Any) -> None:
        fold(self, *given)
        self.fills = False

    def waits(self: FeatureExtractor, *given: Any) -> Any:
        found = features(self, *given)
        torch.cuda.synchronize()
        return found

    fold, features = FoldedBackbone.__init__, FeatureExtractor._features
    with (
        _counted(),
        _set(feature_extraction, "READ_BATCH", 256),
        _set(feature_extraction, "processes_for", lambda _, *, most: most),
        _set(FoldedBackbone, "__init__", own_sizes),
        _set(DeviceBatches, "__init__", _one_stream(DeviceBatches.__init__)),
        _set(FeatureExtractor, "_features", waits),
    ):
        yield


def _one_stream(create: Callable[..., None]) -> Callable[..., None]:
    def created(self: DeviceBatches, *given: Any) -> None:
        create(self, *given)
        self._copies = None

    return created


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _seconds(work: Callable[[], object], *, wait: bool = True) -> float:
    if wait:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if wait:
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
