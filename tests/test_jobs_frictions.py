"""What a person meets at the terminal: slips, waiting, the start of a run, colors, and the layout of `show`."""

import contextlib
import json
import os
import pty
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from redis import Redis
from rich.console import Console

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.run_view import RunView
from jobs.runs import state as run_state
from jobs.runs.state import RunState
from tests.conftest import Say
from tests.test_jobs_worker_list import OURS, register

LONG_AGO = "2026-01-01T00:00:00.000Z"
PLAIN = ("--weights", "none")


def submitted(say: Say, settings: Settings, shards: str, *options: str) -> RunPaths:
    return RunPaths.of(settings.storage, say("train", shards, *PLAIN, *options)[1].strip())


def set_state(paths: RunPaths, state: run_state.State) -> RunState:
    with run_state.changing(paths) as found:
        return run_state.write_state(paths, found.with_state(state))


def rendered(storage: Path, state: RunState, progress: dict[str, object], width: int = 80) -> list[str]:
    console = Console(file=StringIO(), width=width, force_terminal=False)
    console.print(RunView(storage).updated(state, progress, width))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("command", [("predict", "train", "."), ("evaluate", "train", "S"), ("export", "train")])
def test_a_prefix_of_several_runs_is_not_called_unknown(
    say: Say, settings: Settings, shards: str, command: tuple[str, ...]
) -> None:
    submitted(say, settings, shards)
    submitted(say, settings, shards)

    code, _, err = say(*(shards if word == "S" else word for word in command))

    assert code == 1
    assert err.startswith("Error: 2 run ids begin with 'train', such as train-")


def test_a_scheduled_run_says_when_it_starts(say: Say, shards: str) -> None:
    _, out, err = say("train", shards, *PLAIN, "--name", "night", "--at", "2099-11-23T22:00")

    assert err.splitlines()[-1].startswith("Scheduled: starts at 2099-11-23 22:00 (in ")
    assert err.endswith("`nightshift logs -f night` follows it, `nightshift wait night` waits.\n")
    assert out.startswith("train-")


def test_a_run_that_follows_another_names_it_and_its_state(say: Say, settings: Settings, shards: str) -> None:
    submitted(say, settings, shards, "--name", "first")

    err = say("train", shards, *PLAIN, "--after", "first")[2]

    assert "Scheduled: starts after first, which is queued. `nightshift logs" in err


def test_a_queued_run_says_what_is_before_it_and_what_runs(
    say: Say, settings: Settings, redis: Redis, shards: str
) -> None:
    register(redis, OURS, "nightshift-normal", "nightshift-low")
    busy = submitted(say, settings, shards, "--name", "busy")
    submitted(say, settings, shards)
    submitted(say, settings, shards, "--priority", "low")
    last = submitted(say, settings, shards, "--name", "last")
    set_state(busy, "running")

    shown = say("show", "last")[1].splitlines()[1]
    lines = rendered(settings.storage, run_state.read_state(last), {})

    assert shown == "state     queued: 1 queued run is before it; running: busy"
    assert lines[1].strip() == "1 queued run is before it; running: busy"


def test_a_queued_run_that_no_job_worker_will_start_says_so_whole(say: Say, settings: Settings, shards: str) -> None:
    paths = submitted(say, settings, shards, "--name", "waits")
    unserved = "no job worker serves its queue; start one with `nightshift worker`, or `nightshift up` on this machine"

    shown = say("show", "waits")[1].splitlines()[1]
    _, *lines = rendered(settings.storage, run_state.read_state(paths), {}, width=60)

    assert shown == f"state     queued: {unserved}"
    assert " ".join(line.strip() for line in lines) == unserved


def test_a_run_that_can_never_start_says_why(say: Say, settings: Settings, shards: str) -> None:
    first = submitted(say, settings, shards, "--name", "first")
    submitted(say, settings, shards, "--name", "second", "--after", "first")

    set_state(first, "cancelled")
    after_cancelled = say("show", "second")[1].splitlines()[1]
    say("delete", "first", "--yes")
    after_deleted = say("show", "second")[1].splitlines()[1]

    assert after_cancelled == "state     scheduled: cannot start: first, which it was to follow, ended as cancelled"
    assert after_deleted == f"state     scheduled: cannot start: {first.run_id}, which it was to follow, was deleted"


