"""`nightshift cache`: show and prune the feature cache of frozen backbones."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cluster.settings import Settings
from jobs.cli.command import Group
from jobs.cli.options import json_option
from trainer.data.cache_folder import CacheEntry, cache_entries, cache_folder, evict

GIGABYTE = 10**9


@click.group(cls=Group)
def cache() -> None:
    """Show and prune the feature cache, which stores the outputs of frozen backbones.

    Removed features are computed again when a run needs them.
    """


@cache.command(example="nightshift cache show --json")
@json_option("Print the entries as JSON.")
def show(as_json: bool) -> None:
    """List the cached features, least recently used first."""
    settings = Settings.read()
    folder = cache_folder(settings.storage)
    found = [_entry_json(entry) for entry in cache_entries(folder)]
    size = sum(entry["bytes"] for entry in found)
    if as_json:
        content = {"folder": str(folder), "bytes": size, "limit_bytes": settings.cache_bytes, "entries": found}
        click.echo(json.dumps(content, indent=2))
        return
    if found:
        Console().print(_table(found))
    click.echo(f"{size / GIGABYTE:.3f} of {settings.cache_bytes / GIGABYTE:g} GB in {folder}")


@cache.command(example="nightshift cache prune --keep 5")
@click.option(
    "--keep",
    "keep_gigabytes",
    type=click.FloatRange(min=0),
    metavar="GB",
    help="Size limit, in GB.  [default: NIGHTSHIFT_CACHE_GB]",
)
@click.option("--all", "everything", is_flag=True, help="Remove all cached features.")
def prune(keep_gigabytes: float | None, everything: bool) -> None:
    """Remove the least recently used features to free space."""
    settings = Settings.read()
    if everything and keep_gigabytes is not None:
        raise click.UsageError("--all and --keep contradict each other; use one of them")
    limit = settings.cache_bytes if keep_gigabytes is None else int(keep_gigabytes * GIGABYTE)
    freed = evict(cache_folder(settings.storage), 0 if everything else limit)
    click.echo(f"{freed / GIGABYTE:.3f} GB freed")


def _entry_json(entry: CacheEntry) -> dict[str, Any]:
    used = datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return asdict(entry) | {"used": used}


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table("key", "backbone", "pixels", "precision", "shards", "MB", "last used", box=None)
    for entry in found:
        key = entry["key"]
        table.add_row(
            entry["name"],
            str(key.get("backbone_sha256", ""))[:12],
            str(key.get("image_size", "")),
            str(key.get("precision", "")),
            str(entry["shards"]),
            f"{entry['bytes'] / 10**6:.1f}",
            entry["used"],
        )
    return table
