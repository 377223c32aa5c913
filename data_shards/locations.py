"""Where a data set lies: a folder, or a URL of an allowed scheme. Knows nothing of indexes or shards."""

from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from data_shards.errors import BadIndex, DamagedShard, SourceError

REMOTE = ("s3", "gs", "http", "https")
CURE = "use a folder, file://, s3://, gs://, http:// or https://"


def local_folder(location: str) -> Path | None:
    """Return the folder of a location on this machine, None for a remote one.

    Raises:
        SourceError: The scheme is none of the allowed ones; `pipe:` and the like would run programs.
    """
    scheme, colon, _ = location.partition(":")
    if not colon or "/" in scheme:
        return Path(location)
    if scheme == "file":
        parts = urlsplit(location)
        if parts.netloc not in ("", "localhost"):
            raise SourceError(f"{location} names the machine {parts.netloc}; write file:///FOLDER")
        return Path(unquote(parts.path))
    if scheme in REMOTE and location.startswith(f"{scheme}://"):
        return None
    raise SourceError(f"{location!r} has the scheme {scheme}:, which is not allowed; {CURE}")


def open_remote(location: str, name: str) -> BinaryIO:
    """Open a file of a remote data set for reading, front to back.

    A file system is made anew for each call: fsspec's shared ones do not survive a fork into loader workers.

    Raises:
        SourceError: The package for the scheme is not installed.
        OSError: The file is absent or the server failed; the caller may try again.
    """
    import fsspec  # noqa: PLC0415 (a third of a second that local data sets need not pay)

    scheme = location.partition(":")[0]
    try:
        system = fsspec.filesystem(scheme, skip_instance_cache=True)
    except ImportError as error:
        raise SourceError(f"{location} needs a package that is not installed: {error}") from error
    return cast(BinaryIO, system.open(f"{location.rstrip('/')}/{name}", "rb", cache_type="readahead"))


def read_bytes(location: str, name: str) -> bytes:
    """Return the content of a small file of a data set.

    Raises:
        BadIndex: The file is absent or unreadable.
    """
    folder = local_folder(location)
    try:
        if folder is not None:
            return (folder / name).read_bytes()
        with open_remote(location, name) as file:
            return file.read()
    except FileNotFoundError as error:
        raise BadIndex(f"{location.rstrip('/')}/{name} does not exist; `shards pack` makes a data set") from error
    except OSError as error:
        raise BadIndex(f"{location.rstrip('/')}/{name} cannot be read: {error}") from error


def shard_path(location: str, name: str) -> Path:
    """Return the path of a shard in a local data set.

    Raises:
        DamagedShard: The shard is missing.
    """
    path = cast(Path, local_folder(location)) / name
    if not path.is_file():
        raise DamagedShard(f"{path} is missing; copy it again or pack the data set anew")
    return path
