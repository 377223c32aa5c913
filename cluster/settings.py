"""Settings of this machine, read from environment variables. Only this file reads them."""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cluster.access import denial, is_writable, user_name, why_not
from cluster.errors import SettingsError, StorageError
from cluster.lease import DEAD_AFTER_SECONDS

DEFAULT_STORAGE = "~/.nightshift"
HANG_SECONDS = 600.0
GPU_LOCKS = Path("/tmp/nightshift-gpus")  # noqa: S108 -- one folder for all users of the machine
GPU_WAIT_SECONDS = 24 * 3600.0
OWNER = 0o700  # the permissions of a file's owner
QUEUE_FOLDERS = ("runs", "names", "pending", "outbox", "schedules")  # what submitting and running a run writes to
DATA_FOLDERS = (
    "weights",
    "features",
    "downloads",
    "evaluations",
    "audits",
    "logs",
    "models",
    "mlflow",
)  # what some commands write to
CACHE_GIGABYTES = 50
CACHE_PRECISIONS = ("fp32", "bf16")  # the first one is the default
SHARD_CACHE_GIGABYTES = 10
LONGEST_USER = 63


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings; read once at each entry point and passed down.

    Attributes:
        storage: Folder that all machines share: runs, caches, weights (`NIGHTSHIFT_STORAGE`).
        redis_url: Redis of the queue (`NIGHTSHIFT_REDIS_URL`); None means the embedded server in `storage`.
        redis_ca: CA certificates for a `rediss://` server (`NIGHTSHIFT_REDIS_CA`).
        redis_plain: Allow a Redis on another machine without TLS (`NIGHTSHIFT_REDIS_ALLOW_PLAIN=1`).
        ray_token: Token for the Ray Jobs API (`RAY_AUTH_TOKEN`, or the file that `RAY_AUTH_TOKEN_PATH` names).
        ray_jobs_url: Jobs API of a Ray cluster (`NIGHTSHIFT_RAY_JOBS_URL`); None: runs start on this machine.
        webhook_hosts: Hosts that webhooks may be sent to (`NIGHTSHIFT_WEBHOOK_HOSTS`, separated by commas).
        webhook_secret: Key that webhooks are signed with (`NIGHTSHIFT_WEBHOOK_SECRET`).
        lease_seconds: An attempt without a heartbeat for this long is dead (`NIGHTSHIFT_LEASE_SECONDS`).
        ray_address: The cluster that this process is a job of, set by Ray (`RAY_ADDRESS`); None: no cluster.
        gpu_locks: Folder of this machine for the locks of its GPUs (`NIGHTSHIFT_GPU_LOCKS`).
        gpu_wait_seconds: A run fails that has waited for GPUs of this machine, or for room on a Ray cluster, longer
            than this (`NIGHTSHIFT_GPU_WAIT_SECONDS`).
        cluster_gpus: GPUs of the Ray cluster, including nodes that its autoscaler can add
            (`NIGHTSHIFT_CLUSTER_GPUS`); None: those of the nodes that are up.
        hang_seconds: Workers that wait for each other longer than this hang, and so does an attempt without progress
            (`NIGHTSHIFT_HANG_SECONDS`).
        cache_bytes: Size limit of the feature cache (`NIGHTSHIFT_CACHE_GB`).
        cache_precision: Precision of the features in it, "fp32" or "bf16" (`NIGHTSHIFT_CACHE_PRECISION`).
        shard_cache_bytes: Size limit of each machine's cache of remote shards (`NIGHTSHIFT_SHARD_CACHE_GB`).
        user: Who submits runs (`NIGHTSHIFT_USER`); None: the user of the system.
        runs_per_owner: How many runs of one owner may run at the same time (`NIGHTSHIFT_RUNS_PER_OWNER`); None: all.
        mlflow_uri: MLflow tracking server (`MLFLOW_TRACKING_URI`); it may contain a password.
        mlflow_artifacts: What is uploaded there: "model" and "report" (`NIGHTSHIFT_MLFLOW_ARTIFACTS`).
    """

    storage: Path
    redis_url: str | None = field(default=None, repr=False)
    redis_ca: Path | None = None
    redis_plain: bool = False
    ray_jobs_url: str | None = None
    ray_token: str | None = field(default=None, repr=False)
    webhook_hosts: tuple[str, ...] = ()
    webhook_secret: str | None = field(default=None, repr=False)
    lease_seconds: float = DEAD_AFTER_SECONDS
    ray_address: str | None = None
    gpu_locks: Path = GPU_LOCKS
    gpu_wait_seconds: float = GPU_WAIT_SECONDS
    cluster_gpus: int | None = None
    hang_seconds: float = HANG_SECONDS
    cache_bytes: int = CACHE_GIGABYTES * 10**9
    cache_precision: str = CACHE_PRECISIONS[0]
    shard_cache_bytes: int = SHARD_CACHE_GIGABYTES * 10**9
    user: str | None = None
    runs_per_owner: int | None = None
    mlflow_uri: str | None = field(default=None, repr=False)
    mlflow_artifacts: tuple[str, ...] = ("model",)

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings from `environment`, by default that of this process.

        Raises:
            SettingsError: A value is invalid.
        """
        env = os.environ if environment is None else environment
        storage = Path(env.get("NIGHTSHIFT_STORAGE") or DEFAULT_STORAGE).expanduser().absolute()
        return cls(
            storage=storage,
            redis_url=_address(env, "NIGHTSHIFT_REDIS_URL", ("redis", "rediss", "unix")),
            redis_ca=Path(env["NIGHTSHIFT_REDIS_CA"]) if env.get("NIGHTSHIFT_REDIS_CA") else None,
            redis_plain=env.get("NIGHTSHIFT_REDIS_ALLOW_PLAIN") == "1",
            ray_jobs_url=_address(env, "NIGHTSHIFT_RAY_JOBS_URL", ("http", "https")),
            ray_token=_ray_token(env),
            webhook_hosts=tuple(
                host.strip().lower() for host in env.get("NIGHTSHIFT_WEBHOOK_HOSTS", "").split(",") if host.strip()
            ),
            webhook_secret=env.get("NIGHTSHIFT_WEBHOOK_SECRET") or None,
            lease_seconds=_positive(env, "NIGHTSHIFT_LEASE_SECONDS", DEAD_AFTER_SECONDS, "seconds"),
            ray_address=env.get("RAY_ADDRESS") or None,
            gpu_locks=Path(env.get("NIGHTSHIFT_GPU_LOCKS", "").strip() or GPU_LOCKS).expanduser().absolute(),
            gpu_wait_seconds=_positive(env, "NIGHTSHIFT_GPU_WAIT_SECONDS", GPU_WAIT_SECONDS, "seconds"),
            cluster_gpus=_count(env, "NIGHTSHIFT_CLUSTER_GPUS"),
            hang_seconds=_positive(env, "NIGHTSHIFT_HANG_SECONDS", HANG_SECONDS, "seconds"),
            cache_bytes=_gigabytes(env, "NIGHTSHIFT_CACHE_GB", CACHE_GIGABYTES),
            cache_precision=_cache_precision(env),
            shard_cache_bytes=_gigabytes(env, "NIGHTSHIFT_SHARD_CACHE_GB", SHARD_CACHE_GIGABYTES),
            user=_user(env),
            runs_per_owner=_runs_per_owner(env),
            mlflow_uri=env.get("MLFLOW_TRACKING_URI", "").strip() or None,
            mlflow_artifacts=_mlflow_artifacts(env),
        )

    @property
    def owner(self) -> str:
        """Who submits runs: `NIGHTSHIFT_USER`, else the user of the system."""
        return user_name(os.getuid()) if self.user is None else self.user

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.storage / "runs"

    @property
    def downloads(self) -> Path:
        """The folder of downloaded archives."""
        return self.storage / "downloads"

    def with_storage_ready(self) -> "Settings":
        """Create the storage folders and return the settings.

        Raises:
            StorageError: A folder that every command of the queue writes to cannot be created or written.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            probe = self.runs / f".probe-{secrets.token_hex(8)}"  # every container has a process 1
            probe.touch()
            probe.unlink()
        except OSError as error:
            cure = "set NIGHTSHIFT_STORAGE to a folder that is"
            raise StorageError(f"storage {self.storage} is not writable: {why_not(error, self.runs, cure)}") from error
        if denied := self.denied_folders(QUEUE_FOLDERS):
            raise StorageError(f"storage {self.storage} is not writable: {denial(denied[0])}")
        return self

    def with_storage_readable(self) -> "Settings":
        """Return the settings if the runs of the storage can be listed; write nothing.

        Raises:
            StorageError: They cannot.
        """
        try:
            with os.scandir(self.runs) as runs:
                next(runs, None)
        except OSError as error:
            raise StorageError(
                f"storage {self.storage} cannot be read: {self.runs}: {error.strerror}; set NIGHTSHIFT_STORAGE to a "
                "folder that has runs and that this user may read"
            ) from error
        return self

    def denied_folders(self, names: tuple[str, ...]) -> list[Path]:
        """Return those of some folders of the storage that exist and that this user may not write."""
        return [folder for name in names if (folder := self.storage / name).is_dir() and not is_writable(folder)]


def umask_setting(environment: Mapping[str, str] | None = None) -> int | None:
    """Return the value of `NIGHTSHIFT_UMASK`, an octal number as for the shell's `umask`; None if it is not set.

    Raises:
        SettingsError: It is no octal number up to 777, or takes the owner's own permissions.
    """
    value = (os.environ if environment is None else environment).get("NIGHTSHIFT_UMASK", "").strip()
    if not value:
        return None
    if not re.fullmatch("0{0,2}[0-7]{1,3}", value) or int(value, 8) & OWNER:
        raise SettingsError(
            f"NIGHTSHIFT_UMASK {value!r} is not an octal umask that leaves the owner's permissions; write 077 for the "
            "files of one user, 027 for files that the group may read, 007 for files that the group may also change"
        )
    return int(value, 8)


def time_zone_setting() -> str | None:
    """Return the value of `TZ`, or None if it is not set. An empty value means UTC, as for the C library."""
    return None if "TZ" not in os.environ else os.environ["TZ"].strip().removeprefix(":") or "UTC"


def wants_color() -> bool:
    """Whether a terminal may be colored: unless `NO_COLOR` is set and not empty (no-color.org)."""
    return not os.environ.get("NO_COLOR")


def _ray_token(env: Mapping[str, str]) -> str | None:
    """Return the token from where Ray's own clients read it."""
    if token := env.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = env.get("RAY_AUTH_TOKEN_PATH", "").strip()
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else None
    except OSError as error:
        raise SettingsError(f"RAY_AUTH_TOKEN_PATH {path} cannot be read ({error.strerror})") from error


