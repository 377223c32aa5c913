"""`nightshift k8s`: render a run as a RayJob, serve metrics; the hidden `k8s run` is the RayJob's entrypoint."""

import signal
import sys
from pathlib import Path
from typing import Any

import click

from cluster.launch import LocalLauncher
from cluster.settings import Settings
from jobs.cli.command import Group
from jobs.cli.option_groups import OptionGroup, options, path_argument
from jobs.cli.option_types import Duration, GpusPerWorker
from jobs.cli.options import MAX_DURATION, MIN_WORKERS, NAME, NOTE, TAG, WORKERS, option
from jobs.cli.terminal import echo
from jobs.cli.training_options import TRAINING
from jobs.kubernetes.ray_job import RayJobOptions, ray_job_text
from jobs.kubernetes.standalone import prepare_run
from jobs.prometheus import serve
from jobs.queue import tasks
from jobs.queue.submit import new_run_id
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest, build_request
from trainer.specs import Spec, TrainSpec, build, read_spec

CLUSTER = OptionGroup(
    "Ray cluster",
    (
        click.option("--image", required=True, help="Container image and tag, built from k8s/Dockerfile."),
        click.option("--namespace", default=RayJobOptions.namespace, show_default=True,
                     help="Namespace to which k8s/base was applied."),
        click.option("--queue", help="Kueue LocalQueue.  [default: none; KubeRay starts the cluster immediately]"),
        click.option("--queue-priority", help="Kueue WorkloadPriorityClass: higher ones are admitted first."),
        click.option("--gpu-resource", default=RayJobOptions.gpu_resource, show_default=True,
                     help="Kubernetes resource name of a GPU."),
        click.option("--replicas", type=click.IntRange(1), metavar="N",
                     help="Number of Ray worker pods.  [default: as many as the run needs]"),
        click.option("--gpus-per-pod", type=click.IntRange(1), metavar="N",
                     help="GPUs per worker pod. Workers in one pod communicate over NVLink or shared memory.  "
                     "[default: --workers, divided evenly over pods of at most 8]"),
        click.option("--cpus", type=click.IntRange(1), metavar="N",
                     help="CPU cores per worker pod.  [default: 4 for each GPU, or 4 without GPUs]"),
        click.option("--memory", metavar="QUANTITY",
                     help="Memory per worker pod, half of it for /dev/shm.  "
                     "[default: 16Gi for each GPU, or 16Gi without GPUs]"),
        click.option("--node-label", "node_labels", multiple=True, metavar="KEY=VALUE",
                     help="Label of the nodes for the worker pods; can be repeated, with another key."),
        click.option("--priority-class", help="Kubernetes PriorityClass of the pods.  [default: none]"),
        click.option("--openshift", is_flag=True,
                     help="Leave the pods' user ids to the namespace, as OpenShift requires."),
        click.option("--head-fault-tolerance", is_flag=True,
                     help="Let the run go on if Ray's head is lost, instead of starting its next attempt. "
                     "Not with the component tls."),
        click.option("--start-within", "start_seconds", default="1h", show_default=True, type=Duration(),
                     help="Time limit for the pods to start; in a queue, it begins when Kueue admits the run."),
        click.option("--keep", "keep_seconds", default="10m", show_default=True, type=Duration(),
                     help="Time to keep the Ray cluster after the run has ended."),
    ),
)  # fmt: skip
WHERE = OptionGroup(
    "Where",
    (
        WORKERS,
        MIN_WORKERS,
        option(TrainSpec, "gpus_per_worker", "GPUs per worker; auto is 1.", type=GpusPerWorker(), metavar="0|1|auto"),
    ),
)
WHEN = OptionGroup(
    "Name and limits",
    (
        NAME,
        TAG,
        NOTE,
        MAX_DURATION,
        option(
            JobRequest,
            "retries",
            "Maximum number of retries, each on a new Ray cluster, after a cluster is lost.",
            type=click.IntRange(0, 100),
            metavar="N",
        ),
    ),
)


