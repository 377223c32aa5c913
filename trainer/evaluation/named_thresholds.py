"""Applies named thresholds to the calibration of a model; chooses one on the validation split or out of fold."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cluster.files import LOCK_SECONDS, locked
from cluster.lease import Lease
from trainer.errors import CheckpointError, SpecError, TrainerError
from trainer.evaluation.calibration import Calibration, Labels, Mask
from trainer.evaluation.decision_text import chosen_on
from trainer.evaluation.multi_label_calibration import label_calibration
from trainer.model.head import HeadConfig
from trainer.model.names import MODEL_FILE
from trainer.model.thresholds import NamedThreshold, ThresholdChoice, read_threshold

if TYPE_CHECKING:
    from data_shards.index import ShardIndex
    from trainer.evaluation.scoring import ModelOutputs  # it imports ray, which a prediction does not need

SAME = 1e-6  # difference of temperatures that rounding explains

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A published model: its folder, its configuration, and the sha256 of its weights."""

    folder: Path
    config: HeadConfig
    weights: str

    @classmethod
    def of(cls, folder: Path, config: HeadConfig, manifest: Mapping[str, Any]) -> "StoredModel":
        """Return the model that `read_model` returned."""
        return cls(folder=folder, config=config, weights=str(manifest["files"][MODEL_FILE]))


def read_calibration(model: StoredModel, threshold: str | None) -> Calibration:
    """Return the temperature of a published model and its thresholds of a name; without a name, the default decision.

    Raises:
        SpecError: The model has no threshold of that name.
        CheckpointError: A file is damaged or belongs to other weights.
    """
    default = Calibration.read(model.folder, model.weights).without_thresholds()
    if model.config.multi_label:  # also without a file: each label is decided on its own
        labels = {label: label_calibration(default, label) for label in model.config.classes}
        default = default.model_copy(update={"labels": labels})
    if threshold is None:
        return default
    return with_named(default, read_threshold(model.folder, threshold, weights=model.weights), model.config)


def with_named(default: Calibration, named: NamedThreshold, config: HeadConfig) -> Calibration:
    """Return the calibration with the thresholds of a name.

    Raises:
        CheckpointError: They are about other classes, or were chosen at another temperature.
    """
    unknown = [label for label in named.classes if label not in config.classes]
    if unknown or (len(named.classes) > 1 and not config.multi_label):
        raise CheckpointError(
            f"threshold {named.name!r} is about {', '.join(named.classes)}, which does not fit the model; "
            "choose it again with evaluate --min-sensitivity"
        )
    for label, choice in named.classes.items():
        temperature = _temperature(default, label)
        if abs(choice.temperature - temperature) > SAME:
            raise CheckpointError(
                f"threshold {named.name!r} was chosen at the temperature {choice.temperature:g} and the model has "
                f"{temperature:g}; choose it again with evaluate --min-sensitivity"
            )
    return default.with_thresholds(
        named.name,
        {
            label: {
                "threshold": choice.threshold,
                "min_sensitivity": choice.min_sensitivity,
                "sensitivity": choice.sensitivity,
            }
            for label, choice in named.classes.items()
        },
        multi_label=config.multi_label,
    )


def refuse_taken_name(folder: Path, config: HeadConfig, name: str, positive: str) -> None:
    """Refuse to replace the threshold of another class; a model of several labels keeps one threshold for each.

    Raises:
        SpecError: The name is that of another class's threshold.
    """
    if config.multi_label:
        return
    try:
        taken = [label for label in read_threshold(folder, name).classes if label != positive]
    except (SpecError, CheckpointError):  # there is none, or a damaged one, which is replaced
        return
    if taken:
        raise SpecError(
            f"threshold {name!r} of this model is about {taken[0]}; give --threshold-name for one about {positive}"
        )


@dataclass(frozen=True, kw_only=True)
class ChoiceImages:
    """The images that a threshold is chosen on.

    Attributes:
        outputs: Of the model on the validation split, or its predictions out of fold.
        chosen_on: Which of them.
        data: Digest of their data set.
    """

    outputs: "ModelOutputs"
    chosen_on: Literal["valid", "out of fold"]
    data: str


def choose_named(
    model: StoredModel,
    images: ChoiceImages,
    *,
    name: str,
    positive: str,
    min_sensitivity: float,
) -> NamedThreshold:
    """Choose the threshold of `positive` on images that the model has not seen; other labels of the same name stay.

    Raises:
        TrainerError: None of the images is of the class.
    """
    valid = images.outputs
    default, classes = read_calibration(model, None), model.config.classes
    if not _is_label(valid.labels, classes.index(positive)).any():
        where = chosen_on({"chosen_on": images.chosen_on})
        raise TrainerError(
            f"there are no {positive} images to choose a threshold on in {where}; pack the data set with some"
        )
    chosen = valid.objective.with_threshold(
        default,
        valid.probabilities(),
        valid.labels,
        classes=classes,
        positive=positive,
        min_sensitivity=min_sensitivity,
    )
    choice = _choice(default, chosen, images, classes, positive)
    return NamedThreshold(model=model.weights, name=name, classes={**_others(model, name), positive: choice})


