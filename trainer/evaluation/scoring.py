"""Run a model over a split on all ranks, and compute the metrics of its outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.run_paths import RunPaths
from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from trainer.data.batches import BatchLoader, FeatureLoader
from trainer.data.feature_extraction import FeatureExtractor
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.worker import WorkerContext
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.evaluation_table import write_evaluation_table
from trainer.evaluation.intervals import group_ids
from trainer.evaluation.objective import SINGLE_LABEL, Objective, objective_of
from trainer.evaluation.predictions import EvaluatedSplit, Predictions, sample_ids
from trainer.evaluation.predictive_values import predictive_values
from trainer.model.efficientnet import Classifier
from trainer.model.folded_backbone import filled_up
from trainer.model.precision import autocast

BATCH = 256  # samples per batch on each rank
IMAGES_NDIM = 4
FILLED = ("cuda",)  # kinds of devices that plan the kernels of a network anew for each size of batch


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """Logits and labels of each sample of a split, in the order of sample ids.

    Attributes:
        logits: `(N, classes) float64`.
        labels: `(N,) int64` classes, or `(N, classes) int64` targets of a multi-label data set.
        groups: Patient or case of each sample, "" where unknown; an empty tuple if not requested.
        sources: Name of the file that each sample was packed from, for tables; an empty tuple if not requested.
        columns: Value of each sample in each kept column, "" where there is none, by the name of the column.
        objective: Loss, decisions and metrics of these labels.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    groups: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    objective: Objective = SINGLE_LABEL

    def probabilities(self) -> NDArray[np.float64]:
        """Return the probabilities before temperature scaling, `(N, classes) float64`."""
        return self.objective.probabilities(self.logits)


def model_outputs(
    module: nn.Module,
    source: BatchLoader,
    index: ShardIndex,
    split: str,
    process_group: ProcessGroup,
    *,
    precision: str = "fp32",
    at_once: int = BATCH,
) -> ModelOutputs:
    """Return the outputs of `module` for a whole split, on every rank. Collective: every rank must call it.

    Each rank runs its share of the split. One gather at the end collects all rows, so ranks may have different
    numbers of batches, or none. `at_once` is the batch size per rank.
    """
    plan = evaluation_plan(index, split, process_group, at_once=at_once)
    rows = process_group.gather_rows(_rows(module, source, plan, process_group, precision))
    rows = rows[rows[:, 0].argsort()]
    first = 1 + label_columns(index)
    labels = rows[:, 1:first].long().numpy()
    return ModelOutputs(
        logits=rows[:, first:].numpy(),
        labels=labels if index.multi_label else labels[:, 0],
        objective=objective_of(index.multi_label),
    )


def evaluation_plan(index: ShardIndex, split: str, process_group: ProcessGroup, *, at_once: int) -> EpochPlan:
    """Return this rank's share of a split, in batches of `at_once` images."""
    return EpochPlan(
        index=index,
        split=split,
        batch_size=at_once * process_group.world_size,
        world_size=process_group.world_size,
        rank=process_group.rank,
        shuffle=False,
    )


def label_columns(index: ShardIndex) -> int:
    """Return how many numbers the label of one sample has."""
    return len(index.classes) if index.multi_label else 1


@torch.no_grad()
def _rows(
    module: nn.Module, source: BatchLoader, plan: EpochPlan, process_group: ProcessGroup, precision: str
) -> Tensor:
    """Return id, label and logits of this rank's samples, `(n, columns) float64`."""
    module.eval()
    columns = 1 + label_columns(plan.index) + len(plan.index.classes)
    rows = [torch.empty(0, columns, dtype=torch.float64, device=process_group.device)]
    for step in source(plan):
        with autocast(process_group.device, precision):
            logits = module(_filled(step.inputs, plan.largest_batch))[: len(step.inputs)]  # (B, classes)
        labels = step.labels.double().reshape(len(step.labels), -1)
        ids = step.ids.to(labels, non_blocking=True).unsqueeze(1)
        rows.append(torch.cat([ids, labels, logits.double()], dim=1))
    return torch.cat(rows)


def _filled(inputs: Tensor, size: int) -> Tensor:
    """Return images `(B, C, S, S)` with gray ones behind them, as many as other batches have; features as they are."""
    if inputs.device.type not in FILLED or inputs.ndim < IMAGES_NDIM:
        return inputs
    return filled_up(inputs, size)


def classifier_outputs(
    context: WorkerContext[Any], extraction: FeatureExtractor, model: Classifier, split: str
) -> ModelOutputs:
    """Return the model's outputs for a whole split, from cached features. Collective: every rank must call it.

    Features are computed per shard, as the feature cache stores them, so the result does not depend on the number of
    workers.
    """
    extraction.extract(split)
    source = FeatureLoader.once(extraction, split, context.process_group.device)
    found = model_outputs(model.head, source, extraction.index, split, context.process_group)
    features = extraction.features_of(split)
    return replace(found, groups=features.groups, sources=features.sources, columns=features.columns)


