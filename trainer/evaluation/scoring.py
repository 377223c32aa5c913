"""Every sample of a split through a model, over all ranks, and the figures of it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import auc, roc_curve
from torch import Tensor, nn
from torch.nn import functional

from data_shards.index import ShardIndex
from data_shards.plan import EpochPlan
from trainer.data.batches import BatchLoader, FeatureLoader
from trainer.data.feature_extraction import FeatureExtractor
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.worker import WorkerContext
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.predictions import Predictions
from trainer.model.efficientnet import Classifier

BATCH = 256  # rows at once on each rank


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """What a model says of each sample of a split, in the order of sample ids.

    Attributes:
        logits: `(N, classes) float64`.
        labels: `(N,) int64`.
        groups: Patient or case of each sample, "" where unknown; empty where nobody asked.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    groups: tuple[str, ...] = ()

    def probabilities(self) -> NDArray[np.float64]:
        """Return the softmax of the logits, `(N, classes) float64`."""
        return np.asarray(softmax(self.logits, axis=1))


def model_outputs(
    module: nn.Module,
    source: BatchLoader,
    index: ShardIndex,
    split: str,
    process_group: ProcessGroup,
    *,
    autocast: bool = False,
    at_once: int = BATCH,
) -> ModelOutputs:
    """Return every sample's logits, on every rank; every rank must call it.

    Each rank takes its part of the split; the parts meet once at the end, so ranks may have different numbers of
    batches, or none. `at_once` are the rows of a batch on each rank.
    """
    plan = EpochPlan(
        index=index,
        split=split,
        batch_size=at_once * process_group.world_size,
        world_size=process_group.world_size,
        rank=process_group.rank,
        shuffle=False,
    )
    rows = process_group.gather_rows(_rows(module, source, plan, process_group, autocast=autocast))
    rows = rows[rows[:, 0].argsort()]
    return ModelOutputs(logits=rows[:, 2:].numpy(), labels=rows[:, 1].long().numpy())


@torch.no_grad()
def _rows(
    module: nn.Module, source: BatchLoader, plan: EpochPlan, process_group: ProcessGroup, *, autocast: bool
) -> Tensor:
    """Return id, label and logits of this rank's samples, `(n, 2 + classes) float64`."""
    module.eval()
    rows = [torch.empty(0, 2 + len(plan.index.classes), dtype=torch.float64, device=process_group.device)]
    for step in source(plan):
        with torch.autocast(process_group.device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = module(step.inputs)  # (B, classes)
        labels = step.labels.double().unsqueeze(1)
        rows.append(torch.cat([step.ids.to(labels).unsqueeze(1), labels, logits.double()], dim=1))
    return torch.cat(rows)


def classifier_outputs(
    context: WorkerContext[Any], extraction: FeatureExtractor, model: Classifier, split: str
) -> ModelOutputs:
    """Return what the model says of each sample of a split; every rank must call it.

    The features of each shard are computed as the cache holds them, so one worker and many come to the same numbers.
    """
    extraction.extract(split)
    source = FeatureLoader.of(extraction, [split], context.process_group.device)
    found = model_outputs(model.head, source, extraction.index, split, context.process_group)
    return replace(found, groups=extraction.features_of(split).groups)


def split_metrics(
    found: ModelOutputs,
    classes: tuple[str, ...],
    calibration: Calibration,
    split: str,
    *,
    positive: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the figures of a split as `result.json` has them.

    `positive` is by default the class that the threshold was chosen for, then the first.
    """
    name = positive or calibration.positive or classes[0]
    threshold = calibration.threshold_for(name)
    figures = classification_metrics(
        found.probabilities(),
        found.labels,
        classes=classes,
        positive=name,
        threshold=threshold,
        temperature=calibration.temperature,
        groups=found.groups,
        seed=seed,
    )
    wished = {} if threshold is None else {"min_sensitivity": calibration.min_sensitivity}
    return {"split": split, **figures, **wished}


def save_predictions(context: WorkerContext[Any], found: ModelOutputs) -> None:
    """Write what was said of each sample beside the run's other files; only the leading rank does.

    Raises:
        LeaseLost: A newer attempt owns the run.
    """
    if not context.process_group.is_rank_zero:
        return
    attempt = context.task.attempt
    attempt.lease.check()
    ids = np.arange(len(found.labels), dtype=np.int64)
    Predictions(ids=ids, labels=found.labels, probabilities=found.probabilities()).write(attempt.paths.predictions)


def epoch_metrics(result: ModelOutputs) -> dict[str, Any]:
    """Return loss, accuracy, balanced accuracy and AUROC of a split as `classification_metrics` does, 8 times faster.

    Classes are called by position; AUROC is that of class 0 with two classes, else the mean of one against the rest.
    """
    if not np.isfinite(result.logits).all():
        return {"loss": float("nan"), "accuracy": 0.0, "balanced_accuracy": None, "auroc": None}
    logits, labels = torch.from_numpy(result.logits), torch.from_numpy(result.labels)
    called = logits.argmax(dim=1)
    return {
        "loss": float(functional.cross_entropy(logits, labels)),
        "accuracy": float((called == labels).double().mean()),
        "balanced_accuracy": _balanced(labels, called),
        "auroc": _auroc(torch.softmax(logits, dim=1), labels),
    }


def _balanced(labels: torch.Tensor, called: torch.Tensor) -> float:
    recalls = [float((called[labels == c] == c).double().mean()) for c in _present(labels)]
    return sum(recalls) / len(recalls)


def _auroc(probabilities: torch.Tensor, labels: torch.Tensor) -> float | None:
    count = probabilities.shape[1]
    present = _present(labels)
    chosen = [c for c in ([0] if count == 2 else range(count)) if c in present]  # noqa: PLR2004
    if not chosen or len(present) == 1:
        return None
    return sum(_area(labels == c, probabilities[:, c]) for c in chosen) / len(chosen)


def _area(truth: torch.Tensor, scores: torch.Tensor) -> float:
    false_rate, true_rate, _ = roc_curve(truth.numpy(), scores.numpy(), drop_intermediate=False)
    return float(auc(false_rate, true_rate))


def _present(labels: torch.Tensor) -> list[int]:
    return sorted(set(labels.tolist()))
