"""`nightshift shards audit`: what classifies a data set's images without looking at their subject.

The audit runs in a process of its own: it needs scikit-learn, which the command line does not import.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
from click import ClickException

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.guarded_process import guarded_process
from jobs.cli.options import OptionGroup, json_option, options
from jobs.cli.predict import output_file
from jobs.cli.progress_bar import shown_progress
from jobs.cli.terminal import echo
from jobs.cli.text_table import Column, output_width, table_text

AUDIT = (sys.executable, "-P", "-m", "trainer.audit")  # -P: never import a user's own trainer.py
COLUMNS = (
    Column(title="CHECK"),
    Column(title="AUROC"),
    Column(title="95 % CI", importance=2),
    Column(title="ALARM"),
    Column(title="WHAT IS LOOKED AT", importance=1),
)
SHOWN = 20  # contradictions on the terminal; --json has all of them


@command(name="audit", example="nightshift shards audit shards/chest --html audit.html")
@click.argument("shards")
@options(
    OptionGroup(
        "Audit",
        (
            click.option("--image-size", type=click.IntRange(32, 1024), default=224, show_default=True,
                         metavar="PIXELS", help="Side of the square that the network sees, as for train."),
            click.option("--max-images", type=click.IntRange(50), default=3000, show_default=True, metavar="N",
                         help="Maximum number of images to read; from a larger data set, a random sample is drawn."),
            click.option("--processes", type=click.IntRange(1), metavar="N",
                         help="Number of decoding processes.  [default: one per CPU core]"),
        ),
    ),
    OptionGroup(
        "Output",
        (
            click.option("--html", metavar="FILE",
                         help="Write an HTML page with the results."),
            json_option("Print the checks, the alarm and the sentence as JSON."),
        ),
    ),
)  # fmt: skip
def audit(shards: str, html: str | None, as_json: bool, **limits: Any) -> None:
    """Show what classifies the images in SHARDS without looking at their subject.

    Simple classifiers see only the image size, the file format, the outer rim, a small patch, or a thumbnail. If one
    of them does as well as a network, the network's figures do not show that it looks at the subject. Reports of later
    runs on this data set show the audit.
    """
    page = output_file(html, "--html")
    settings = Settings.read().with_storage_ready()
    wanted = {
        "shards": shards,
        "html": page,
        "storage": str(settings.storage),
        "cache_bytes": settings.shard_cache_bytes,
        **limits,
    }
    found = _run(wanted)
    if html:
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(table_text(COLUMNS, [_row(check) for check in found["checks"]], output_width()))
    _print_contradictions(found["contradictions"])
    if found["images"] < found["total"]:
        click.echo(f"a random sample of {found['images']:,} of {found['total']:,} images was read", err=True)
    echo(found["sentence"])


def _run(wanted: dict[str, Any]) -> dict[str, Any]:
    """Run the audit in a process of its own and return its result as JSON values."""
    with (
        shown_progress("reading") as on_progress,
        guarded_process(AUDIT, wanted, stdout=subprocess.PIPE) as process,
    ):
        return _answer(process, on_progress)


def _answer(process: "subprocess.Popen[str]", on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Return what the audit finds; it tells its progress on stdout."""
    assert process.stdout is not None  # noqa: S101 -- for the type checker
    for line in process.stdout:
        message = json.loads(line)
        if "error" in message:
            raise ClickException(message["error"])
        if "audit" in message:
            found: dict[str, Any] = message["audit"]
            return found
        on_progress(message["done"], message["total"])
    raise ClickException(f"the audit ended with exit code {process.wait()}; its output is above")


def _row(check: dict[str, Any]) -> tuple[str, ...]:
    interval = "" if check["low"] is None else f"{check['low']:.3f} to {check['high']:.3f}"
    return check["name"], f"{check['auroc']:.3f}", interval, "yes" if check["alarm"] else "no", check["explanation"]


def _print_contradictions(pairs: list[dict[str, Any]]) -> None:
    if not pairs:
        return
    click.echo(f"images that look alike and have different labels ({len(pairs)}):")
    for pair in pairs[:SHOWN]:
        echo(f"  {pair['first']} ({pair['first_label']}) and {pair['second']} ({pair['second_label']})")
    if len(pairs) > SHOWN:
        click.echo(f"  and {len(pairs) - SHOWN} more")
