"""Searches on a GPU: trials that share it, and whole trainings as trials."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from cluster.files import read_json
from tests.bench.trials import Bench
from tests.gpu.marks import needs_gpus
from tests.searched import attempt_at, search_spec, table_of
from tests.trained import new_run, trainer_process
from trainer.model.precision import best_precision
from trainer.search.head_group import HeadGroup

pytestmark = needs_gpus(1)

GPU = torch.device("cuda")
EPOCHS = 3


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


@pytest.mark.parametrize("gpus", [pytest.param(count, marks=needs_gpus(count)) for count in (2, 4, 8)])
@pytest.mark.parametrize("options", [{"trials": 32}, {"trials": 8, "folds": 2, "patience": 10}], ids=["heads", "folds"])
def test_a_search_of_heads_uses_several_gpus(tmp_path, digits_shards, gpus, options, caplog):
    """Of a search with folds four trials share a GPU, else sixteen; more GPUs than it can use are not leased."""
    spec = search_spec(digits_shards, gpus_per_worker=1, **(options | {"trials": options["trials"] * gpus // 2}))
    paths = new_run(tmp_path, spec)

    with caplog.at_level("INFO"):
        result = attempt_at(paths, spec)

    (runs_on,) = [message for message in caplog.messages if message.startswith("runs on")]
    assert runs_on.count("GPU-") == gpus
    assert {trial.state for trial in table_of(paths, spec).trials.values()} == {"finished"}
    assert result.metrics["auroc"] is not None


@pytest.mark.parametrize(("gpus", "workers"), [pytest.param(n, w, marks=needs_gpus(n)) for n, w in ((2, 1), (4, 2))])
def test_a_search_of_fine_tunings_runs_two_trials_at_a_time(tmp_path, digits_shards, gpus, workers):
    spec = search_spec(
        digits_shards, trials=3, freeze="none", workers=workers, gpus_per_worker=1, concurrency=gpus // workers
    )
    paths = new_run(tmp_path, spec)

    trainer = trainer_process(paths)  # whose Ray's workers are forks

    assert trainer.wait(timeout=1200) == 0, paths.log.read_text()[-4000:]
    assert {trial.state for trial in table_of(paths, spec).trials.values()} == {"finished"}


@pytest.mark.parametrize("widths", [(64,), (64, 512, 256)], ids=["one width", "several widths"])
def test_trials_that_train_together_have_the_losses_that_each_has_alone(widths):
    bench = Bench(GPU, widths, 6, EPOCHS)

    found = bench.together()

    assert found == pytest.approx(bench.alone(), abs=1e-5)
    assert len(set(found)) == 6


def test_an_epoch_of_trials_that_train_together_waits_for_the_gpu_twice():
    heads, group = Bench(GPU, (64, 512), 6, EPOCHS).heads(), HeadGroup(512, lambda: None)
    group.train_epoch(heads)  # also loads the kernels

    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            outcomes = group.train_epoch(heads)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    places = Counter(Path(each.filename).name for each in waits if "called a synchronizing" in str(each.message))
    assert list(outcomes.values()) == [None] * 6
    assert places == {"head_group.py": 1, "head_stack.py": 1}  # for the losses of its steps, and for the valid logits
