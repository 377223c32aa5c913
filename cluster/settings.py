"""Addresses and folders of this machine. The only file that reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import SettingsError, StorageError

DEFAULT_STORAGE = "~/.nightshift"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What this machine was told; read once at each entry point and passed down.

    Attributes:
        storage: Folder that all machines share: runs, caches, weights (`NIGHTSHIFT_STORAGE`).
        redis_url: Where the queue lives (`NIGHTSHIFT_REDIS_URL`); None means the embedded server under `storage`.
        ray_jobs_url: Jobs API of a standing Ray cluster (`NIGHTSHIFT_RAY_JOBS_URL`); None means this machine.
    """

    storage: Path
    redis_url: str | None = None
    ray_jobs_url: str | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings from `environment`, by default this process's.

        Raises:
            SettingsError: A value is no address of the kind it should be.
        """
        env = os.environ if environment is None else environment
        storage = Path(env.get("NIGHTSHIFT_STORAGE") or DEFAULT_STORAGE).expanduser().absolute()
        return cls(
            storage=storage,
            redis_url=_address(env, "NIGHTSHIFT_REDIS_URL", ("redis", "rediss", "unix")),
            ray_jobs_url=_address(env, "NIGHTSHIFT_RAY_JOBS_URL", ("http", "https")),
        )

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.storage / "runs"

    def with_storage_ready(self) -> "Settings":
        """Make the storage folders and return the settings.

        Raises:
            StorageError: The folder cannot be made or written.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            probe = self.runs / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StorageError(
                f"storage {self.storage} is not writable ({error.strerror}); set NIGHTSHIFT_STORAGE to a folder that is"
            ) from error
        return self


def _address(env: Mapping[str, str], name: str, schemes: tuple[str, ...]) -> str | None:
    value = env.get(name, "").strip()
    if not value:
        return None
    if urlsplit(value).scheme not in schemes:
        forms = " or ".join(f"{scheme}://" for scheme in schemes)
        raise SettingsError(f"{name} does not begin with {forms}; correct it or unset it")
    return value
