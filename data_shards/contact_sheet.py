"""Writes an HTML page with small images of each class of a data set."""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from data_shards.atomic import write_text_atomic
from data_shards.index import ShardIndex, overview
from data_shards.read.shard_files import ShardFiles
from data_shards.samples import Extent, read_square
from data_shards.tar_index import key_of
from data_shards.targets import positions_of

SIDE = 128  # pixels
TEMPLATE = "contact_sheet.html.j2"


class Thumbnail(NamedTuple):
    """One image of the page. It has no file name, which may contain a patient's name.

    Attributes:
        labels: Positions of its class, or of the labels that it has.
    """

    split: str
    key: str
    labels: frozenset[int]
    png: str


def write_contact_sheet(
    location: str, index: ShardIndex, file: Path, *, per_class: int, groups: Mapping[str, int] | None = None
) -> None:
    """Write the page with up to `per_class` images of each class, from every split.

    `groups` is the number of groups (patients or cases) of each split, as far as it is known.

    Raises:
        DamagedShard: A shard or sample is not what the index says.
    """
    share = -(-per_class // len(index.splits))
    images = [image for split in index.splits for image in _first_of_each(location, index, split, share)]
    by_class = {
        name: [image for image in images if label in image.labels][:per_class]
        for label, name in enumerate(index.classes)
    }
    facts = overview(index, groups)
    totals = {name: sum(split["per_class"][name] for split in facts["splits"].values()) for name in index.classes}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template(TEMPLATE).render(
        location=location, overview=facts, has_groups=bool(groups), classes=by_class, totals=totals, side=SIDE
    )
    write_text_atomic(file, page)


def _first_of_each(location: str, index: ShardIndex, split: str, count: int) -> Iterator[Thumbnail]:
    """Yield the first images of each class of a split; only the shards that are needed are read."""
    files = ShardFiles(location, index)
    missing = {label: min(count, n) for label, n in enumerate(index.per_class_in(split))}
    for shard in index.of_split(split):
        if not any(missing[label] and shard.per_class[label] for label in missing):
            continue
        table = files.table_of(shard)
        for number, edges in enumerate(table.extents.tolist(), table.first):
            extent = Extent(shard.name, table.path, number, tuple(edges))
            sample, pixels = read_square(extent, index=index, size=SIDE)
            labels = positions_of(sample.label)
            if any(missing[label] for label in labels):
                missing |= {label: max(0, missing[label] - 1) for label in labels}
                yield Thumbnail(split, key_of(number), labels, _png(pixels))


def _png(pixels: np.ndarray) -> str:
    channels_last = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(channels_last)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
