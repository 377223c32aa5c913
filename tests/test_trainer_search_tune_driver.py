"""Where trials run, and what happens to one that Ray Tune gives up."""

import os
from datetime import UTC, datetime

import pytest
from ray import tune

from cluster.settings import Settings
from tests.searched import SimulatedSearch, search_spec
from tests.trained import new_run
from trainer.attempt import Attempt
from trainer.distributed.ray_train import ray_session
from trainer.distributed.worker import WorkerTask
from trainer.search.trials import TrialAssignment, TrialEnd, TrialReport, TrialStep
from trainer.search.tune_driver import RESTARTS, Slots, gpu_share, run_trials


@pytest.mark.parametrize(("count", "gpus"), [(3, 8), (8, 8), (5, 3), (4, 1), (7, 1), (64, 8)])
def test_all_trials_fit_on_the_gpus_with_shares_that_ray_accepts(count, gpus):
    share = gpu_share(count, gpus)

    assert share == 1 or 0 < share < 1
    assert gpus * int(1 / share) >= count


class DyingTrainable(tune.Trainable):
    """A trial of one epoch; the process of trial 0 dies."""

    def setup(self, config, **shared):
        self.assignment = TrialAssignment.from_tune(config)

    def reset_config(self, new_config):
        self.assignment = TrialAssignment.from_tune(new_config)
        return True

    def step(self):
        if self.assignment.trial == 0:
            os._exit(7)
        report = TrialReport(epoch=1, value=0.5, seconds=0.1)
        return TrialStep(reports=(report,), end=TrialEnd.finished("epochs")).to_tune()


@pytest.mark.slow
def test_a_trial_whose_process_dies_at_every_restart_has_failed_and_the_others_run(tmp_path, digits_shards):
    spec = search_spec(digits_shards, trials=3, epochs=1)
    paths = new_run(tmp_path, spec, "search-20261123-000000-abcdef")
    search = SimulatedSearch(paths, spec, lambda: datetime.now(UTC))
    settings = Settings(storage=tmp_path)
    task = WorkerTask(attempt=Attempt.of(paths.folder, 1, settings), spec=spec, source=None)
    polls = []

    with ray_session(settings, spec):
        slots = Slots(count=1, resources={"CPU": 1}, threads=1)
        run_trials(search.controller, task, DyingTrainable, slots, lambda: polls.append(1))

    table = search.controller.journal.table
    assert {number: trial.state for number, trial in table.trials.items()} == {
        0: "failed",
        1: "finished",
        2: "finished",
    }
    assert table.trials[0].error.startswith(f"its process died {RESTARTS + 1} times: ")
    assert "no cause known" not in table.trials[0].error
    assert len(polls) > 3
