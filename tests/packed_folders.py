"""Folders of images that are packed or refused, and what is in them."""

import pytest

from data_shards.errors import SourceError
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack

SPLITS = {"train/covid": 3, "train/normal": 3, "val/covid": 2, "val/normal": 2, "test/covid": 2, "test/normal": 2}


def packed(source, **chosen):
    """Pack a folder and return the report; the target is `shards` beside the folder."""
    return pack(source, source.parent / "shards", PackOptions(processes=1, **chosen))


def counts(report):
    index = report.index
    return {split: dict(zip(index.classes, index.per_class_in(split), strict=True)) for split in index.splits}


def refused(source, text, error=SourceError, **chosen):
    """Assert that a folder is refused in one line and leaves nothing behind."""
    with pytest.raises(error, match=text) as caught:
        packed(source, **chosen)
    assert "\n" not in str(caught.value)
    assert not (source.parent / "shards").exists()


def table(path, head, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *rows]) + "\n")


def names_below(source):
    return sorted(file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
