"""Searches whose trials train the backbone too, with real Ray Tune and real trainings."""

import pytest

from cluster.files import read_json
from tests.searched import events_of, search_spec, table_of
from tests.trained import attempted, new_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fine_tuning_search_with_early_stopping_completes_on_two_cpus(tmp_path, digits_shards, workers):
    spec = search_spec(
        digits_shards, trials=4, epochs=9, freeze="none", workers=workers, image_size=64 if workers == 1 else 32, 
        space={"lr": {"low": 1e-5, "high": 1e-2, "log": True}, "dropout": None, "head_width": None},
    )  # fmt: skip
    paths = new_run(tmp_path, spec, "search-20261123-000000-abcdef")

    result = attempted(paths, spec)

    table, manifest = table_of(paths, spec), read_json(paths.best / "manifest.json")
    assert (table.finished, table.failed) == (4, 0)
    assert {trial.why for trial in table.ended} <= {"epochs", "rung"}
    assert {event["trial"] for event in events_of(paths, "finished")} == {0, 1, 2, 3}
    assert (manifest["trial"], manifest["epoch"]) == (table.best().trial, table.best().epoch)
    assert result.metrics["split"] == "test"
    left = {folder.name for folder in paths.checkpoints.glob("trial-*")}
    assert left <= {f"trial-{table.best().trial:06d}"}
