"""One damaged file is the trouble of one run: no command ends in a traceback, and every other run goes on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from cluster.files import write_json
from cluster.launch import THIS_MACHINE
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue import actions, schedules, webhook_sender
from jobs.queue.queues import waiting
from jobs.queue.reconciler import ReconcilerMemory, reconcile
from jobs.queue.submit import submit
from jobs.queue.tasks import claim_run
from jobs.runs import deletion, names
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from jobs.runs.state import read_state
from tests.conftest import Say
from tests.stack import FakeSpec, finish, state_of
from trainer.specs import SearchSpec, TrainSpec, build

WRONG = (
    b"", b"\xe9", b"null", b"true", b"7", b"-1", b"NaN", b"1e999", b"9" * 400, b"[]", b"{}", b"[" * 100_000,
    b"\"urgent\"", b"{\"id\": [\"x\"]}",
)  # fmt: skip
WRONG_VALUES = (None, True, 7, -1.5, float("nan"), 10**400, "urgent", [], {"a": 1}, [["b"]])
RUN_FILES = (
    "state.json", "job.json", "spec.json", "progress.json", "stop.json", "error.json", "result.json", "attempts/1.json",
    "metrics.jsonl",
)  # fmt: skip


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `cancel --now` wait a moment for the heartbeat of the run, which nothing sends."""
    monkeypatch.setenv("NIGHTSHIFT_LEASE_SECONDS", "0.02")
    monkeypatch.setattr(actions, "POLL_SECONDS", 0.01)


@pytest.mark.usefixtures("short_wait")
@pytest.mark.parametrize("name", RUN_FILES)
def test_any_content_of_any_file_of_a_run_concerns_that_run_only(
    settings: Settings, redis: Redis, say: Say, name: str
) -> None:
    for content in WRONG:
        commands_survive(settings, redis, say, name, content)


@pytest.mark.usefixtures("short_wait")
@pytest.mark.parametrize("name", ["state.json", "job.json", "progress.json", "stop.json", "result.json"])
def test_a_wrong_type_in_any_field_of_a_run_concerns_that_run_only(
    settings: Settings, redis: Redis, say: Say, name: str
) -> None:
    result_file = {"metrics": {"accuracy": 0.5, "loss": 0.1}, "checkpoint": "best"}
    sound = result_file if name == "result.json" else json.loads((running(settings).folder / name).read_text())

    for number, field in enumerate(sound):
        value = WRONG_VALUES[number % len(WRONG_VALUES)]
        for wrong in (value, WRONG_VALUES[(number + 5) % len(WRONG_VALUES)]):
            commands_survive(settings, redis, say, name, json.dumps({**sound, "id": "OWN-ID", field: wrong}).encode())


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to itself"])
def test_something_else_in_place_of_a_file_of_a_run_concerns_that_run_only(
    settings: Settings, redis: Redis, say: Say, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_LEASE_SECONDS", "0.3")
    make = {"fifo": os.mkfifo, "folder": Path.mkdir, "link to itself": lambda path: path.symlink_to(path)}[kind]

    for name in (*RUN_FILES, "log.txt"):
        commands_survive(settings, redis, say, name, make)


def commands_survive(
    settings: Settings, redis: Redis, say: Say, name: str, damage: bytes | Callable[[Path], object]
) -> None:
    """Damage one file of a running run; every command ends in 0 or 1 with at most one line of error.

    Args:
        damage: The content of the file, or a function that makes something else in its place.
    """
    redis.flushall()
    paths, sound = running(settings), submit(settings, FakeSpec())
    redis.flushall()
    file = paths.folder / name
    if isinstance(damage, bytes):
        file.write_bytes(damage.replace(b"OWN-ID", paths.run_id.encode()))
    else:
        file.unlink(missing_ok=True)
        damage(file)

    listed = [run["id"] for run in json.loads(result(say, "list", "--json"))]
    for command in (["list"], ["show", paths.run_id], ["show", "--json", paths.run_id], ["logs", paths.run_id]):
        result(say, *command)
    reconcile(settings, redis, ReconcilerMemory(), every_run=True)
    result(say, "cancel", "--now", paths.run_id)
    reconcile(settings, redis, ReconcilerMemory(), every_run=True)
    result(say, "delete", "--force", "--yes", paths.run_id)

    assert {paths.run_id, sound} <= set(listed)
    assert sound in waiting(redis, "normal")
    assert state_of(settings.storage, sound).state == "queued"
    assert not paths.folder.exists(), (name, damage)
    deletion.hide(RunPaths.of(settings.storage, sound))


def result(say: Say, *command: str) -> str:
    code, out, err = say(*command)
    assert code in (0, 1), err
    assert code == 0 or (err.startswith("Error: ") and err.count("\n") == 1), err
    return out


def running(settings: Settings) -> RunPaths:
    """A run whose first attempt runs, with every file that a run may have."""
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec(), JobRequest(retries=0)))
    assert claim_run(paths, "a worker", THIS_MACHINE)
    write_json(paths.progress, {"phase": "train", "epoch": 1, "epochs": 3, "done": 5, "total": 10, "eta_seconds": 4.0})
    write_json(paths.stop, {"reason": "drain", "attempt": 1, "now": False, "seconds": 100.0})
    return paths


