"""What each environment variable means; the settings reference of the user guide is made from this list."""

from dataclasses import dataclass

from cluster.lease import DEAD_AFTER_SECONDS
from cluster.settings import (
    CACHE_GIGABYTES,
    CACHE_PRECISIONS,
    DEFAULT_STORAGE,
    GPU_LOCKS,
    GPU_WAIT_SECONDS,
    HANG_SECONDS,
    SHARD_CACHE_GIGABYTES,
)


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One environment variable.

    Attributes:
        name: Its name.
        meaning: What it sets, as Markdown.
        unset: What holds without it, as Markdown.
    """

    name: str
    meaning: str
    unset: str


VARIABLES = (
    Variable(
        name="NIGHTSHIFT_STORAGE",
        meaning="folder shared by all machines, for runs, weights and features",
        unset=f"`{DEFAULT_STORAGE}`",
    ),
    Variable(
        name="NIGHTSHIFT_REDIS_URL",
        meaning="the queue: `rediss://`, `redis://` or `unix://`",
        unset="an embedded server, started when needed",
    ),
    Variable(
        name="NIGHTSHIFT_REDIS_CA",
        meaning="CA certificates for a `rediss://` server",
        unset="the system's",
    ),
    Variable(
        name="NIGHTSHIFT_REDIS_ALLOW_PLAIN",
        meaning="`1` allows a Redis on another machine without TLS",
        unset="refused",
    ),
    Variable(
        name="NIGHTSHIFT_RAY_JOBS_URL",
        meaning="Jobs API of a Ray cluster; the token is in `RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH`",
        unset="runs start on this machine",
    ),
    Variable(
        name="NIGHTSHIFT_CLUSTER_GPUS",
        meaning="maximum number of GPUs of that cluster, with autoscaling",
        unset="the GPUs that Ray currently has",
    ),
    Variable(
        name="NIGHTSHIFT_GPU_LOCKS",
        meaning="folder of this machine in which runs of all its users lock the GPUs that they use",
        unset=f"`{GPU_LOCKS}`",
    ),
    Variable(
        name="NIGHTSHIFT_GPU_WAIT_SECONDS",
        meaning="a run fails that has waited for GPUs of its machine, or for room on a Ray cluster, for "
        "longer than this",
        unset=f"{GPU_WAIT_SECONDS:.0f}",
    ),
    Variable(
        name="NIGHTSHIFT_CACHE_GB",
        meaning="size limit of the feature cache, in GB",
        unset=f"{CACHE_GIGABYTES}",
    ),
    Variable(
        name="NIGHTSHIFT_CACHE_PRECISION",
        meaning="how the feature cache stores features: `fp32` as computed, or `bf16`, which takes half the "
        "space and is a little less exact",
        unset=f"`{CACHE_PRECISIONS[0]}`",
    ),
    Variable(
        name="NIGHTSHIFT_SHARD_CACHE_GB",
        meaning="size limit of the cache of remote shards on each machine, in GB",
        unset=f"{SHARD_CACHE_GIGABYTES}",
    ),
    Variable(
        name="NIGHTSHIFT_LEASE_SECONDS",
        meaning="an attempt without a heartbeat for this time counts as lost",
        unset=f"{DEAD_AFTER_SECONDS:.0f}",
    ),
    Variable(
        name="NIGHTSHIFT_HANG_SECONDS",
        meaning="an attempt counts as hung if its progress stands still, or its workers wait for each other, longer "
        "than this",
        unset=f"{HANG_SECONDS:.0f}",
    ),
    Variable(
        name="MLFLOW_TRACKING_URI",
        meaning="MLflow server to which job workers send runs; needs the extra `mlflow`, which `make install` and the "
        "container image include",
        unset="off",
    ),
    Variable(
        name="NIGHTSHIFT_MLFLOW_ARTIFACTS",
        meaning="what is uploaded to it: `model`, `report`, `model,report` or `none`",
        unset="`model`",
    ),
    Variable(
        name="NIGHTSHIFT_WEBHOOK_HOSTS",
        meaning="hosts that `--notify` may send webhooks to, separated by commas",
        unset="none",
    ),
    Variable(
        name="NIGHTSHIFT_WEBHOOK_SECRET",
        meaning="the key that signs webhooks",
        unset="none",
    ),
    Variable(
        name="NIGHTSHIFT_UMASK",
        meaning="permissions that new files do not have, in octal: `007` for a team, `077` for one user",
        unset="the umask of the process, without any permission for users outside the group",
    ),
    Variable(
        name="NIGHTSHIFT_USER",
        meaning="who submits runs, for `list --mine` and the history of models",
        unset="the user of the system",
    ),
    Variable(
        name="NIGHTSHIFT_RUNS_PER_OWNER",
        meaning="how many runs of one owner may run at the same time; set it for all job workers and `reconcile`",
        unset="no limit",
    ),
    Variable(
        name="OMP_NUM_THREADS",
        meaning="threads that each process uses on CPUs: each worker of several, the only worker on a machine without "
        "a Ray cluster, and `predict --now`; and processes that train the heads of `--folds`",
        unset="1 for each worker of several, else all CPUs",
    ),
    Variable(
        name="GOMP_SPINCOUNT",
        meaning="how often these threads look for work before they leave the CPU to other processes; a higher number "
        "slows other processes down",
        unset="3000, unless `OMP_WAIT_POLICY` is set; 3000 in the container image",
    ),
    Variable(name="NO_COLOR", meaning="any value turns off colors", unset="colors on a terminal"),
    Variable(
        name="TZ",
        meaning="time zone of times such as `--at 08:00`, `--until` and `--window`",
        unset="the system's",
    ),
    Variable(
        name="TMPDIR",
        meaning="local files of this machine: the cache of remote shards, the index of runs, and Ray's files",
        unset="`/tmp`",
    ),
)
