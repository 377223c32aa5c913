"""`nightshift doctor`: checks this machine and says how to cure each fault."""

import contextlib
import importlib.metadata
import json
import socket
import sys
import time
import urllib.error
from dataclasses import replace
from pathlib import Path

import click
import redis

from cluster.access import unreadable
from cluster.cluster_version import read_cluster_version
from cluster.errors import ClusterError, StorageError
from cluster.gpu_health import check_processors
from cluster.health import CheckResult, check_storage
from cluster.ray_jobs import RayJobs
from cluster.settings import Settings
from cluster.version import VERSION
from data_shards.counted import counted
from data_shards.errors import DamagedShard, ShardError, verify_hint
from data_shards.index import ShardIndex, find_size_fault
from data_shards.locations import local_folder, shard_path
from jobs.cli.command import command
from jobs.cli.completion import complete_path
from jobs.cli.option_groups import OptionGroup, json_option, options
from jobs.cli.terminal import echo
from jobs.cli.text_table import output_width, wrapped
from jobs.errors import JobError
from jobs.queue import embedded_redis
from jobs.queue.checks import index_of, weights_file
from jobs.queue.connection import connect, without_password
from jobs.queue.overview import queue_overview, waiting_faults
from jobs.queue.storage_check import refuse_other_storage
from jobs.queue.worker_list import WorkerRecord, serving_workers
from jobs.runs.progress_text import duration
from trainer.errors import TrainerError
from trainer.model.names import IMAGENET_FILE

CLOCK_SECONDS = 30  # that two clocks may differ by
CURE = " " * 9 + "cure: "
PROBE_KEY = "nightshift:doctor"
DATA = OptionGroup(
    "Data and model",
    (
        click.option(
            "--shards",
            metavar="SHARDS",
            shell_complete=complete_path,
            help="Also check the index of these shards and the sizes of local ones.",
        ),
        click.option("--weights", metavar="FILE", shell_complete=complete_path, help="Also check this weights file."),
    ),
)


@command(example="nightshift doctor --shards shards/chest")
@options(DATA, OptionGroup("Output", (json_option("Print the check results as JSON."),)))
def doctor(shards: str | None, weights: str | None, as_json: bool) -> None:
    """Check Redis, Ray, GPUs, storage, shards and weights, and print how to fix each problem.

    The exit code is 1 if a check fails.
    """
    settings = Settings.read()
    findings = check_storage(settings.storage)
    of_redis, workers = redis_findings(settings)
    findings += [*of_redis, ray_finding(settings), *version_findings(settings, workers)]
    findings += check_processors()
    findings.append(weights_finding(settings, weights))
    if shards:
        findings.append(shards_finding(shards))
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        width = output_width()
        for finding in findings:
            first = f"{'ok   ' if finding.ok else 'FAULT'}  "
            echo(wrapped(f"{finding.check}: {finding.found}", width, first=first, indent=len(first)))
            if finding.cure:
                echo(wrapped(finding.cure, width, first=CURE, indent=len(CURE)))
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


def redis_findings(settings: Settings) -> tuple[list[CheckResult], list[WorkerRecord]]:
    """Check Redis, or that the embedded one can be started, and its queues; return also the live job workers."""
    if settings.redis_url is None:
        return _embedded_findings(settings)
    workers: list[WorkerRecord] = []
    try:
        with connect(settings) as connection:
            version = connection.info("server").get("redis_version")
            workers = serving_workers(connection)
            refuse_other_storage(settings, connection)
            connection.set(PROBE_KEY, 1, ex=1)  # a full server, or a replica, answers too
            of_queues = [*_clock_findings(connection), *_queue_findings(connection)]
    except redis.OutOfMemoryError:
        full = f"{without_password(settings.redis_url)} is full, so no run can be queued"
        return [CheckResult(check="Redis", ok=False, found=full, cure="raise its maxmemory")], workers
    except redis.ReadOnlyError:
        replica = f"{without_password(settings.redis_url)} is a read-only replica"
        cure = "name the primary in NIGHTSHIFT_REDIS_URL"
        return [CheckResult(check="Redis", ok=False, found=replica, cure=cure)], workers
    except StorageError as error:
        cure = "mount the shared storage there or correct NIGHTSHIFT_STORAGE"
        return [CheckResult(check="storage", ok=False, found=str(error).partition(";")[0], cure=cure)], workers
    except (JobError, redis.RedisError) as error:
        return [_redis_fault(error, "start it or correct NIGHTSHIFT_REDIS_URL")], workers
    found = f"{without_password(settings.redis_url)}, version {version}"
    return [CheckResult(check="Redis", ok=True, found=found), *of_queues], workers