@click.group(cls=Group)
def k8s() -> None:
    """Render runs as RayJobs, each with a Ray cluster of its own, and serve metrics on Kubernetes."""


@k8s.group()
def render() -> None:
    """Print the Kubernetes manifests of a run."""


@render.command(
    example="nightshift k8s render train /storage/shards/chest --workers 4 --image nightshift:0.1.0 | "
    "kubectl apply -f -"
)
@path_argument("shards")
@options(CLUSTER, *TRAINING, WHERE, WHEN)
def train(shards: str, **given: Any) -> None:
    """Render a training run as a RayJob.

    Prints the manifests on stdout, for `kubectl apply -f -`, and the run id on stderr.
    """
    cluster, request = take_cluster_options(given)
    print_ray_job(build(TrainSpec, **given, shards=shards), request, cluster)


@render.command(
    example="nightshift search /storage/shards/chest --trials 64 --concurrency 4 --dry-run > spec.json\n"
    "nightshift k8s render spec spec.json --image nightshift:0.1.0 | kubectl apply -f -"
)
@click.argument("file", type=click.Path(path_type=Path))
@options(CLUSTER, WHEN)
def spec(file: Path, **given: Any) -> None:
    """Render the spec in FILE as a RayJob.

    FILE is the output of a submit command with --dry-run; - reads stdin. Prints the manifests on stdout, for
    `kubectl apply -f -`, and the run id on stderr.
    """
    cluster, request = take_cluster_options(given)
    print_ray_job(read_spec(Path("/dev/stdin") if str(file) == "-" else file), request, cluster)


@k8s.command(example="nightshift k8s metrics --port 9100")
@click.option(
    "--port", default=9100, show_default=True, type=click.IntRange(1, 65535), metavar="PORT", help="Port to listen on."
)
def metrics(port: int) -> None:
    """Serve Prometheus metrics of the queue, the job workers and all runs, until it is stopped.

    One process for the whole cluster: each value is exported once, and also while no job worker is alive.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    # As process 1 of a container it would otherwise ignore them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        serve(Settings.read(), port)
        signal.sigwait(ends)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@k8s.command(hidden=True)
@click.argument("run_id")
@click.option(
    "--spec-folder",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder with spec.json and job.json.",
)
def run(run_id: str, folder: Path) -> None:
    """Run RUN_ID on this machine: the entrypoint of a RayJob. A restart continues from the last checkpoint."""
    settings = Settings.read().with_storage_ready()
    paths = prepare_run(settings, run_id, folder)
    tasks.run(settings, LocalLauncher(), run_id, job_worker="RayJob")
    state = run_state.read_state(paths)
    echo(f"{run_id} {state.state}{f': {state.why}' if state.why else ''}", err=True)
    sys.exit(0 if state.state == "succeeded" else 1)


def take_cluster_options(given: dict[str, Any]) -> tuple[RayJobOptions, JobRequest]:
    """Remove the options of `CLUSTER` and `WHEN` from `given` and return them, checked.

    The owner is the user of this machine, because the pod that creates the run has no user of its own.
    """
    cluster = RayJobOptions(**{name: given.pop(name) for name in RayJobOptions.__dataclass_fields__})
    fields = {name: given.pop(name) for name in JobRequest.model_fields if name in given}
    return cluster, build_request(**fields, owner=Settings.read().owner)


def print_ray_job(spec: Spec, request: JobRequest, cluster: RayJobOptions) -> None:
    """Print the manifests of a new run on stdout and its id on stderr."""
    run_id = new_run_id(str(spec.to_json()["kind"]))
    click.echo(ray_job_text(run_id, spec, request, cluster), nl=False)
    click.echo(f"Run {run_id}. After `kubectl apply`: nightshift logs -f {run_id}", err=True)