def _mlflow_artifacts(env: Mapping[str, str]) -> tuple[str, ...]:
    value = env.get("NIGHTSHIFT_MLFLOW_ARTIFACTS", "").strip() or "model"
    words = tuple(word.strip() for word in value.split(","))
    if words == ("none",):
        return ()
    if unknown := [word for word in words if word not in ("model", "report")]:
        raise SettingsError(
            f"NIGHTSHIFT_MLFLOW_ARTIFACTS {unknown[0]!r} is unknown; write model, report, model,report or none"
        )
    return words


def _cache_precision(env: Mapping[str, str]) -> str:
    value = env.get("NIGHTSHIFT_CACHE_PRECISION", "").strip() or CACHE_PRECISIONS[0]
    if value not in CACHE_PRECISIONS:
        raise SettingsError(f"NIGHTSHIFT_CACHE_PRECISION {value!r} is unknown; write {' or '.join(CACHE_PRECISIONS)}")
    return value


def _user(env: Mapping[str, str]) -> str | None:
    name = env.get("NIGHTSHIFT_USER", "").strip()
    if not name.isprintable() or len(name) > LONGEST_USER:
        raise SettingsError(f"NIGHTSHIFT_USER {name!r} is not a name of up to {LONGEST_USER} characters; correct it")
    return name or None


