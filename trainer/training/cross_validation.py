"""`train --folds`: cross-validation of heads on the features of train and valid, and the model that is published.

Each image is scored by a head that was trained without the image's fold. These predictions out of fold choose the
temperature and give the metrics; the published head is trained on all images of both splits, with the same options.
Nested cross-validation on chest X-rays found no head that is better if it is the mean of the heads of the folds.

With repeats, the images are divided anew for each. The metrics are those of one of them, the one with the median loss:
each image counts once, and is scored by one head, as the published model scores new images. The mean of several heads'
predictions would be better than the one head that is published.

The heads of the folds train several at once where that is faster (`batched_heads.py`), on CPUs in several processes.

The trials of `search --folds` are cross-validated in the same way (`trainer/search/fold_trial.py`).
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor, nn

from cluster.process_env import openmp_threads
from cluster.resources import cpu_count
from data_shards.index import BOTH, ShardIndex
from trainer.data.split_features import SplitFeatures
from trainer.errors import CheckpointError, Stopped
from trainer.evaluation.out_of_fold import KEY, OUT_OF_FOLD_FILE, OutOfFold
from trainer.evaluation.scoring import epoch_metrics
from trainer.evaluation.training_text import BEFORE_SCALING, FIGURES
from trainer.model.checkpoint_folder import read_tensors, read_verified_manifest, write_checkpoint_folder
from trainer.specs import TrainSpec
from trainer.specs.train import HeadKind
from trainer.training.baselines import MOST_IMAGES, Baseline, figures_before_scaling, linear_logits
from trainer.training.fold_assignment import Labels, assign_folds
from trainer.training.fold_heads import FoldHead, fold_batches, fold_logits, stopped_between_folds
from trainer.training.forked_work import results_of
from trainer.training.head_fit import Floats, HeadFit, head_outputs
from trainer.training.model_setup import TrainingSetup
from trainer.training.optimizer import import_compiler
from trainer.training.publish import TrainOutcome, publish_scored, training_details

LOGITS_FILE = "logits.safetensors"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The predictions out of fold of all repeats.

    Attributes:
        repeats: Of each division into folds.
        figures: What `epoch_metrics` returned for each.
        shown: The repeat with the median loss, which the metrics are about.
        about: What manifest and `result.json` say about the cross-validation.
    """

    repeats: Sequence[OutOfFold]
    figures: Sequence[Mapping[str, Any]]
    shown: OutOfFold
    about: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """The cross-validation of one training, in one process.

    Attributes:
        setup: Model and data.
        split: What is divided into folds: `train+valid`, or `train` where there is no valid split.
        features: Of that split.
        fit: How to train a head.
        processes: To train the heads of the folds in, on CPUs; 1 for linear heads, and where Ray's threads run.
    """

    setup: TrainingSetup
    split: str
    features: SplitFeatures
    fit: HeadFit
    processes: int = 1

    @property
    def spec(self) -> TrainSpec:
        """What was requested."""
        return self.setup.spec

    def fold_count(self) -> int:
        """Number of folds."""
        assert self.spec.folds is not None  # noqa: S101 -- a training without folds is never cross-validated
        return self.spec.folds

    def divide(self, repeat: int) -> Labels:
        """Return the fold of each image, (N,), in a repeat (from 0)."""
        return assign_folds(
            self.features.labels.numpy(),
            self.features.groups,
            folds=self.fold_count(),
            seed=(self.spec.seed + repeat) % 2**32,
            classes=self.fit.config.classes,
        )

    def divisions(self) -> list[Labels]:
        """Return the fold of each image, (N,), in each repeat."""
        return [self.divide(repeat) for repeat in range(self.spec.repeats)]

    def judge(self, divisions: Sequence[Labels]) -> Judged:
        """Train a head without each fold of each repeat, and return the predictions out of fold."""
        repeats = [
            OutOfFold(outputs=head_outputs(self.fit, self.features, logits), folds=folds)
            for logits, folds in zip(self._logits(divisions), divisions, strict=True)
        ]
        figures = [epoch_metrics(repeat.outputs) for repeat in repeats]
        chosen = median_repeat([float(one["loss"]) for one in figures])
        about = {
            "folds": self.spec.folds,
            "repeats": self.spec.repeats,
            "splits": self.split.split(BOTH),
            "images": len(self.features.labels),
            "shown_repeat": chosen + 1,
            "by_repeat": [{name: one[name] for name in FIGURES} for one in figures],
        }
        return Judged(repeats=repeats, figures=figures, shown=repeats[chosen], about=about)

    def baselines(self, folds: Labels) -> list[Baseline]:
        """Return the figures of linear heads on the same folds."""
        found = {kind: self._linear_out_of_fold(kind, folds) for kind in self.fit.baseline_kinds}
        largest = int(np.bincount(folds).max())
        images = min(len(folds) - largest, MOST_IMAGES)
        return [
            Baseline.of(kind, head_outputs(self.fit, self.features, logits), self.fit, images=images)
            for kind, logits in found.items()
            if logits is not None
        ]

    def _linear_out_of_fold(self, kind: HeadKind, folds: Labels) -> Floats | None:
        logits = np.empty((len(folds), len(self.fit.config.classes)))
        for fold in range(self.fold_count()):
            inside, outside = (torch.from_numpy(np.flatnonzero(mask)) for mask in (folds == fold, folds != fold))
            found = linear_logits(
                self.fit,
                kind,
                self.features.values.select(outside),
                self.features.labels[outside],
                self.features.values.select(inside),
            )
            if found is None:
                return None
            logits[folds == fold] = found
        return logits

    def train_head(self, rows: Tensor, *, seed: int) -> nn.Module:
        """Return a head that is trained on these rows.

        Raises:
            Stopped: The run was asked to stop.
        """
        with stopped_between_folds():
            if reason := self.fit.stop_reason():
                raise Stopped(reason)
            return self.fit.fit(self.features.values.select(rows), self.features.labels[rows], seed=seed)

    def _logits(self, divisions: Sequence[Labels]) -> list[Floats]:
        """Return the logits out of fold of each repeat, (N, classes); those of a finished fold from its checkpoint.

        Raises:
            Stopped: The run was asked to stop.
        """
        found = [np.empty((len(folds), len(self.fit.config.classes))) for folds in divisions]
        unfinished, kept = list[list[FoldHead]](), set[Path]()
        for batch in fold_batches(self.fit, self._heads(divisions)):
            stored = [self._stored_logits(self._folder(head), len(head.inside)) for head in batch]
            for head, logits in zip(batch, stored, strict=True):
                if logits is not None:
                    found[head.repeat][head.inside] = logits
                    kept.add(self._folder(head))
            if any(logits is None for logits in stored):
                unfinished.append(batch)  # as a whole: sums are rounded as in an attempt that is not interrupted
            else:
                self.fit.on_images(_passes(self.spec) * sum(len(head.outside) for head in batch))
        with closing(self._trained(unfinished)) as batches:
            for batch, trained in batches:
                for head, logits in zip(batch, trained, strict=True):
                    found[head.repeat][head.inside] = logits
                    if (folder := self._folder(head)) not in kept:
                        self._store(folder, logits)
        return found

    def _store(self, folder: Path, logits: Floats) -> None:
        """Keep the logits of a fold for a later attempt."""
        write_checkpoint_folder(
            folder,
            lease=self.setup.context.task.attempt.lease,
            tensors={LOGITS_FILE: {"logits": torch.from_numpy(logits)}},
            json_files={},
            manifest={"data": self.setup.index.digest},
        )

    def _heads(self, divisions: Sequence[Labels]) -> list[FoldHead]:
        count = self.fold_count()
        return [
            FoldHead.of(repeat, fold, folds, seed=self.spec.seed + repeat * count + fold)
            for repeat, folds in enumerate(divisions)
            for fold in range(count)
        ]

    def _trained(self, batches: Sequence[list[FoldHead]]) -> Generator[tuple[list[FoldHead], list[Floats]], None, None]:
        """Train the heads of each batch, in several processes; yield each batch with the logits of its heads."""
        if self.processes > 1 and len(batches) > 1:
            import_compiler()
        found = results_of(self._train_batch, batches, processes=self.processes, on_images=self.fit.on_images)
        with closing(found), stopped_between_folds():
            yield from found

    def _train_batch(self, heads: Sequence[FoldHead], on_images: Callable[[int], None]) -> list[Floats]:
        return fold_logits(replace(self.fit, on_images=on_images), self.features, heads)

    def _folder(self, head: FoldHead) -> Path:
        name = f"fold-{head.repeat + 1:03d}-{head.fold + 1:03d}"
        return self.setup.context.task.paths.checkpoints / name

    def _stored_logits(self, folder: Path, count: int) -> Floats | None:
        if not folder.exists():
            return None
        try:
            if read_verified_manifest(folder).get("data") != self.setup.index.digest:
                return None
            logits: Floats = read_tensors(folder / LOGITS_FILE)["logits"].numpy()
        except (CheckpointError, KeyError) as error:
            logger.warning("%s; training this fold again", error)
            return None
        return logits if logits.shape == (count, len(self.fit.config.classes)) else None


