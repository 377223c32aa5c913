"""`NIGHTSHIFT_RUNS_PER_OWNER`: who has many runs keeps nobody else waiting, and every run starts at last."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from redis import Redis

from cluster.errors import SettingsError
from cluster.launch import THIS_MACHINE
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.queues import remove, waiting
from jobs.queue.reconciler import ReconcilerMemory, reconcile
from jobs.queue.stack import start_stack
from jobs.queue.submit import submit
from jobs.queue.tasks import claim_run
from jobs.runs.request import PRIORITIES, JobRequest
from jobs.runs.run_index import RunIndex
from jobs.runs.state import changing, write_state
from jobs.web.overview import overview
from tests.conftest import Say
from tests.stack import FAKE_WORKER, FakeSpec, eventually, reaches, state_of

LIMIT = 2


@pytest.fixture
def limited(settings: Settings) -> Settings:
    return replace(settings, runs_per_owner=LIMIT)


def submitted(settings: Settings, owner: str | None = "alice", priority: str = "normal") -> str:
    return submit(settings, FakeSpec(), JobRequest.model_validate({"owner": owner, "priority": priority}))


def claimed(settings: Settings, redis: Redis, run_id: str) -> str:
    """Take a run from its queue as a job worker does; return its state."""
    state = state_of(settings.storage, run_id)
    remove(redis, run_id, state.priority)
    paths = RunPaths.of(settings.storage, run_id)
    claim_run(paths, "a worker", THIS_MACHINE, runs_per_owner=settings.runs_per_owner)
    return state_of(settings.storage, run_id).state


def set_state(settings: Settings, run_id: str, state: str) -> None:
    with changing(RunPaths.of(settings.storage, run_id)) as found:
        write_state(RunPaths.of(settings.storage, run_id), found.with_state(state))  # type: ignore[arg-type]


def states(settings: Settings, run_ids: Iterable[str]) -> list[str]:
    return [state_of(settings.storage, run_id).state for run_id in run_ids]


def test_a_run_above_the_limit_leaves_the_queue_and_another_owner_starts(limited: Settings, redis: Redis) -> None:
    alice, bob = [submitted(limited) for _ in range(3)], submitted(limited, "bob")

    found = [claimed(limited, redis, run_id) for run_id in [*alice, bob]]

    assert found == ["running", "running", "scheduled", "running"]
    assert state_of(limited.storage, alice[2]).why == "waits: alice has 2 of 2 runs running"


def test_list_and_show_say_what_a_run_waits_for(say: Say, limited: Settings, redis: Redis) -> None:
    alice = [submitted(limited) for _ in range(3)]
    for run_id in alice:
        claimed(limited, redis, run_id)

    listed, shown = say("list")[1], say("show", alice[2])[1]

    assert "waits: alice has 2 of 2 runs running" in listed
    assert "waits: alice has 2 of 2 runs running" in shown


def test_the_end_of_a_run_queues_the_waiting_one_of_the_highest_priority_and_only_it(
    limited: Settings, redis: Redis
) -> None:
    alice = [submitted(limited, priority=priority) for priority in ("low", "low", "low", "normal", "normal", "high")]
    for run_id in alice:
        claimed(limited, redis, run_id)
    memory = ReconcilerMemory()
    reconcile(limited, redis, memory)
    full = states(limited, alice)
    set_state(limited, alice[0], "succeeded")

    for _ in range(2):
        reconcile(limited, redis, memory)

    assert full == ["running", "running", *["scheduled"] * 4]
    assert states(limited, alice) == ["succeeded", "running", "scheduled", "scheduled", "scheduled", "queued"]
    assert [waiting(redis, priority) for priority in PRIORITIES] == [[alice[5]], [], []]
    assert state_of(limited.storage, alice[3]).why == "waits: alice has 1 of 2 runs running and 1 in the queue"


def test_every_run_starts_at_last(limited: Settings, redis: Redis) -> None:
    owners = ("alice", "bob", None)
    runs = [submitted(limited, owner, priority) for owner in owners for priority in PRIORITIES for _ in range(2)]
    memory, most = ReconcilerMemory(), 0
    for _ in range(20):
        for priority in PRIORITIES:
            for run_id in waiting(redis, priority):
                claimed(limited, redis, run_id)
        running = [run_id for run_id in runs if state_of(limited.storage, run_id).state == "running"]
        most = max(most, sum(state_of(limited.storage, run_id).owner == "alice" for run_id in running))
        for run_id in running[:1]:
            set_state(limited, run_id, "succeeded")
        reconcile(limited, redis, memory)

    assert set(states(limited, runs)) == {"succeeded"}
    assert most == LIMIT


def test_a_queued_run_that_no_worker_serves_keeps_no_more_urgent_one_waiting(limited: Settings, redis: Redis) -> None:
    alice = [submitted(limited), submitted(limited), submitted(limited, priority="high")]
    for run_id in alice:
        claimed(limited, redis, run_id)
    unserved = [submitted(limited, priority="low") for _ in range(LIMIT)]
    set_state(limited, alice[0], "succeeded")

    reconcile(limited, redis, ReconcilerMemory())

    assert states(limited, [alice[2], *unserved]) == ["queued", "queued", "queued"]


def test_two_workers_never_share_the_last_slot(limited: Settings, redis: Redis) -> None:
    runs = [submitted(limited) for _ in range(8)]

    with ThreadPoolExecutor(8) as workers:
        found = list(workers.map(lambda run_id: claimed(limited, redis, run_id), runs))

    assert sorted(found) == ["running"] * LIMIT + ["scheduled"] * 6


def test_a_limit_that_is_taken_away_queues_all_that_waited(limited: Settings, redis: Redis) -> None:
    alice = [submitted(limited) for _ in range(4)]
    for run_id in alice:
        claimed(limited, redis, run_id)

    reconcile(replace(limited, runs_per_owner=None), redis, ReconcilerMemory())

    assert states(limited, alice) == ["running", "running", "queued", "queued"]


def test_a_limit_of_0_is_refused() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.read({"NIGHTSHIFT_RUNS_PER_OWNER": "0"})

    assert str(refused.value) == "NIGHTSHIFT_RUNS_PER_OWNER 0 lets no run start; write 1 or more, or unset it"
    assert Settings.read({"NIGHTSHIFT_RUNS_PER_OWNER": ""}).runs_per_owner is None


def test_real_job_workers_run_one_run_of_each_owner_and_at_last_all(
    say: Say, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_RUNS_PER_OWNER", "1")
    one_each = replace(settings, runs_per_owner=1)
    alice, bob = ([held(one_each, owner) for _ in range(2)] for owner in ("alice", "bob"))

    with start_stack(one_each, 3, worker_command=FAKE_WORKER):
        blocked = eventually(lambda: states(one_each, [*alice, *bob]) == ["running", "scheduled"] * 2)
        row = next(row for row in overview(RunIndex(one_each.storage), {}).rows if row.state.id == alice[1])
        shown = [say("list")[1], say("show", alice[1])[1], row.doing]
        for run_id in (*alice, *bob):
            (RunPaths.of(one_each.storage, run_id).folder / "go").touch()
        ended = [reaches(one_each.storage, run_id, "succeeded", "failed", "lost") for run_id in (*alice, *bob)]

    assert blocked, states(one_each, [*alice, *bob])
    assert ["waits: alice has 1 of 1 runs running" in text for text in shown] == [True] * 3
    assert [(state.state, state.attempt) for state in ended] == [("succeeded", 1)] * 4
    for first, second in (ended[:2], ended[2:]):
        assert first.ended is not None
        assert second.started is not None
        assert first.ended <= second.started


def held(settings: Settings, owner: str) -> str:
    """Submit a run that does not end before its folder has a file `go`."""
    return submit(settings, FakeSpec(holds=True, steps=2), JobRequest.model_validate({"owner": owner}))
