"""`nightshift cache`: show and prune the feature cache of frozen backbones, and downloaded archives."""

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cluster.settings import Settings
from jobs.cli.command import Group
from jobs.cli.option_groups import json_option
from jobs.cli.option_types import Duration
from jobs.cli.terminal import table_cell
from jobs.cli.text_table import Column, output_width, table_text
from jobs.runs.progress_text import ago
from trainer.data.cache_folder import IN_USE_SECONDS, CacheEntry, cache_entries, cache_folder, evict

GIGABYTE = 10**9
DOWNLOADS_UNUSED = "30d"
FEATURES = (
    Column(title="KEY", least=12),
    Column(title="BACKBONE", importance=1),
    Column(title="PIXELS", importance=3),
    Column(title="PRECISION", importance=2),
    Column(title="STORED", importance=2),
    Column(title="SHARDS", importance=4),
    Column(title="MB"),
    Column(title="LAST USED"),
)


@click.group(cls=Group)
def cache() -> None:
    """Show and prune what is cached in the storage.

    The feature cache stores the outputs of frozen backbones; removed features are computed again when a run needs
    them. Downloaded archives are kept until `prune` removes them.
    """


@cache.command(example="nightshift cache show --json")
@json_option("Print the entries as JSON.")
def show(as_json: bool) -> None:
    """List the cached features and the downloaded archives, least recently used first."""
    settings = Settings.read()
    folder = cache_folder(settings.storage)
    found = [_entry_json(entry) for entry in cache_entries(folder)]
    size = sum(entry["bytes"] for entry in found)
    downloads = _downloads_json(settings.downloads)
    if as_json:
        content = {"folder": str(folder), "bytes": size, "limit_bytes": settings.cache_bytes, "entries": found}
        click.echo(json.dumps(content | {"downloads": downloads}, indent=2))
        return
    if found:
        click.echo(table_text(FEATURES, [_features_row(entry) for entry in found], output_width()))
    click.echo(f"{size / GIGABYTE:.3f} of {settings.cache_bytes / GIGABYTE:g} GB in {folder}")
    if downloads["entries"]:
        Console().print(_downloads_table(downloads["entries"]))
        click.echo(f"{downloads['bytes'] / GIGABYTE:.3f} GB in {settings.downloads}")


@cache.command(example="nightshift cache prune --keep 5")
@click.option(
    "--keep",
    "keep_gigabytes",
    type=click.FloatRange(min=0),
    metavar="GB",
    help="Size limit, in GB.  [default: NIGHTSHIFT_CACHE_GB]",
)
@click.option(
    "--unused-for",
    "unused_seconds",
    type=Duration(),
    default=DOWNLOADS_UNUSED,
    show_default=True,
    help="Remove downloads that were not used for this time.",
)
@click.option("--all", "everything", is_flag=True, help="Remove all cached features and all downloads.")
def prune(keep_gigabytes: float | None, unused_seconds: float, everything: bool) -> None:
    """Remove the least recently used features and downloads to free space.

    A download that a command is using stays.
    """
    from data_shards.download.kept_files import prune_kept_files  # noqa: PLC0415

    settings = Settings.read()
    if everything and keep_gigabytes is not None:
        raise click.UsageError("--all and --keep contradict each other; use one of them")
    if keep_gigabytes is not None and not math.isfinite(keep_gigabytes * GIGABYTE):
        raise click.UsageError(f"--keep {keep_gigabytes} is no size; write a number of GB, such as 5")
    limit = settings.cache_bytes if keep_gigabytes is None else int(keep_gigabytes * GIGABYTE)
    features, most = cache_folder(settings.storage), 0 if everything else limit
    freed = evict(features, most)
    left = sum(entry.bytes for entry in cache_entries(features))
    freed += prune_kept_files(settings.downloads, 0.0 if everything else unused_seconds)
    click.echo(f"{freed / GIGABYTE:.3f} GB freed")
    if left > most:
        click.echo(
            f"{left / GIGABYTE:.3f} GB of features stay: they were used in the last {IN_USE_SECONDS / 60:.0f} minutes, "
            "and runs that read them over the network would end; try again later",
            err=True,
        )


def _entry_json(entry: CacheEntry) -> dict[str, Any]:
    return asdict(entry) | {"used": _time(entry.used)}


def _downloads_json(folder: Path) -> dict[str, Any]:
    from data_shards.download.kept_files import kept_files  # noqa: PLC0415

    entries = [kept.model_dump() | {"used": _time(used)} for kept, used in kept_files(folder)]
    return {"folder": str(folder), "bytes": sum(entry["bytes"] for entry in entries), "entries": entries}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _features_row(entry: dict[str, Any]) -> tuple[str, ...]:
    key = entry["key"]
    return (
        entry["name"],
        str(key.get("backbone_sha256", ""))[:12],
        str(key.get("image_size", "")),
        str(key.get("precision", "")),
        str(key.get("stored", "fp32")),
        str(entry["shards"]),
        f"{entry['bytes'] / 10**6:.1f}",
        ago(entry["used"]),
    )


def _downloads_table(entries: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    table.add_column("download", overflow="fold")
    table.add_column("MB", justify="right")
    table.add_column("sha256", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for entry in entries:
        address = entry["address"] if entry["fetched"] else "incomplete"
        table.add_row(
            table_cell(address), f"{entry['bytes'] / 10**6:.1f}", (entry["sha256"] or "")[:12], ago(entry["used"])
        )
    return table
