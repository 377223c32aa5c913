"""`search --folds`: trials that are cross-validations, in processes on this machine's CPUs."""

import os
import signal
import statistics

import numpy as np
import pytest
import ray
import torch

from cluster.files import read_json
from cluster.settings import Settings
from jobs.web.search_page import leaderboard_of
from tests.multi_label import pack_multi_label
from tests.searched import search_spec, table_of
from tests.trained import done, new_run
from trainer import train
from trainer.attempt import Attempt
from trainer.distributed.worker import WorkerTask
from trainer.errors import SpecError, TrainerError
from trainer.evaluation.out_of_fold import OutOfFold
from trainer.evaluation.scoring import ModelOutputs, epoch_metrics
from trainer.evaluation.training_text import BEFORE_SCALING
from trainer.model.bundle import read_model
from trainer.search import run
from trainer.search.fold_trial import FoldData, FoldTrial, report_of
from trainer.search.journal import TrialJournal, copy_trials
from trainer.search.publisher import BestModelPublisher
from trainer.search.run import refuse_other_images
from trainer.search.trial_files import PauseSignal
from trainer.search.trial_messages import TrialAssignment
from trainer.training import fold_heads
from trainer.training.cross_validation import Judged
from trainer.training.head_fit import HeadFit

SEARCH, OTHER = (f"search-20261123-00000{number}-abcdef" for number in range(2))
FOLDS = {"folds": 2, "fold_repeats": 2, "epochs": 2, "batch_size": 16, "patience": 10, "seed": 3}
SPACE = {"head_width": (8, 16)}


def folds_spec(shards, **options):
    return search_spec(
        shards, **(FOLDS | {"space": SPACE, "trials": 2, "concurrency": 1, "algorithm": "grid"} | options)
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory, digits_shards):
    """A search whose trial process is killed while it trains the second fold of the first trial; and all fits."""
    storage, patch = tmp_path_factory.mktemp("storage"), pytest.MonkeyPatch()
    fit, fits, trainer = HeadFit.fit, storage / "fits", os.getpid()

    def killed_once(self, features, labels, *, seed):
        with fits.open("a") as file:
            file.write(f"{self.spec.head_width} {seed}\n")
        if os.getpid() != trainer and len(fits.read_text().splitlines()) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return fit(self, features, labels, seed=seed)

    def refuse(**_options):
        raise AssertionError("Ray was started")

    patch.setattr(HeadFit, "fit", killed_once)
    patch.setattr(fold_heads, "heads_at_once", lambda *_: 1)
    patch.setattr(ray, "init", refuse)
    spec = folds_spec(digits_shards)
    paths, result = done(storage, spec, SEARCH)
    patch.undo()
    return paths, spec, result, [line.split() for line in fits.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(searched):
    """`train --folds` with the options of the best trial."""
    paths, spec, result, _ = searched
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda *_: None)
        patch.setattr(fold_heads, "heads_at_once", lambda *_: 1)
        return done(paths.storage, spec.trial_spec(result.details["best"]["config"]), "train")


def test_a_killed_search_goes_on_with_the_finished_folds(searched):
    paths, spec, _, fits = searched

    trials = table_of(paths, spec).trials

    assert [(trial.state, trial.why, trial.epochs) for trial in trials.values()] == [("finished", "epochs", 2)] * 2
    first = fits[0][0]
    assert fits[:6] == [[first, seed] for seed in ("3", "4", "4", "5", "6", "3")]  # the last is the head to publish
    assert not list(paths.checkpoints.glob("trial-*"))


def test_the_value_of_a_trial_is_the_mean_over_the_repeats_of_train_with_the_same_folds(searched, trained):
    paths, spec, result, _ = searched
    _, expected = trained

    best = table_of(paths, spec).best()

    by_repeat = expected.details["cross_validation"]["by_repeat"]
    assert len({row["loss"] for row in by_repeat}) == 2
    assert best.value == pytest.approx(statistics.fmean(row["loss"] for row in by_repeat), abs=1e-6)
    assert best.report.valid_auroc == pytest.approx(statistics.fmean(row["auroc"] for row in by_repeat), abs=1e-6)
    assert result.details["best"]["value"] == best.value


