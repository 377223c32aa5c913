"""A trial with a frozen backbone: heads on stored features, one for each repeat. `head_trials.py` trains them."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from trainer.distributed.worker import WorkerTask
from trainer.errors import Stopped, TrainerError
from trainer.evaluation.scoring import ModelOutputs
from trainer.evaluation.trial_outputs import EpochOutputs, best_written_value, write_trial_outputs
from trainer.search.asha import rungs_of
from trainer.search.head_training import HeadTraining, HeadTrainingData
from trainer.search.trial_files import PauseSignal, repeat_folder, write_candidate
from trainer.search.trial_messages import TrialAssignment, TrialEnd, TrialReport, TrialStep, undefined_metric
from trainer.specs import SearchSpec
from trainer.specs.metric import is_better, loss_of

logger = logging.getLogger(__name__)


class HeadTrial:
    """One configuration, trained once for each repeat.

    Args:
        task: Of the search.
        assignment: The trial to start or to resume.
        data: Returns the features that its heads train on; called in its first step.
        pause: Says when it should pause.
    """

    def __init__(
        self,
        task: WorkerTask[SearchSpec],
        assignment: TrialAssignment,
        data: Callable[[], HeadTrainingData],
        pause: PauseSignal,
    ) -> None:
        self.task, self.assignment, self.data, self.pause = task, assignment, data, pause
        self.value_to_beat = assignment.value_to_beat
        self.heads: list[HeadTraining] = []
        self.reports: list[TrialReport] = []
        self.best_value = best_written_value(task.attempt.paths.checkpoints, assignment.trial)
        self.best_outputs: tuple[EpochOutputs, list[ModelOutputs]] | None = None  # of the best epoch, not written yet

    def heads_to_train(self) -> list[HeadTraining]:
        """Return the heads that train the next epoch: after a pause between two repeats, not all of them.

        Raises:
            ShardError, CheckpointError: Shards or stored features are damaged.
        """
        if not self.heads:
            self.heads = self._new_heads()
        active = [head for head in self.heads if not head.is_over]
        epoch = min((head.state.epoch for head in active), default=0)
        return [head for head in active if head.state.epoch == epoch]

    def after_epoch(self, lines: Sequence[dict[str, Any]]) -> TrialEnd | None:
        """Report an epoch; return the end of the trial if it was its last.

        Args:
            lines: Its metrics, of each head that trained it.

        Raises:
            TrainerError: The metric that ranks is undefined.
        """
        self.reports.append(self._report(lines))
        if not all(head.is_over for head in self.heads):
            return None
        first = self.heads[0]
        return TrialEnd.finished("epochs" if first.state.epoch >= first.spec.epochs else "patience")

    @property
    def is_at_rung(self) -> bool:
        """Whether the search decides now whether the trial continues."""
        return bool(self.reports) and self.reports[-1].epoch in rungs_of(self.task.spec)

    def end(self) -> None:
        """Free its heads."""
        for head in self.heads:
            head.end()
        self.heads = []

    def save(self) -> None:
        """Save a checkpoint of each head that has trained an epoch since its last one."""
        for head in self.heads:
            head.save_last_epoch()

    def taken(self, end: TrialEnd | None) -> TrialStep:
        """Return what there is to report, once.

        The outputs of the best epoch are kept before its report is in the journal, so that none is without them unless
        the storage fails.
        """
        failed = end_of(self._write_outputs, trial=self.assignment.trial)
        reports, self.reports = tuple(self.reports), []
        return TrialStep(reports=reports, end=failed or end)

    def _report(self, lines: Sequence[dict[str, Any]]) -> TrialReport:
        values = [head.value for head in self.heads if head.value is not None]
        if len(values) < len(self.heads):
            raise TrainerError(undefined_metric(self.task.spec.best_by))
        epoch = max(head.state.epoch for head in self.heads)
        report = TrialReport.of_repeats(lines, epoch=epoch, values=values, candidate=None)
        if is_better(report.value, self.best_value, self.task.spec.best_by):
            outputs = [head.outputs for head in self.heads if head.outputs is not None]
            self.best_value = report.value
            self.best_outputs = EpochOutputs(trial=self.assignment.trial, epoch=epoch, value=report.value), outputs
        return replace(report, candidate=self._candidate(report.value, values))

    def _write_outputs(self) -> None:
        if self.best_outputs is not None:
            (about, outputs), attempt = self.best_outputs, self.task.attempt
            write_trial_outputs(attempt.paths.checkpoints, about, outputs, attempt.lease, has_groups=True)
            self.best_outputs = None

    def _new_heads(self) -> list[HeadTraining]:
        data = self.data()
        spec = self.task.spec.trial_spec(self.assignment.config)
        return [
            HeadTraining(
                data,
                spec.model_copy(update={"seed": spec.seed + repeat}),
                repeat_folder(self.task.attempt.paths.checkpoints, self.assignment.trial, repeat),
                self.pause.reason,
                self.task.attempt.lease,
            )
            for repeat in range(self.task.spec.repeats)
        ]

    def _candidate(self, value: float, values: list[float]) -> str | None:
        """Save the best repeat's head if the epoch may be the best of the search; return the name of its folder."""
        spec, attempt = self.task.spec, self.task.attempt
        if not is_better(value, self.value_to_beat, spec.best_by):
            return None
        self.value_to_beat = value
        best = self.heads[min(range(len(values)), key=lambda repeat: loss_of(values[repeat], spec.best_by))]
        return write_candidate(
            attempt.paths.checkpoints,
            best.tensors,
            trial=self.assignment.trial,
            epoch=best.state.epoch,
            lease=attempt.lease,
        )


def end_of(train: Callable[[], TrialEnd | None], *, trial: int) -> TrialEnd | None:
    """Return what `train` returns; its error is the end of the trial, not of the process."""
    try:
        return train()
    except Exception as error:
        return end_by(error, trial=trial)


def end_by(error: Exception, *, trial: int) -> TrialEnd:
    """Return the end of a trial that an error has ended. A bug that one configuration triggers must not end the search.

    A storage that fails must: it would end trial after trial, and a trial that has failed is never continued.

    The traceback is dropped: its frames would keep the tensors of the trial.
    """
    if not isinstance(error, Stopped) and (lost := TrialEnd.lost_by(error)):
        error.__traceback__ = None
        return lost
    if not isinstance(error, Stopped | TrainerError | torch.OutOfMemoryError):
        logger.error("trial %s failed because of a bug", trial, exc_info=error)
    error.__traceback__ = None
    if isinstance(error, Stopped):
        return TrialEnd.paused()
    if isinstance(error, torch.OutOfMemoryError):
        gc.collect()  # heads of a trial that was only half built are in reference cycles
        torch.cuda.empty_cache()
        return TrialEnd.failed("out of GPU memory; use a lower --concurrency or a smaller --head-width")
    return TrialEnd.failed(str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}")