def test_delete_without_an_answer_deletes_nothing_and_does_not_speak_of_ctrl_c(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = submitted(say, settings, shards)
    say("cancel", paths.run_id)
    monkeypatch.setattr(sys, "stdin", StringIO(""))

    code, _, err = say("delete", paths.run_id)

    question = f"Delete {paths.run_id} and its files? [y/N]: "
    assert (code, err) == (1, f"{question}\nError: nothing was deleted; answer y, or give --yes\n")
    assert paths.folder.exists()


def test_a_cancelled_run_says_its_state_once(say: Say, settings: Settings, shards: str) -> None:
    paths = submitted(say, settings, shards)
    say("cancel", paths.run_id)

    row, shown = say("list")[1].splitlines()[1], say("show", paths.run_id)[1].splitlines()[1]
    waited = say("wait", paths.run_id)[2].splitlines()

    assert row.endswith("  before it ran")
    assert shown == "state     cancelled: before it ran"
    assert f"{paths.run_id} cancelled: before it ran" in waited


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("queued", "it is queued; wait for it: nightshift wait {}"),
        ("cancelled", "it is cancelled; `nightshift retry {}` continues it"),
        ("succeeded", "its folder best/ is missing; restore it from a backup, or train again"),
    ],
)
def test_a_run_without_a_model_says_why_and_what_to_do(
    say: Say, settings: Settings, shards: str, state: run_state.State, cause: str
) -> None:
    paths = submitted(say, settings, shards)
    set_state(paths, state)

    said = say("compare", paths.run_id, paths.run_id)

    assert said == (1, "", f"Error: {paths.run_id} has no model: {cause.format(paths.run_id)}\n")


def test_a_run_of_a_kind_without_a_model_names_the_kinds_that_have_one(
    say: Say, settings: Settings, shards: str
) -> None:
    trained = submitted(say, settings, shards)
    judged = say("evaluate", trained.run_id, shards)[1].strip()

    said = say("export", judged)

    assert said == (
        1, "", f"Error: {judged} has no model: it is of kind evaluate; give a training run or a search\n"
    )  # fmt: skip


def test_a_long_note_wraps_between_words(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = submitted(say, settings, shards)
    monkeypatch.setenv("COLUMNS", "40")

    _, out, _ = say("edit", paths.run_id, "--note", "the films of the second scanner, before its repair")

    assert out.splitlines() == ["tags  -", "note  the films of the second scanner,", "      before its repair"]


def test_a_window_that_never_opens_is_named_once(say: Say, shards: str) -> None:
    said = say("train", shards, "--window", "20:00-20:00")

    assert said == (2, "", "Error: --window 20:00-20:00 never opens; its start and end must differ\n")


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


def on_a_terminal(settings: Settings, *words: str, **environment: str) -> str:
    """Run a command with stdout and stderr on a terminal and return what it printed."""
    reading, writing = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    env |= {"NIGHTSHIFT_STORAGE": str(settings.storage), "NIGHTSHIFT_REDIS_URL": str(settings.redis_url)} | environment
    printed = bytearray()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "jobs", *words], stdout=writing, stderr=writing, env=env
    ) as command:
        os.close(writing)
        with contextlib.suppress(OSError):  # EIO: everything has been read, and the command has ended
            while part := os.read(reading, 65_536):
                printed += part
    os.close(reading)
    assert command.returncode == 0
    return printed.decode()


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
    assert "lr 1e-05 to 0.01" in defaults
    assert "dropout" not in defaults


def test_a_retried_run_says_when_it_starts(say: Say, settings: Settings, shards: str) -> None:
    set_state(submitted(say, settings, shards, "--name", "night"), "failed")

    code, _, err = say("retry", "night")

    assert code == 0
    assert err == (
        "No job worker is running; `nightshift up` starts one on this machine.\n"
        "Queued. `nightshift logs -f night` follows it.\n"
    )


