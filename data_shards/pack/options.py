"""The options of packing with their defaults. Imports nothing heavy: the command line imports it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from data_shards.dicom import DicomFrame

MEGABYTE = 1_000_000
LARGEST_MEGAPIXELS = 2000  # that `max_megapixels` may be: such a film takes 2 to 6 GB of memory

Encoding: TypeAlias = Literal["jpeg", "lossless"]


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How images are read and stored.

    Attributes:
        image_size: Short side in pixels, never enlarged; 0 keeps the size.
        encoding: "jpeg", or "lossless" (PNG).
        quality: JPEG quality, 1 to 100.
        max_megapixels: Largest image to decode, in millions of pixels.
        keep_small: Store a JPEG or PNG file that is small enough as it came, without its metadata. False encodes it
            again, as version 0.1 did.
        dicom_frame: Refuse a DICOM file of several frames ("only"), or take its first one.
        dicom_window: Which of the windows or VOI LUTs of a DICOM file displays it, from 1.
    """

    image_size: int = 256
    encoding: Encoding = "jpeg"
    quality: int = 95
    max_megapixels: int = 150
    keep_small: bool = True
    dicom_frame: DicomFrame = "only"
    dicom_window: int = 1

    @classmethod
    def of_index(cls, stored: Mapping[str, Any]) -> "EncodeOptions | None":
        """Return the options of a data set from those in its index; None if the index does not have them."""
        if "image_size" not in stored or "encoding" not in stored:
            return None
        known = {field.name: stored[field.name] for field in fields(cls) if field.name in stored}
        return cls(**{"keep_small": False, **known})


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack.

    Attributes:
        split: Shares of train, valid and test, such as "70/15/15"; None if the source has split folders.
        group_by: CSV with the columns file and group, or a regular expression on the name; None for no groups.
        classes: Take these class folders alone, and take them as classes whatever their names look like; empty: all.
        drop_classes: Leave these class folders out.
        multi_label: Each image has several labels: a target for each class.
        seed: Random seed of the division into splits.
        shard_bytes: Maximum size of a shard; a larger sample gets a shard of its own. A small split gets smaller
            shards, about eight, so that several workers can share it.
        max_bad: Share of the images that may be unreadable.
        allow_leakage: Pack although the same image or group is in two splits.
        processes: Processes that decode; None starts one per core. The shards do not depend on it.
    """

    encode: EncodeOptions = field(default_factory=EncodeOptions)
    split: str | None = None
    group_by: str | None = None
    classes: tuple[str, ...] = ()
    drop_classes: tuple[str, ...] = ()
    multi_label: bool = False
    seed: int = 0
    shard_bytes: int = 64 * MEGABYTE
    max_bad: float = 0.01
    allow_leakage: bool = False
    processes: int | None = None

    def to_index(self) -> dict[str, Any]:
        """Return the options that the shards depend on; for a path only its name, which is the same on every machine.

        An option that came later than the first data sets is there only if it was given: their digests stay.
        """
        stored = asdict(self)
        stored |= stored.pop("encode")
        del stored["processes"]
        if self.group_by and self.group_by.lower().endswith(".csv"):
            stored["group_by"] = Path(self.group_by).name
        for name in LATER_OPTIONS:
            value = stored.pop(name)
            if value != DEFAULTS[name]:
                stored[name] = value if isinstance(value, int | str) else ",".join(value)
        return stored


LATER_OPTIONS = ("classes", "drop_classes", "max_megapixels", "multi_label", "dicom_frame", "dicom_window")
DEFAULTS: dict[str, Any] = asdict(PackOptions()) | asdict(EncodeOptions())
