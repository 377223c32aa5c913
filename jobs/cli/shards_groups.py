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
from data_shards.pack.options import DICOM_PREFIX, GROUP_FIELDS
from data_shards.pack.pseudonyms import GROUP, pseudonym
from jobs.cli.command import command
from jobs.cli.completion import complete_path
from jobs.cli.option_groups import OptionGroup, json_option, options
from trainer.evaluation.csv_cells import safe_cell

if TYPE_CHECKING:
    from data_shards.pack.sources import ImageFolder


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
    "nightshift shards group-names --table patients.csv --column patient > names.csv",
)
@click.argument("groups", nargs=-1)
@options(
    OptionGroup(
        "Groups",
        (
            click.option("--table", metavar="TABLE", shell_complete=complete_path,
                         help="Show the names of all groups in this table."),
            click.option("--column", metavar="COLUMN",
                         help="Column of the groups in --table.  [default: found by usual names]"),
            click.option("--group-by", type=click.Choice([DICOM_PREFIX + field for field in GROUP_FIELDS]),
                         help="The DICOM field that the groups are from.  [default: a table or file names]"),
            json_option("Print the names as JSON."),
        ),
    )
)  # fmt: skip
def group_names(
    groups: tuple[str, ...], table: str | None, column: str | None, group_by: str | None, as_json: bool
) -> None:
    """Show the names under which data sets store GROUPS, such as patient numbers.

    To find the patient of a row in predictions.csv, show the names of all patients with --table, and search for the
    group of the row. The names are those of data sets that were packed with this storage: they depend on
    STORAGE/group.key.
    """
    from data_shards.pack.groups import groups_in_table  # noqa: PLC0415
    from data_shards.pack.labels.cells import group_spelling  # noqa: PLC0415

    if bool(groups) == bool(table) or (column and not table):
        raise click.UsageError("give GROUPS, or a table with --table TABLE and its --column")
    storage = Settings.read().storage
    key = read_group_key(storage)
    if key is None:
        raise StorageError(
            f"{storage} has no group.key; set NIGHTSHIFT_STORAGE to the storage that the data set was packed with"
        )
    keyword = group_by.removeprefix(DICOM_PREFIX) if group_by else GROUP
    values = groups_in_table(table, column) if table else map(group_spelling, groups)
    named = [(pseudonym(value, keyword, key), value) for value in values]
    if as_json:
        click.echo(json.dumps([{"name": name, "group": value} for name, value in named], indent=2))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerows([("name", "group"), *((name, safe_cell(value)) for name, value in named)])
