"""What `show` says of a training's epochs."""

import json

import pytest

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from tests.conftest import Say

RESULT = {"kind": "train", "checkpoint": None, "metrics": {"split": "valid"}, "seconds": 9.0}


def epoch(number: int, loss: float, *, best: bool) -> dict[str, object]:
    return {
        "attempt": 1,
        "best": best,
        "epoch": number,
        "epochs": 30,
        "images_per_second": 812.6,
        "lr": 5e-8,
        "time": "2026-11-27T10:05:14Z",
        "train_loss": 0.15034,
        "valid_accuracy": 0.5,
        "valid_auroc": 1.0,
        "valid_balanced_accuracy": 0.5,
        "valid_loss": loss,
    }


def shown(
    say: Say,
    settings: Settings,
    shards: str,
    *options: str,
    ended: bool,
    metrics: dict[str, object] | None = None,
    least: float = 0.7,
) -> dict[str, str]:
    """Return the rows of `show` of a training whose second of four epochs has the least loss, by label."""
    run = RunPaths.of(settings.storage, say("train", shards, "--weights", "none", *options)[1].strip())
    lines = [epoch(number, least + abs(number - 2) / 100, best=number <= 2) for number in (1, 2, 3, 4)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if ended:
        write_json(run.result, RESULT | {"metrics": metrics or RESULT["metrics"]})
    rows = dict[str, str]()
    for line in say("show", run.run_id)[1].splitlines()[1:]:
        label, _, text = line.partition(" ")
        rows[label] = text.strip()
    return rows


def test_a_loss_of_almost_one_is_a_number_like_others(say: Say, settings: Settings, shards: str) -> None:
    rows = shown(say, settings, shards, ended=False, least=0.99998)

    assert rows["epochs"] == "4 of 30; the best by valid loss is epoch 2 (1.0000)"


def test_the_best_epoch_and_early_stopping_are_said(say: Say, settings: Settings, shards: str) -> None:
    rows = shown(say, settings, shards, "--patience", "2", ended=True)

    assert rows["epochs"] == (
        "4 of 30; the best by valid loss is epoch 2 (0.7000); "
        "stopped early, because 2 epochs brought no better one (--patience)"
    )
    assert rows["last"] == (
        "epoch 4: training loss 0.1503; valid loss 0.7200, accuracy 0.5000, balanced accuracy 0.5000, AUROC 1.0000; "
        "813 images/s"
    )


@pytest.mark.parametrize(("patience", "ended"), [("2", False), ("3", True), ("0", True)])
def test_a_training_that_did_not_stop_early_is_not_said_to(
    say: Say, settings: Settings, shards: str, patience: str, ended: bool
) -> None:
    rows = shown(say, settings, shards, "--patience", patience, ended=ended)

    assert rows["epochs"] == "4 of 30; the best by valid loss is epoch 2 (0.7000)"


def test_the_metric_that_chose_the_best_epoch_is_named(say: Say, settings: Settings, shards: str) -> None:
    rows = shown(say, settings, shards, "--best-by", "auroc", ended=True)

    assert rows["epochs"] == "4 of 30; the best by valid AUROC is epoch 2 (1.0000)"


@pytest.mark.parametrize(
    "metrics",
    [
        {"split": "valid", "loss": 0.61, "temperature": 1.4},
        {"split": "valid", "labels": {"a": {"temperature": 1.0}, "b": {"temperature": 1.4}}},
    ],
)
def test_a_loss_before_temperature_scaling_is_told_from_that_of_the_result(
    say: Say, settings: Settings, shards: str, metrics: dict[str, object]
) -> None:
    assert "(0.7000, before temperature scaling)" in epochs_of(say, settings, shards, metrics)


def test_no_scaling_is_named_where_there_was_none(say: Say, settings: Settings, shards: str) -> None:
    assert "(0.7000)" in epochs_of(say, settings, shards, {"split": "valid", "loss": 0.7, "temperature": 1.0})


def epochs_of(say: Say, settings: Settings, shards: str, metrics: dict[str, object]) -> str:
    """Return what `show` says of the epochs of a training with these metrics, in one line."""
    return shown(say, settings, shards, "--patience", "0", ended=True, metrics=metrics)["epochs"]
