"""A trial of `search --folds`: a cross-validation of one configuration on stored features, as `train --folds` does it.

All trials divide the images into the same folds. A trial reports once, when it has trained all folds of all repeats:
the mean over the repeats of the metric out of fold, which ranks it. The logits of a finished fold are kept, so a trial
that was paused or killed goes on with the next; folds whose heads train at once start again together.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.run_paths import TrialPaths
from trainer.distributed.worker import WorkerTask
from trainer.errors import TrainerError
from trainer.evaluation.out_of_fold import KEY, OUT_OF_FOLD_FILE, OutOfFold
from trainer.evaluation.scoring import epoch_metrics
from trainer.evaluation.trial_outputs import EpochOutputs, write_trial_outputs
from trainer.progress import Progress
from trainer.search.head_training import standalone_context
from trainer.search.head_trial import end_of
from trainer.search.trial_files import PauseSignal, trial_folder, write_candidate
from trainer.search.trial_messages import TrialAssignment, TrialEnd, TrialReport, TrialStep, undefined_metric
from trainer.specs import SearchSpec
from trainer.specs.metric import is_better
from trainer.training.cross_validation import CrossValidation, Judged, images_to_train, prepared
from trainer.training.fold_assignment import Labels
from trainer.training.head_fit import HeadFit
from trainer.training.model_setup import TrainingSetup


@dataclass(frozen=True, kw_only=True)
class FoldData:
    """What all trials share.

    Attributes:
        validation: The cross-validation with the search's own options.
        divisions: The fold of each image, (N,), in each repeat.
    """

    validation: CrossValidation
    divisions: Sequence[Labels]

    @classmethod
    def of(cls, task: WorkerTask[SearchSpec], device: torch.device) -> "FoldData":
        """Open the features, which the search computed before its first trial, and divide the images.

        Raises:
            ShardError, CheckpointError: Shards or stored features are damaged.
            SpecError: The data set cannot be divided into the folds.
        """
        validation = prepared(TrainingSetup.fresh(standalone_context(task, task.spec.trial_spec({}), device)))
        return cls(validation=validation, divisions=validation.divisions())

    def validation_of(
        self, task: WorkerTask[SearchSpec], assignment: TrialAssignment, pause: PauseSignal
    ) -> CrossValidation:
        """Return the cross-validation of a trial, which keeps its files in the trial's folder."""
        setup, lease = self.validation.setup, task.attempt.lease
        spec = task.spec.trial_spec(assignment.config)
        paths = TrialPaths(trial_folder(task.attempt.paths.checkpoints, assignment.trial))
        paths.folder.mkdir(parents=True, exist_ok=True)
        context = replace(
            setup.context,
            task=WorkerTask(attempt=task.attempt, spec=spec, source=task.source, trial=paths),
            progress=Progress(paths, lease),
        )
        config = setup.config.model_copy(update={"width": spec.head_width, "dropout": spec.dropout})
        fit = HeadFit(
            spec=spec,
            config=config,
            device=setup.device,
            stop_reason=pause.reason,
            on_images=context.add_images,
        )
        return replace(self.validation, setup=replace(setup, context=context, config=config), fit=fit)


class FoldTrial:
    """One configuration, cross-validated.

    Args:
        task: Of the search.
        assignment: The trial to start or to resume.
        data: Returns the features and folds; called in its step.
        pause: Says when it should pause.
    """

    def __init__(
        self,
        task: WorkerTask[SearchSpec],
        assignment: TrialAssignment,
        data: Callable[[], FoldData],
        pause: PauseSignal,
    ) -> None:
        self.task, self.assignment, self.data, self.pause = task, assignment, data, pause
        self.reports: list[TrialReport] = []

    def step(self) -> TrialStep:
        """Train all folds and report; an error of the trial becomes its result, so the process runs the next trial."""
        end = end_of(self._cross_validate, trial=self.assignment.trial)
        return TrialStep(reports=tuple(self.reports), end=end)

    def _cross_validate(self) -> TrialEnd:
        began, data = time.monotonic(), self.data()
        validation = data.validation_of(self.task, self.assignment, self.pause)
        total = images_to_train(validation.spec, data.divisions)
        validation.setup.context.progress.start_phase("train", total=total)
        judged = validation.judge(data.divisions)
        report, attempt = report_of(judged, self.task.spec), self.task.attempt
        about = EpochOutputs(trial=self.assignment.trial, epoch=report.epoch, value=report.value)
        outputs = [repeat.outputs for repeat in judged.repeats]
        write_trial_outputs(attempt.paths.checkpoints, about, outputs, attempt.lease, has_groups=True)
        candidate = self._candidate(validation, judged, report.value)
        self.reports.append(replace(report, candidate=candidate, seconds=time.monotonic() - began))
        return TrialEnd.finished("epochs")

    def _candidate(self, validation: CrossValidation, judged: Judged, value: float) -> str | None:
        """Train and save the head to publish if the trial may be the best of the search; return its folder's name."""
        spec, attempt = self.task.spec, self.task.attempt
        if not is_better(value, self.assignment.value_to_beat, spec.best_by):
            return None
        rows = torch.arange(len(validation.features.labels))
        head = validation.train_head(rows, seed=validation.spec.seed)
        return write_candidate(
            attempt.paths.checkpoints,
            head.state_dict(),
            trial=self.assignment.trial,
            epoch=spec.epochs,
            lease=attempt.lease,
            beside={OUT_OF_FOLD_FILE: judged.shown.tensors()},
            about={KEY: judged.about},
        )


def report_of(judged: Judged, spec: SearchSpec) -> TrialReport:
    """Return the report of a trial that has trained all folds, without candidate and seconds.

    Its value is the mean over the repeats, its spread the standard deviation over all folds of all repeats.

    Raises:
        TrainerError: The metric is undefined.
    """
    values = [one[spec.best_by] for one in judged.figures]
    if any(value is None or not math.isfinite(value) for value in values):
        raise TrainerError(undefined_metric(spec.best_by, "out of fold"))
    lines = [{f"valid_{name}": one[name] for name in ("loss", "accuracy", "auroc")} for one in judged.figures]
    report = TrialReport.of_repeats(lines, epoch=spec.epochs, values=values, candidate=None)
    of_folds = [one[spec.best_by] for repeat in judged.repeats for one in _figures_of_folds(repeat)]
    spread = None if None in of_folds else statistics.pstdev(of_folds)
    return replace(report, spread=spread)


def _figures_of_folds(found: OutOfFold) -> list[Mapping[str, Any]]:
    outputs = found.outputs
    parts = [found.folds == fold for fold in range(int(found.folds.max()) + 1)]
    return [
        epoch_metrics(replace(outputs, logits=outputs.logits[rows], labels=outputs.labels[rows], groups=(), sources=()))
        for rows in parts
    ]