def test_ctrl_c_in_cancel_says_that_the_run_still_stops(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    run = submitted(say, settings, shards, "--name", "night")
    set_state(run, "running")
    monkeypatch.setattr("jobs.queue.actions.time.sleep", press_ctrl_c)

    code, _, err = say("cancel", "night")

    assert code == 130
    assert err == f"\nstopped waiting; the run still stops: nightshift wait {run.run_id}\n"
    assert run.stop.exists()


def test_a_list_without_a_match_names_the_filters(say: Say, settings: Settings, shards: str) -> None:
    empty = say("list")
    submitted(say, settings, shards)

    found = say("list", "--state", "failed", "--tag", "chest", "--limit", "3")

    assert (empty[0], empty[2]) == (0, f"no runs in {settings.storage}; `nightshift train SHARDS` submits one\n")
    assert (found[0], found[2]) == (0, "no run matches --state --tag; `nightshift list` shows all runs\n")


def test_a_run_that_is_submitted_while_the_queues_are_paused_is_not_called_next(say: Say, shards: str) -> None:
    say("queue", "pause")

    _, run_id, err = say("train", shards, *PLAIN)

    assert err.splitlines()[0] == "The queues are paused; `nightshift queue resume` opens them."
    assert err.splitlines()[-1].startswith(f"Queued. `nightshift logs -f {run_id.strip()}` follows it")


def test_a_waiting_run_is_said_to_wait_for_the_queues_until_they_are_open(
    say: Say, settings: Settings, shards: str
) -> None:
    paths = submitted(say, settings, shards, "--name", "waits")
    say("train", shards, *PLAIN, "--name", "later", "--after", "waits")
    say("queue", "pause")
    paused = "the queues are paused; `nightshift queue resume` opens them"

    shown, later = (say("show", name)[1].splitlines()[1] for name in ("waits", "later"))
    followed = rendered(settings.storage, run_state.read_state(paths), {})
    say("queue", "resume")

    assert shown == f"state     queued: {paused}"
    assert later == "state     scheduled: starts after waits, which is queued; the queues are paused now"
    assert followed[1].strip() == paused
    assert "paused" not in say("show", "waits")[1].splitlines()[1]


def test_show_says_what_a_queued_run_waits_for_without_redis(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(say, settings, shards, "--name", "waits")
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", f"unix://{settings.storage}/nothing")

    code, out, _ = say("show", "waits")

    assert code == 0
    assert out.splitlines()[1].startswith("state     queued: next to start")


def test_the_spinner_turns_until_the_run_has_ended(say: Say, settings: Settings, shards: str) -> None:
    paths = submitted(say, settings, shards, "--name", "night")
    running = set_state(paths, "running")
    full = {"phase": "evaluate", "done": 8, "total": 8}

    line = rendered(settings.storage, running, full)[0]
    ended = rendered(settings.storage, set_state(paths, "succeeded"), full)[0]

    assert line[0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    assert ended.startswith("  night ")


RUNNING = {"phase": "train", "epoch": 12, "epochs": 300, "images_per_second": 12345.0, "eta_seconds": 11_000.0}
PROGRESS = "train, epoch 12/300, 12345 images/s, 3h03m left"


@pytest.mark.parametrize("name", [None, "night"])
def test_speed_and_time_left_are_whole_at_80_columns(
    say: Say, settings: Settings, shards: str, name: str | None
) -> None:
    run = submitted(say, settings, shards, *(("--name", name) if name else ()))
    state = set_state(run, "running")

    lines = [line.rstrip() for line in rendered(settings.storage, state, RUNNING)]

    assert f" {name or run.run_id} " in lines[0]
    assert lines[-1].endswith(PROGRESS)
    assert len(lines) == (1 if name else 2)  # an id leaves no room for a bar and the progress
    assert max(map(len, lines)) <= 80


def test_where_a_long_name_leaves_no_room_the_progress_is_on_the_next_line(
    say: Say, settings: Settings, shards: str
) -> None:
    run = submitted(say, settings, shards, "--name", "the-night-of-all-films-of-the-year")
    state = set_state(run, "running")

    lines = [line.strip() for line in rendered(settings.storage, state, RUNNING, width=60)]

    assert "the-night-of-all-films-of-the-year" in lines[0]
    assert lines[1] == PROGRESS
