"""Slips at the command line, and what a terminal shows without a queue."""

import os
import pty
import sys
from pathlib import Path

import click
import pytest

from cluster.settings import Settings
from jobs.cli import up as up_module
from jobs.cli.terminal import colored_state
from jobs.queue.weights_file import refuse_unavailable_imagenet
from jobs.runs import names
from jobs.runs import state as run_state
from jobs.runs.state import RunState
from tests.cli_runs import LONG_AGO, rendered
from tests.conftest import Say
from trainer.errors import WeightsError


@pytest.fixture
def settings(storage: Path) -> Settings:
    """Settings without a Redis: nothing here is submitted."""
    return Settings(storage=storage, redis_url=f"unix://{storage}/no-redis")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("train", "SHARDS is missing; `nightshift train --help` shows how to use it"),
        ("train S --epoch 5", "there is no option --epoch; did you mean --epochs or --head-epochs?"),
        ("train S --batchsize 5", "there is no option --batchsize; did you mean --batch-size?"),
        ("train S --Image_Size 32", "there is no option --Image_Size; did you mean --image-size?"),
        ("train S -epochs 5", "there is no option -epochs; did you mean --epochs?"),
        ("train S -x", "there is no option -x; `nightshift train --help` shows how to use it"),
        ("fork first --epochs 5", "there is no option --epochs; write --set epochs=VALUE"),
        ("fork first epochs=5", "unexpected argument: epochs=5; write --set epochs=5"),
        ("list first", "unexpected argument: first; `nightshift show first` shows one run, and `--name first` selects "
         "runs"),
        ("help", "there is no command 'help'; did you mean `nightshift --help`?"),
        ("version", "there is no command 'version'; did you mean `nightshift --version`?"),
        ("schedule rm nightly", "there is no command 'nightshift schedule rm'; did you mean "
         "`nightshift schedule remove`?"),
        ("shards list", "there is no command 'nightshift shards list'; did you mean `nightshift shards show`?"),
        ("shards ls", "there is no command 'nightshift shards ls'; did you mean `nightshift shards show`?"),
        ("models promot x", "there is no command 'nightshift models promot'; did you mean "
         "`nightshift models promote`?"),
        ("worker zzz", "there is no command 'nightshift worker zzz'; use one of drain, list"),
        ("train S --config nope.yaml", "config file nope.yaml does not exist; check the path"),
        ("train S --zzz", "there is no option --zzz; `nightshift train --help` shows how to use it"),
        ("train S --epochs ten", "--epochs 'ten' is not a whole number"),
        ("train S --lr fast", "--lr 'fast' is not a number"),
        ("train S --retries 101", "--retries 101 is above 100; use 100 or less"),
        ("train S --learning-rate 1e-3", "there is no option --learning-rate; did you mean --lr?"),
        ("train S --epochs", "--epochs needs a value; write it after the option"),
        ("train S T", "unexpected argument: T; `nightshift train --help` shows how to use it"),
        ("train S --wait=yes", "--wait takes no value; write it alone"),
        ("train S --at 25:00", "--at '25:00' is not a time; write 22:00 or 2026-11-23T22:00"),
        ("search S --metric auc", "--metric 'auc' is not one of loss, accuracy, balanced_accuracy, auroc; "
         "did you mean auroc?"),
        ("list --limit 0", "--limit 0 is below 1; use 1 or more"),
        ("shards pack nope out", "SOURCE 'nope' does not exist; check the path"),
        ("shards pack S out --split 70/15", "--split 70/15 is not three shares of train, valid and test; "
         "write 70/15/15"),
        ("completion", "SHELL is missing; `nightshift completion --help` shows how to use it"),
        ("completion bahs", "SHELL 'bahs' is not one of bash, zsh, fish; did you mean bash?"),
        ("train S --weights none --gpus-per-worker 0 --workers 2 --batch-size 1",
         "batch_size 1 does not split evenly over 2 workers; use a multiple of 2"),
        ("k8s render train S", "--image is missing; `nightshift k8s render train --help` shows how to use it"),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_in_our_words_and_exits_with_2(say: Say, shards: str, typed: str, line: str) -> None:
    words = [shards if word == "S" else word for word in typed.split()]

    code, out, err = say(*words)

    assert (code, out, err) == (2, "", f"Error: {line}\n")


