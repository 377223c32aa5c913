"""Searches whose trials train the backbone too, with real Ray Tune and real trainings."""

import pytest

from cluster.files import read_json
from tests.searched import search_spec, table_of
from tests.trained import new_run, trainer_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LR_ALONE = {"lr": {"low": 1e-5, "high": 1e-2, "log": True}, "dropout": None, "head_width": None}


@pytest.mark.parametrize(
    "options",
    [
        {"trials": 4, "epochs": 9, "image_size": 64},
        {"trials": 2, "epochs": 1, "workers": 2, "concurrency": 2},
    ],
    ids=["one worker, early stopping, 64 pixels", "two workers and a driver on two CPUs"],
)
def test_a_fine_tuning_search_completes_on_two_cpus(tmp_path, digits_shards, options):
    spec = search_spec(digits_shards, freeze="none", space=LR_ALONE, **options)
    paths = new_run(tmp_path, spec, "search-20261123-000000-abcdef")

    code = trainer_process(paths).wait(840)  # a process of its own: Ray's libraries warn of their own old names

    assert code == 0, paths.log.read_text()[-3000:]
    table, manifest = table_of(paths, spec), read_json(paths.best / "manifest.json")
    assert (table.finished, table.failed) == (spec.trials, 0)
    assert {trial.why for trial in table.ended} <= {"epochs", "rung"}
    assert (manifest["trial"], manifest["epoch"]) == (table.best().trial, table.best().epoch)
    assert read_json(paths.result)["metrics"]["split"] == "test"
    left = {folder.name for folder in paths.checkpoints.glob("trial-*")}
    assert left <= {f"trial-{table.best().trial:06d}"}
