"""The positive class from the command line: never guessed, refused before anything is written, kept with the model."""

import json
import shlex
from pathlib import Path

import pytest

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.index import read_index
from tests.conftest import Say
from trainer.specs import read_spec
from trainer.specs.command_text import command_of


@pytest.mark.parametrize("command", ["train", "search"])
def test_an_unknown_positive_class_is_refused_before_anything_is_written(
    say: Say, shards: str, settings: Settings, command: str
) -> None:
    code, out, err = say(command, shards, "--weights", "none", "--positive", "covit")

    classes = ", ".join(read_index(shards).classes)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith(f"--positive 'covit' is not a class; use one of {classes}")
    assert not list((settings.storage / "runs").glob("*"))


def test_min_sensitivity_of_a_queued_training_needs_a_positive_class_of_the_training_or_the_evaluation(
    say: Say, shards: str
) -> None:
    name, *_ = read_index(shards).classes
    without = say("train", shards, "--weights", "none")[1].strip()
    stated = say("train", shards, "--weights", "none", "--positive", name)[1].strip()

    refused = say("evaluate", without, shards, "--min-sensitivity", "0.9")
    allowed = [
        say("evaluate", without, shards, "--min-sensitivity", "0.9", "--positive", name)[0],
        say("evaluate", stated, shards, "--min-sensitivity", "0.9")[0],
    ]

    assert refused[0] == 2
    assert "--min-sensitivity needs the class that it is meant for; add --positive with one of" in refused[2]
    assert allowed == [0, 0]


def test_a_prevalence_needs_a_positive_class_and_lies_between_0_and_1(say: Say, shards: str) -> None:
    run = say("train", shards, "--weights", "none")[1].strip()

    without, beyond = (say("evaluate", run, shards, "--prevalence", value) for value in ("0.02", "2"))

    assert (without[0], beyond[0]) == (2, 2)
    assert "--prevalence needs the class that it is meant for; add --positive with one of" in without[2]
    assert "prevalence 2.0 is not below 1" in beyond[2]


@pytest.mark.parametrize(
    "options",
    [
        "train {shards} --weights none",
        "train {shards} --weights none --positive {positive} --lr 0.0012 --patience 0 --no-cache --augment --seed 7",
        "train {shards} --weights none --no-class-weights --batch-size auto --freeze 5 --head-epochs 3 --ema 0.99",
        "search {shards} --weights none --trials 5",
        "search {shards} --weights none --lr 1e-5:1e-3 --dropout 0.3 --head-width 64,128 --seeds 3 --metric auroc",
        "search {shards} --weights none --folds 5 --repeats 3 --metric auroc",
        "search {shards} --weights none --algorithm grid --trials 4 --lr 1e-4:1e-3:4 --dropout 0.1 --head-width 64",
    ],
)
def test_the_command_in_a_report_repeats_the_run(say: Say, shards: str, tmp_path: Path, options: str) -> None:
    words = shlex.split(options.format(shards=shlex.quote(shards), positive=read_index(shards).classes[0]))
    spec = say(*words, "--dry-run")[1]
    (tmp_path / "spec.json").write_text(spec)

    _, *again = shlex.split(command_of(read_spec(tmp_path / "spec.json")))

    assert json.loads(say(*again, "--dry-run")[1]) == json.loads(spec)


@pytest.mark.parametrize(
    "options",
    [
        "train {shards} --weights none --no-class-weights --batch-size auto --freeze 5 --ema 0.99",
        "search {shards} --weights none --lr 1e-5:1e-3 --head-width 64,128 --seeds 3 --until 2099-01-01T07:00",
    ],
)
def test_show_and_the_report_give_the_same_command_without_the_deadline(
    say: Say, shards: str, settings: Settings, options: str
) -> None:
    run = say(*shlex.split(options.format(shards=shlex.quote(shards))))[1].strip()

    shown = shlex.split(say("show", run, "--command")[1])
    reported = shlex.split(command_of(read_spec(RunPaths.of(settings.storage, run).spec)))

    assert shown[:3] == reported[:3]
    assert sorted(shown) == sorted(reported)
    assert "--until" not in shown


def test_the_command_of_an_evaluation_repeats_it(say: Say, shards: str, settings: Settings) -> None:
    name, *_ = read_index(shards).classes
    run = say("train", shards, "--weights", "none")[1].strip()
    evaluation = say("evaluate", run, shards, "--positive", name, "--prevalence", "0.02", "--split", "valid")[1].strip()
    spec = read_spec(RunPaths.of(settings.storage, evaluation).spec)

    again = say(*shlex.split(command_of(spec))[1:])[1].strip()

    assert read_spec(RunPaths.of(settings.storage, again).spec) == spec
