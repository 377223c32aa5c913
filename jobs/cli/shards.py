"""`nightshift shards`: pack, verify and show data sets. What packing needs is imported when a command runs."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from cluster.settings import Settings
from data_shards.errors import LeakageError
from data_shards.index import ShardIndex, overview
from data_shards.pack.options import EncodeOptions, PackOptions

if TYPE_CHECKING:
    from data_shards.pack.packing import PackReport

SHOWN = 20  # lines of a list on the terminal; all of it stands in the pack's report
STEP = 10  # percent between two lines of progress where there is no terminal


class ByteSize(click.ParamType[int]):
    """A number of bytes written like 64MB or 1GiB."""

    name = "size"
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        number = value.rstrip("BbKkMmGgIi ")
        unit = value[len(number) :].strip().lower()
        try:
            size = int(float(number) * self.units[unit])
        except (KeyError, ValueError, OverflowError):
            self.fail(f"{value!r} is no size such as 64MB", param, ctx)
        return size if size > 0 else self.fail(f"{value!r} is not above 0", param, ctx)


class Share(click.ParamType[float]):
    """A part of a whole written like 1% or 0.01."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the part, 0 to 1."""
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no share such as 1%", param, ctx)
        return share if 0 <= share <= 1 else self.fail(f"{value!r} is not from 0% to 100%", param, ctx)


@click.group()
def shards() -> None:
    """Data sets as shards: make them, check them, look at them."""


@shards.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--split", metavar="T/V/T", help="Divide class folders, such as 70/15/15 into train, valid and test.")
@click.option("--group-by", metavar="CSV|REGEX", help="Keep images of one patient or case in one split.")
@click.option(
    "--image-size",
    type=click.IntRange(0, 8192),
    default=EncodeOptions.image_size,
    show_default=True,
    help="Short side in pixels; 0 keeps sizes, and JPEG and PNG files byte for byte.",
)
@click.option("--encoding", type=click.Choice(["jpeg", "lossless"]), default=EncodeOptions.encoding, show_default=True)
@click.option("--quality", type=click.IntRange(1, 100), default=EncodeOptions.quality, show_default=True)
@click.option("--shard-size", "shard_bytes", type=ByteSize(), default=PackOptions.shard_bytes, show_default="64MB")
@click.option(
    "--max-bad",
    type=Share(),
    default=PackOptions.max_bad,
    show_default="1%",
    help="Share of images that may be unusable; they are skipped and listed.",
)
@click.option("--allow-leakage", is_flag=True, help="Pack although an image or group stands in two splits.")
@click.option("--seed", type=click.IntRange(0), default=PackOptions.seed, show_default=True, help="Of --split.")
@click.option("--processes", type=click.IntRange(1), help="Of the decoding; one per core unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print the index and the report as JSON.")
def pack(source: Path, shards: Path, as_json: bool, **options: Any) -> None:
    r"""Pack SOURCE, a folder split/class/image or class/image or an archive of one, into the new folder SHARDS.

    \b
        nightshift shards pack chest_xray shards/chest
        nightshift shards pack photos.zip shards/photos --split 70/15/15 --group-by patients.csv
    """
    from data_shards.pack.packing import pack as pack_shards  # noqa: PLC0415

    encode = EncodeOptions(**{name: options.pop(name) for name in ("image_size", "encoding", "quality")})
    try:
        with shown_progress("packing") as on_progress:
            report = pack_shards(source, shards, PackOptions(encode=encode, **options), on_progress)
    except LeakageError as error:
        _list("leaks", error.findings)
        raise
    _tell(report, shards)
    if as_json:
        content = {"index": report.index.model_dump(mode="json"), "skipped": dict(report.skipped)}
        click.echo(json.dumps({**content, "alike": report.duplicates, "leakage": report.leakage}, indent=2))
    else:
        click.echo(str(shards))


@shards.command()
@click.argument("shards")
@click.option("--processes", type=click.IntRange(1), help="Of the decoding; one per core unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print the faults as JSON.")
def verify(shards: str, processes: int | None, as_json: bool) -> None:
    r"""Read every byte of SHARDS back and compare it with the index; a line per fault, exit code 1 if there is one.

    \b
        nightshift shards verify shards/chest
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
            click.echo(fault.text)
    click.echo(f"{len(faults)} faults" if faults else "no faults", err=True)
    sys.exit(1 if faults else 0)


@shards.command()
@click.argument("shards")
@click.option("--json", "as_json", is_flag=True, help="Print the index and its counts as JSON.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a contact sheet per class.")
@click.option("--per-class", type=click.IntRange(1, 1000), default=24, show_default=True, help="Images in the sheet.")
def show(shards: str, as_json: bool, html: Path | None, per_class: int) -> None:
    r"""Show the classes, splits, counts and sizes of SHARDS.

    \b
        nightshift shards show shards/chest --html sheet.html
    """
    from data_shards.index import overview, read_index  # noqa: PLC0415

    index = read_index(shards)
    if html is not None:
        from data_shards.contact_sheet import write_contact_sheet  # noqa: PLC0415
        from data_shards.read.shard_cache import limit_default_cache  # noqa: PLC0415

        limit_default_cache(Settings.read().shard_cache_bytes)
        write_contact_sheet(shards, index, html, per_class=per_class)
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(overview(index), indent=2))
    else:
        print_overview(shards, index)


def _tell(report: "PackReport", shards: Path) -> None:
    index = report.index
    counts = ", ".join(f"{index.samples_in(split)} {split}" for split in index.splits)
    click.echo(f"packed {counts} images of {len(index.classes)} classes into {len(index.shards)} shards", err=True)
    _list("skipped", [f"{name}: {fault}" for name, fault in report.skipped])
    _list("passed over, no images", [f"{count} {ending}" for ending, count in report.other_files.items()])
    _list("alike within a split", report.duplicates)
    _list("leaks, as allowed", report.leakage)
    click.echo(f"next: nightshift shards show {shards}", err=True)


def _list(title: str, lines: Any) -> None:
    if not lines:
        return
    click.echo(f"{title} ({len(lines)}):", err=True)
    for line in lines[:SHOWN]:
        click.echo(f"  {line}", err=True)
    if len(lines) > SHOWN:
        click.echo(f"  and {len(lines) - SHOWN} more", err=True)


@contextmanager
def shown_progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far the work is on stderr: a bar on a terminal, a line for each tenth elsewhere."""
    if not sys.stderr.isatty():
        yield _line_by_line(verb)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line_by_line(verb: str) -> Callable[[int, int], None]:
    told = -STEP

    def on_progress(done: int, total: int) -> None:
        nonlocal told
        percent = 100 * done // total if total else 100
        if percent >= told + STEP:
            told = percent
            click.echo(f"{verb}: {done} of {total}", err=True)

    return on_progress


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
