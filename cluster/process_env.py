"""Environment variables of the processes that we start, and of the libraries in this one."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cluster.settings import Settings

LOCAL_RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_COLOR_PREFIX": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # a worker that hangs does not answer this either
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a spec mean the same in a worker
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # two cores that are busy elsewhere take their time
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a search has a ledger of its own
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}
MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # each would be a line in the log; the tracking tries again by itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
SECRETS = ("NIGHTSHIFT_REDIS_URL", "NIGHTSHIFT_WEBHOOK_SECRET")  # a trainer has no use for them


def trainer_environment(storage: Path, run_id: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment a trainer starts with: this process's, without the queue's secrets, marked by its run."""
    env = os.environ if environment is None else environment
    kept = {name: value for name, value in env.items() if name not in SECRETS}
    return {**kept, "NIGHTSHIFT_STORAGE": str(storage), "NIGHTSHIFT_RUN": run_id}


def job_worker_environment(settings: Settings, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a job worker that shall use the same storage and the same Redis."""
    env = dict(os.environ if environment is None else environment)
    env["NIGHTSHIFT_STORAGE"] = str(settings.storage)
    env["NIGHTSHIFT_LEASE_SECONDS"] = str(settings.lease_seconds)
    if settings.redis_url:
        env["NIGHTSHIFT_REDIS_URL"] = settings.redis_url
    return env


def set_local_ray_environment() -> None:
    """Set what Ray reads from the environment of the process that starts it, and its children inherit.

    An open port of Ray runs anybody's code, so the local one asks for a token that lives as long as this process and
    stands in no file.
    """
    os.environ.update(LOCAL_RAY, RAY_AUTH_TOKEN=secrets.token_hex(32))


def set_pending_trials(trials: int) -> None:
    """Let Ray Tune start the processes of so many trials at once; by itself it starts one after the other."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(trials)


def set_ray_address(address: str) -> None:
    """Let what asks for the address of Ray in this process find its own, and no other that runs on the machine."""
    os.environ["RAY_ADDRESS"] = address


def set_mlflow_defaults() -> None:
    """Set what MLflow's client reads from the environment, unless a person has: it shall not make a run wait."""
    for name, value in MLFLOW.items():
        os.environ.setdefault(name, value)
