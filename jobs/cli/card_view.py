"""Finds what is known about a model for its card: its run, its data set, its evaluations and its thresholds."""

import platform
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from cluster.version import VERSION
from data_shards.errors import ShardError
from data_shards.index import BOTH, ShardIndex, read_index
from data_shards.pack.group_counts import GroupCounts, group_counts
from jobs.cli.terminal import echo
from jobs.runs.damage import shown_or
from jobs.runs.evaluations import EvaluatedModel, Evaluation, evaluations_of, find_model
from jobs.runs.promotions import models_in_use
from jobs.runs.record import read_record
from trainer.audit.saved import has_outdated_audit, read_audit
from trainer.errors import SpecError
from trainer.evaluation.metric_text import has_headline
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD_FILE, MANIFEST_FILE
from trainer.model.thresholds import read_threshold, threshold_names
from trainer.report.limits import limits
from trainer.report.model_card import CardFigures, ModelCard
from trainer.specs import EvaluateSpec, TrainOptions, read_spec
from trainer.specs.command_text import command_of

PACKAGES = ("torch", "efficientnet_pytorch")
SHOWN_OPTIONS = (
    "epochs", "patience", "batch_size", "lr", "weights", "freeze", "augment", "class_weights", "folds", "seed",
)  # fmt: skip
SPLITS = ("test", "valid", "train+valid", "train")  # whose figures the card has, in this order
UNREADABLE = "The data set of these images cannot be read as it was then, so what limits the metrics is not known."


class _CountedGroups:
    """Counts the groups of each data set once: a card has the figures of several splits of one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], dict[str, GroupCounts]] = {}

    def of(self, shards: str, index: ShardIndex) -> dict[str, GroupCounts]:
        """Return the groups of each split in `SPLITS`, as far as they are known."""
        key = shards, index.digest
        if key not in self._found:
            self._found[key] = group_counts(shards, index, *(split for split in SPLITS if BOTH in split))
        return self._found[key]


def model_card(storage: Path, folder: Path, name: str) -> ModelCard:
    """Return the content of the card of the model that is published in a folder.

    Raises:
        CheckpointError: The model is damaged, or a threshold is not of its weights.
        StorageError: Its manifest cannot be read.
    """
    found = find_model(storage, str(folder))
    manifest = read_json_object(folder / MANIFEST_FILE)
    spec = _spec(found.origin)
    shards = str(getattr(spec, "shards", ""))
    index = _index(shards, str(manifest.get("data")))
    in_use, _ = models_in_use(storage)
    counted = _CountedGroups()
    groups = counted.of(shards, index) if index else {}
    return ModelCard(
        name=name,
        names=[known for known, promotion in in_use.items() if promotion.weights == found.weights],
        weights=found.weights,
        config=HeadConfig.read(folder / HEAD_FILE),
        trained=_ended(found.origin),
        shards=shards,
        index=index,
        groups={split: groups[split].every for split in groups if BOTH not in split},
        spec=_options(spec) if spec else {},
        command=command_of(spec) if spec else "",
        figures=_figures(storage, found, str(manifest.get("data")), index, counted),
        thresholds=[read_threshold(folder, each, weights=found.weights) for each in threshold_names(folder)],
        audit=read_audit(storage, index.digest) if index else None,
        has_outdated_audit=index is not None and has_outdated_audit(storage, index.digest),
        versions={
            "python": platform.python_version(),
            "nightshift": VERSION,
            **{package: version(package) for package in PACKAGES},
        },
    )


def _figures(
    storage: Path, model: EvaluatedModel, data: str, index: ShardIndex | None, counted: _CountedGroups
) -> list[CardFigures]:
    """Return what the newest run that judged the model on each split of each data set measured.

    A run whose result is damaged is left out, with a line on stderr.
    """
    figures, warnings = [], list[str]()
    for split in SPLITS:
        found = [one for one in evaluations_of(storage, model, split) if split != "train" or _is_own(one, model)]
        newest = {each.about.data: each for each in reversed(found)}
        for evaluation in newest.values():
            file = f"result.json of {evaluation.paths.run_id}"
            read = partial(_figures_of, evaluation, data, index, counted)
            if (one := shown_or(None, file, warnings, read)) is not None:
                figures.append(one)
    for text in warnings:
        echo(text, err=True)
    return figures


def _is_own(evaluation: Evaluation, model: EvaluatedModel) -> bool:
    """Whether the run that trained a model has judged it: on train alone, by its predictions out of fold."""
    return model.origin is not None and evaluation.paths.folder == model.origin.folder


def _figures_of(evaluation: Evaluation, data: str, index: ShardIndex | None, counted: _CountedGroups) -> CardFigures:
    """Return what a run measured.

    Raises:
        StorageError: Its result cannot be read.
        TypeError, ValueError, LookupError, AttributeError, ArithmeticError: Its result has another shape.
    """
    result = read_json_object(evaluation.paths.result)
    metrics = result["metrics"]
    if not _is_complete(metrics):
        raise ValueError("the metrics are not those of a split")
    spec = _spec(evaluation.paths)
    shards = str(getattr(spec, "shards", ""))
    judged = _index(shards, evaluation.about.data)
    known = index is not None and index.version_with(evaluation.about.data) is not None
    later = judged is not None and judged.version_with(data) is not None
    one = CardFigures(
        run=evaluation.paths.run_id,
        ended=_ended(evaluation.paths),
        shards=shards,
        metrics=metrics,
        limits=limits(judged, metrics, result, counted.of(shards, judged).get(metrics["split"]))
        if judged
        else [UNREADABLE],
        is_external=evaluation.about.data != data and not known and not later,
    )
    one.check()
    return one


def _spec(paths: RunPaths | None) -> TrainOptions | EvaluateSpec | None:
    """Return the spec of a run, None if it cannot be read."""
    if paths is None:
        return None
    try:
        spec = read_spec(paths.spec)
    except SpecError:
        return None
    return spec if isinstance(spec, TrainOptions | EvaluateSpec) else None


def _options(spec: TrainOptions | EvaluateSpec) -> dict[str, Any]:
    """Return the options of a training that a card shows."""
    found = {name: value for name, value in spec.to_json().items() if name in SHOWN_OPTIONS}
    return found | ({"class_weights": "automatic"} if found.get("class_weights") is None else {})


def _index(shards: str, digest: str) -> ShardIndex | None:
    """Return a data set as it was when it had a digest, None if it cannot be read."""
    try:
        return read_index(shards).version_with(digest) if shards else None
    except ShardError:
        return None


def _ended(paths: RunPaths | None) -> str:
    return "" if paths is None else str(read_record(paths, with_files=False).state.ended or "")


def _is_complete(metrics: Mapping[str, Any]) -> bool:
    """Whether a result has what a card shows: it is not damaged."""
    return {"split", "n"} <= metrics.keys() and ("labels" in metrics or has_headline(metrics))
