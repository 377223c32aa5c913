"""Two users on one storage: files that only their owner or group reads, and refusals that name owner and cure."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.access import restrict_umask
from cluster.errors import SettingsError, StorageError
from cluster.health import check_storage
from cluster.run_paths import RunPaths
from cluster.settings import Settings, umask_setting
from jobs.queue import actions, embedded_redis
from jobs.queue.submit import publish, submit
from jobs.runs.request import JobRequest
from jobs.runs.run_index import RunIndex
from jobs.runs.state import RunState, now, read_state
from jobs.runs.webhook_outbox import stored_url
from jobs.web.other_pages import queue_page
from jobs.web.overview import overview
from jobs.web.run_page import run_page
from tests.stack import FakeSpec
from tests.users import User, needs_root

TEAM = 3000
ALICE, BOB = User(uid=3001, gid=TEAM, umask=0o002), User(uid=3002, gid=TEAM, umask=0o002)


@pytest.fixture
def shared(settings: Settings) -> Iterator[Settings]:
    """A storage of Alice that her group may write to, and the address of a Redis that both can connect to."""
    storage = Path(tempfile.mkdtemp(prefix="ns-team-"))  # pytest's own folders are closed to other users
    os.chown(storage, ALICE.uid, TEAM)
    storage.chmod(0o2775)
    yield replace(settings, storage=storage)
    shutil.rmtree(storage)


def submit_for_team(settings: Settings, umask: int | None = None) -> str:
    """Submit as a command does, but queue nothing: the Redis of the tests is root's."""
    restrict_umask(umask)
    settings.with_storage_ready()
    paths = RunPaths.of(settings.storage, "train-20261126-000000-abcdef")
    request = JobRequest(name="night", notify="https://example.org/s3cret")
    state = RunState(id=paths.run_id, kind="train", name="night", state="queued", created=now())
    publish(settings.storage, paths, FakeSpec(), request, state)
    return paths.run_id


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@needs_root
def test_no_file_of_a_run_is_readable_by_everybody(shared: Settings) -> None:
    ALICE.call(lambda: submit_for_team(shared))

    modes = modes_in(shared.storage)

    assert {"state.json", "spec.json", "webhook.json"} <= modes.keys()
    assert {name for name, mode in modes.items() if mode & 0o007} == set()
    assert modes["webhook.json"] == 0o600
    assert modes["state.json"] == 0o660


@needs_root
def test_a_second_user_of_the_group_cancels_a_run_where_the_umask_is_002(shared: Settings) -> None:
    run_id = ALICE.call(lambda: submit_for_team(shared))

    said = BOB.call(lambda: actions.cancel(shared, RunPaths.of(shared.storage, run_id)).state)

    assert said == "cancelled"
    assert read_state(RunPaths.of(shared.storage, run_id)).state == "cancelled"


@needs_root
def test_a_second_user_is_told_the_folder_its_owner_and_the_umask_that_is_needed(shared: Settings) -> None:
    alice = replace(ALICE, umask=0o022)
    run_id = alice.call(lambda: submit_for_team(shared))
    runs = shared.storage / "runs"

    ready = BOB.call(shared.with_storage_ready)
    cancelled = BOB.call(lambda: actions.cancel(shared, RunPaths.of(shared.storage, run_id)))
    doctor = BOB.call(lambda: next((found.found, found.cure) for found in check_storage(shared.storage)))

    reason = f"{runs} belongs to user 3001 and group 3000 with mode 2750, and user 3002 may not write there"
    cure = (
        f"let 3001 run `chmod -R g+rwX {runs}` and set NIGHTSHIFT_UMASK=007 for all users, or set NIGHTSHIFT_STORAGE "
        "to a folder of your own"
    )
    assert ready == f"StorageError: storage {shared.storage} is not writable: {reason}; {cure}"
    assert doctor == str((f"storage {shared.storage} is not writable: {reason}", cure))
    assert f"{runs / run_id / '.lock'} belongs to user 3001 and group 3000 with mode 640" in cancelled