@pytest.mark.parametrize("group", ["queue", "models", "shards", "k8s render"])
def test_a_group_without_a_command_prints_its_help_as_help_does(say: Say, group: str) -> None:
    code, out, err = say(*group.split())

    assert (code, out) == (2, "")
    assert err == say(*group.split(), "--help")[1]
    assert "\nCommands:\n" in err


def test_misspelt_weights_get_a_suggestion(say: Say, shards: str) -> None:
    code, _, err = say("train", shards, "--weights", "imagnet")

    assert code == 2
    assert err.endswith("imagnet does not exist; did you mean imagenet?\n")


def test_weights_that_cannot_be_downloaded_are_refused_before_a_run_is_queued(
    say: Say, shards: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.queue.checks.refuse_unavailable_imagenet", lambda storage: refuse_unavailable_imagenet(
        storage, "http://127.0.0.1:9/efficientnet-b0-355c32eb.pth"
    ))  # fmt: skip

    code, out, err = say("train", shards)

    assert (code, out) == (1, "")
    assert err == (
        f"Error: efficientnet-b0-355c32eb.pth is not in {settings.storage}/weights and cannot be downloaded "
        "(Connection refused); download it from http://127.0.0.1:9/efficientnet-b0-355c32eb.pth to that folder on a "
        "machine with internet access, or use --weights FILE or --weights none\n"
    )
    assert run_state.all_ids(settings.storage) == []


def test_weights_are_looked_for_in_the_storage_and_then_at_their_address(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot be downloaded \(Connection refused\)"):
        refuse_unavailable_imagenet(tmp_path, "http://127.0.0.1:9/x")

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "efficientnet-b0-355c32eb.pth").touch()

    refuse_unavailable_imagenet(tmp_path, "http://127.0.0.1:9/x")


def test_a_run_that_trains_is_one_line_at_80_columns(settings: Settings) -> None:
    state = RunState(
        id="train-20261123-203000-a1b2c3", kind="train", state="running", created=LONG_AGO, changed=LONG_AGO, attempt=1
    )
    progress: dict[str, object] = {
        "attempt": 1, "phase": "train", "epoch": 3, "epochs": 9, "images_per_second": 812.0, "eta_seconds": 3700.0,
        "done": 5, "total": 10,
    }  # fmt: skip

    (narrow,) = rendered(settings.storage, state, progress)
    (wide,) = rendered(settings.storage, state, progress, width=100)

    assert "train-20261123-203000-a1b2c3" in narrow
    assert len(narrow) <= 80
    assert wide.rstrip().endswith("train, epoch 3/9, 812 images/s, 1h01m left")


def test_a_state_without_a_color_of_its_own_stays_as_it_is() -> None:
    assert colored_state("queued ") == "queued "
    assert click.unstyle(colored_state("failed ")) == "failed "


@pytest.mark.parametrize(("foreground", "expected"), [(True, False), (False, True)])
def test_up_writes_its_log_to_a_file_if_a_shell_started_it_in_the_background(
    monkeypatch: pytest.MonkeyPatch, foreground: bool, expected: bool
) -> None:
    reading, writing = pty.openpty()
    group = os.getpgrp() if foreground else os.getpgrp() + 1
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: group)
    with os.fdopen(writing, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)

        assert up_module.is_in_background() is expected
    os.close(reading)


def test_json_and_command_exclude_each_other(say: Say) -> None:
    code, _, err = say("show", "night", "--json", "--command")

    assert code == 2
    assert err.startswith("Error: --json and --command exclude each other; give one of them")


def test_misspelt_names_of_runs_models_and_data_sets_get_a_suggestion(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(shards).parent)
    names.claim(settings.storage, "first-night", "train-20261123-203000-a1b2c3")
    (settings.storage / "models").mkdir()
    (settings.storage / "models" / "chest.json").touch()

    run = say("show", "frist-night")
    model = say("predict", "chset", ".")
    named = say("predict", "frist-night", ".")
    data = say("train", "shrads", "--weights", "none")

    assert run == (1, "", "Error: no run has the id or name 'frist-night'; did you mean first-night?\n")
    assert model == (1, "", "Error: chset is not a model; did you mean chest?\n")
    assert named == (1, "", "Error: frist-night is not a model; did you mean first-night?\n")
    assert data == (1, "", "Error: shrads does not exist; did you mean shards?\n")
