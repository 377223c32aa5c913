"""Where trials run, and what becomes of one that Ray Tune gives up."""

import os
from datetime import UTC, datetime

import pytest
from ray import tune

from cluster.settings import Settings
from tests.searched import Rehearsal, search_spec
from tests.trained import new_run
from trainer.attempt import Attempt
from trainer.distributed.ray_train import ray_session
from trainer.distributed.worker import WorkerTask
from trainer.search.tune_driver import DEATHS, Slots, gpu_share, run_trials


@pytest.mark.parametrize(("count", "gpus"), [(3, 8), (8, 8), (5, 3), (4, 1), (7, 1), (64, 8)])
def test_all_trials_find_a_place_on_the_gpus_by_shares_that_ray_takes(count, gpus):
    share = gpu_share(count, gpus)

    assert share == 1 or 0 < share < 1
    assert gpus * int(1 / share) >= count


class Mortal(tune.Trainable):
    """One epoch, in which the process of the first trial dies."""

    def setup(self, config, **reported):
        self.assignment = config

    def reset_config(self, new_config):
        self.assignment = new_config
        return True

    def step(self):
        if self.assignment["trial"] == 0:
            os._exit(7)
        return {"epoch": 1, "value": 0.5, "seconds": 0.1, "done": True, "why": "epochs"}


@pytest.mark.slow
def test_a_trial_whose_process_dies_again_and_again_has_failed_and_the_others_go_on(tmp_path, digits_shards):
    spec = search_spec(digits_shards, trials=3, epochs=1)
    paths = new_run(tmp_path, spec, "search-20261123-000000-abcdef")
    search = Rehearsal(paths, spec, lambda: datetime.now(UTC))
    settings = Settings(storage=tmp_path)
    task = WorkerTask(attempt=Attempt.of(paths.folder, 1, settings), spec=spec, source=None)
    looks = []

    with ray_session(settings, spec):
        slots = Slots(count=1, resources={"CPU": 1}, threads=1)
        run_trials(search.controller, task, Mortal, slots, lambda: looks.append(1))

    table = search.controller.journal.table
    assert {number: trial.state for number, trial in table.trials.items()} == {
        0: "failed",
        1: "finished",
        2: "finished",
    }
    assert table.trials[0].error.startswith(f"its process died {DEATHS + 1} times: ")
    assert "no word of why" not in table.trials[0].error
    assert len(looks) > 3
