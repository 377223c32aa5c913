"""Searches whose trials train the backbone too, with real Ray Tune and real trainings."""

import errno
import os
import signal
import threading
import time

import pytest
import ray
import torch

from cluster.files import append_line, read_json, read_lines
from cluster.run_paths import TrialPaths
from cluster.settings import Settings
from tests.searched import search_spec, table_of
from tests.trained import done, new_run, trainer_process
from trainer.attempt import Attempt
from trainer.distributed.worker import WorkerTask
from trainer.errors import StorageFull
from trainer.search import head_trainable
from trainer.search.head_trainable import HeadTrainable
from trainer.search.run_trainable import RunTrainable, Training
from trainer.search.trial_messages import FULL, TrialStep

pytestmark = pytest.mark.timeout(1800)

LR_ALONE = {"lr": {"low": 1e-5, "high": 1e-2, "log": True}, "dropout": None, "head_width": None}


@pytest.mark.parametrize("trainable", [HeadTrainable, RunTrainable])
def test_what_a_trial_writes_has_the_permissions_of_the_run_and_not_those_of_rays_processes(
    monkeypatch, tmp_path, trainable
):
    def touch(*_):
        (tmp_path / "metrics.jsonl").touch()

    monkeypatch.setattr(trainable, "reset_config", touch)
    monkeypatch.setattr(head_trainable, "FrozenTrials", lambda *_, **__: None)
    monkeypatch.setattr(ray, "get_gpu_ids", list)  # outside an actor of Ray it starts a Ray, which would stay
    paths = new_run(tmp_path, search_spec(tmp_path))
    attempt = Attempt.of(paths.folder, None, Settings(storage=tmp_path))
    before, threads = os.umask(0o022), torch.get_num_threads()

    try:
        trainable.__new__(trainable).setup({}, WorkerTask(attempt=attempt, spec=None, source=None), threads, 1)
    finally:
        os.umask(before)

    assert (tmp_path / "metrics.jsonl").stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"trials": 4, "epochs": 6, "image_size": 64},  # six: the fewest with a rung
        {"trials": 2, "epochs": 1, "workers": 2, "concurrency": 2},
    ],
    ids=["one worker, early stopping, 64 pixels", "two workers and a driver on two CPUs"],
)
def test_a_fine_tuning_search_completes_on_two_cpus(tmp_path, digits_shards, options):
    spec = search_spec(digits_shards, freeze="none", space=LR_ALONE, **options)
    paths = new_run(tmp_path, spec, "search-20261123-000000-abcdef")

    code = trainer_process(paths).wait(840)  # a process of its own, because Ray's libraries raise deprecation warnings

    assert code == 0, paths.log.read_text()[-3000:]
    table, manifest = table_of(paths, spec), read_json(paths.best / "manifest.json")
    assert (table.finished, table.failed) == (spec.trials, 0)
    assert {trial.why for trial in table.ended} <= {"epochs", "rung"}
    result = read_json(paths.result)
    choice = result["choice"]
    assert (choice["best_trial"], choice["default_trial"], choice["reason"]) == (table.best().trial, 0, "")
    assert choice["corrected"]["trials"] == spec.trials
    assert manifest["trial"] == choice["trial"]
    assert manifest["epoch"] == table.trials[choice["trial"]].best(table.metric).epoch
    assert result["metrics"]["split"] == "test"
    left = {folder.name for folder in paths.checkpoints.glob("trial-*")}
    assert left <= {f"trial-{number:06d}" for number in (0, table.best().trial)}


@pytest.mark.slow
def test_each_configuration_is_fine_tuned_with_several_seeds_and_ranked_by_their_mean(
    tmp_path, digits_shards, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS")  # a training in this process takes all CPUs, as the only worker in Ray does
    spec = search_spec(digits_shards, freeze="none", space=LR_ALONE, trials=1, epochs=2, repeats=2, ema=0.5)
    paths = new_run(tmp_path, spec, "search-20261123-000000-abcdef")
    running = trainer_process(paths)
    while not list(paths.checkpoints.glob("trial-000000/repeat-1/checkpoints/step-*")):
        assert running.poll() is None, paths.log.read_text()[-3000:]
        time.sleep(0.1)
    os.kill(read_json(paths.attempts / "1.json")["pid"], signal.SIGKILL)  # between epoch steps
    running.wait(600)

    code = trainer_process(paths).wait(600)

    assert code == 0, paths.log.read_text()[-3000:]
    table = table_of(paths, spec)
    config = table.trials[0].config
    alone = [
        done(tmp_path, spec.trial_spec(config).model_copy(update={"seed": spec.seed + seed}), f"seed-{seed}")[0]
        for seed in range(2)
    ]
    for epoch, record in table.trials[0].reports.items():
        losses = [list(read_lines(one.metrics))[epoch - 1]["valid_loss"] for one in alone]
        assert record.value == pytest.approx(sum(losses) / 2, rel=1e-3)
        assert record.report.spread == pytest.approx(abs(losses[0] - losses[1]) / 2, rel=0.05)
    assert read_json(paths.best / "manifest.json")["epoch"] == table.best().epoch
    assert not list(paths.checkpoints.glob("trial-*"))


def test_an_epoch_is_reported_when_its_model_has_been_saved(tmp_path):
    training = Training.__new__(Training)  # without its thread
    training.paths = TrialPaths(tmp_path / "trial-000000")
    training.paths.checkpoints.mkdir(parents=True)
    line = {"epoch": 1, "best": True}
    append_line(training.paths.metrics, line)

    before = training.has_saved(line)
    (training.paths.checkpoints / "best-000001").mkdir()
    after = training.has_saved(line)

    assert (before, after) == (False, True)


@pytest.mark.parametrize(
    "line", [{"epoch": 1, "best": False}, {"epoch": 1, "best": True}], ids=["not best", "replaced"]
)
def test_an_epoch_without_a_model_of_its_own_is_reported_too(tmp_path, line):
    training = Training.__new__(Training)
    training.paths = TrialPaths(tmp_path / "trial-000000")
    training.paths.folder.mkdir(parents=True)
    for one in (line, {"epoch": 2, "best": True}):
        append_line(training.paths.metrics, one)

    reported = training.has_saved(line)

    assert reported


def test_an_epoch_whose_model_found_no_room_is_not_reported_so_that_the_next_attempt_repeats_it(tmp_path):
    training, trial = Training.__new__(Training), RunTrainable.__new__(RunTrainable)
    training.paths = TrialPaths(tmp_path / "trial-000000")
    training.paths.folder.mkdir(parents=True)
    append_line(training.paths.metrics, {"epoch": 1, "best": True})
    training.thread = threading.Thread()  # has ended
    training.error = StorageFull("best-000001 cannot be saved; free space there")  # as a Ray Train worker passes it on
    trial.training, trial.reported = training, 0

    step = TrialStep.from_tune(trial.step())

    assert step.reports == ()
    assert (step.end.outcome, step.end.why, step.end.error) == ("lost", FULL, str(training.error))


@pytest.mark.parametrize(("number", "why"), [(errno.ENOSPC, FULL), (errno.ESTALE, None), (errno.EIO, None)])
def test_a_trial_that_cannot_use_its_storage_ends_the_attempt_and_is_not_given_up(monkeypatch, number, why):
    trial = RunTrainable.__new__(RunTrainable)

    def refuse(_trial):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(RunTrainable, "_step", refuse)

    end = TrialStep.from_tune(trial.step()).end

    assert (end.outcome, end.why) == ("lost", why)
