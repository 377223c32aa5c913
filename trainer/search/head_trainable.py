"""A trial with a frozen backbone, as Ray Tune runs it: trains heads on stored features."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from trainer.distributed.worker import WorkerTask
from trainer.errors import Stopped, TrainerError
from trainer.search.asha import rungs_of
from trainer.search.head_training import HeadTraining, HeadTrainingData
from trainer.search.trial_files import PauseSignal, repeat_folder, write_candidate
from trainer.search.trials import TrialAssignment, TrialEnd, TrialReport, TrialStep, undefined_metric
from trainer.specs import SearchSpec
from trainer.specs.metric import is_better, loss_of

REPORT_SECONDS = 0.25  # between two messages of a trial
GATHER_SECONDS = 30.0  # a process that a busy cluster starts later than this joins later

logger = logging.getLogger(__name__)

_data_by_run: dict[str, HeadTrainingData] = {}  # of this process: an actor runs many trials and reads features once


class HeadTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One configuration, trained once for each repeat; only numbers go through Ray."""

    def setup(self, config: dict[str, Any], task: WorkerTask[SearchSpec], threads: int, slots: int) -> None:
        """Start or resume the trial of `config`."""
        torch.set_num_threads(threads)
        self.task, self.slots = task, slots
        self.pause = PauseSignal(task.attempt.paths, task.attempt.number)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process."""
        self.assignment = TrialAssignment.from_tune(new_config)
        self.value_to_beat = self.assignment.value_to_beat
        self.heads: list[HeadTraining] = []
        return True

    def step(self) -> dict[str, Any]:
        """Train until there is something to report; an error of the trial becomes its result.

        So the process can run the next trial.
        """
        self.reports: list[TrialReport] = []
        end = self._train()
        return TrialStep(reports=tuple(self.reports), end=end).to_tune()

    def _train(self) -> TrialEnd | None:
        try:
            return self._train_epochs()
        except Stopped:
            for head in self.heads:
                head.save_last_epoch()
            return TrialEnd.paused()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return TrialEnd.failed("out of GPU memory; use a lower --concurrency or a smaller --head-width")
        except TrainerError as error:
            return TrialEnd.failed(str(error))
        except Exception as error:  # a bug that one configuration triggers must not end the search
            logger.exception("trial %s failed because of a bug", self.assignment.trial)
            return TrialEnd.failed(f"{type(error).__name__}: {error}")

    def _train_epochs(self) -> TrialEnd | None:
        """Train up to a rung or the end, or for REPORT_SECONDS: a message costs Tune more time than a short epoch."""
        until = time.monotonic() + REPORT_SECONDS
        while True:
            report = self._train_epoch()
            self.reports.append(report)
            if all(head.is_over for head in self.heads):
                first = self.heads[0]
                return TrialEnd.finished("epochs" if first.state.epoch >= first.spec.epochs else "patience")
            if report.epoch in rungs_of(self.task.spec) or time.monotonic() >= until:
                return None

    def _train_epoch(self) -> TrialReport:
        if not self.heads:
            self.heads = self._new_heads()
        lines = [head.epoch() for head in self._heads_behind()]
        values = [head.value for head in self.heads if head.value is not None]
        if len(values) < len(self.heads):
            raise TrainerError(undefined_metric(self.task.spec.best_by))
        epoch = max(head.state.epoch for head in self.heads)
        report = TrialReport.of_repeats(lines, epoch=epoch, values=values, candidate=None)
        return replace(report, candidate=self._candidate(report.value, values))

    def _new_heads(self) -> list[HeadTraining]:
        data = _data_by_run.get(str(self.task.attempt.paths.folder)) or self._read_data()
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

    def _read_data(self) -> HeadTrainingData:
        """Read the features, and wait until the other processes of the search have read them too."""
        gpus, actor = ray.get_gpu_ids(), ray.get_runtime_context().get_actor_id()
        data = HeadTrainingData.of(self.task, torch.device("cuda" if gpus else "cpu"))
        attempt = self.task.attempt
        _data_by_run[str(attempt.paths.folder)] = data
        wait_for_processes(attempt.paths.scratch / f"slots-{attempt.number}", actor, self.slots, self.pause.reason)
        return data

    def _heads_behind(self) -> list[HeadTraining]:
        """Return the heads that train the next epoch: after a pause between two repeats, not all of them."""
        active = [head for head in self.heads if not head.is_over]
        epoch = min((head.state.epoch for head in active), default=0)
        return [head for head in active if head.state.epoch == epoch]

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


def wait_for_processes(folder: Path, name: str, count: int, stop_reason: Callable[[], object]) -> None:
    """Wait in `folder` until `count` processes have left their names there, at most GATHER_SECONDS.

    Args:
        folder: On the storage that the processes share.
        name: Of this process.
        count: Processes to wait for, this one included.
        stop_reason: Returns a reason to wait no longer, or None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    until = time.monotonic() + GATHER_SECONDS
    while sum(1 for _ in folder.iterdir()) < count and time.monotonic() < until and not stop_reason():
        time.sleep(0.02)
