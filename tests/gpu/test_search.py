"""Searches on a GPU: trials that share it, and whole trainings as trials."""

import pytest

from cluster.files import read_json
from tests.gpu.marks import needs_gpus
from tests.searched import attempt_at, search_spec, table_of
from tests.trained import new_run

pytestmark = needs_gpus(1)


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_a_search_finishes_its_trials_and_publishes_the_best(tmp_path, digits_shards, freeze):
    spec = search_spec(digits_shards, trials=4, freeze=freeze, gpus_per_worker=1)
    paths = new_run(tmp_path, spec)

    result = attempt_at(paths, spec)

    trials = table_of(paths, spec).trials
    assert len(trials) == 4
    assert [trial.state for trial in trials if trial.state not in ("succeeded", "stopped")] == []
    assert result.metrics["auroc"] is not None
    assert read_json(paths.best / "head.json")["precision"] in ("bf16", "fp32")
