"""Locations of data sets: a folder, or a URL of an allowed scheme. Knows nothing of indexes or shards."""

import errno
import os
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from data_shards.errors import BadIndex, DamagedShard, RemoteError, ShardError, SourceError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
CREDENTIALS = {  # by scheme, the environment variables that its file system takes them from
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "http": "FSSPEC_HTTP",
    "https": "FSSPEC_HTTPS",
}
REMOTE = tuple(CREDENTIALS)
# Each file system raises its own errors for a failing network, not all of them OSError.
NETWORK = (Exception,)
STALL_SECONDS = 60.0  # without a byte, after which an http server is given up
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
CURE = "use a folder, file://, s3://, gs://, http:// or https://"


def local_folder(location: str) -> Path | None:
    """Return the folder of a location on this machine, None for a remote one.

    Raises:
        SourceError: The scheme is not allowed; `pipe:` and others would run programs. Or the address holds a password.
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
        _refuse_password(scheme, location)
        return None
    raise SourceError(f"{location!r} has the scheme {scheme}:, which is not allowed; {CURE}")


def _refuse_password(scheme: str, location: str) -> None:
    """Refuse an address with a user name or password: it stands in the files and reports of each run that uses it."""
    host = location.removeprefix(f"{scheme}://").partition("/")[0]
    if "@" in host:
        raise SourceError(
            f"the address {scheme}://{host.rpartition('@')[2]} has a user name or password before its host, which the "
            f"files and reports of runs would show; leave it out, and set {CREDENTIALS[scheme]} (docs/data.md)"
        )


def read_bytes(location: str, name: str) -> bytes:
    """Return the content of a small file of a data set.

    Raises:
        BadIndex: The file is missing or unreadable.
        SourceError: The location is not allowed, or the package for its scheme is not installed.
    """
    folder = local_folder(location)
    where = _below(location, name)
    try:
        return (folder / name).read_bytes() if folder is not None else cast(bytes, _system(location).cat_file(where))
    except ShardError:
        raise
    except FileNotFoundError as error:
        raise BadIndex(f"{where} does not exist; `shards pack` makes a data set") from error
    except NotADirectoryError as error:
        raise BadIndex(f"{location} is a file; give the folder that `nightshift shards pack` wrote") from error
    except NETWORK as error:
        if folder is not None and isinstance(error, OSError):
            why = f"{error.strerror}; check the disk and its permissions"
        else:
            why = _first_line(error)
        raise BadIndex(f"{where} cannot be read: {why}") from error


def download(location: str, name: str, target: Path) -> str | None:
    """Download a file of a remote data set. Return None, or the fault if another try may help.

    Raises:
        RemoteError: The file does not exist or access is denied.
        SourceError: The package for the scheme is not installed.
        OSError: The disk of the target is full.
    """
    where = _below(location, name)
    try:
        _system(location).get_file(where, str(target))
    except ShardError:
        raise
    except FileNotFoundError as error:
        raise RemoteError(f"{where} is missing; copy it again or pack the data set again") from error
    except PermissionError as error:
        raise RemoteError(f"{where} may not be read ({_first_line(error)}); check the credentials") from error
    except NETWORK as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        return f"{name} cannot be fetched ({_first_line(error)})"
    return None


def shard_path(location: str, name: str) -> Path:
    """Return the path of a shard in a local data set.

    Raises:
        DamagedShard: The shard is missing.
    """
    path = cast(Path, local_folder(location)) / name
    if not path.is_file():
        raise DamagedShard(f"{path} is missing; copy it again or pack the data set again")
    return path


def _system(location: str) -> Any:
    return file_system(location.partition(":")[0], os.getpid())


@cache
def file_system(scheme: str, process: int, *, anonymous: bool = False) -> Any:  # noqa: ARG001 (part of the cache key)
    """Return the file system of a scheme, one for each process, as connections do not survive a fork.

    Args:
        scheme: One of `REMOTE`.
        process: Id of this process.
        anonymous: Send no credentials to s3, as public buckets need it where there are none.

    Raises:
        SourceError: The package for the scheme is not installed.
    """
    import fsspec  # noqa: PLC0415 (takes a third of a second, which local data sets need not wait for)

    options: dict[str, Any] = {"anon": True} if anonymous else {}
    try:
        if scheme in ("http", "https"):
            import aiohttp  # noqa: PLC0415 -- fsspec needs it for these

            # Without it, aiohttp ends every download after five minutes, however well it goes on.
            limits = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
            options["client_kwargs"] = {"timeout": limits}
        return fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        package = PACKAGES.get(scheme, "aiohttp")
        extra = f"'nightshift[{scheme}]'" if scheme in PACKAGES else package
        raise SourceError(
            f"{scheme}:// needs the package {package}, which is not installed; run `pip install {extra}`"
        ) from error


def _below(location: str, name: str) -> str:
    return f"{location.rstrip('/')}/{name}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, TimeoutError) and not text:  # that of aiohttp, by the limits of `file_system`
        return f"the server has sent nothing for {STALL_SECONDS:g} s"
    return (text or type(error).__name__).splitlines()[0]