def split_metrics(
    outputs: ModelOutputs,
    classes: tuple[str, ...],
    calibration: Calibration,
    split: str,
    *,
    positive: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the metrics of a split as `result.json` stores them."""
    found = outputs.objective.metrics(
        outputs.probabilities(),
        outputs.labels,
        classes=classes,
        calibration=calibration,
        positive=positive,
        groups=outputs.groups,
        seed=seed,
    )
    return {"split": split, **found}


def subgroups(
    outputs: ModelOutputs,
    index: ShardIndex,
    calibration: Calibration,
    metrics: Mapping[str, Any],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the metrics by subgroup under their key in `result.json`; nothing if the data set keeps no column.

    `metrics` is what `split_metrics` returned for the outputs.
    """
    if not index.columns:
        return {}
    from trainer.evaluation.subgroups import DecidedImages, subgroup_rows  # noqa: PLC0415 -- scikit-learn takes a second

    classes = tuple(metrics["classes"])
    stated = metrics["positive"] if metrics.get("positive_stated", True) else None
    calibrated = outputs.objective.calibrated(outputs.probabilities(), calibration, classes)
    images = DecidedImages(
        labels=outputs.labels,
        decisions=outputs.objective.decisions(calibrated, calibration, classes, metrics["positive"]),
        probabilities=calibrated,
        units=group_ids(outputs.groups, len(outputs.labels)),
        classes=classes,
        positive=stated,
        seed=seed,
    )
    return {"subgroups": subgroup_rows(images, index.columns, outputs.columns)}


def at_prevalence(
    outputs: ModelOutputs, classes: tuple[str, ...], calibration: Calibration, *, positive: str, prevalence: float
) -> dict[str, Any]:
    """Return PPV and NPV of `positive` at a prevalence, as `result.json` stores them."""
    objective, at = outputs.objective, classes.index(positive)
    calibrated = objective.calibrated(outputs.probabilities(), calibration, classes)
    decisions = objective.decisions(calibrated, calibration, classes, positive)
    units = group_ids(outputs.groups, len(outputs.labels))
    is_positive, predicted = outputs.labels == at, decisions == at
    if outputs.labels.ndim > 1:
        known = outputs.labels[:, at] >= 0
        is_positive, predicted, units = outputs.labels[known, at] == 1, decisions[known, at] == 1, units[known]
    return {"positive": positive, **predictive_values(is_positive, predicted, units, prevalence)}


def save_predictions(
    context: WorkerContext[Any],
    outputs: ModelOutputs,
    index: ShardIndex,
    *,
    metrics: Mapping[str, Any],
    calibration: Calibration,
    model: str,
) -> None:
    """Write `predictions.safetensors` into the folder of the run or trial; only rank 0 writes.

    In the folder of a run, `predictions.csv` has the same predictions for people.

    Args:
        context: Of this worker.
        outputs: Of the evaluated split.
        index: Of the data set.
        metrics: What `split_metrics` returned for them: split, classes, positive class and threshold.
        calibration: The temperature and the thresholds of the decisions.
        model: sha256 of the model's weights.

    Raises:
        LeaseLost: A newer attempt owns the run.
    """
    if not context.process_group.is_rank_zero:
        return
    lease = context.task.attempt.lease
    objective, probabilities = outputs.objective, outputs.probabilities()
    about = EvaluatedSplit(
        model=model,
        data=index.digest,
        split=metrics["split"],
        classes=tuple(metrics["classes"]),
        positive=metrics["positive"] or index.classes[0],
        positive_stated=bool(metrics["positive"]) and metrics.get("positive_stated", True),
        threshold=metrics.get("threshold"),
        multi_label=index.multi_label,
        thresholds={name: row["threshold"] for name, row in metrics.get("labels", {}).items()},
        temperature=metrics.get("temperature"),
    )
    calibrated = objective.calibrated(probabilities, calibration, about.classes)
    decisions = objective.decisions(calibrated, calibration, about.classes, about.positive)
    Predictions(
        ids=np.arange(len(outputs.labels), dtype=np.int64),
        labels=outputs.labels,
        probabilities=probabilities,
        decisions=decisions,
        groups=group_ids(outputs.groups, len(outputs.labels)),
        samples=sample_ids(index, about.split),
        about=about,
    ).write(context.task.paths.predictions, lease)
    if isinstance(context.task.paths, RunPaths):
        write_evaluation_table(
            context.task.paths.predicted("csv"),
            classes=about.classes,
            sources=outputs.sources,
            groups=outputs.groups,
            labels=outputs.labels,
            probabilities=calibrated,
            decisions=decisions,
            multi_label=index.multi_label,
            columns=outputs.columns,
            open_draft=lease.atomic_write,
        )


def epoch_metrics(outputs: ModelOutputs) -> dict[str, Any]:
    """Return loss, accuracy, balanced accuracy and AUROC of a split, as `split_metrics` but faster."""
    return outputs.objective.epoch_metrics(outputs.logits, outputs.labels)
