"""`nightshift cache`: the stored features of frozen backbones."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cluster.settings import Settings
from trainer.data.cache_folder import CacheEntry, cache_entries, cache_folder, evict

GIGABYTE = 10**9


@click.group()
def cache() -> None:
    """Show and prune stored features; what is missing is computed again."""


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    r"""Show what is stored, the longest unused first.

    \b
        nightshift cache show --json
    """
    settings = Settings.read()
    folder = cache_folder(settings.storage)
    found = [_plain(entry) for entry in cache_entries(folder)]
    size = sum(entry["bytes"] for entry in found)
    if as_json:
        content = {"folder": str(folder), "bytes": size, "limit_bytes": settings.cache_bytes, "entries": found}
        click.echo(json.dumps(content, indent=2))
        return
    if found:
        Console().print(_table(found))
    click.echo(f"{size / GIGABYTE:.3f} of {settings.cache_bytes / GIGABYTE:g} GB in {folder}")


@cache.command()
@click.option("--keep", "keep_gigabytes", type=click.FloatRange(min=0), help="Leave so many GB.  [default: the limit]")
@click.option("--all", "everything", is_flag=True, help="Leave nothing.")
def prune(keep_gigabytes: float | None, everything: bool) -> None:
    r"""Remove the features that were unused for longest, until the rest fits.

    \b
        nightshift cache prune --keep 5
    """
    settings = Settings.read()
    if everything and keep_gigabytes is not None:
        raise click.UsageError("--all and --keep contradict each other; use one of them")
    limit = settings.cache_bytes if keep_gigabytes is None else int(keep_gigabytes * GIGABYTE)
    freed = evict(cache_folder(settings.storage), 0 if everything else limit)
    click.echo(f"{freed / GIGABYTE:.3f} GB freed")


def _plain(entry: CacheEntry) -> dict[str, Any]:
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
