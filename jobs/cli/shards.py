"""`nightshift shards`: pack, extend, verify and show data sets. What packing needs is imported when a command runs."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from cluster.files import is_full
from cluster.settings import Settings
from data_shards.about import About
from data_shards.counted import counted
from data_shards.errors import LeakageError
from data_shards.index import overview, read_index
from data_shards.pack.group_counts import groups_by_split
from data_shards.pack.options import (
    LARGEST_MEGAPIXELS,
    Blank,
    EncodeOptions,
    PackOptions,
    Readers,
    Uncertain,
)
from jobs.cli.command import Group
from jobs.cli.completion import complete_path
from jobs.cli.label_options import Column, ColumnValue, NameList, SplitFile, label_options
from jobs.cli.option_groups import OptionGroup, json_option, options, path_argument
from jobs.cli.option_types import ByteSize, Share, SplitShares
from jobs.cli.progress_bar import shown_progress
from jobs.cli.shards_audit import audit
from jobs.cli.shards_describe import AboutFile, describe
from jobs.cli.shards_groups import group_names, key_for_adding, key_for_packing
from jobs.cli.shards_overview import print_overview
from jobs.cli.shards_report import print_added, print_list, print_report
from jobs.cli.source import DOWNLOAD, DownloadChoices, SourceType, local_source
from jobs.cli.terminal import echo
from jobs.errors import Refused

if TYPE_CHECKING:
    from data_shards.download.address import Address

MEGABYTE = 1_000_000
AS_PACKED = "Must be that of the data set."

PROCESSES = click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Number of decoding processes.  [default: one per CPU core]",
)
CLASSES = OptionGroup(
    "Classes",
    (
        click.option("--classes", metavar="A,B",
                     help="Pack only these class folders, even if their names are those of splits, masks or parts."),
        click.option("--drop-class", "drop_classes", multiple=True, metavar="CLASS",
                     help="Exclude this class; can be repeated."),
    ),
)  # fmt: skip
LABELS = OptionGroup(
    "Labels from a table",
    (
        click.option("--labels", "tables", multiple=True, metavar="TABLE", shell_complete=complete_path,
                     help="Take the labels from this table (.csv, .tsv, .txt, .csv.gz or .parquet), here or in SOURCE. "
                     "Repeat it for tables with the same columns, or with further columns, which are joined."),
        click.option("--image-column", metavar="COLUMN",
                     help="Column of the image's path, file name or id.  [default: found by usual names]"),
        click.option("--label-column", metavar="COLUMN",
                     help="Column of the labels.  [default: found by usual names]"),
        click.option("--label-columns", type=NameList(), metavar="A,B,C",
                     help="Columns of 1 and 0, one for each label."),
        click.option("--multi-label", is_flag=True, help="An image may have several labels, or none."),
        click.option("--label-separator", metavar="TEXT",
                     help="Separator of several labels in a cell; '' for none.  [default: |]"),
        click.option("--uncertain", type=click.Choice(get_args(Uncertain)),
                     help="Meaning of -1: unknown (mask), 1 (positive) or 0 (negative)."),
        click.option("--blank", type=click.Choice(get_args(Blank)),
                     help="Meaning of a blank cell: unknown (mask) or 0 (negative).  [default: mask with "
                     "--multi-label, else negative]"),
        click.option("--readers", type=click.Choice(get_args(Readers)),
                     help="Several rows of one image must agree, are decided by majority, are joined (any), or are "
                     "refused.  [default: agree]"),
        click.option("--where", multiple=True, type=ColumnValue(), metavar="COLUMN=VALUE",
                     help="Take only rows with this value; can be repeated: any value of one column, all columns. "
                     "dicom:ViewPosition=PA,AP and dicom:Modality=DX take only images with such a DICOM header; these "
                     "need no table."),
        click.option("--group-column", metavar="COLUMN",
                     help="Column of groups, such as patients, that stay in one split; none ignores groups.  "
                     "[default: found by usual names]"),
        click.option("--split-column", metavar="COLUMN",
                     help="Column of splits; none ignores it.  [default: found by usual names]"),
        click.option("--keep-column", "keep_columns", multiple=True, type=Column(), metavar="COLUMN[=BOUNDS]",
                     help="Store the values of this column, such as sex or site, with the images; evaluations then "
                     "have metrics by subgroup. age=40,60,80 cuts numbers into bands. Can be repeated."),
        click.option("--allow-unmatched", is_flag=True,
                     help="Pack even if many rows name no image and many images have no row."),
    ),
)  # fmt: skip
SPLITTING = OptionGroup(
    "Splits",
    (
        click.option("--split", type=SplitShares(), metavar="T/V/T",
                     help="Split a class/image folder into train, valid and test by these percentages, such as "
                          "70/15/15. Of a source without valid images, 85/15/0 divides those of train."),
        click.option("--split-file", "split_files", multiple=True, type=SplitFile(), metavar="SPLIT=LIST",
                     help="The images of a split, such as test=test_list.txt: a file with an image on each line. "
                     "Images in no list are divided by --split."),
        click.option("--group-by", metavar="CSV|REGEX|FIELD", shell_complete=complete_path,
                     help="Keep all images of a group, such as a patient, in one split. The groups come from a CSV "
                     "file with the columns file and group, from the first capture group of a regular expression "
                     "that is matched against the image path, or from the DICOM header: dicom:PatientID or "
                     "dicom:StudyInstanceUID. Keyed hashes of the groups are stored; the key is STORAGE/group.key."),
        click.option("--plain-groups", is_flag=True,
                     help="Store groups, and names of images that contain them, as they are. For data sets that are "
                     "not about people, or are public."),
        click.option("--allow-leakage", is_flag=True,
                     help="Pack even if two splits contain the same image or group (data leakage); --split then "
                     "divides near-duplicates if it has to. Metrics will be too optimistic."),
        click.option("--seed", type=click.IntRange(0), default=PackOptions.seed, show_default=True, metavar="N",
                     help="Random seed for --split."),
    ),
)  # fmt: skip
ENCODING = OptionGroup(
    "Images",
    (
        click.option("--image-size", type=click.IntRange(0, 8192), default=EncodeOptions.image_size, show_default=True,
                     metavar="PIXELS",
                     help="Maximum length of the short side of stored images, in pixels; 0 keeps the original size. "
                          "JPEG and PNG files that are small enough are not compressed again."),
        click.option("--encoding", type=click.Choice(["jpeg", "lossless"]), default=EncodeOptions.encoding,
                     show_default=True, help="Format of the stored images; lossless is PNG."),
        click.option("--quality", type=click.IntRange(1, 100), default=EncodeOptions.quality, show_default=True,
                     metavar="1-100", help="JPEG quality."),
        click.option("--max-bad", type=Share(), default=PackOptions.max_bad,
                     help=f"Maximum share of unreadable images. They are skipped and listed; a larger share "
                     "is an error.  "
                     f"[default: {PackOptions.max_bad:.0%}]"),
        click.option("--max-megapixels", type=click.IntRange(1, LARGEST_MEGAPIXELS),
                     default=EncodeOptions.max_megapixels, show_default=True, metavar="N",
                     help="Maximum size of a source image, in megapixels."),
        click.option("--dicom-frame", type=click.Choice(["only", "first"]), default=EncodeOptions.dicom_frame,
                     show_default=True,
                     help="Of a DICOM file with several frames: refuse it (only), or take the first one."),
        click.option("--dicom-window", type=click.IntRange(1), default=EncodeOptions.dicom_window, show_default=True,
                     metavar="N", help="Which of the windows, or VOI LUTs, in a DICOM header displays the image."),
    ),
)  # fmt: skip
SHARDING = OptionGroup(
    "Output",
    (
        click.option("--shard-size", "shard_bytes", type=ByteSize(), default=PackOptions.shard_bytes,
                     help=f"Maximum size of a shard.  [default: {PackOptions.shard_bytes // MEGABYTE}MB]"),
        PROCESSES,
        json_option("Print the index and the skipped files as JSON."),
    ),
)  # fmt: skip


ADDING = OptionGroup(
    "New images",
    (
        click.option("--split", type=SplitShares(), metavar="T/V/T",
                     help="Split the new images by these percentages. Only for a data set that was packed from split "
                          "folders.  [default: that of the data set]"),
        click.option("--split-file", "split_files", multiple=True, type=SplitFile(), metavar="SPLIT=LIST",
                     help="The images of a split, as for pack."),
        click.option("--group-by", metavar="CSV|REGEX",
                     help="Where the groups of the new images come from, as for pack.  "
                          "[default: the data set's regular expression or DICOM field]"),
        click.option("--drop-class", "drop_classes", multiple=True, metavar="CLASS",
                     help="Exclude this class of SOURCE; can be repeated."),
        click.option("--seed", type=click.IntRange(0), metavar="N",
                     help="Random seed of the split.  [default: that of the data set]"),
        click.option("--max-bad", type=Share(),
                     help="Maximum share of unreadable images.  [default: that of the data set]"),
        click.option("--max-megapixels", type=click.IntRange(1, LARGEST_MEGAPIXELS), metavar="N",
                     help="Maximum size of an image, in megapixels.  [default: that of the data set]"),
        # The same for all images of a data set; accepted so that a script can state them.
        click.option("--image-size", type=click.IntRange(0, 8192), hidden=True, help=AS_PACKED),
        click.option("--encoding", type=click.Choice(["jpeg", "lossless"]), hidden=True, help=AS_PACKED),
        click.option("--quality", type=click.IntRange(1, 100), hidden=True, help=AS_PACKED),
    ),
)  # fmt: skip
ADD_OUTPUT = OptionGroup(
    "Output",
    (
        click.option("--shard-size", "shard_bytes", type=ByteSize(),
                     help="Maximum size of a new shard.  [default: that of the data set]"),
        PROCESSES,
        json_option("Print the index and what was added and skipped as JSON."),
    ),
)  # fmt: skip


ABOUT = OptionGroup(
    "Description",
    (
        click.option("--about", type=AboutFile(), metavar="FILE",
                     help="YAML file that describes the data set, with any of the keys "
                     f"{', '.join(About.model_fields)}. `shards show` and reports show it."),
    ),
)  # fmt: skip


@click.group(cls=Group)
def shards() -> None:
    """Pack, extend, audit, describe, verify and show data sets as WebDataset shards."""


shards.add_command(audit)
shards.add_command(describe)
shards.add_command(group_names)


@shards.command(
    example="nightshift shards pack chest_xray shards/chest\n"
    "nightshift shards pack photos.zip shards/photos --split 70/15/15 --group-by patients.csv\n"
    "nightshift shards pack chest_xray shards/two --classes covid,normal\n"
    "nightshift shards pack https://HOST/chest_xray.zip shards/chest --sha256 HEX\n"
    "nightshift shards pack ham10000 shards/ham --labels ham10000/HAM10000_metadata.csv --split 70/15/15"
)
@click.argument("source", type=SourceType())
@click.argument("shards", type=click.Path(path_type=Path))
@options(CLASSES, LABELS, SPLITTING, ENCODING, ABOUT, DOWNLOAD, SHARDING)
def pack(source: "Path | Address", shards: Path, as_json: bool, classes: str | None, **choices: Any) -> None:
    """Pack the images in SOURCE into shards in a new folder.

    SOURCE is a folder, or a .zip or .tar archive. Its layout is split/class/image (splits train, valid and
    test), or class/image with --split. With --labels, the images lie in any folders. An archive may be at an
    http, https, s3 or gs address, in Google Drive, or a Kaggle data set, written kaggle:OWNER/NAME. It is
    downloaded once, to STORAGE/downloads; if the download is interrupted, the same command continues it.
    """
    from data_shards.pack.packing import pack as pack_shards  # noqa: PLC0415
    from data_shards.pack.work_folder import check_target  # noqa: PLC0415

    choices["labels"] = label_options(choices)
    choices["group_key"] = key_for_packing
    check_target(shards)  # before a long download
    download = DownloadChoices.take(choices)
    encode = EncodeOptions(
        **{field.name: choices.pop(field.name) for field in fields(EncodeOptions) if field.name in choices}
    )
    names = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
    try:
        with local_source(source, download) as path, _disk_of(shards), shown_progress("packing") as on_progress:
            report = pack_shards(path, shards, PackOptions(encode=encode, classes=names, **choices), on_progress)
    except LeakageError as error:
        print_list("leaks", error.findings)
        raise
    print_report(report, shards)
    if as_json:
        click.echo(json.dumps({"index": report.index.to_json(), **report.to_json()}, indent=2))
    else:
        click.echo(str(shards))


@contextmanager
def _disk_of(shards: Path | str) -> Iterator[None]:
    """Name the disk if it is full while shards are written."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise Refused(f"the disk of {shards} is full; free some space there and repeat the command") from error


