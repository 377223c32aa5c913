"""A trial with a frozen backbone, as Ray Tune runs it on a cluster."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from cluster.access import restrict_umask
from cluster.settings import umask_setting
from trainer.distributed.worker import WorkerTask
from trainer.search.frozen_trials import FrozenData, FrozenTrials, read_data
from trainer.search.trial_messages import TrialAssignment
from trainer.specs import SearchSpec

GATHER_SECONDS = 30.0  # a process that a busy cluster starts later than this joins later

_data_by_run: dict[str, FrozenData] = {}  # of this process: an actor runs many trials and reads features once


class HeadTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One configuration, trained once for each repeat or fold; only numbers go through Ray."""

    def setup(self, config: dict[str, Any], task: WorkerTask[SearchSpec], threads: int, slots: int) -> None:
        """Start or resume the trial of `config`."""
        restrict_umask(umask_setting())  # Ray's processes on a cluster have that of its nodes
        torch.set_num_threads(threads)
        self.task, self.slots = task, slots
        self.trials = FrozenTrials(self.task, self._data, on_gpu=bool(ray.get_gpu_ids()))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process."""
        self.assignment = TrialAssignment.from_tune(new_config)
        self.trials.train_only([self.assignment])
        return True

    def step(self) -> dict[str, Any]:
        """Train until there is something to report; an error of the trial becomes its result.

        So the process can run the next trial.
        """
        return self.trials.step()[self.assignment.trial].to_tune()

    def _data(self) -> FrozenData:
        return _data_by_run.get(str(self.task.attempt.paths.folder)) or self._read_data()

    def _read_data(self) -> FrozenData:
        """Read the features, and wait until the other processes of the search have read them too."""
        gpus, actor = ray.get_gpu_ids(), ray.get_runtime_context().get_actor_id()
        data = read_data(self.task, torch.device("cuda" if gpus else "cpu"))
        attempt = self.task.attempt
        _data_by_run[str(attempt.paths.folder)] = data
        wait_for_processes(
            attempt.paths.scratch / f"slots-{attempt.number}", actor, self.slots, self.trials.pause.reason
        )
        return data


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
