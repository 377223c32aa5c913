"""The notice that a machine goes: heard once for each machine, and worth a checkpoint."""

import json

import pytest
from ray.train import PreemptionInfo

from cluster.run_paths import RunPaths
from tests.trained import new_run, train_spec
from trainer import preemption
from trainer.preemption import Preemption
from trainer.ray_session import RESTARTS, restarts


def test_each_machine_is_news_once():
    notices = [None, notice("a"), notice("a"), notice("a", "b"), notice("a", "b"), None]
    heard = Preemption(iter(notices).__next__)

    found = [heard.is_new() for _ in notices]

    assert found == [False, True, False, True, False, False]


def test_it_is_time_to_look_at_first_and_again_after_a_while(monkeypatch):
    heard = Preemption()

    at_first = heard.is_due()
    heard.is_new()
    at_once = heard.is_due()
    monkeypatch.setattr(preemption, "LOOK_SECONDS", 0.0)
    later = heard.is_due()

    assert (at_first, at_once, later) == (True, False, True)


@pytest.mark.parametrize("retries", [0, 5])
def test_workers_are_started_again_as_often_as_the_run_may_be(tmp_path, retries):
    paths = RunPaths(tmp_path)
    paths.job.write_text(json.dumps({"retries": retries}))

    assert restarts(paths) == retries


def test_a_run_that_was_never_queued_has_restarts_too(tmp_path):
    paths = new_run(tmp_path, train_spec(tmp_path))

    assert restarts(paths) == RESTARTS


def notice(*nodes):
    return PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={node: [0] for node in nodes})