@shards.command(
    example="nightshift shards add shards/chest new_images\n"
    "nightshift shards add shards/chest new_images.zip --drop-class pneumonia"
)
@path_argument("shards")
@click.argument("source", type=SourceType())
@options(ADDING, LABELS, DOWNLOAD, ADD_OUTPUT)
def add(shards: str, source: "Path | Address", as_json: bool, **choices: Any) -> None:
    """Add the images in SOURCE to the data set SHARDS.

    SOURCE has the layout class/image or split/class/image, with classes of the data set; with --labels, the images lie
    in any folders. It may be a folder, an archive, or an address as for pack. Images are stored as the data set was
    packed. New images of a known group, and near-duplicates of known images, go to the split that has them; the others
    are divided so that the shares of --split are kept. Images that the data set has already are skipped.

    The shards in SHARDS and their cached features stay as they are. Runs continue with the data that they started with;
    later runs use the new images too.
    """
    from data_shards.pack.add import add as add_images  # noqa: PLC0415

    index = read_index(shards)  # before a long download
    key = key_for_adding(index)
    choices["group_key"] = (lambda: key) if key else None
    download = DownloadChoices.take(choices)
    choices["labels"] = label_options(choices)
    given = {name: value for name, value in choices.items() if value not in (None, ()) and value is not False}
    try:
        with local_source(source, download) as path, _disk_of(shards):
            report = add_images(shards, path, given, progress=shown_progress)
    except LeakageError as error:
        print_list("leaks", error.findings)
        raise
    print_added(report, shards)
    if as_json:
        click.echo(json.dumps({"index": report.index.to_json(), **report.to_json()}, indent=2))
    else:
        click.echo(shards)


