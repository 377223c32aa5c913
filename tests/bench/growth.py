"""Measure how time and memory scale with the number of images, classes, trials and queued runs.

Compares each size with a size that is 4 or 16 times smaller. Each measurement is a separate process, so that its peak
memory is separate too: `python -m tests.bench.growth images 1000`. A row shows either the time per item or the peak
memory of the process and its children. For time, 1x is linear scaling and more is better than linear. For memory, 1x
is constant. The memory of a training on up to a million images counts no pages of memory-mapped files, of which the
operating system keeps as many as there is room for.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.index import Shard, read_index, write_index
from data_shards.pack.add import add
from data_shards.pack.hash_search import HASH_BITS
from data_shards.pack.near_duplicates import ImageHash, find_near_duplicates
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from data_shards.pack.write import Sample, write_shard
from jobs.queue import embedded_redis
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from jobs.runs.run_index import SETTLED_SECONDS
from tests.bench.data import draw_images
from tests.bench.measure import Row, row, seconds
from tests.own_memory import anonymous_peak, memory
from tests.stack import FakeSpec
from trainer.data.feature_cache import FeatureCache, FeatureKey, Features
from trainer.model.head import FEATURES
from trainer.specs import SearchSpec, TrainSpec, build

FACTORS = (1, 4, 16)
FACTORS_OF = {"hashes": (1, 10), "features": (1, 10)}
FIRST = {
    "images": 250,
    "classes": 2,
    "trials": 4,
    "runs": 625,
    "hashes": 100_000,
    "additions": 500,
    "features": 100_000,
}  # 10,000 runs, a million hashes, a million images with features
WHAT = {
    "images": "packing and frozen training (64 px, 3 epochs)",
    "classes": "packing and frozen training of 1,000 images (64 px, 3 epochs)",
    "trials": "a search of heads (stored features of 250 images, 3 epochs)",
    "runs": "submitting runs and listing all of them",
    "additions": "adding 1 % more images to a packed data set (64 px)",
    "hashes": "searching near duplicates among random hashes, 1 % of them copies",
    "features": "frozen training on stored features, 3 epochs of 256 images a step",
}
PAIRS = {"images": 2, "classes": 2, "trials": 1, "runs": 3, "hashes": 1, "additions": 2, "features": 1}
COPIES, CHANGED_BITS = 100, 32  # one image in so many has a copy, with so many other bits
LISTED = 100_000  # runs in the storage of `indexed_list`
GOAL_OF_INDEX = 5.0
GOAL = 0.9  # linear or constant, with a tolerance for noise of the machine
IMAGE_SIZE = 64
QUICK = {"weights": "none", "image_size": IMAGE_SIZE, "epochs": 3, "head_width": 64}
COMMAND = "python -m tests.bench growth"
PER_SHARD = 1000  # images of a shard with features
LOOK_SECONDS = 0.05  # between two looks at the memory in use


def run() -> list[Row]:
    """Measure each kind at all sizes, alternately."""
    return [*(line for kind, pairs in PAIRS.items() for line in _rows(kind, pairs)), indexed_list()]


def _rows(kind: str, pairs: int) -> list[Row]:
    factors = FACTORS_OF.get(kind, FACTORS)
    sizes = [FIRST[kind] * factor for factor in factors]
    found = [{size: _apart(kind, size) for size in sizes} for _ in range(pairs)]
    times, peaks = ({size: [one[size][name] for one in found] for size in sizes} for name in ("seconds", "megabytes"))
    words = {"what": f"{kind}: {WHAT[kind]}", "command": COMMAND, "more_is_better": False}
    each = {size: [1000 * time / size for time in times[size]] for size in sizes}
    rows = []
    for factor, size in list(zip(factors, sizes, strict=True))[1:]:
        grown = statistics.median(times[size]) / statistics.median(times[sizes[0]])
        rows.append(
            row(
                each[size], each[sizes[0]], beside=f"{size:,} compared with {sizes[0]:,}", unit="ms each", goal=GOAL,
                parity=f"time x {grown:.1f} per {factor}x", **words,
            )
        )  # fmt: skip
    if kind == "hashes":  # all of them are in memory
        return rows
    grown = statistics.median(peaks[sizes[-1]]) / statistics.median(peaks[sizes[0]])
    name = "peak memory without mapped files" if kind == "features" else "peak memory"
    memory = f"{name}, {sizes[-1]:,} compared with {sizes[0]:,}"
    parity = f"memory x {grown:.2f} per {factors[-1]}x"
    return [
        *rows,
        row(peaks[sizes[-1]], peaks[sizes[0]], beside=memory, unit="MB", goal=GOAL, parity=parity, **words),
    ]


def _apart(kind: str, size: int) -> dict[str, float]:
    order = [sys.executable, "-m", "tests.bench.growth", kind, str(size)]
    reported = subprocess.run(order, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(reported.splitlines()[-1])


def indexed_list(count: int = LISTED, pairs: int = 2) -> Row:
    """Measure `nightshift list` with a filter that few of many runs pass, as a process, with and without the index."""
    with tempfile.TemporaryDirectory() as folder:
        storage, local = Path(folder, "storage"), Path(folder, "local")
        local.mkdir()
        _write_ended_runs(storage, count)
        time.sleep(SETTLED_SECONDS)
        environment = {**os.environ, "NIGHTSHIFT_STORAGE": str(storage), "TMPDIR": str(local)}
        said = []

        def listed() -> float:
            start = time.perf_counter()
            order = [sys.executable, "-m", "jobs", "list", "--tag", "rare", "--json"]
            said.append(subprocess.run(order, check=True, stdout=subprocess.PIPE, env=environment).stdout)
            return time.perf_counter() - start

        def without_index() -> float:
            for file in local.rglob("*.index"):
                file.unlink()
            return listed()

        reads, looks = zip(*((without_index(), listed()) for _ in range(pairs)), strict=True)
        found = {len(json.loads(text)) for text in said}
        return row(
            list(looks), list(reads), what=f"list: `nightshift list --tag` of {count:,} runs, with the index",
            beside="without: it reads every run and writes the index", unit="s", goal=GOAL_OF_INDEX, command=COMMAND,
            parity=f"{found} runs in all lists" if len(set(said)) == 1 else "the lists differ", more_is_better=False,
        )  # fmt: skip


def _write_ended_runs(storage: Path, count: int) -> None:
    """Write the folders of runs that have ended; one in 5,000 has the tag `rare`."""
    Settings(storage=storage).with_storage_ready()
    for number in range(count):
        day, second = divmod(number, 86_400)
        clock = f"{second // 3600:02d}{second // 60 % 60:02d}{second % 60:02d}"
        paths = RunPaths.of(storage, f"train-{20250101 + day}-{clock}-{number % 10**6:06d}")
        state = run_state.RunState(
            id=paths.run_id, kind="train", state="succeeded", name=f"night-{number}", owner=f"owner{number % 40}",
            attempt=1, tags=("chest", "rare") if number % 5000 == 0 else ("chest",), metric=("auroc", 0.9),
            created="2025-01-01T00:00:00.000Z", started="2025-01-01T00:00:01.000Z", ended="2025-01-01T00:09:00.000Z",
        )  # fmt: skip
        paths.folder.mkdir()
        write_json(paths.state, state.to_json(), durable=False)


def images(folder: Path, count: int, *, classes: int = 2) -> Callable[[], object]:
    """Return a function that packs `count` images and trains a head on them."""
    draw_images(folder / "images", images=count, classes=classes, size=IMAGE_SIZE)
    done = _trainer()

    def work() -> None:
        pack(folder / "images", folder / "shards", PackOptions(shard_bytes=1_000_000))
        done(folder / "storage", build(TrainSpec, shards=str(folder / "shards"), **QUICK))

    return work


def classes(folder: Path, count: int) -> Callable[[], object]:
    """Return a function that packs a thousand images of `count` classes and trains a head on them."""
    return images(folder, 1000, classes=count)


def trials(folder: Path, count: int) -> Callable[[], object]:
    """Return a function that searches with `count` trials on cached features."""
    images(folder, FIRST["images"])()
    done = _trainer()
    spec = build(SearchSpec, shards=str(folder / "shards"), trials=count, early_stopping=False, **QUICK)
    return lambda: done(folder / "storage", spec, "search-20261123-000000-abcdef")


def _trainer() -> Callable[..., object]:
    """Import the trainer before timing starts; an import at the top would add to the memory of queued runs."""
    from tests.trained import done  # noqa: PLC0415

    return done


def runs(folder: Path, count: int) -> Callable[[], object]:
    """Return a function that submits `count` runs and lists them all."""
    settings = Settings(storage=folder).with_storage_ready()
    server = embedded_redis.ensure_running(settings.storage, ends_with_caller=True)
    settings = Settings(storage=settings.storage, redis_url=server.url)

    def work() -> None:
        for _ in range(count):
            submit(settings, FakeSpec())
        found = [run_state.state_or_damaged(settings.storage, run_id) for run_id in run_state.all_ids(settings.storage)]
        assert len(list(filter(None, found))) == count

    return work


def additions(folder: Path, count: int) -> Callable[[], object]:
    """Return a function that adds 1 % more images to a data set of `count` images."""
    draw_images(folder / "all", images=count + count // 100, classes=2, size=IMAGE_SIZE)
    for file in sorted((folder / "all").rglob("*.png"), key=lambda file: file.name)[count:]:
        target = folder / "new" / file.relative_to(folder / "all")
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    pack(folder / "all", folder / "shards", PackOptions(shard_bytes=1_000_000))
    return lambda: add(str(folder / "shards"), folder / "new", {})


def hashes(_: Path, count: int) -> Callable[[], object]:
    """Return a function that searches near duplicates among `count` images in three splits."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 256, (count, 2 * HASH_BITS // 8), dtype=np.uint8)  # plain and mirrored
    copies = random.choice(count, (count // COPIES, 2), replace=False)
    bits[copies[:, 1]] = bits[copies[:, 0]]
    bits[copies[:, 1], : CHANGED_BITS // 8] ^= 0xFF
    images = [ImageHash(name=f"{n}", sha256=f"{n}", phash=row.tobytes().hex()) for n, row in enumerate(bits)]
    splits = {image.name: ("train", "valid", "test")[n % 3] for n, image in enumerate(images)}

    def work() -> None:
        assert len(find_near_duplicates(images, splits)) == len(copies)

    return work


def features(folder: Path, count: int) -> Callable[[], object]:
    """Return a function that trains a head on the stored features of `count` images, a quarter of which is in `valid`.

    All images look the same; their features are random, and depend a little on the class.
    """
    images(folder, 100)()  # writes the key of the features
    key_file = next((folder / "storage" / "features").glob("*/key.json"))
    facts = json.loads(key_file.read_text())
    key = FeatureKey(**{name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()})
    cache = FeatureCache(key_file.parents[1], key, Settings(storage=folder).cache_bytes)
    random = np.random.default_rng(0)
    image = next((folder / "images").rglob("*.png"))
    large = folder / "large"
    large.mkdir()
    shards, seen = [], Counter[str]()
    for number in range(count // PER_SHARD):
        split = "valid" if number % 4 == 0 else "train"
        shard = _shard_of(image, large / f"{split}-{number:06d}.tar", split, seen[split])
        seen[split] += PER_SHARD
        labels = np.arange(PER_SHARD) % 2
        values = random.standard_normal((PER_SHARD, FEATURES), dtype=np.float32) + np.float32(0.05) * labels[:, None]
        sources = tuple(f"{number}/{n}.png" for n in range(PER_SHARD))
        cache.write(
            shard.sha256,
            Features.of(
                torch.from_numpy(values.astype(np.float32)),
                torch.from_numpy(labels),
                sources=sources,
                groups=("",) * PER_SHARD,
            ),
        )
        shards.append(shard)
    small = read_index(str(folder / "shards"))
    write_index(large, small.model_copy(update={"shards": tuple(shards)}).sealed())
    spec = build(TrainSpec, shards=str(large), batch_size=256, **QUICK)
    return lambda: _trainer()(folder / "storage", spec, "large")


def _shard_of(image: Path, path: Path, split: str, first: int) -> Shard:
    """Write a shard that holds the same image again and again, with one class and the other in turn."""
    size = image.stat().st_size
    samples = [
        Sample(content=image, start=0, size=size, suffix="png", label=n % 2, info={"source": f"{path.stem}/{n}.png"})
        for n in range(PER_SHARD)
    ]
    return write_shard(path, split, samples, first=first, classes=2)


def _alone(kind: str, size: int) -> None:
    """Take one measurement and print it; memory is the larger of this process and its largest child."""
    kinds = {
        "features": features,
        "images": images,
        "classes": classes,
        "trials": trials,
        "runs": runs,
        "hashes": hashes,
        "additions": additions,
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Redis ends only when this process ends
        work = kinds[kind](Path(folder), size)
        with anonymous_peak(every_seconds=LOOK_SECONDS) as own:
            took = seconds(work)
    if kind == "features":
        print(json.dumps({"seconds": took, "megabytes": own.kilobytes / 1000}))
        return
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": took, "megabytes": max(_own_peak(), children) / 1000}))


def _own_peak() -> int:
    """Return the peak memory of this program in kB; `getrusage` returns that of the parent process if it is higher."""
    return memory("VmHWM")


if __name__ == "__main__":
    _alone(sys.argv[1], int(sys.argv[2]))
