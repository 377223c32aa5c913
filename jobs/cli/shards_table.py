"""Prints what a data set holds as a table."""

from rich.console import Console
from rich.table import Table

from data_shards.index import ShardIndex
from data_shards.overview import overview

MEGABYTE = 1_000_000


def print_overview(location: str, index: ShardIndex) -> None:
    """Print a row per split with its class balance, then the facts of the whole data set."""
    facts = overview(index)
    table = Table(title=location)
    table.add_column("split")
    for name in (*index.classes, "all", "shards", "MB"):
        table.add_column(name, justify="right")
    for split, counts in facts["splits"].items():
        shares = [f"{n} ({n / counts['samples']:.0%})" for n in counts["per_class"].values()]
        size = f"{counts['bytes'] / MEGABYTE:.1f}"
        table.add_row(split, *shares, str(counts["samples"]), str(counts["shards"]), size)
    console = Console()
    console.print(table)
    console.print(
        f"{'gray' if index.color == 'L' else 'color'} images, {_span(index.widths)} wide and "
        f"{_span(index.heights)} high as they came; stored {_stored(index)}"
    )
    console.print(f"digest {index.digest}", soft_wrap=True)


def _span(span: tuple[int, int, int]) -> str:
    least, median, greatest = span
    return f"{least} to {greatest} pixels (median {median})"


def _stored(index: ShardIndex) -> str:
    return f"with a short side of at most {index.image_size}" if index.image_size else "as they came"