@shards.command(example="nightshift shards verify shards/chest")
@path_argument("shards")
@options(OptionGroup("Output", (PROCESSES, json_option("Print the errors as JSON."))))
def verify(shards: str, processes: int | None, as_json: bool) -> None:
    """Read all shards in SHARDS and compare them with the index.

    Prints one line per error. The exit code is 1 if there are errors.
    """
    from data_shards.read.shard_cache import limit_default_cache  # noqa: PLC0415
    from data_shards.verify import verify as verify_shards  # noqa: PLC0415

    limit_default_cache(Settings.read().shard_cache_bytes)
    with shown_progress("verifying") as on_progress:
        faults = verify_shards(shards, processes=processes, on_progress=on_progress)
    if as_json:
        click.echo(json.dumps([{"shard": fault.shard, "key": fault.key, "text": fault.text} for fault in faults]))
    else:
        for fault in faults:
            echo(fault.text)
    click.echo(counted(len(faults), "fault") if faults else "no faults", err=True)
    sys.exit(1 if faults else 0)


@shards.command(example="nightshift shards show shards/chest --html sheet.html")
@path_argument("shards")
@options(
    OptionGroup(
        "Output",
        (
            click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                         help="Write an HTML page with example images of each class."),
            click.option("--per-class", type=click.IntRange(1, 1000), default=24, show_default=True, metavar="N",
                         help="Number of example images per class in --html."),
            json_option("Print the classes, splits, counts and sizes as JSON."),
        ),
    )
)  # fmt: skip
def show(shards: str, as_json: bool, html: Path | None, per_class: int) -> None:
    """Show the classes, splits, counts and sizes of SHARDS."""
    index = read_index(shards)
    groups = groups_by_split(shards, index)
    if html is not None:
        from data_shards.contact_sheet import write_contact_sheet  # noqa: PLC0415
        from data_shards.read.shard_cache import limit_default_cache  # noqa: PLC0415

        limit_default_cache(Settings.read().shard_cache_bytes)
        write_contact_sheet(shards, index, html, per_class=per_class, groups=groups)
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(overview(index, groups), indent=2))
    else:
        print_overview(shards, index, groups)
