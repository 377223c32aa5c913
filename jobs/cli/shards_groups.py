"""`nightshift shards group-names`, and the key by which `shards pack` and `shards add` name groups."""

import csv
import json
import sys
from typing import TYPE_CHECKING

import click

from cluster.errors import StorageError
from cluster.group_key import ensure_group_key, read_group_key
from cluster.settings import Settings
from data_shards.errors import SourceError
from data_shards.index import ShardIndex
from data_shards.pack.options import DICOM_PREFIX
from data_shards.pack.pseudonyms import GROUP, pseudonym
from jobs.cli.command import command
from jobs.cli.options import OptionGroup, json_option, options
from trainer.evaluation.csv_cells import safe_cell

if TYPE_CHECKING:
    from data_shards.pack.sources import ImageFolder

STDIN = "-"


def key_for_packing() -> str:
    """Return the key of the storage; a storage without one gets one.

    Raises:
        SourceError: The key cannot be read or written. A refused pack leaves nothing behind, whoever refuses it.
    """
    try:
        return ensure_group_key(Settings.read().with_storage_ready().storage)
    except StorageError as error:
        raise SourceError(f"{error}; or store groups as they are with --plain-groups") from error


def key_for_adding(index: ShardIndex) -> str | None:
    """Return the key of the storage if the data set needs one and the storage has one.

    Raises:
        StorageError: The key cannot be read.
    """
    return read_group_key(Settings.read().storage) if "group_key" in index.options else None


def print_groups(folder: "ImageFolder") -> None:
    """Say how groups are stored, if they are keyed hashes."""
    if folder.group_key:
        count = f"{folder.renamed:,} image{'s' * (folder.renamed > 1)}"
        names = f" and, in the name{'s' * (folder.renamed > 1)} of {count}, their text" if folder.renamed else ""
        click.echo(
            f"note: keyed hashes replace the groups{names}; see `nightshift shards group-names --help`", err=True
        )


@command(
    "group-names",
    example="nightshift shards group-names 4711 4712\n"
    "cut -d, -f1 patients.csv | nightshift shards group-names - > names.csv",
)
@click.argument("groups", nargs=-1, required=True)
@options(
    OptionGroup(
        "Groups",
        (
            click.option("--group-by", type=click.Choice(["dicom:PatientID", "dicom:StudyInstanceUID"]),
                         help="The DICOM field that the groups are from.  [default: a table or file names]"),
            json_option("Print the names as JSON."),
        ),
    )
)  # fmt: skip
def group_names(groups: tuple[str, ...], group_by: str | None, as_json: bool) -> None:
    """Show the names under which data sets store GROUPS, such as patient numbers.

    To find the patient of a row in predictions.csv, give all patient numbers, and search the table for the row's
    group. GROUPS may be -: then each line of standard input is a group. The names are those of data sets that were
    packed with this storage: they depend on STORAGE/group.key.
    """
    storage = Settings.read().storage
    key = read_group_key(storage)
    if key is None:
        raise StorageError(
            f"{storage} has no group.key; set NIGHTSHIFT_STORAGE to the storage that the data set was packed with"
        )
    keyword = group_by.removeprefix(DICOM_PREFIX) if group_by else GROUP
    values = [line.rstrip("\r\n") for line in sys.stdin] if groups == (STDIN,) else groups
    named = [(pseudonym(value, keyword, key), value) for value in values if value]
    if as_json:
        click.echo(json.dumps([{"name": name, "group": value} for name, value in named], indent=2))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerows([("name", "group"), *((name, safe_cell(value)) for name, value in named)])