def cross_validate(setup: TrainingSetup) -> TrainOutcome:
    """Cross-validate heads, publish the head that is trained on all images, and return the metrics out of fold.

    Raises:
        Stopped: The run was asked to stop; the predictions of finished folds are kept.
        SpecError: The data set cannot be divided into the folds.
    """
    validation = replace(prepared(setup), processes=process_count(setup))
    spec, features = setup.spec, validation.features
    divisions = validation.divisions()
    setup.context.progress.start_phase("train", total=images_to_train(spec, divisions))
    judged = validation.judge(divisions)
    head = validation.train_head(torch.arange(len(features.labels)), seed=spec.seed)
    setup.model.head.load_state_dict(head.state_dict())
    metrics = _publish(validation, judged.shown, judged.about)
    baselines = [one.to_json() for one in validation.baselines(judged.shown.folds)]
    details = {**training_details(setup, validation.split), KEY: judged.about, "baselines": baselines}
    return TrainOutcome(metrics=metrics, details=details)


def process_count(setup: TrainingSetup) -> int:
    """Return in how many processes heads of folds train: on CPUs without Ray, as many as threads are allowed."""
    forks = setup.spec.trains_by_steps and setup.device.type == "cpu" and not ray.is_initialized()
    return openmp_threads() or cpu_count() if forks else 1


