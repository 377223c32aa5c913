"""What a person meets at the terminal: slips, waiting, the start of a run, colors, and the layout of `show`."""

import json
import os
import pty
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

import click
import pytest
from rich.console import Console

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli import up as up_module
from jobs.cli.run_view import RunView
from jobs.cli.terminal import colored_state
from jobs.queue.weights_file import refuse_unavailable_imagenet
from jobs.runs import state as run_state
from jobs.runs.state import RunState
from tests.conftest import Say
from trainer.errors import WeightsError

LONG_AGO = "2026-01-01T00:00:00.000Z"
PLAIN = ("--weights", "none")


def submitted(say: Say, settings: Settings, shards: str, *options: str) -> RunPaths:
    return RunPaths.of(settings.storage, say("train", shards, *PLAIN, *options)[1].strip())


def set_state(paths: RunPaths, state: run_state.State) -> RunState:
    with run_state.changing(paths) as found:
        return run_state.write_state(paths, found.with_state(state))


def rendered(storage: Path, state: RunState, progress: dict[str, object], width: int = 80) -> list[str]:
    console = Console(file=StringIO(), width=width, force_terminal=False)
    console.print(RunView(storage).updated(state, progress))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("train", "SHARDS is missing; `nightshift train --help` shows how to use it"),
        ("train S --epoch 5", "there is no option --epoch; did you mean --epochs or --head-epochs?"),
        ("train S --zzz", "there is no option --zzz; `nightshift train --help` shows how to use it"),
        ("train S --epochs ten", "--epochs 'ten' is not a whole number"),
        ("train S --lr fast", "--lr 'fast' is not a number"),
        ("train S --retries 101", "--retries 101 is above 100; use 100 or less"),
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
        ("k8s render train S", "--image is missing; `nightshift k8s render train --help` shows how to use it"),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_in_our_words_and_exits_with_2(say: Say, shards: str, typed: str, line: str) -> None:
    words = [shards if word == "S" else word for word in typed.split()]

    code, out, err = say(*words)

    assert (code, out, err) == (2, "", f"Error: {line}\n")


def test_misspelt_weights_get_a_suggestion(say: Say, shards: str) -> None:
    code, _, err = say("train", shards, "--weights", "imagnet")

    assert code == 1
    assert err.endswith("imagnet does not exist; did you mean imagenet?\n")


@pytest.mark.parametrize("command", [("predict", "train", "."), ("evaluate", "train", "S"), ("export", "train")])
def test_a_prefix_of_several_runs_is_not_called_unknown(
    say: Say, settings: Settings, shards: str, command: tuple[str, ...]
) -> None:
    submitted(say, settings, shards)
    submitted(say, settings, shards)

    code, _, err = say(*(shards if word == "S" else word for word in command))

    assert code == 1
    assert err.startswith("Error: 2 run ids begin with 'train', such as train-")


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


def test_a_scheduled_run_says_when_it_starts(say: Say, shards: str) -> None:
    _, out, err = say("train", shards, *PLAIN, "--name", "night", "--at", "2099-11-23T22:00")

    assert err.splitlines()[-1].startswith("Scheduled: starts at 2099-11-23 22:00 (in ")
    assert err.endswith("`nightshift logs -f night` follows it, `nightshift wait night` waits.\n")
    assert out.startswith("train-")


def test_a_run_that_follows_another_names_it_and_its_state(say: Say, settings: Settings, shards: str) -> None:
    submitted(say, settings, shards, "--name", "first")

    err = say("train", shards, *PLAIN, "--after", "first")[2]

    assert "Scheduled: starts after first, which is queued. `nightshift logs" in err


def test_a_queued_run_says_what_is_before_it_and_what_runs(say: Say, settings: Settings, shards: str) -> None:
    busy = submitted(say, settings, shards, "--name", "busy")
    submitted(say, settings, shards)
    submitted(say, settings, shards, "--priority", "low")
    last = submitted(say, settings, shards, "--name", "last")
    set_state(busy, "running")

    shown = say("show", "last")[1].splitlines()[1]
    lines = rendered(settings.storage, run_state.read_state(last), {})

    assert shown == "state     queued: 1 queued run is before it; running: busy"
    assert lines[1].strip() == "1 queued run is before it; running: busy"