def test_a_damaged_run_is_listed_with_the_name_of_its_file_and_deleted_by_force(
    settings: Settings, redis: Redis, say: Say
) -> None:
    run_id = submit(settings, FakeSpec(), JobRequest(name="mine"))
    paths = RunPaths.of(settings.storage, run_id)
    write_json(paths.state, {**json.loads(paths.state.read_text()), "priority": "urgent"})

    _, out, _ = say("list", "--json", "--state", "damaged")
    cancelled = say("cancel", run_id)
    refused = say("delete", "--yes", run_id)
    deleted = say("delete", "--yes", "--force", "mine")

    [listed] = json.loads(out)
    why = "state.json is damaged: priority 'urgent' is not one of high, normal, low; "
    assert (listed["id"], listed["state"], listed["kind"]) == (run_id, "damaged", "train")
    assert listed["why"].startswith(why)
    cure = f"`nightshift delete --force {run_id}` deletes the run\n"
    assert cancelled[::2] == refused[::2] == (1, f"Error: {paths.folder}/{why}{cure}")
    assert deleted[::2] == (0, f"{run_id} is deleted\n")
    assert names.run_of(settings.storage, "mine") is None
    assert say("list", "--json") == (0, "[]\n", "")


@pytest.mark.parametrize(
    "metrics",
    [{"accuracy": 0.5, "intervals": 7}, {"accuracy": "high", "loss": 1.0, "intervals": {"loss": [1]}}],
)
def test_figures_that_cannot_be_read_are_left_out_and_named(
    settings: Settings, say: Say, metrics: dict[str, object]
) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    write_json(paths.result, {"metrics": metrics, "checkpoint": "the model"})
    with run_state.changing(paths) as found:
        run_state.write_state(paths, found.with_state("succeeded"))

    shown, waited = say("show", paths.run_id), say("wait", paths.run_id)

    assert (shown[0], waited[0]) == (0, 0), shown + waited
    for text in (shown[1], waited[2]):
        assert "result.json is damaged (" in text
        assert "and what it tells is not shown" in text


def test_a_wrong_type_in_any_field_of_the_spec_of_a_search_ends_show_in_no_traceback(
    settings: Settings, say: Say, shards: str
) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, build(SearchSpec, shards=shards, weights="none")))
    sound = json.loads(paths.spec.read_text())

    for field in sound:
        for wrong in (*WRONG_VALUES, [None], [7, None]):
            write_json(paths.spec, {**sound, field: wrong})
            result(say, "show", paths.run_id)


def test_links_in_the_folder_of_a_run_are_not_followed(settings: Settings, say: Say) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    (paths.folder / "above").symlink_to(paths.folder.parent)
    (paths.folder / "itself").symlink_to("itself")

    shown = json.loads(say("show", "--json", paths.run_id)[1])["files"]

    assert (shown["above/"], shown["itself"]) == (len(str(paths.folder.parent)), len("itself"))


def test_a_run_that_is_not_damaged_is_not_deleted_by_force_while_it_waits(settings: Settings, say: Say) -> None:
    run_id = submit(settings, FakeSpec())

    assert say("delete", "--yes", "--force", run_id)[::2] == (
        1, f"Error: {run_id} is queued; cancel it first: nightshift cancel {run_id}\n",
    )  # fmt: skip


def test_a_run_that_follows_a_damaged_one_waits(settings: Settings, redis: Redis) -> None:
    first = submit(settings, FakeSpec())
    second = submit(settings, FakeSpec(), JobRequest(after=(first,)))
    RunPaths.of(settings.storage, first).state.write_text("[]")

    reconcile(settings, redis, ReconcilerMemory())

    state = state_of(settings.storage, second)
    assert (state.state, state.why) == ("scheduled", f"waits for {first}, whose state.json is damaged")


