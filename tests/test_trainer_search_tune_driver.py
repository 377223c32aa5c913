"""Where trials run, and what happens to one that Ray Tune gives up."""

import os
from datetime import UTC, datetime

import pytest
import ray
from ray import tune

from cluster.settings import Settings
from tests.searched import SimulatedSearch, search_spec
from tests.trained import new_run
from trainer.attempt import Attempt
from trainer.distributed.ray_train import ray_session
from trainer.distributed.worker import WorkerTask
from trainer.search.trial_messages import RESTARTS, TrialAssignment, TrialEnd, TrialReport, TrialStep
from trainer.search.tune_driver import HEAD_NODE, Slots, gpu_share, head_slots, run_slots, run_trials
from trainer.specs import SearchSpec, build


@pytest.mark.parametrize(("count", "gpus"), [(3, 8), (8, 8), (5, 3), (4, 1), (7, 1), (64, 8)])
def test_all_trials_fit_on_the_gpus_with_shares_that_ray_accepts(count, gpus):
    share = gpu_share(count, gpus)

    assert share == 1 or 0 < share < 1
    assert gpus * int(1 / share) >= count


CLUSTER = {"ray_address": "ray-head:6379"}
NOTHING, ONE, EIGHT = {"CPU": 0.0, "node:__internal_head__": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0, "GPU": 8.0}


@pytest.fixture
def on_cluster(tmp_path, monkeypatch):
    """Let Ray have the given resources; return settings."""

    def use(have, settings):
        monkeypatch.setattr(ray, "cluster_resources", lambda: have)
        return Settings(storage=tmp_path, **settings)

    return use


@pytest.mark.parametrize(
    ("have", "settings", "options", "count"),
    [
        (NOTHING, {**CLUSTER, "cluster_gpus": 32}, {"concurrency": 16}, 16),
        (NOTHING, {**CLUSTER, "cluster_gpus": 32}, {"concurrency": 64}, 32),
        (NOTHING, {**CLUSTER, "cluster_gpus": 32}, {}, 32),
        (NOTHING, {**CLUSTER, "cluster_gpus": 32}, {"workers": 4}, 8),
        (NOTHING, CLUSTER, {"concurrency": 16}, 16),  # its size is not known: they wait for the nodes
        (NOTHING, CLUSTER, {}, 1),
        (ONE, {**CLUSTER, "cluster_gpus": 32}, {"concurrency": 16}, 16),
        (EIGHT, CLUSTER, {}, 8),
        (EIGHT, {}, {"concurrency": 16, "workers": 2}, 4),  # this machine does not grow
    ],
)
def test_as_many_trainings_run_at_once_as_the_cluster_can_have_room_for(on_cluster, have, settings, options, count):
    spec = build(SearchSpec, shards="s", freeze="none", trials=64, batch_size=32, **options)

    slots = run_slots(spec, on_cluster(have, settings), 1, in_process=False)

    assert (slots.count, dict(slots.resources), slots.gpus) == (count, {HEAD_NODE: 0.001}, spec.workers)


@pytest.mark.parametrize(
    ("have", "settings", "count", "share"),
    [
        (NOTHING, CLUSTER, 4, 0.25),  # a node has left: there is no key GPU
        (NOTHING, {**CLUSTER, "cluster_gpus": 8}, 32, 0.25),
        (EIGHT, {}, 32, 0.25),
    ],
)
def test_heads_share_the_gpus_that_the_cluster_can_have(on_cluster, have, settings, count, share):

    slots = head_slots(build(SearchSpec, shards="s", trials=64), on_cluster(have, settings), 1)

    assert (slots.count, slots.resources["GPU"], slots.gpus) == (count, share, share)


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

    with ray_session(task.attempt, spec):
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