def publish_judged(setup: TrainingSetup, judged: Path, *, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Publish the setup's model, whose head was trained on all images, and return the metrics out of fold.

    Args:
        setup: The model; its spec is that of a training with folds.
        judged: Folder with the predictions out of fold, and what its manifest says about them: that of a candidate of a
            search, or of a published model.
        origin: Goes into the manifest.

    Raises:
        CheckpointError: The folder is damaged, or its predictions are not about these images.
    """
    validation, about = prepared(setup), read_verified_manifest(judged)[KEY]
    stored = read_tensors(judged / OUT_OF_FOLD_FILE)
    if not torch.equal(stored["labels"], validation.features.labels.to(stored["labels"])):
        raise CheckpointError(f"{judged} is about other images than {setup.spec.shards} has; run the search again")
    outputs = head_outputs(validation.fit, validation.features, stored["logits"].numpy())
    return _publish(validation, OutOfFold(outputs=outputs, folds=stored["folds"].numpy()), about, origin)


def beside_baselines(setup: TrainingSetup, folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return linear heads beside a published model of folds, on the same folds, as `train --folds` reports them.

    Args:
        setup: Its spec is that of a training with folds.
        folder: Of the published model.
        metrics: Of the model, out of fold.

    Returns:
        The keys of `result.json`: `metrics` with the model's own figures before temperature scaling, and `baselines`.

    Raises:
        CheckpointError: The predictions out of fold beside the model are damaged.
    """
    validation, found = prepared(setup), OutOfFold.read(folder, setup.config)
    own = figures_before_scaling(head_outputs(validation.fit, validation.features, found.outputs.logits), metrics)
    baselines = [one.to_json() for one in validation.baselines(found.folds)]
    return {"metrics": {**metrics, BEFORE_SCALING: own}, "baselines": baselines}


def median_repeat(losses: list[float]) -> int:
    """Return the position of the median loss; of an even number the greater one of the two in the middle."""
    return int(np.argsort(losses, kind="stable")[len(losses) // 2])


def cross_validated_split(index: ShardIndex) -> str:
    """Return what folds divide: train and valid together, or train where there is no valid split."""
    return BOTH.join(split for split in ("train", "valid") if split in index.splits)


def prepared(setup: TrainingSetup) -> CrossValidation:
    """Compute the features, or read them from the cache."""
    context, split, extractor = setup.context, cross_validated_split(setup.index), setup.extractor
    context.progress.start_phase("features", total=setup.index.samples_in(split))
    extractor.extract(split)
    fit = HeadFit(
        spec=setup.spec,
        config=setup.config,
        device=setup.device,
        stop_reason=context.stop.reason,
        on_images=context.add_images,
        on_step=context.add_step,
    )
    return CrossValidation(setup=setup, split=split, features=extractor.features_of(split), fit=fit)


def images_to_train(spec: TrainSpec, divisions: Sequence[Labels]) -> int:
    """Return how many images all folds of all repeats, and the published head, train on, over all epochs."""
    of_folds = sum(len(folds) * (int(folds.max()) + 1) - len(folds) for folds in divisions)
    return (of_folds + len(divisions[0])) * _passes(spec)


def _passes(spec: TrainSpec) -> int:
    """Return how often a training goes over its images."""
    return spec.epochs if spec.trains_by_steps else 1


def _publish(
    validation: CrossValidation, found: OutOfFold, about: dict[str, Any], origin: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    judged = {"out_of_fold": {"folds": about["folds"], "repeats": about["repeats"]}}
    calibrated_by = "predictions out of fold of the same images"
    refit = {"splits": about["splits"], "images": about["images"], "calibrated_by": calibrated_by}
    return publish_scored(
        validation.setup,
        found.outputs,
        validation.split,
        origin={"refit": refit, KEY: about, **(origin or {})},
        judged=judged,
        beside={OUT_OF_FOLD_FILE: found.tensors()},
    )
