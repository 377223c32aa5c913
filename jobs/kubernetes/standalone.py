"""A run without a queue: its folder made from files that were given to a RayJob, and the attempt before it buried."""

from pathlib import Path

from cluster.files import read_json
from cluster.lease import heartbeat_changes
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.submit import publish
from jobs.runs import state as run_state
from jobs.runs.outcomes import mark_dead
from jobs.runs.request import JobRequest
from jobs.runs.state import RunState, read_state
from trainer.specs import read_spec


def prepare_run(settings: Settings, run_id: str, wish: Path) -> RunPaths:
    """Return the run's paths with the run queued, whether it is new or was begun on a cluster that was lost.

    `wish` is a folder with `spec.json` and `job.json`, read only when the run is new.

    Raises:
        UnknownRun: The id has not the form of one.
        SpecError, StorageError: The wish is absent or none.
    """
    paths = RunPaths.of(settings.storage, run_id)
    if not paths.folder.exists():
        _publish_queued(settings, paths, wish)
    state = read_state(paths)
    if state.state == "running" and not heartbeat_changes(paths, patience=settings.lease_seconds):
        mark_dead(paths, state.attempt, "the cluster of its own was lost")
    return paths


def _publish_queued(settings: Settings, paths: RunPaths, wish: Path) -> None:
    spec = read_spec(wish / "spec.json")
    request = JobRequest.model_validate(read_json(wish / "job.json"))
    state = RunState(
        id=paths.run_id,
        kind=str(spec.to_json()["kind"]),
        name=request.name,
        priority=request.priority,
        state="queued",
        own_cluster=True,
        created=run_state.now(),
    )
    publish(settings.storage, paths, spec, request, state)
