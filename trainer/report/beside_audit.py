"""The model of a run beside the audit of its data set: paired differences, rim and center, Grad-CAM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_shards.index import ShardIndex
from data_shards.read.stream import read_samples
from trainer.audit.beside_model import AuditBesideModel, compare_with_checks
from trainer.audit.regions import ModelRegions, chosen_images, measure_regions, probed_count
from trainer.audit.saved import read_scores
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.temperature import apply_temperature
from trainer.model.efficientnet import Classifier
from trainer.model.head import HeadConfig

ReadModel: TypeAlias = Callable[[], tuple[Classifier, HeadConfig, dict[str, Any]]]  # as `read_model` returns it


@dataclass(frozen=True)
class JudgedModel:
    """A published model, the metrics of one split, and the predictions that they come from."""

    read: ReadModel
    metrics: Mapping[str, Any]
    predictions: Predictions

    @property
    def positive(self) -> int:
        """Index of the positive class."""
        return list(self.metrics["classes"]).index(self.metrics["positive"])

    @property
    def units(self) -> NDArray[np.int64]:
        """Index of the group of each image, (N,)."""
        groups = self.predictions.groups
        return np.arange(len(self.predictions.ids), dtype=np.int64) if groups is None else groups


def beside_audit(storage: Path, location: str, index: ShardIndex, judged: JudgedModel) -> AuditBesideModel | None:
    """Return the model beside the audit of its data set, None for several labels per image. Computes on the CPU.

    Of a cross-validated model, rim and center are not measured: it was trained on the images that its predictions out
    of fold are of.
    """
    predictions, metrics = judged.predictions, judged.metrics
    if index.multi_label or predictions.samples is None:
        return None
    seen = apply_temperature(predictions.probabilities, metrics["temperature"])
    scores = read_scores(storage, index.digest, len(index.classes))
    return AuditBesideModel(
        differences={}
        if scores is None
        else compare_with_checks(scores, predictions.samples, seen, judged.units, positive=judged.positive),
        regions=None if "out_of_fold" in metrics else _regions(location, index, judged),
    )


def _regions(location: str, index: ShardIndex, judged: JudgedModel) -> ModelRegions:
    """Return what the model does with rim and center of some images of the split."""
    model, config, _ = judged.read()
    predictions, metrics = judged.predictions, judged.metrics
    rows = chosen_images(predictions.labels, probed_count(config.image_size))
    ids = predictions.ids[rows].tolist()
    return measure_regions(
        model,
        config,
        read_samples(location, index, metrics["split"], ids, image_size=config.image_size),
        predictions.labels[rows],
        judged.units[rows],
        positive=judged.positive,
        temperature=metrics["temperature"],
        total=len(predictions.ids),
    )
