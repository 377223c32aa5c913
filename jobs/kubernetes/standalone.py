"""Standalone RayJobs: publish the run from the job's files without a queue, and mark an earlier attempt dead."""

from dataclasses import replace
from pathlib import Path

from cluster.files import read_json
from cluster.lease import heartbeat_changes
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.submit import publish, queued_state
from jobs.runs.outcomes import mark_dead
from jobs.runs.request import JobRequest
from jobs.runs.state import read_state
from trainer.specs import read_spec


def prepare_run(settings: Settings, run_id: str, files: Path) -> RunPaths:
    """Publish a new run, or queue again one whose cluster was lost, and return its paths.

    Args:
        settings: The storage.
        run_id: Id of the run.
        files: Folder with `spec.json` and `job.json`, read only for a new run.

    Raises:
        UnknownRun: The id is not a run id.
        SpecError, StorageError: The spec or the request is missing or invalid.
    """
    paths = RunPaths.of(settings.storage, run_id)
    if not paths.folder.exists():
        _publish_queued(settings, paths, files)
    state = read_state(paths)
    if state.state == "running" and not heartbeat_changes(paths, patience=settings.lease_seconds):
        mark_dead(paths, state.attempt, "the cluster of its own was lost")
    return paths


def _publish_queued(settings: Settings, paths: RunPaths, files: Path) -> None:
    spec = read_spec(files / "spec.json")
    request = JobRequest.model_validate(read_json(files / "job.json"))
    state = replace(queued_state(spec, request, paths.run_id), own_cluster=True)
    publish(settings.storage, paths, spec, request, state)
