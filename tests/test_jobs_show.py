"""`nightshift show`: state, options, command and result of a run."""

import json
import shlex

import pytest

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from tests.cli_runs import PLAIN, on_a_terminal, set_state, submitted
from tests.conftest import Say


def test_a_long_note_wraps_between_words(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = submitted(say, settings, shards)
    monkeypatch.setenv("COLUMNS", "40")

    _, out, _ = say("edit", paths.run_id, "--note", "the films of the second scanner, before its repair")

    assert out.splitlines() == ["tags  -", "note  the films of the second scanner,", "      before its repair"]


def test_a_state_is_colored_on_a_terminal_unless_no_color_is_set(say: Say, settings: Settings, shards: str) -> None:
    set_state(submitted(say, settings, shards), "failed")

    colored = on_a_terminal(settings, "list")
    plain = on_a_terminal(settings, "list", NO_COLOR="1")

    assert "\x1b[31mfailed\x1b[0m" in colored.replace("failed   ", "failed")
    assert "failed" in plain
    assert "\x1b" not in plain
    assert "\x1b" not in say("list")[1]


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


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Tokyo"])
@pytest.mark.parametrize("kind", ["train", "search"])
def test_show_names_the_time_zone_of_a_window_whatever_the_zone_of_the_reader(
    say: Say, shards: str, monkeypatch: pytest.MonkeyPatch, kind: str, zone: str
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    run_id = say(kind, shards, *PLAIN, "--window", "20:00-07:00")[1].strip()
    monkeypatch.setenv("TZ", zone)

    lines = say("show", run_id)[1].splitlines()

    assert "window    20:00-07:00 in Europe/Berlin" in lines
    assert "--window" not in "".join(lines)


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
    assert "lr 0.0005" in (defaults := next(line for line in lines if line.startswith("defaults  ")))
    assert ", epochs " not in defaults
    assert "result    valid accuracy 0.7500 (0.5000 to 0.9000) (9 images; 95 % intervals in brackets)" in lines
    assert "          true covid: 3 as covid, 1 as normal" in lines
    assert "          true normal: 5 as normal" in lines


def test_show_has_what_a_search_varies_in_place_of_a_fixed_value(say: Say, settings: Settings, shards: str) -> None:
    run_id = say("search", shards, *PLAIN, "--dropout", "0.1:0.2", "--patience", "0", "--retries", "0")[1].strip()

    lines = say("show", run_id)[1].splitlines()

    (options,) = (line for line in lines if line.startswith("options   "))
    (defaults,) = (line for line in lines if line.startswith("defaults  "))
    assert all(words in options for words in ("--dropout 0.1:0.2", "--patience 0", "--retries 0"))
    assert "lr 1e-05 to 0.01 on a log scale" in defaults
    assert "dropout" not in defaults


def test_show_says_what_a_queued_run_waits_for_without_redis(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(say, settings, shards, "--name", "waits")
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", f"unix://{settings.storage}/nothing")

    code, out, _ = say("show", "waits")

    assert code == 0
    assert out.splitlines()[1].startswith("state     queued: next to start")


def test_the_progress_of_a_run_has_its_epochs_in_every_state_and_phase(
    say: Say, settings: Settings, shards: str
) -> None:
    run = submitted(say, settings, shards)

    def progress() -> dict[str, object]:
        shown = json.loads(say("show", run.run_id, "--json")[1])["progress"]
        return {name: shown[name] for name in ("epoch", "epochs", "images_per_second")}

    queued = progress()
    run.metrics.write_text('{"epoch": 1, "epochs": 3}\n{"epoch": 2, "epochs": 3}\n')
    write_json(run.progress, {"phase": "train", "epoch": 3, "epochs": 3, "images_per_second": 40.0})
    third = progress()
    write_json(run.progress, {"phase": "report", "epoch": 0, "epochs": 0, "images_per_second": 0.0})
    report = progress()

    assert queued == {"epoch": 0, "epochs": 0, "images_per_second": 0}
    assert third == {"epoch": 3, "epochs": 3, "images_per_second": 40.0}
    assert report == {"epoch": 2, "epochs": 3, "images_per_second": 0.0}


def test_the_progress_of_a_search_that_has_ended_is_that_of_its_trials(
    say: Say, settings: Settings, shards: str
) -> None:
    run = RunPaths.of(settings.storage, say("search", shards, *PLAIN, "--trials", "8")[1].strip())
    counts = {"asked": 8, "finished": 5, "failed": 1, "paused": 2}
    write_json(run.progress, {"phase": "report", "epoch": 0, "epochs": 0, "images_per_second": 0.0})
    write_json(run.result, {"kind": "search", "checkpoint": None, "metrics": {}, "seconds": 1.0, "trials": counts})
    set_state(run, "succeeded")

    progress = json.loads(say("show", run.run_id, "--json")[1])["progress"]

    assert (progress["epoch"], progress["epochs"]) == (6, 8)
