"""A file at an s3 or gs address, read in ranges through fsspec."""

import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from data_shards.download.address import BUCKETS
from data_shards.download.transfer import Interrupted, Transfer
from data_shards.errors import DownloadFailed, ShardError
from data_shards.locations import NETWORK, file_system

BLOCK_BYTES = 16 << 20
VERSION_FIELDS = ("ETag", "etag", "generation", "LastModified", "updated", "size")
SYNC = {"s3": "aws s3 sync", "gs": "gcloud storage rsync --recursive"}
UNREACHABLE = ("EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ClientConnectorDNSError")
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")


@dataclass(frozen=True)
class BucketFile:
    """A file in a bucket."""

    shown: str

    def open(self, offset: int, version: str | None) -> Transfer:
        """Ask for the bytes from `offset` on if the file still has this version, else for all of them.

        Raises:
            DownloadFailed: It cannot be downloaded, and another try does not help.
            Interrupted: Another try may help.
        """
        try:
            system, facts = self._facts()
        except Interrupted as error:
            if offset or type(error.__cause__).__name__ not in UNREACHABLE:
                raise
            reason = "the server of the bucket cannot be reached"
            raise DownloadFailed(self.shown, reason, "check the network and the address of the server") from error
        total, found = int(facts["size"]), _version(facts)
        start = offset if found == version and offset <= total else 0
        chunks = self._chunks(system, start, total, found)
        return Transfer(start=start, total=total, version=found, chunks=chunks)

    def _facts(self) -> tuple[Any, dict[str, Any]]:
        """Return a file system that may read the file, and what the bucket says of it."""
        system = file_system(self._scheme, os.getpid())
        try:
            facts = self._info(system)
        except DownloadFailed as error:
            if self._scheme != "s3" or type(error.__cause__).__name__ not in NO_CREDENTIALS:
                raise
            system = file_system(self._scheme, os.getpid(), anonymous=True)  # a public bucket
            facts = self._info(system)
        if facts.get("type") == "directory":
            reason = "it is a folder, and SOURCE is one archive or a folder of this machine"
            cure = f"copy it with `{SYNC[self._scheme]} {self.shown} FOLDER` and pack FOLDER, or give an archive"
            raise DownloadFailed(self.shown, reason, cure)
        return system, facts

    def _info(self, system: Any) -> dict[str, Any]:
        try:
            system.invalidate_cache()
            facts: dict[str, Any] = system.info(self.shown)
        except NETWORK as error:
            raise self._fault(error) from error
        return facts

    def _chunks(self, system: Any, start: int, total: int, version: str) -> Generator[bytes, None, None]:
        for begin in range(start, total, BLOCK_BYTES):
            try:
                yield system.cat_file(self.shown, start=begin, end=min(begin + BLOCK_BYTES, total))
            except NETWORK as error:
                raise self._fault(error) from error
        if _version(self._info(system)) != version:
            raise Interrupted("it was replaced while it was downloaded")

    def _fault(self, error: Exception) -> Exception:
        """Return an error of ours for one of the libraries, which have dozens."""
        if isinstance(error, ShardError):
            return error
        if isinstance(error, FileNotFoundError):
            return DownloadFailed(self.shown, "there is no such file", "check the bucket and the name")
        if isinstance(error, PermissionError) or type(error).__name__ in NO_CREDENTIALS:
            cure = f"check the credentials: {BUCKETS[self._scheme]}"
            return DownloadFailed(self.shown, "access is denied", cure)
        return Interrupted(f"the bucket cannot be read ({type(error).__name__})")

    @property
    def _scheme(self) -> str:
        return self.shown.partition(":")[0]


def _version(facts: dict[str, Any]) -> str:
    return " ".join(str(facts[name]) for name in VERSION_FIELDS if name in facts)