def test_a_queued_run_whose_request_is_damaged_fails_with_the_reason(settings: Settings) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    write_json(paths.job, {"retries": "many"})

    claimed = claim_run(paths, "a worker", THIS_MACHINE)

    state = state_of(settings.storage, paths.run_id)
    assert claimed is None
    assert (state.state, state.attempt) == ("failed", 0)
    assert str(state.why).startswith(f"{paths.job} is damaged: retries: ")


@pytest.mark.parametrize("content", WRONG)
def test_a_damaged_name_is_free_again(settings: Settings, say: Say, content: bytes) -> None:
    (settings.storage / "names").mkdir()
    (settings.storage / "names" / "mine.json").write_bytes(content)

    unknown = say("show", "mine")
    run_id = submit(settings, FakeSpec(), JobRequest(name="mine"))

    assert unknown[::2] == (1, "Error: no run has the id or name 'mine'; `nightshift list` shows them\n")
    assert names.run_of(settings.storage, "mine") == run_id


@pytest.mark.parametrize("content", WRONG)
def test_a_damaged_message_is_renamed_and_the_next_is_sent(
    settings: Settings, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = settings.storage / "outbox"
    outbox.mkdir()
    (outbox / "a.json").write_bytes(content)
    write_json(outbox / "b.json", {"url": "http://x.example/", "tries": 0, "not_before": 0.0, "body": {}})
    sent: list[str] = []
    monkeypatch.setattr(webhook_sender, "refuse_address", lambda _settings, url: sent.append(url))
    monkeypatch.setattr(webhook_sender, "_post", lambda _settings, _message: None)

    assert webhook_sender.deliver(settings) == 1

    assert sent == ["http://x.example/"]
    assert [file.name for file in outbox.iterdir()] == ["a.json.damaged"]


@pytest.mark.parametrize("name", ["schedule.json", "spec.json"])
def test_a_damaged_schedule_does_not_keep_others_from_being_served(settings: Settings, say: Say, name: str) -> None:
    spec = build(TrainSpec, shards="s", weights="none")
    for schedule in ("a-damaged", "sound"):
        schedules.add(settings, schedule, "* * * * *", spec, JobRequest())

    for minute, content in enumerate(WRONG):
        for schedule in ("a-damaged", "sound"):
            folder = settings.storage / "schedules" / schedule
            write_json(folder / "schedule.json", due(schedule, minute))
        (settings.storage / "schedules" / "a-damaged" / name).write_bytes(content)

        submitted = schedules.submit_due(settings)
        listed = say("schedule", "list", "--json")

        assert [state_of(settings.storage, run_id).name for run_id in submitted][-1:] != ["a-damaged"]
        assert "sound" in [each["name"] for each in json.loads(listed[1])]


def test_show_names_the_damaged_lines_of_the_metrics(settings: Settings, say: Say) -> None:
    paths = running(settings)
    paths.metrics.write_text('{"epoch": 1, "valid_loss": 0.5}\n{"epoch":\n{"epoch": 2, "valid_loss": 0.4}\n{"epo')

    code, out, err = say("show", "--json", paths.run_id)

    assert (code, [line["epoch"] for line in json.loads(out)["metrics"]]) == (0, [1, 2])
    assert err.splitlines() == [f"{paths.metrics}: line 2 is damaged and left out"]


def due(name: str, minute: int) -> dict[str, object]:
    served = f"2026-11-20T12:{minute:02}:00+00:00"
    return {"name": name, "cron": "* * * * *", "request": {}, "served": served, "last_run": None}


@pytest.mark.parametrize("force", [False, True])
def test_no_file_of_a_run_is_open_when_its_files_are_deleted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    finish(settings, paths.run_id, "cancelled")
    if force:
        paths.state.unlink()
    rmtree, still_open = shutil.rmtree, list[str]()

    def delete(folder: Path) -> None:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        still_open.extend(str(link.readlink()) for link in links if str(link.readlink()).startswith(str(folder)))
        rmtree(folder)

    monkeypatch.setattr(shutil, "rmtree", delete)

    actions.delete(paths, force=force)

    assert still_open == []  # NFS would keep such a file, and the folder: "Directory not empty"
    assert list((settings.storage / "runs").iterdir()) == []


def test_a_run_whose_storage_comes_back_while_its_state_is_read_is_not_damaged(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    away, is_dir = paths.folder.rename(settings.storage / "away"), Path.is_dir

    def come_back(path: Path) -> bool:
        if away.exists():
            away.rename(paths.folder)
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", come_back)

    assert read_state(paths).id == paths.run_id