def store_named(named: NamedThreshold, model: StoredModel, positive: str, lease: Lease) -> None:
    """Write the threshold of `positive` beside the model; those of other labels that were stored meanwhile stay.

    Raises:
        LeaseLost: A newer attempt owns the run that writes it.
        CheckpointError, StorageError: The folder cannot be written.
    """
    if not model.config.multi_label:
        named.write(model.folder, lease)
        return
    with locked(model.folder / f".{named.name}.lock", patience=LOCK_SECONDS):
        classes = {**_others(model, named.name), positive: named.classes[positive]}
        named.model_copy(update={"classes": classes}).write(model.folder, lease)


def threshold_evidence(
    named: NamedThreshold | None, metrics: dict[str, Any], index: "ShardIndex"
) -> list[dict[str, Any]]:
    """Return what `result.json` says about each threshold that an evaluation used, with what the split reached.

    `index` is that of the evaluated data set; `of_judged_data` says whether the threshold was chosen on images of it.
    """
    found = []
    for label, choice in (named.classes if named else {}).items():
        of_label = metrics["labels"][label] if "labels" in metrics else metrics
        judged = of_label["sensitivity"]
        wanted = choice.min_sensitivity
        reached = None if judged is None or wanted is None else judged >= wanted
        evidence = {"judged_split": metrics["split"], "judged_sensitivity": judged, "reached": reached}
        evidence["judged_interval"] = (of_label.get("intervals") or {}).get("sensitivity")
        evidence["of_judged_data"] = not choice.data or index.version_with(choice.data) is not None
        found.append({"positive": label, **choice.model_dump(mode="json"), **evidence})
    return found


def _others(model: StoredModel, name: str) -> dict[str, ThresholdChoice]:
    if not model.config.multi_label:
        return {}
    try:
        return read_threshold(model.folder, name, weights=model.weights).classes
    except SpecError:  # there is none
        return {}
    except CheckpointError as error:
        logger.warning("%s; the thresholds of its other labels are not kept", error)
        return {}


def _choice(
    default: Calibration,
    chosen: Calibration,
    images: ChoiceImages,
    classes: tuple[str, ...],
    positive: str,
) -> ThresholdChoice:
    from trainer.evaluation.intervals import group_ids  # noqa: PLC0415 -- takes a second
    from trainer.evaluation.threshold_choice import (  # noqa: PLC0415 -- takes a second
        requested_positives,
        supported_sensitivity,
    )

    at, valid = classes.index(positive), images.outputs
    calibrated = valid.objective.calibrated(valid.probabilities(), default, classes)
    hits, known = _is_label(valid.labels, at), _is_known(valid.labels, at)
    by_chosen, by_default = (
        _is_label(valid.objective.decisions(calibrated, calibration, classes, positive), at)
        for calibration in (chosen, default)
    )
    misses = known & ~hits
    groups = [group for group, is_hit in zip(valid.groups, hits, strict=True) if is_hit] if valid.groups else []
    own = label_calibration(chosen, positive) if chosen.labels else chosen
    assert own.threshold is not None and own.min_sensitivity is not None  # noqa: S101, PT018 -- just chosen
    requested = requested_positives(calibrated[hits, at], own.min_sensitivity)
    return ThresholdChoice(
        threshold=own.threshold,
        temperature=_temperature(default, positive),
        min_sensitivity=own.min_sensitivity,
        sensitivity=float(by_chosen[hits].mean()),
        positives=int(hits.sum()),
        groups=len(np.unique(group_ids(groups, int(hits.sum())))),
        lower_bound=supported_sensitivity(by_chosen[hits], groups, requested=requested),
        negatives=int(misses.sum()),
        false_positives=int(by_chosen[misses].sum()),
        default_sensitivity=float(by_default[hits].mean()),
        default_false_positives=int(by_default[misses].sum()),
        data=images.data,
        chosen_on=images.chosen_on,
    )


def _is_label(labels: Labels, at: int) -> Mask:
    """Return which images have the class or label `at`: from (N,) classes or (N, C) of 1, 0 and -1."""
    return np.asarray(labels == at if labels.ndim == 1 else labels[:, at] == 1)


def _is_known(labels: Labels, at: int) -> Mask:
    return np.asarray(labels >= 0 if labels.ndim == 1 else labels[:, at] >= 0)


def _temperature(calibration: Calibration, label: str) -> float:
    return label_calibration(calibration, label).temperature if calibration.labels else calibration.temperature