def test_a_run_that_starts_shows_its_seconds_and_the_newest_line_of_its_log(
    say: Say, settings: Settings, shards: str
) -> None:
    run = submitted(say, settings, shards, "--name", "night")
    state = set_state(run, "running").with_changes(changed=LONG_AGO, attempt=2)
    run.log.write_text("first\n\x1b[36m(worker)\x1b[0m Started a local Ray instance\n")

    lines = rendered(settings.storage, state, {"attempt": 1, "phase": "train", "epoch": 3, "epochs": 9})

    assert " night " in lines[0]
    assert "starting " in lines[0]
    assert "d" in lines[0].split("starting ")[1]  # days since then
    assert lines[1].strip() == "(worker) Started a local Ray instance"


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


def on_a_terminal(settings: Settings, *words: str, **environment: str) -> str:
    """Run a command with stdout and stderr on a terminal and return what it printed."""
    reading, writing = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    env |= {"NIGHTSHIFT_STORAGE": str(settings.storage), "NIGHTSHIFT_REDIS_URL": str(settings.redis_url)} | environment
    subprocess.run(
        [sys.executable, "-P", "-m", "jobs", *words], stdout=writing, stderr=writing, env=env, check=True, timeout=60
    )
    os.close(writing)
    text = os.read(reading, 65_536).decode()
    os.close(reading)
    return text


def test_a_state_is_colored_on_a_terminal_unless_no_color_is_set(say: Say, settings: Settings, shards: str) -> None:
    set_state(submitted(say, settings, shards), "failed")

    colored = on_a_terminal(settings, "list")
    plain = on_a_terminal(settings, "list", NO_COLOR="1")

    assert "\x1b[31mfailed\x1b[0m" in colored.replace("failed   ", "failed")
    assert "failed" in plain
    assert "\x1b" not in plain
    assert "\x1b" not in say("list")[1]


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


def test_show_prints_the_command_that_repeats_the_run(say: Say, settings: Settings, shards: str) -> None:
    run = submitted(
        say, settings, shards, "--name", "night", "--epochs", "7", "--lr", "1e-4", "--no-cache", "--class-weights",
        "--patience", "0", "--max-duration", "8h", "--window", "20:00-07:00", "--batch-size", "auto",
    )  # fmt: skip

    code, out, err = say("show", "night", "--command")
    repeated = say(*shlex.split(out)[1:], "--dry-run")[1]

    assert (code, err) == (0, "")
    assert out.startswith(f"nightshift train {shards} --weights none --no-cache --epochs 7 ")
    assert "--name" not in out
    assert json.loads(repeated) == json.loads(run.spec.read_text())


def test_the_command_of_a_search_has_its_search_space(say: Say, settings: Settings, shards: str) -> None:
    given = ("--trials", "9", "--lr", "1e-4:1e-2:7", "--head-width", "64,128", "--freeze", "none", "--seeds", "2")
    run = RunPaths.of(settings.storage, say("search", shards, *PLAIN, *given)[1].strip())

    out = say("show", run.run_id, "--command")[1]
    repeated = say(*shlex.split(out)[1:], "--dry-run")[1]

    assert "--lr 0.0001:0.01:7 --head-width 64,128 --freeze none" in out
    assert json.loads(repeated) == json.loads(run.spec.read_text())


def test_show_separates_what_was_chosen_from_the_defaults(say: Say, settings: Settings, shards: str) -> None:
    run = submitted(say, settings, shards, "--epochs", "7")
    write_json(run.result, {
        "kind": "train", "checkpoint": str(run.best), "seconds": 9.0,
        "metrics": {"split": "valid", "n": 9, "accuracy": 0.75, "intervals": {"accuracy": [0.5, 0.9]},
                    "classes": ["covid", "normal"], "confusion_matrix": [[3, 1], [0, 5]]},
    })  # fmt: skip
    set_state(run, "succeeded")

    lines = say("show", run.run_id)[1].splitlines()

    assert lines[:2] == [run.run_id, "state     succeeded"]
    assert "options   --weights none  --epochs 7" in lines
    assert "result    valid accuracy 0.7500 (0.5000 to 0.9000) (9 images)" in lines
    assert "          true covid: 3 as covid, 1 as normal" in lines
    assert "          true normal: 5 as normal" in lines


def test_json_and_command_exclude_each_other(say: Say) -> None:
    code, _, err = say("show", "night", "--json", "--command")

    assert code == 2
    assert err.startswith("Error: --json and --command exclude each other; give one of them")
