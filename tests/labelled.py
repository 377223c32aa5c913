"""Folders of empty image files with tables of labels, and what a scan finds in them."""

import pytest

from data_shards.errors import SourceError
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import LabelOptions, PackOptions

SHARES = "50/25/25"


LABELS = set(LabelOptions.__dataclass_fields__)


def source(folder, names, **tables):
    """Make empty image files and tables; a table's name has `_` for its dot."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, lines in tables.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def scanned(folder, *tables, **chosen):
    labels = {name: chosen.pop(name) for name in LABELS & set(chosen)}
    chosen.setdefault("split", SHARES)
    return scan_source(folder, PackOptions(labels=LabelOptions(tables=tables, **labels), **chosen))


def labels_of(found):
    return {image.name: image.label for image in found.images}


def targets_of(found):
    return {image.name: dict(zip(found.label_names, image.targets, strict=True)) for image in found.images}


def refused(text, folder, *tables, kind=SourceError, **chosen):
    with pytest.raises(kind) as caught:
        scanned(folder, *tables, **chosen)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
