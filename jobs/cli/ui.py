"""`nightshift ui`: the page of runs and searches."""

from pathlib import Path
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.option_groups import OptionGroup, options

PORT = 8280
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ADDRESS = OptionGroup(
    "Address",
    (
        click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
                     help="Address to listen on. An address other than loopback needs TLS or --public-url."),
        click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), metavar="PORT",
                     help="TCP port; 0 chooses a free one."),
        click.option("--tls-cert", "certificate", type=FILE, metavar="FILE", help="PEM file with a certificate."),
        click.option("--tls-key", "key", type=FILE, metavar="FILE", help="PEM file with its private key."),
        click.option("--public-url", metavar="URL",
                     help="https address that browsers use, of a proxy or of this machine, such as "
                     "https://nightshift.example.org."),
    ),
)  # fmt: skip
READ_ONLY = click.option(
    "--read-only",
    "is_read_only",
    is_flag=True,
    help="Show runs without buttons to change them; the storage need not be writable.",
)


@command(example="nightshift ui\nnightshift ui --port 0 --read-only")
@options(ADDRESS, OptionGroup("Access", (READ_ONLY,)))
def ui(*, is_read_only: bool, **address: Any) -> None:
    """Serve the page of runs, models and queues until Ctrl-C, and print its address.

    The address contains a token; without it the page answers 401. The token is new at each start. Programs get the
    same addresses as JSON: `curl -H "Authorization: Bearer TOKEN" -H "Accept: application/json" ADDRESS`.
    """
    # --help does not wait for these.
    from jobs.cli.fork import submit_fork  # noqa: PLC0415
    from jobs.queue.storage_check import refuse_unmounted  # noqa: PLC0415
    from jobs.web.server import Listen, serve  # noqa: PLC0415

    settings = Settings.read()
    refuse_unmounted(settings)
    settings = settings.with_storage_readable() if is_read_only else settings.with_storage_ready()
    serve(settings, Listen(**address), fork=submit_fork, is_read_only=is_read_only, on_start=click.echo)
