"""A typical command line without lazy imports: its modules import everything at the top.

python -m tests.bench.peers.heavy_cli STORAGE list
"""

import json
from pathlib import Path

import click
import ray  # noqa: F401, used by `train`, which nobody called
import torch  # noqa: F401, likewise


@click.group()
@click.argument("storage", type=Path)
@click.pass_context
def cli(ctx: click.Context, storage: Path) -> None:
    """Train image classifiers."""
    ctx.obj = storage


@cli.command(name="list")
@click.pass_obj
def list_runs(storage: Path) -> None:
    """List runs, the newest first."""
    for file in sorted(storage.glob("runs/*/state.json"), reverse=True)[:50]:
        state = json.loads(file.read_text())
        click.echo(f"{state['id']}  {state['kind']}  {state['state']}")


if __name__ == "__main__":
    cli()