def _count(env: Mapping[str, str], name: str) -> int | None:
    value = env.get(name, "").strip()
    if value and not value.isdecimal():
        raise SettingsError(f"{name} {value!r} is not a whole number; correct it or unset it")
    return int(value) if value else None


def _runs_per_owner(env: Mapping[str, str]) -> int | None:
    limit = _count(env, "NIGHTSHIFT_RUNS_PER_OWNER")
    if limit == 0:
        raise SettingsError("NIGHTSHIFT_RUNS_PER_OWNER 0 lets no run start; write 1 or more, or unset it")
    return limit


def _positive(env: Mapping[str, str], name: str, default: float, unit: str) -> float:
    value = env.get(name, "").strip()
    try:
        number = float(value) if value else default
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise SettingsError(f"{name} {value!r} is not a number of {unit} above 0; correct it or unset it")
    return number


def _gigabytes(env: Mapping[str, str], name: str, default: float) -> int:
    return int(_positive(env, name, default, "gigabytes") * 10**9)


def _address(env: Mapping[str, str], name: str, schemes: tuple[str, ...]) -> str | None:
    value = env.get(name, "").strip()
    if not value:
        return None
    if value.partition("://")[0] not in schemes:
        forms = " or ".join(f"{scheme}://" for scheme in schemes)
        raise SettingsError(f"{name} does not start with {forms}; correct it or unset it")
    if not _is_address(value):
        raise SettingsError(
            f"{name} is not a valid address; write / ? # @ and : of its password as %2F %3F %23 %40 and %3A"
        )
    return value


def _is_address(value: str) -> bool:
    """Return whether host and port can be parsed; an unescaped slash in the password prevents it."""
    try:
        parts = urlsplit(value)
        found = parts.scheme == "unix" or (parts.hostname is not None and parts.port != 0)
    except ValueError:
        return False
    return found and "@" not in parts.path + parts.query + parts.fragment