def test_the_published_model_is_that_of_train_with_the_options_of_the_best_trial(searched, trained):
    paths, _, result, _ = searched
    same, expected = trained

    (_, config, manifest), (_, _, other) = read_model(paths.best), read_model(same.best)

    assert (paths.best / "model.safetensors").read_bytes() == (same.best / "model.safetensors").read_bytes()
    found, of_train = (OutOfFold.read(folder, config) for folder in (paths.best, same.best))
    assert found.outputs.logits == pytest.approx(of_train.outputs.logits, abs=1e-6)
    assert (found.folds == of_train.folds).all()
    assert (manifest["refit"], manifest["shards"]) == (other["refit"], other["shards"])
    assert manifest["cross_validation"]["shown_repeat"] == other["cross_validation"]["shown_repeat"]
    calibration, of_train = (read_json(folder / "calibration.json") for folder in (paths.best, same.best))
    assert calibration["temperature"] == pytest.approx(of_train["temperature"], abs=1e-6)
    assert result.metrics["accuracy"] == expected.metrics["accuracy"]
    assert result.metrics["loss"] == pytest.approx(expected.metrics["loss"], abs=1e-6)
    assert [one["head"] for one in result.details["baselines"]] == ["lda", "logistic"]
    assert result.details["baselines"] == expected.details["baselines"]
    assert result.metrics[BEFORE_SCALING]["auroc"] == pytest.approx(expected.metrics[BEFORE_SCALING]["auroc"], abs=1e-6)


def test_the_result_and_the_report_say_out_of_fold_and_the_test_split_is_not_evaluated(searched):
    paths, _, result, _ = searched

    assert (result.metrics["split"], result.metrics["out_of_fold"]) == ("train+valid", {"folds": 2, "repeats": 2})
    assert result.details["cross_validation"]["folds"] == 2
    assert "out of fold, 2 folds x 2 repeats, train+valid" in paths.report.read_text()
    assert "out-of-fold loss" in paths.report.read_text()
    chart = leaderboard_of(paths, {"best_by": "loss", "folds": 2}).charts[0]
    assert chart.caption == "loss out of fold, 2 folds"
    assert not (paths.storage / "evaluations").exists()


def test_a_search_that_extends_another_publishes_the_model_of_a_copied_trial(searched):
    paths, spec, result, _ = searched
    longer = spec.model_copy(update={"extend": SEARCH})
    attempt = Attempt.of(new_run(paths.storage, longer, OTHER).folder, None, Settings(storage=paths.storage))
    journal = TrialJournal.opened(attempt.lease, longer.best_by, run.local_now())
    copy_trials(journal, paths, run.local_now())

    publisher = BestModelPublisher(WorkerTask(attempt=attempt, spec=longer, source=None), journal)
    publisher.update(at_once=True)

    found = attempt.paths.best
    judged = {name: value for name, value in result.metrics.items() if name != BEFORE_SCALING}
    assert read_json(found / "manifest.json")["metrics"] == judged
    for name in ("model.safetensors", "out_of_fold.safetensors", "calibration.json"):
        assert (found / name).read_bytes() == (paths.best / name).read_bytes()


def test_a_search_with_folds_does_not_extend_one_on_other_images(searched, tmp_path):
    paths, spec, _, _ = searched
    other = pack_multi_label(tmp_path, {"train": 12, "valid": 6})[1]

    with pytest.raises(SpecError, match=f"--extend {SEARCH}: .* has other images now, and other folds; start a new"):
        refuse_other_images(spec.model_copy(update={"extend": SEARCH}), other, paths.storage)


