"""Environment variables of the processes that we start, and of the libraries in this one."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cluster.settings import Settings

LOCAL_RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_COLOR_PREFIX": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # a hanging worker would not respond later either
    # Ray Train's processes have environments of their own, so none could use a worker that Ray has started for any job,
    # one for each CPU, and `ray.init` would wait for all of them.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # until the end of the workers is noticed; Ray's own is 2
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that asks Ray whether this machine will be taken away
    "RAY_enable_pipe_based_agent_to_parent_health_check": "1",  # the agents may be no children of the raylet
    # The raylet connects to its object store, which another of its threads starts: without this once, and then again
    # after a second, which about one start in four had to wait.
    "RAY_raylet_client_connect_timeout_milliseconds": "10",
    "RAY_raylet_client_num_connect_attempts": "3000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that relative paths of a spec also work in a worker
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a busy machine needs minutes to start its workers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a search writes its own trial journal
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}
MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # each retry logs a line; the sender retries anyway
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds, also until the server has stored a model
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it can contain a password
    "GIT_PYTHON_REFRESH": "quiet",
}
OPENMP = {
    # Between two parallel regions, threads of torch (GNU OpenMP) wait in a loop, 300,000 times unless told otherwise.
    # Where other processes need the cores, that takes most of the time of both; 3,000 are enough where none does.
    "GOMP_SPINCOUNT": "3000",
}
SECRETS = ("NIGHTSHIFT_REDIS_URL", "NIGHTSHIFT_WEBHOOK_SECRET")  # the trainer does not need them


def trainer_environment(storage: Path, run_id: str) -> dict[str, str]:
    """Return the environment of a trainer: that of this process without the queue's secrets, with the run's id.

    Threads of torch soon leave the CPU to others while they wait, unless the environment says otherwise.
    """
    kept = {name: value for name, value in torch_environment().items() if name not in SECRETS}
    return {**kept, "NIGHTSHIFT_STORAGE": str(storage), "NIGHTSHIFT_RUN": run_id}


def torch_environment() -> dict[str, str]:
    """Return the environment of a process that computes with torch, which reads `OPENMP` only when it starts."""
    return dict(os.environ) if "OMP_WAIT_POLICY" in os.environ else {**OPENMP, **os.environ}


def job_worker_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a job worker that uses the same storage and the same Redis."""
    env = dict(os.environ)
    env["NIGHTSHIFT_STORAGE"] = str(settings.storage)
    env["NIGHTSHIFT_LEASE_SECONDS"] = str(settings.lease_seconds)
    if settings.redis_url:
        env["NIGHTSHIFT_REDIS_URL"] = settings.redis_url
    return env


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of the process that sends runs to MLflow: that of a job worker with these settings."""
    artifacts = ",".join(settings.mlflow_artifacts) or "none"
    return {
        **MLFLOW,
        **job_worker_environment(settings),
        "MLFLOW_TRACKING_URI": settings.mlflow_uri or "",
        "NIGHTSHIFT_MLFLOW_ARTIFACTS": artifacts,
    }


def environment_of_process() -> dict[str, str]:
    """Return a copy of the environment of this process."""
    return dict(os.environ)


def replace_environment(environment: Mapping[str, str]) -> None:
    """Give this process exactly this environment."""
    os.environ.clear()
    os.environ.update(environment)


@contextlib.contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during the block."""
    before = environment_of_process()
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
            if name in before:
                os.environ[name] = before[name]


def keep_arrow_single_threaded() -> None:
    """Let pyarrow's allocator start no thread of its own; call it before pyarrow is imported."""
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"


def openmp_threads() -> int | None:
    """Return the value of `OMP_NUM_THREADS`, None if it is not set to a number."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) else None


def cuda_visible_devices() -> str | None:
    """Return the value of `CUDA_VISIBLE_DEVICES`, None if it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def environment_with_gpus(uuids: Sequence[str]) -> dict[str, str]:
    """Return the environment of this process with only these GPUs visible to CUDA."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(uuids)}


def show_gpus(uuids: Sequence[str]) -> None:
    """Make only these GPUs visible to CUDA, in this process unless it has started CUDA, and in its children."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)


def hide_gpus() -> None:
    """Hide all GPUs from CUDA, in this process unless it has started CUDA, and in its children.

    A process that trains on CPUs alone would start CUDA on the GPUs that it sees: Ray Train selects one, each step of
    an optimizer asks whether its stream is captured, and the first backward pass starts a thread for each. That takes
    memory of GPUs that other runs have leased, fails where these use them alone, and a fork of a process that has
    started CUDA cannot train.
    """
    show_gpus(())


def set_local_ray_environment() -> None:
    """Set the environment variables of a Ray that this process starts. Its children inherit them.

    Whoever can connect to Ray can run code, so the local Ray requires a token. The token is created for this process
    and is not written to any file.
    """
    os.environ.update(LOCAL_RAY, RAY_AUTH_TOKEN=secrets.token_hex(32))


def set_pending_trials(trials: int) -> None:
    """Set how many trials Ray Tune starts at the same time; its default is one after the other."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(trials)


def set_ray_address(address: str) -> None:
    """Set the address of Ray in this process, so that Ray's clients do not connect to another Ray on this machine."""
    os.environ["RAY_ADDRESS"] = address


def set_mlflow_defaults() -> None:
    """Set defaults for MLflow's client, so that a slow server delays no other run. Values that are set are kept."""
    for name, value in MLFLOW.items():
        os.environ.setdefault(name, value)
