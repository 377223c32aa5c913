"""SOURCE of `nightshift shards`: a path, or an address whose file is downloaded first."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cluster.settings import Settings
from data_shards.download.address import Address, is_address, parse_address
from data_shards.errors import SourceError
from jobs.cli.option_groups import OptionGroup
from jobs.cli.option_types import ByteSize
from jobs.cli.progress_bar import shown_bytes
from jobs.cli.terminal import echo
from jobs.errors import InvalidOption

DIGEST = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
DEFAULT_MAX = "100GB"  # data_shards.download.kept_files, which the help must not import


class SourceType(click.Path):
    """A path that exists, or an address."""

    name = "source"

    def __init__(self) -> None:
        super().__init__(exists=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a Path or an Address."""
        if not isinstance(value, str):
            return value
        try:
            if is_address(value):
                return parse_address(value)
        except SourceError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value.removeprefix("file://"), param, ctx)


class Sha256(click.ParamType[str]):
    """A sha256 in hexadecimal."""

    name = "HEX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return its 64 digits in lower case."""
        found = DIGEST.fullmatch(str(value).strip())
        return (
            found[1].lower() if found else self.fail(f"{value!r} is not a sha256 of 64 hexadecimal digits", param, ctx)
        )


DOWNLOAD = OptionGroup(
    "Download",
    (
        click.option("--sha256", type=Sha256(), help="Refuse an archive with another sha256."),
        click.option("--max-download", type=ByteSize(),
                     help=f"Maximum size of a downloaded archive.  [default: {DEFAULT_MAX}]"),
        click.option("--refresh", is_flag=True, help="Download again what the storage has already."),
        click.option("--allow-http-redirect", is_flag=True,
                     help="Follow a redirect from https to http, which others can read and change on the way."),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DownloadChoices:
    """The values of the options of `DOWNLOAD`."""

    sha256: str | None
    max_download: int | None
    refresh: bool
    allow_http_redirect: bool

    @classmethod
    def take(cls, given: dict[str, Any]) -> "DownloadChoices":
        """Remove the options from those of a command and return them."""
        return cls(**{name: given.pop(name) for name in cls.__dataclass_fields__})


@contextmanager
def local_source(source: Path | Address, choices: DownloadChoices) -> Iterator[Path]:
    """Give the path of a source; the file of an address is downloaded once and kept in the storage.

    Raises:
        InvalidOption: An option does not fit the source.
        DownloadFailed: The file cannot be downloaded, or has another sha256.
        SourceError: The archive cannot be used; the text names the address.
    """
    if isinstance(source, Path):
        _check_path(source, choices)
        yield source
        return
    _check_address(source, choices)
    from data_shards.download.kept_files import MAX_BYTES, DownloadOptions, kept_file  # noqa: PLC0415

    with ExitStack() as held:
        with shown_bytes("downloading") as on_bytes:
            options = DownloadOptions(
                folder=Settings.read().downloads,
                sha256=choices.sha256,
                max_bytes=choices.max_download or MAX_BYTES,
                refresh=choices.refresh,
                allow_http=choices.allow_http_redirect,
                on_bytes=on_bytes,
                on_note=lambda line: echo(line, err=True),
            )
            path = held.enter_context(kept_file(source, options))
        try:
            yield path
        except SourceError as error:
            raise SourceError(str(error).replace(str(path), str(source))) from error


def _check_path(source: Path, choices: DownloadChoices) -> None:
    if choices.max_download or choices.refresh or choices.allow_http_redirect:
        raise InvalidOption(
            f"--max-download, --refresh and --allow-http-redirect are for addresses, and {source} is a path"
        )
    if choices.sha256 is None:
        return
    if not source.is_file():
        raise InvalidOption(f"--sha256 is for an archive, and {source} is a folder; leave it out")
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != choices.sha256:
        raise SourceError(f"the sha256 of {source} is {found} and not {choices.sha256}; copy it again")


def _check_address(source: Address, choices: DownloadChoices) -> None:
    if source.kind != "kaggle":
        return
    if choices.sha256:
        raise InvalidOption(
            "--sha256 does not work with kaggle:, which gives files instead of an archive; "
            "pin the version instead: kaggle:OWNER/NAME/versions/N"
        )
    if choices.max_download:
        raise InvalidOption("--max-download does not work with kaggle:, which does not tell the size; leave it out")