def test_a_trial_that_pauses_keeps_its_folds_and_one_that_is_not_better_saves_no_model(tmp_path, monkeypatch):
    shards, _ = pack_multi_label(tmp_path, {"train": 40, "valid": 16})
    spec = folds_spec(shards, fold_repeats=1)
    attempt = Attempt.of(new_run(tmp_path, spec, SEARCH).folder, None, Settings(storage=tmp_path))
    task, pause = WorkerTask(attempt=attempt, spec=spec, source=None), PauseSignal(attempt.paths, attempt.number)
    config = {"head_width": 8}
    data, fit, fits = FoldData.of(task, torch.device("cpu")), HeadFit.fit, []

    def recorded(self, features, labels, *, seed):
        fits.append(seed)
        return fit(self, features, labels, seed=seed)

    monkeypatch.setattr(HeadFit, "fit", recorded)
    monkeypatch.setattr(fold_heads, "heads_at_once", lambda *_: 1)
    monkeypatch.setattr(train, "write_report", lambda *_: None)

    def step(value_to_beat):
        assignment = TrialAssignment(trial=0, config=config, value_to_beat=value_to_beat)
        return FoldTrial(task, assignment, lambda: data, pause).step()

    monkeypatch.setattr(pause, "reason", lambda: "window" if fits else None)
    paused = step(None)
    monkeypatch.setattr(pause, "reason", lambda: None)
    worse, better = step(0.0), step(None)

    assert (paused.reports, paused.end.outcome) == ((), "paused")
    assert fits == [3, 3, 4, 3]  # the first fold again, which was paused; the second; the head of the better trial
    assert (worse.end.why, worse.reports[0].candidate) == ("epochs", None)
    assert better.reports[0].candidate == "candidate-000000-000002"
    assert better.reports[0].value == worse.reports[0].value
    _, result = done(tmp_path, spec.trial_spec(config), "train")
    (expected,) = result.details["cross_validation"]["by_repeat"]
    assert better.reports[0].value == pytest.approx(expected["loss"], abs=1e-6)


def judged_of(*repeats):
    """The predictions of two classes: of each repeat, which of them are right in each of two folds."""
    found = []
    for repeat in repeats:
        right = np.concatenate([np.asarray(fold, dtype=bool) for fold in repeat])
        labels = np.arange(len(right)) % 2
        logits = np.eye(2)[np.where(right, labels, 1 - labels)]
        folds = np.concatenate([np.full(len(fold), number) for number, fold in enumerate(repeat)])
        found.append(OutOfFold(outputs=ModelOutputs(logits=logits, labels=labels), folds=folds))
    figures = [epoch_metrics(one.outputs) for one in found]
    return Judged(repeats=found, figures=figures, shown=found[0], about={})


def test_a_trial_is_ranked_by_the_mean_of_the_repeats_and_its_spread_is_that_of_all_folds():
    judged = judged_of(([1, 1, 1, 1], [1, 1, 0, 0]), ([1, 0, 0, 0], [1, 1, 1, 0]))

    report = report_of(judged, folds_spec("shards", best_by="accuracy"))

    assert (report.epoch, report.value, report.valid_accuracy) == (2, (6 / 8 + 4 / 8) / 2, 5 / 8)
    assert report.spread == statistics.pstdev([1, 0.5, 0.25, 0.75])


def test_a_metric_that_one_fold_does_not_define_has_no_spread_and_one_that_none_defines_no_value():
    of_one_class = judged_of(([1, 1], [1]))
    spec = folds_spec("shards", best_by="auroc")

    report = report_of(of_one_class, spec)

    assert (report.value, report.spread) == (1.0, None)
    with pytest.raises(TrainerError, match="auroc is undefined out of fold; choose another --metric"):
        report_of(judged_of(([1], [])), spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"folds": None, "fold_repeats": 3},
            "--repeats 3 repeats the folds of --folds; add --folds 5, or use --seeds 3",
        ),
        ({"repeats": 3}, "--folds 2 trains each fold with a seed of its own; use --repeats 3 instead of --seeds 3"),
        ({"early_stopping": True}, "--folds 2 trains all folds of a trial for all epochs; leave out --early-stopping"),
        ({"refit": True}, "--folds 2 publishes a model that is trained on train and valid; leave out --refit"),
        ({"cache": False}, "--folds 2 reads the cached features in each trial; leave out --no-cache"),
        ({"patience": 3}, "--folds 2 trains all epochs of each fold: --patience has no effect; leave it out"),
        ({"patience": None}, "--folds 2 trains all epochs of each fold: --patience has no effect; leave it out"),
        ({"freeze": "none"}, "--folds 2 needs the features of a frozen backbone; leave out --freeze none"),
        (
            {"space": {"freeze": ("all", "5")}},
            "--folds 2 needs the features of a frozen backbone; leave out --freeze 5",
        ),
        ({"augment": True}, "--folds 2 reads the features of each image once; leave out --augment"),
        ({"workers": 2}, "--folds 2 trains small heads in one process; leave out --workers"),
    ],
)
def test_what_makes_no_sense_with_folds_is_refused_with_its_cure(options, message):
    with pytest.raises(SpecError) as error:
        folds_spec("shards", **options)

    assert str(error.value).startswith(message)
