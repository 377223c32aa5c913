"""Finds the evaluations of a model: runs whose predictions are about its weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import SeveralRuns, StorageError, UnknownRun
from cluster.files import read_json_object
from cluster.run_paths import RUN_ID, RunPaths
from jobs.runs import state as run_state
from jobs.runs.promotions import promoted_model
from trainer.errors import CheckpointError, SpecError
from trainer.evaluation.predictions import EvaluatedSplit, read_about
from trainer.model.names import HEAD_FILE, MANIFEST_FILE, MODEL_FILE, published_model


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One run that evaluated a model on one split."""

    paths: RunPaths
    about: EvaluatedSplit


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """What a person named: a model, or an evaluation of one.

    Attributes:
        name: The text that named it.
        weights: sha256 of the model's weights.
        origin: The run that trained the model; None if it is not in the storage.
        evaluation: The evaluation, if the text named one.
    """

    name: str
    weights: str
    origin: RunPaths | None
    evaluation: Evaluation | None = None


def find_model(storage: Path, text: str) -> EvaluatedModel:
    """Return the model or evaluation that `text` names: a folder, a promoted name, or the id, prefix or name of a run.

    Raises:
        CheckpointError: It is neither.
        SeveralRuns: Several runs match.
    """
    if folder := published_model(Path(text).expanduser()):
        return _of_folder(storage, text, folder)
    if promoted := promoted_model(storage, text):
        return _of_folder(storage, text, Path(promoted.folder))
    try:
        paths = run_state.find(storage, text)
    except SeveralRuns:
        raise
    except UnknownRun as error:
        raise CheckpointError(
            f"{text} is neither a model nor an evaluation; give a run id, a run's name, or a folder with {HEAD_FILE}"
        ) from error
    state = run_state.read_state(paths)
    if state.kind == "evaluate":
        return _of_evaluation(text, paths, state.state)
    if not (paths.best / HEAD_FILE).is_file():
        raise CheckpointError(f"{paths.run_id} has no model: {state.no_model_cause}")
    return _of_folder(storage, text, paths.best)


def evaluations_of(storage: Path, model: EvaluatedModel, split: str) -> list[Evaluation]:
    """Return the evaluations of a model on a split, newest first.

    Raises:
        SpecError: `model` is an evaluation of another split.
    """
    if model.evaluation is not None:
        if model.evaluation.about.split != split:
            raise SpecError(
                f"{model.name} is an evaluation of the {model.evaluation.about.split} split, not of {split}; "
                "give evaluations of one split"
            )
        return [model.evaluation]
    found = [Evaluation(paths=paths, about=about) for paths, about in _evaluated(storage, model)]
    return [one for one in found if one.about.model == model.weights and one.about.split == split]


def with_most_in_common(candidates: list[list[Evaluation]]) -> list[Evaluation]:
    """Return one evaluation of each model, all of one data set where there are such; else each model's newest."""
    for first in candidates[0]:
        of_data = [[one for one in each if one.about.data == first.about.data] for each in candidates]
        if all(of_data):
            return [each[0] for each in of_data]
    return [each[0] for each in candidates]


def spec_of(paths: RunPaths | None) -> dict[str, Any]:
    """Return the spec of a run, with the best trial's options for a search; empty if it cannot be read."""
    if paths is None:
        return {}
    try:
        spec = read_json_object(paths.spec)
        best = read_json_object(paths.result).get("best") if paths.result.is_file() else None
    except StorageError:
        return {}
    config = best.get("config") if isinstance(best, dict) else None
    return {**spec, **(config if isinstance(config, dict) else {})}


def _evaluated(storage: Path, model: EvaluatedModel) -> Iterator[tuple[RunPaths, EvaluatedSplit]]:
    """Yield the runs that may have evaluated a model, newest first: evaluations, and the run that trained it."""
    origin = None if model.origin is None else model.origin.run_id
    for run_id in reversed(run_state.all_ids(storage)):
        paths = RunPaths.of(storage, run_id)
        if not (run_id.startswith("evaluate-") or run_id == origin) or not paths.result.is_file():
            continue
        try:
            about = read_about(paths.predictions)
        except StorageError:  # absent or damaged: one bad run does not hide the others
            continue
        if about is not None:
            yield paths, about


def _of_folder(storage: Path, text: str, folder: Path) -> EvaluatedModel:
    try:
        manifest = read_json_object(folder / MANIFEST_FILE)
        weights = manifest["files"][MODEL_FILE]
    except (StorageError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is damaged: {MANIFEST_FILE} does not name {MODEL_FILE}; publish the model again"
        ) from error
    return EvaluatedModel(name=text, weights=str(weights), origin=_run(storage, manifest.get("run")))


def _of_evaluation(text: str, paths: RunPaths, state: str) -> EvaluatedModel:
    if state != "succeeded":
        raise CheckpointError(f"{paths.run_id} is {state} and has no predictions; give an evaluation that succeeded")
    try:
        about, spec = read_about(paths.predictions), read_json_object(paths.spec)
    except StorageError as error:
        raise CheckpointError(f"the predictions of {paths.run_id} cannot be read; evaluate the model again") from error
    if about is None:
        raise CheckpointError(
            f"{paths.run_id} is of an earlier version and does not name its images; run: nightshift evaluate "
            f"{spec.get('model')} {spec.get('shards')} --split {spec.get('split', 'test')} --wait"
        )
    return EvaluatedModel(
        name=text,
        weights=about.model,
        origin=_origin(paths, spec.get("model")),
        evaluation=Evaluation(paths=paths, about=about),
    )


def _origin(paths: RunPaths, model: Any) -> RunPaths | None:
    """Return the run that trained the model of an evaluation's spec: a run id or a folder."""
    found = _run(paths.storage, model)
    if found is not None or not isinstance(model, str):
        return found
    try:
        return _run(paths.storage, read_json_object(Path(model) / MANIFEST_FILE).get("run"))
    except StorageError:
        return None


def _run(storage: Path, run_id: Any) -> RunPaths | None:
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        return None
    paths = RunPaths.of(storage, run_id)
    return paths if paths.folder.is_dir() else None
