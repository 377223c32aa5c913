"""What a person meets at the terminal: slips, what a run waits for, and what a command refuses."""

import sys
from io import StringIO

import pytest
from redis import Redis

from cluster.settings import Settings
from jobs.runs import state as run_state
from tests.cli_runs import PLAIN, rendered, set_state, submitted
from tests.conftest import Say
from tests.test_jobs_worker_list import OURS, register


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


def test_a_window_that_never_opens_is_named_once(say: Say, shards: str) -> None:
    said = say("train", shards, "--window", "20:00-20:00")

    assert said == (2, "", "Error: --window 20:00-20:00 never opens; its start and end must differ\n")


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
