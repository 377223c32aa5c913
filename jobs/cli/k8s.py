"""`nightshift k8s`: a run as manifests, and the command inside them."""

import sys
from pathlib import Path
from typing import Any

import click

from cluster.launch import LocalLauncher
from cluster.settings import Settings
from jobs.cli.option_types import Duration
from jobs.cli.options import WHERE, option, options
from jobs.cli.train import TRAINING
from jobs.kubernetes.ray_job import RayJobOptions, ray_job_text
from jobs.kubernetes.standalone import prepare_run
from jobs.queue import tasks
from jobs.queue.submit import new_run_id
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest, build_request
from trainer.specs import Spec, TrainSpec, build, read_spec

CLUSTER = (
    click.option("--image", required=True, help="The image that k8s/Dockerfile makes, with its tag."),
    click.option("--namespace", default=RayJobOptions.namespace, show_default=True, help="Where k8s/base is."),
    click.option("--queue", help="Kueue's LocalQueue."),
    click.option("--gpu-resource", default=RayJobOptions.gpu_resource, show_default=True, help="Name of a GPU."),
    click.option("--replicas", type=click.IntRange(1), help="Pods of Ray workers, as many as run at once by default."),
    click.option("--cpus", default=RayJobOptions.cpus, show_default=True, type=click.IntRange(1),
                 help="Cores of each worker."),
    click.option("--memory", default=RayJobOptions.memory, show_default=True, help="Memory of each worker."),
    click.option("--keep", "keep_seconds", default="10m", show_default=True, type=Duration(),
                 help="How long the cluster stays after the end."),
)  # fmt: skip
WHEN_ALONE = (
    click.option("--name", help="A second name, unique in the storage."),
    click.option("--max-duration", "max_duration_seconds", type=Duration(), help="Stop, as failed, after so long."),
    option(JobRequest, "retries", type=click.IntRange(0, 100), help="New clusters after the loss of one."),
)


@click.group()
def k8s() -> None:
    """Runs on Kubernetes without a standing Ray cluster."""


@k8s.group()
def render() -> None:
    """Print the manifests of one run, for `kubectl apply -f -`."""


@render.command()
@click.argument("shards")
@options(TRAINING, WHERE, WHEN_ALONE, CLUSTER)
def train(shards: str, **given: Any) -> None:
    r"""Fine-tune EfficientNet-B0 on SHARDS in a Ray cluster of its own; the run id goes to stderr.

    \b
        nightshift k8s render train /storage/shards/chest --workers 4 --image nightshift:0.1.0 | kubectl apply -f -
    """
    cluster, wanted = take_cluster(given)
    print_ray_job(build(TrainSpec, **given, shards=shards), wanted, cluster)


@render.command()
@click.argument("file", type=click.Path(path_type=Path))
@options(WHEN_ALONE, CLUSTER)
def spec(file: Path, **given: Any) -> None:
    r"""Run any wish, as `--dry-run` of its command prints it, in a Ray cluster of its own; - reads it from stdin.

    \b
        nightshift search /storage/shards/chest --trials 64 --concurrency 4 --dry-run > wish.json
        nightshift k8s render spec wish.json --image nightshift:0.1.0 | kubectl apply -f -
    """
    cluster, wanted = take_cluster(given)
    print_ray_job(read_spec(Path("/dev/stdin") if str(file) == "-" else file), wanted, cluster)


@k8s.command(hidden=True)
@click.argument("run_id")
@click.option("--wish", "folder", required=True, type=click.Path(path_type=Path), help="Holds spec.json and job.json.")
def run(run_id: str, folder: Path) -> None:
    """Run RUN_ID here, as the RayJob's entry; started again after a loss, it goes on from the last checkpoint."""
    settings = Settings.read().with_storage_ready()
    paths = prepare_run(settings, run_id, folder)
    tasks.run(settings, LocalLauncher(), run_id, job_worker="RayJob")
    state = run_state.read_state(paths)
    click.echo(f"{run_id} {state.state}{f': {state.why}' if state.why else ''}", err=True)
    sys.exit(0 if state.state == "succeeded" else 1)


def take_cluster(given: dict[str, Any]) -> tuple[RayJobOptions, JobRequest]:
    """Take the options of `CLUSTER` and `WHEN_ALONE` out of `given` and return them checked."""
    cluster = RayJobOptions(**{name: given.pop(name) for name in RayJobOptions.__dataclass_fields__})
    return cluster, build_request(**{name: given.pop(name) for name in JobRequest.model_fields if name in given})


def print_ray_job(wish: Spec, wanted: JobRequest, cluster: RayJobOptions) -> None:
    """Print the manifests of a new run on stdout and its id on stderr."""
    run_id = new_run_id(str(wish.to_json()["kind"]))
    click.echo(ray_job_text(run_id, wish, wanted, cluster), nl=False)
    click.echo(f"Run {run_id}. After `kubectl apply`: nightshift logs -f {run_id}", err=True)
