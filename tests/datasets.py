"""Small data sets for tests: folders of random images, shards of given sizes, and untrusted shards."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.index import Shard, ShardIndex, write_index
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from data_shards.read.shard_cache import ShardCache
from data_shards.sample_data import write_sample

Members = Sequence[tuple[str, bytes]]


def noise(seed: int, size: tuple[int, int] = (40, 36), mode: str = "L") -> Image.Image:
    """Return a unique image: coarse blocks of noise, which remain distinct after compression."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 9, channels), dtype=np.uint8)
    return Image.fromarray(blocks[..., 0] if channels == 1 else blocks, mode=None).convert(mode).resize(size)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return an image encoded as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_folder(folder: Path, counts: Mapping[str, int], *, size: tuple[int, int] = (40, 36), mode: str = "L") -> Path:
    """Write the given number of images to each sub-folder, such as {"train/covid": 3}; all images differ."""
    seed = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise(seed, size, mode).save(folder / name / f"image-{number:03d}.png")
            seed += 1
    return folder


def packed(folder: Path, counts: Mapping[str, int], **options: object) -> tuple[Path, ShardIndex]:
    """Pack random images into several shards per split and return their folder and index."""
    source = image_folder(folder / "images", counts)
    chosen = PackOptions(**{"shard_bytes": 20_000, "processes": 1, "plain_groups": True, **options})  # type: ignore[arg-type]
    return folder / "shards", pack(source, folder / "shards", chosen).index


def packed_digits(folder: Path) -> Path:
    """Pack 300 handwritten digits of ten classes at 32 pixels, several shards per split, and return their folder."""
    write_sample(folder / "images", limit=300)
    # Two handwritten digits that look the same are not a leak.
    pack(folder / "images", folder / "shards", PackOptions(shard_bytes=100_000, processes=1, allow_leakage=True))
    return folder / "shards"


def index_of(sizes: Sequence[int], split: str = "train") -> ShardIndex:
    """Return an index of shards with the given numbers of samples, without any files."""
    shards = [
        Shard(name=f"{split}-{n:05d}.tar", split=split, samples=size, per_class=(size, 0), bytes=1, sha256="0" * 64)
        for n, size in enumerate(sizes)
    ]
    return ShardIndex(classes=("covid", "normal"), shards=tuple(shards)).sealed()


def sample_members(number: int, *, label: str = "0", image: bytes | None = None) -> list[tuple[str, bytes]]:
    """Return the three members of a valid sample."""
    data = encoded(noise(number)) if image is None else image
    info = json.dumps({"source": f"{number}.png", "crc32": zlib.crc32(data)}).encode()
    return [(f"{number:08d}.cls", label.encode()), (f"{number:08d}.json", info), (f"{number:08d}.png", data)]


def untrusted(folder: Path, members: Members, *, samples: int) -> tuple[str, ShardIndex]:
    """Write one shard with the given members, and an index with its size and sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train-00000.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    raw = path.read_bytes()
    shard = Shard(
        name=path.name,
        split="train",
        samples=samples,
        per_class=(samples, 0),
        bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
    )
    index = ShardIndex(classes=("covid", "normal"), shards=(shard,), color="L").sealed()
    write_index(folder, index)
    return str(folder), index


def fetch_all(folder: Path, location: str, index: ShardIndex) -> None:
    """Fetch every shard of a remote data set into a cache; tests run this in separate processes."""
    cache = ShardCache(folder)
    for shard in index.shards:
        cache.path_of(location, shard)
