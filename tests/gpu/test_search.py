"""Searches on a GPU: trials that share it, and whole trainings as trials."""

import pytest
import torch

from cluster.files import read_json
from tests.gpu.marks import needs_gpus
from tests.searched import attempt_at, search_spec, table_of
from tests.trained import new_run
from trainer.model.precision import best_precision

pytestmark = needs_gpus(1)


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_a_search_finishes_its_trials_and_publishes_the_best(tmp_path, digits_shards, freeze):
    spec = search_spec(digits_shards, trials=4, freeze=freeze, gpus_per_worker=1)
    paths = new_run(tmp_path, spec)

    result = attempt_at(paths, spec)

    trials = table_of(paths, spec).trials
    assert [(number, trial.state, trial.why) for number, trial in sorted(trials.items())] == [
        (number, "finished", "epochs") for number in range(4)
    ]
    assert result.metrics["auroc"] is not None
    precision = best_precision(torch.device("cuda"), trains=freeze == "none")
    assert read_json(paths.best / "head.json")["precision"] == precision