def _embedded_findings(settings: Settings) -> tuple[list[CheckResult], list[WorkerRecord]]:
    try:
        server = embedded_redis.running(settings.storage)
        if server is None:
            found = f"embedded, started when needed ({_program()})"
            return [CheckResult(check="Redis", ok=True, found=found)], []
    except (JobError, StorageError) as error:
        return [_redis_fault(error, "name another Redis server in NIGHTSHIFT_REDIS_URL")], []
    workers, of_queues = list[WorkerRecord](), list[CheckResult]()
    with (
        contextlib.suppress(JobError, redis.RedisError),
        connect(replace(settings, redis_url=server.url)) as connection,
    ):
        workers, of_queues = serving_workers(connection), _queue_findings(connection)
    return [CheckResult(check="Redis", ok=True, found="the embedded server answers"), *of_queues], workers


def _clock_findings(connection: redis.Redis) -> list[CheckResult]:
    """Compare the clocks of this machine and of Redis, whatever time the answer takes; nothing if they agree."""
    before = time.time()
    seconds, microseconds = connection.time()
    after, there = time.time(), seconds + microseconds / 10**6
    off = before - there if there < before else after - there if there > after else 0.0
    if abs(off) < CLOCK_SECONDS:
        return []
    found = f"this machine's is {duration(abs(off))} {'ahead of' if off > 0 else 'behind'} that of Redis"
    cure = "correct the one that is wrong (NTP): windows, schedules and certificates depend on it"
    return [CheckResult(check="clock", ok=False, found=found, cure=cure)]


def _queue_findings(connection: redis.Redis) -> list[CheckResult]:
    """Check that the queues in which runs wait are open and served."""
    overview = queue_overview(connection)
    faults = [fault.partition("; ") for fault in waiting_faults(overview)]
    if faults:
        return [CheckResult(check="queues", ok=False, found=found, cure=cure) for found, _, cure in faults]
    some_wait = any(queue["waiting"] for queue in overview["queues"])
    found = "job workers serve all queues in which runs wait" if some_wait else "no run waits"
    return [CheckResult(check="queues", ok=True, found=found)]


def _redis_fault(error: Exception, otherwise: str) -> CheckResult:
    """Return what an error says as fault and cure; the cure is `otherwise` where the error has none."""
    fault, _, cure = str(error).rpartition("; ")
    found, cure = (fault, cure) if fault else (str(error), otherwise)
    return CheckResult(check="Redis", ok=False, found=found, cure=cure)


def version_findings(settings: Settings, workers: list[WorkerRecord]) -> list[CheckResult]:
    """Compare the versions of Nightshift of this command line, the job workers and the cluster."""
    found = {f"job worker {worker.name}": worker.version or "0.1.0 or before" for worker in workers}
    if settings.ray_jobs_url and (cluster := read_cluster_version(settings.storage)):
        found["the cluster, in its last run,"] = cluster
    others = {who: other for who, other in found.items() if other != VERSION}
    cure = "install the same version everywhere and restart the job workers"
    return [
        CheckResult(check="versions", ok=False, found=f"{VERSION} here, {who} has {other}", cure=cure)
        for who, other in others.items()
    ] or [CheckResult(check="versions", ok=True, found=f"{VERSION} here{_counted(len(found))}")]


