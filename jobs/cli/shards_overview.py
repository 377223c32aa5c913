"""What `nightshift shards show` prints of a data set: its classes or labels, splits, counts and sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from data_shards.about import about_rows
from data_shards.columns import NOT_STATED
from data_shards.index import ShardIndex, overview
from data_shards.targets import TargetCounts
from jobs.cli.terminal import table_cell

MEGABYTE = 1_000_000
MOST_COLUMNS = 5  # classes that have a column each; more have a row each


def print_overview(location: str, index: ShardIndex, groups: Mapping[str, int]) -> None:
    """Print a row per split with its class balance, or per class or label with its splits; then a summary.

    Args:
        location: Of the data set.
        index: Of the same.
        groups: Number of groups (patients or cases) of each split, as far as it is known.
    """
    facts = overview(index)
    console = Console()
    if index.multi_label:
        console.print(_label_table(location, index, groups))
    elif len(index.classes) > MOST_COLUMNS:
        console.print(_class_rows(location, index, groups))
    else:
        console.print(_class_table(location, facts, index, groups))
    console.print(
        f"{'gray' if index.color == 'L' else 'color'} images, {_span(index.widths)} wide and "
        f"{_span(index.heights)} high in the source; stored {_stored(index)}"
    )
    if index.columns:
        console.print(table_cell(f"kept columns: {', '.join(map(str, index.columns))}"), soft_wrap=True)
    for title, text in about_rows(index.about) if index.about else [("description", NOT_STATED)]:
        console.print(table_cell(f"{title}: {text}"), soft_wrap=True)
    for addition in facts["history"]:
        counts = ", ".join(f"{count:,} {split}" for split, count in addition["samples"].items())
        line = f"added {addition['time']}: {counts}, to digest {addition['digest_before']}"
        console.print(table_cell(line), soft_wrap=True)
    console.print(f"digest {index.digest}", soft_wrap=True)


def _class_table(location: str, facts: dict[str, Any], index: ShardIndex, groups: Mapping[str, int]) -> Table:
    table = Table(title=table_cell(location))
    table.add_column("split")
    for name in (*index.classes, "all", *(["groups"] if groups else []), "shards", "MB"):
        table.add_column(table_cell(name), justify="right")
    for split, counts in facts["splits"].items():
        shares = [_with_share(n, counts["samples"]) for n in counts["per_class"].values()]
        size = f"{counts['bytes'] / MEGABYTE:.1f}"
        of_groups = _groups([split], groups)
        table.add_row(table_cell(split), *shares, str(counts["samples"]), *of_groups, str(counts["shards"]), size)
    return table


def _class_rows(location: str, index: ShardIndex, groups: Mapping[str, int]) -> Table:
    """Return a row for each class, with the number of its images in each split and their share of the split."""
    table = Table(title=table_cell(location))
    table.add_column("class", overflow="fold")
    for split in index.splits:
        table.add_column(table_cell(split), justify="right")
    counts = [(index.per_class_in(split), index.samples_in(split)) for split in index.splits]
    for position, name in enumerate(index.classes):
        table.add_row(table_cell(name), *(_with_share(n[position], every) for n, every in counts))
    table.add_section()
    table.add_row("all", *(str(every) for _, every in counts))
    if groups:
        table.add_row("groups", *_groups(index.splits, groups))
    table.add_row("shards", *(str(len(index.of_split(split))) for split in index.splits))
    table.add_row("MB", *(_megabytes(index, split) for split in index.splits))
    return table


def _megabytes(index: ShardIndex, split: str) -> str:
    return f"{sum(shard.bytes for shard in index.of_split(split)) / MEGABYTE:.1f}"


def _label_table(location: str, index: ShardIndex, groups: Mapping[str, int]) -> Table:
    """Return a row for each label: how many images of each split have it, and of how many it is unknown."""
    table = Table(title=table_cell(location))
    table.add_column("label", overflow="fold")
    for split in index.splits:
        table.add_column(table_cell(split), justify="right")
        table.add_column("unknown", justify="right")
    counts = [index.targets_in(split) for split in index.splits]
    for position, name in enumerate(index.classes):
        cells = [cell for of_split in counts for cell in _label_cells(of_split[position])]
        table.add_row(table_cell(name), *cells)
    table.add_section()
    table.add_row("images", *(cell for split in index.splits for cell in (str(index.samples_in(split)), "")))
    if groups:
        table.add_row("groups", *(cell for count in _groups(index.splits, groups) for cell in (count, "")))
    table.add_row("shards", *(cell for split in index.splits for cell in (str(len(index.of_split(split))), "")))
    return table


def _groups(splits: Sequence[str], groups: Mapping[str, int]) -> list[str]:
    """Return the number of groups of each split; none if no split has any that are known."""
    return [str(groups.get(split, "-")) for split in splits] if groups else []


def _label_cells(counts: TargetCounts) -> tuple[str, str]:
    known = counts.present + counts.absent
    return (_with_share(counts.present, known) if known else "-", str(counts.unknown))


def _with_share(count: int, every: int) -> str:
    """Return a count and its share, of which only none is shown as 0 and only all as 100 percent."""
    share = f"{count / every:.0%}"
    if share == "0%" and count:
        share = "<1%"
    elif share == "100%" and count < every:
        share = ">99%"
    return f"{count} ({share})"


def _span(span: tuple[int, int, int]) -> str:
    least, median, greatest = span
    return f"{least} to {greatest} pixels (median {median})"


def _stored(index: ShardIndex) -> str:
    return f"with a short side of at most {index.image_size}" if index.image_size else "in their own size"
