"""What keeps a run from starting: a time, another run, a window."""

from datetime import UTC, datetime, timedelta

from redis import Redis

from cluster.settings import Settings
from jobs.queue.queues import waiting
from jobs.queue.reconciler import ReconcilerMemory, reconcile
from jobs.queue.submit import submit
from jobs.runs.request import JobRequest
from tests.stack import FakeSpec, eventually, finish, state_of


def test_a_run_waits_for_the_one_it_follows(settings: Settings, redis: Redis) -> None:
    first = submit(settings, FakeSpec())
    second = submit(settings, FakeSpec(), JobRequest(after=(first,)))
    waits = state_of(settings.storage, second)
    finish(settings, first, "succeeded")

    reconcile(settings, redis, ReconcilerMemory())

    assert (waits.state, waits.why) == ("scheduled", f"waits for {first}")
    assert second in waiting(redis, "normal")


def test_a_run_that_follows_one_that_failed_is_cancelled_with_the_reason(settings: Settings, redis: Redis) -> None:
    first = submit(settings, FakeSpec())
    second = submit(settings, FakeSpec(), JobRequest(after=(first,)))
    finish(settings, first, "failed")

    reconcile(settings, redis, ReconcilerMemory())

    state = state_of(settings.storage, second)
    assert (state.state, state.why) == ("cancelled", f"{first}, which it was to follow, ended as failed")


def test_a_run_waits_for_its_time(settings: Settings, redis: Redis) -> None:
    later = submit(settings, FakeSpec(), JobRequest(at=datetime.now(UTC) + timedelta(hours=1)))
    soon = submit(settings, FakeSpec(), JobRequest(at=datetime.now(UTC) + timedelta(seconds=1)))

    assert state_of(settings.storage, soon).state == "scheduled"
    assert eventually(lambda: bool(reconcile(settings, redis, ReconcilerMemory())))

    assert waiting(redis, "normal") == [soon]
    assert state_of(settings.storage, later).state == "scheduled"


def test_a_run_waits_for_its_window(settings: Settings, redis: Redis) -> None:
    here = datetime.now().astimezone()
    shut = f"{here + timedelta(hours=2):%H:%M}-{here + timedelta(hours=3):%H:%M}"
    is_open = f"{here - timedelta(hours=1):%H:%M}-{here + timedelta(hours=1):%H:%M}"

    waits = state_of(settings.storage, submit(settings, FakeSpec(), JobRequest(window=shut)))
    goes = state_of(settings.storage, submit(settings, FakeSpec(), JobRequest(window=is_open)))

    assert (waits.state, waits.why) == ("scheduled", f"waits for its window {shut}")
    assert goes.state == "queued"