def _counted(others: int) -> str:
    if others == 0:  # or they are not known, as Redis does not answer
        return ""
    return " and on 1 job worker or cluster" if others == 1 else f" and on {others} job workers and clusters"


def ray_finding(settings: Settings) -> CheckResult:
    """Check that Ray is installed and, where a cluster is set, that its Jobs API answers."""
    version = importlib.metadata.version("ray")
    if settings.ray_jobs_url is None:
        return CheckResult(check="Ray", ok=True, found=f"{version}, started on this machine for each run")
    try:
        remote = RayJobs(settings.ray_jobs_url, settings.ray_token).version()
    except urllib.error.HTTPError as error:
        cure = "give the cluster's token: RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH for the file that holds it"
        return CheckResult(
            check="Ray", ok=False, found=f"{settings.ray_jobs_url} refuses access (HTTP {error.code})", cure=cure
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = "start the cluster or correct NIGHTSHIFT_RAY_JOBS_URL"
        return CheckResult(check="Ray", ok=False, found=f"{settings.ray_jobs_url} {_why_no_ray(error)}", cure=cure)
    if remote != version:
        cure = "install the same version of Ray on both sides"
        return CheckResult(check="Ray", ok=False, found=f"{version} here, {remote} on the cluster", cure=cure)
    return CheckResult(check="Ray", ok=True, found=f"{version}, cluster {settings.ray_jobs_url}")


def _why_no_ray(error: Exception) -> str:
    """Return why there is no answer of Ray's, to be read after the address."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, socket.gaierror):
        return "has a host name that cannot be resolved"  # it does not exist, or DNS does not answer
    if isinstance(reason, TimeoutError):
        return "does not answer in time"
    if isinstance(reason, OSError):
        return f"does not answer ({reason.strerror or reason})"
    if isinstance(reason, str):
        return f"does not answer ({reason})"
    return "answers, but not as Ray's Jobs API"


def weights_finding(settings: Settings, weights: str | None) -> CheckResult:
    """Check a file of weights, or whether the official one is in the storage."""
    if weights:
        try:
            return CheckResult(
                check="weights", ok=True, found=f"{weights_file(weights)} has the layers of EfficientNet-B0"
            )
        except TrainerError as error:
            return CheckResult(check="weights", ok=False, found=str(error), cure="give weights of EfficientNet-B0")
    place: Path = settings.storage / "weights" / IMAGENET_FILE
    found = f"{place} is in the storage" if place.exists() else f"--weights imagenet will download {IMAGENET_FILE} once"
    return CheckResult(check="weights", ok=True, found=found)


def shards_finding(shards: str) -> CheckResult:
    """Check the index of a data set and, of a local one, the sizes of its shards."""
    try:
        location, index = index_of(shards)
    except (ShardError, ClusterError) as error:
        return CheckResult(check="shards", ok=False, found=str(error), cure="pack them with `nightshift shards pack`")
    try:
        fault = _size_fault(location, index)
    except OSError as error:  # its share is away, or a shard was removed meanwhile
        found, _, cure = unreadable(error, location).partition("; ")
        return CheckResult(check="shards", ok=False, found=found, cure=cure)
    if fault:
        cure = f"copy it again or pack the data set again; {verify_hint(location)}"
        return CheckResult(check="shards", ok=False, found=f"{location}: {fault}", cure=cure)
    counts = ", ".join(f"{split} {index.samples_in(split)}" for split in index.splits)
    return CheckResult(check="shards", ok=True, found=f"{location}: {counted(len(index.shards), 'shard')}, {counts}")


def _size_fault(location: str, index: ShardIndex) -> str | None:
    """Return what is wrong with the first shard of a local data set that is missing or has another size.

    Raises:
        OSError: A shard cannot be looked at.
    """
    folder = local_folder(location)
    for shard in index.shards if folder else ():
        try:
            fault = find_size_fault(shard_path(location, shard.name), shard)
        except DamagedShard:
            return f"{shard.name} is missing"
        if fault:
            return fault
    return None


def _program() -> str:
    return Path(embedded_redis.server_program()).name
