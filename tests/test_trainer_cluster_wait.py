"""The wait for room on a Ray cluster: what it says, and how it ends."""

from contextlib import contextmanager

import pytest

from cluster.errors import InsufficientResources
from trainer.distributed import cluster_wait
from trainer.distributed.cluster_wait import wait_for_room
from trainer.errors import Stopped


class Reservation:
    """A reservation that is placed after a number of looks."""

    def __init__(self, looks):
        self.looks, self.seconds, self.is_released = looks, 0.0, False

    def wait(self, seconds):
        self.seconds += seconds
        self.looks -= 1
        return self.looks < 0


@pytest.fixture
def cluster(monkeypatch):
    """A function that makes a cluster with two free GPUs, on which a reservation is placed after so many looks."""

    def make(looks):
        reservation = Reservation(looks)

        @contextmanager
        def reserved(bundles):
            reservation.bundles = bundles
            yield reservation
            reservation.is_released = True

        monkeypatch.setattr(cluster_wait, "_reservation", reserved)
        monkeypatch.setattr(cluster_wait, "_free", {"GPU": 2, "CPU": 1}.get)
        return reservation

    return make


@pytest.mark.parametrize(("gpus", "text"), [(1, "waiting for 4 GPUs (2 free)"), (0, "waiting for 4 CPUs (1 free)")])
def test_it_says_what_it_waits_for_until_there_is_room(cluster, gpus, text):
    reservation, said = cluster(looks=3), []

    wait_for_room(4, gpus, said.append, limit_seconds=60)

    assert said == [text] * 3
    assert reservation.bundles == [{"GPU" if gpus else "CPU": 1.0}] * 4
    assert reservation.is_released


def test_nothing_is_said_where_there_is_room(cluster):
    cluster(looks=0)
    said = []

    wait_for_room(4, 1, said.append, limit_seconds=60)

    assert said == []


def test_it_ends_with_its_cure_when_there_was_no_room_for_the_whole_time(cluster):
    reservation, said = cluster(looks=100), []

    with pytest.raises(InsufficientResources) as refused:
        wait_for_room(4, 1, said.append, limit_seconds=5, now=lambda: reservation.seconds)

    assert str(refused.value) == (
        "the run was waiting for 4 GPUs (2 free) of the Ray cluster for 5 s; see `ray status` for what uses them, "
        "use fewer --workers or --min-workers, or raise NIGHTSHIFT_GPU_WAIT_SECONDS"
    )
    assert len(said) == 3


def test_a_run_that_is_asked_to_stop_waits_no_longer(cluster):
    cluster(looks=100)

    def stop(text):
        raise Stopped(f"stopped (cancel) while {text}")

    with pytest.raises(Stopped, match=r"^stopped \(cancel\) while waiting for 4 GPUs \(2 free\)$"):
        wait_for_room(4, 1, stop, limit_seconds=60)
