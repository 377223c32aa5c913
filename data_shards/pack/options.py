"""The options of packing with their defaults. Imports nothing heavy: the command line imports it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from data_shards.about import About
from data_shards.columns import KeptColumn
from data_shards.dicom import DicomFrame

MEGABYTE = 1_000_000
TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".parquet")
LARGEST_MEGAPIXELS = 2000  # that `max_megapixels` may be: such a film takes 2 to 6 GB of memory

GROUP_FIELDS = ("PatientID", "StudyInstanceUID")  # of DICOM headers, that may serve as groups
DICOM_PREFIX = "dicom:"  # of a field of DICOM headers, where another option would name a column

Encoding: TypeAlias = Literal["jpeg", "lossless"]
Uncertain: TypeAlias = Literal["mask", "positive", "negative"]
Blank: TypeAlias = Literal["mask", "negative"]
Readers: TypeAlias = Literal["agree", "majority", "any", "refuse"]


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
class LabelOptions:
    """How tables give the labels.

    Attributes:
        tables: Paths of tables, as given or below the source. Those with the same columns follow each other; another
            one adds its columns to the rows that have the same values in the columns of both.
        image_column: Column of paths, file names or ids; None finds it.
        label_column: Column of labels; None finds it.
        label_columns: Columns of 1, 0, -1 and blank, one for each label.
        label_separator: What parts several labels in a cell; None: "|"; "": a cell is one label.
        group_column: Column of groups, such as patients; None finds it, "none" uses none.
        split_column: Column of splits; None finds it, "none" uses none.
        keep_columns: Columns whose values are stored with the images, for metrics by subgroup.
        uncertain: What -1 means: unknown, 1 or 0; None refuses it.
        blank: What a blank cell of `label_columns` means; None: 0, with several labels per image unknown.
        readers: Several rows of one image: they must agree, are voted, are joined, or are refused.
        allow_unmatched: Pack although many rows have no image and many images no row.
    """

    tables: tuple[str, ...]
    image_column: str | None = None
    label_column: str | None = None
    label_columns: tuple[str, ...] = ()
    label_separator: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    keep_columns: tuple[KeptColumn, ...] = ()
    uncertain: Uncertain | None = None
    blank: Blank | None = None
    readers: Readers = "agree"
    allow_unmatched: bool = False


@dataclass(frozen=True, kw_only=True)
class AddedLabelOptions(LabelOptions):
    """How tables give the labels of images that are added to a data set whose tables gave groups too.

    Attributes:
        former_group_column: Column that gave the groups of the data set, taken where `group_column` is None; "" where
            that is not known.
    """

    former_group_column: str


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack.

    Attributes:
        split: Shares of train, valid and test, such as "70/15/15"; None if the source has split folders.
        split_files: A split and the path of a list of its images, for each list; the rest is divided by `split`.
        group_by: CSV with the columns file and group, a regular expression on the name, or `dicom:PatientID` or
            `dicom:StudyInstanceUID`; None for no groups.
        group_key: Returns the secret that turns the identifiers of groups into the names under which they are stored,
            None without one; it is called if images have groups. The index has the secret's fingerprint.
        plain_groups: Store groups, and names of images that contain them, as they are.
        classes: Take these class folders alone, and take them as classes whatever their names look like; empty: all.
        drop_classes: Leave these class folders out.
        labels: The tables that give the labels; None if class folders give them.
        where: A column and a value for each condition; of two conditions on one column either may hold. The column
            `dicom:ViewPosition` or `dicom:Modality` means a field of DICOM headers.
        multi_label: Each image has several labels: a target for each class.
        seed: Random seed of the division into splits.
        shard_bytes: Maximum size of a shard; a larger sample gets a shard of its own. A small split gets smaller
            shards, about eight, so that several workers can share it.
        max_bad: Share of the images that may be unreadable.
        allow_leakage: Pack although the same image or group is in two splits.
        about: What is stated about the data set.
        processes: Processes that decode; None starts one per core. The shards do not depend on it.
    """

    encode: EncodeOptions = field(default_factory=EncodeOptions)
    split: str | None = None
    split_files: tuple[tuple[str, str], ...] = ()
    group_by: str | None = None
    group_key: Callable[[], str | None] | None = field(default=None, repr=False)
    plain_groups: bool = False
    classes: tuple[str, ...] = ()
    drop_classes: tuple[str, ...] = ()
    labels: LabelOptions | None = None
    where: tuple[tuple[str, str], ...] = ()
    multi_label: bool = False
    seed: int = 0
    shard_bytes: int = 64 * MEGABYTE
    max_bad: float = 0.01
    allow_leakage: bool = False
    about: About | None = None
    processes: int | None = None

    def takes(self, label: str) -> bool:
        """Whether images of a class are to be packed, by `classes` and `drop_classes`."""
        return label not in self.drop_classes and (not self.classes or label in self.classes)

    @property
    def groups_in_headers(self) -> bool:
        """Whether the groups come from DICOM headers: the scan of the source gives them to its images."""
        return bool(self.group_by and self.group_by.startswith(DICOM_PREFIX))

    def to_index(self) -> dict[str, Any]:
        """Return the options that the shards depend on; for a path only its name, which is the same on every machine.

        An option that came later than the first data sets is there only if it was given: their digests stay.
        """
        stored = asdict(self)
        stored |= stored.pop("encode")
        del stored["processes"], stored["labels"], stored["group_key"], stored["plain_groups"], stored["about"]
        if self.group_by and self.group_by.lower().endswith(TABLE_ENDINGS):
            stored["group_by"] = Path(self.group_by).name
        stored["split_files"] = tuple((split, Path(path).name) for split, path in self.split_files)
        for name in LATER_OPTIONS:
            value = stored.pop(name)
            if value != DEFAULTS[name]:
                stored[name] = _as_text(value)
        return stored | (_labels_to_index(self.labels) if self.labels else {})


def _as_text(value: Any) -> int | str:
    """Return an option as the index has it: a number, a text, or items with commas between them."""
    if isinstance(value, int | str):
        return value
    return ",".join(item if isinstance(item, str) else "=".join(item) for item in value)


def _labels_to_index(labels: LabelOptions) -> dict[str, Any]:
    """Return the options of labels that were given; `tables` is the option `--labels`."""
    given = {name: value for name, value in asdict(labels).items() if value != LABEL_DEFAULTS[name]}
    given.pop("keep_columns", None)  # the index has a field for them
    given["labels"] = ",".join(Path(table).name for table in given.pop("tables"))
    return {name: ",".join(value) if isinstance(value, tuple) else value for name, value in given.items()}


LATER_OPTIONS = (
    "classes",
    "drop_classes",
    "max_megapixels",
    "multi_label",
    "dicom_frame",
    "dicom_window",
    "split_files",
    "where",
)
DEFAULTS: dict[str, Any] = asdict(PackOptions()) | asdict(EncodeOptions())
LABEL_DEFAULTS: dict[str, Any] = asdict(LabelOptions(tables=()))