@needs_root
def test_the_address_of_a_webhook_is_not_read_by_another_user_and_an_unreadable_storage_is_an_error(
    shared: Settings, tmp_path: Path
) -> None:
    paths = RunPaths.of(shared.storage, ALICE.call(lambda: submit_for_team(shared)))

    assert ALICE.call(lambda: stored_url(paths.webhook)) == "https://example.org/s3cret"
    assert BOB.call(lambda: stored_url(paths.webhook)) == "None"
    assert stored_url(tmp_path / "absent") is None
    with pytest.raises(StorageError, match="File name too long"):
        stored_url(tmp_path / ("a" * 300))


@needs_root
def test_a_user_outside_the_group_is_told_to_share_one(shared: Settings) -> None:
    ALICE.call(shared.with_storage_ready)
    stranger = User(uid=3003, gid=3333)

    said = stranger.call(shared.with_storage_ready)

    assert f"chgrp -R GROUP {shared.storage / 'runs'}" in said


@needs_root
def test_doctor_names_a_run_that_cannot_be_changed_though_the_storage_can_be_written(shared: Settings) -> None:
    run_id = ALICE.call(lambda: submit_for_team(shared))
    RunPaths.of(shared.storage, run_id).folder.chmod(0o2755)

    faults = BOB.call(lambda: [found.found for found in check_storage(shared.storage) if not found.ok])

    assert f"runs/{run_id} belongs to user 3001" in faults


@needs_root
def test_the_embedded_redis_belongs_to_one_user_and_says_so(shared: Settings) -> None:
    ALICE.call(lambda: (shared.storage / "redis").mkdir(mode=0o700))
    embedded = replace(shared, redis_url=None)

    started = BOB.call(lambda: embedded_redis.ensure_running(embedded.storage))
    found = BOB.call(lambda: embedded_redis.running(embedded.storage))
    submitted = BOB.call(lambda: submit(embedded, FakeSpec()))

    said = (
        f"QueueUnreachable: the embedded Redis in {shared.storage / 'redis'} belongs to user 3001 alone; set "
        "NIGHTSHIFT_REDIS_URL to a Redis for all users of the storage, or NIGHTSHIFT_STORAGE to a folder of your own"
    )
    assert (started, found, submitted) == (said, said, said)


@pytest.mark.parametrize(("value", "umask"), [("", None), ("077", 0o077), ("7", 0o007), ("0022", 0o022)])
def test_the_umask_is_read_as_octal(value: str, umask: int | None) -> None:
    assert umask_setting({"NIGHTSHIFT_UMASK": value}) == umask


@pytest.mark.parametrize("value", ["rwx", "8", "0o22", "777", "-1", "1000"])
def test_a_umask_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"NIGHTSHIFT_UMASK '{value}' is not an octal umask"):
        umask_setting({"NIGHTSHIFT_UMASK": value})


@pytest.mark.parametrize(
    ("before", "setting", "after"),
    [(0o022, None, 0o027), (0o002, None, 0o007), (0o077, None, 0o077), (0o077, 0o022, 0o022)],
)
def test_other_users_get_no_permission_unless_the_setting_gives_it(
    before: int, setting: int | None, after: int
) -> None:
    own = os.umask(before)

    restrict_umask(setting)

    assert os.umask(own) == after


@needs_root
def test_a_read_only_page_serves_a_storage_that_it_cannot_write_to(shared: Settings) -> None:
    run_id = ALICE.call(lambda: submit_for_team(shared))
    for path in (shared.storage, *shared.storage.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)
    settings = replace(shared, redis_url=None)  # the embedded Redis, which does not run
    before = sorted(modes_in(shared.storage))

    def show() -> list[object]:
        runs = overview(RunIndex(settings.with_storage_readable().storage), {})
        shown = run_page(RunPaths.of(settings.storage, run_id), with_files=True)
        return [runs.rows[0].state.id == run_id, shown.row.state.name, queue_page(settings).warning]

    said, refused = BOB.call(show), BOB.call(settings.with_storage_ready)

    assert said == str([True, "night", "no Redis runs for this storage; `nightshift up` starts it"])
    assert refused.startswith(f"StorageError: storage {settings.storage} is not writable: ")
    assert sorted(modes_in(shared.storage)) == before


def test_a_storage_without_runs_is_one_line_for_a_read_only_page(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as refused:
        Settings(storage=tmp_path).with_storage_readable()

    assert str(refused.value) == (
        f"storage {tmp_path} cannot be read: {tmp_path}/runs: No such file or directory; set NIGHTSHIFT_STORAGE to a "
        "folder that has runs and that this user may read"
    )
