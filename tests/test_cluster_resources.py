"""CPUs of this machine, as packing and training count them."""

import os
from collections.abc import Iterator

import joblib
import pytest

from cluster.resources import cpu_count, this_machine
from data_shards.process_pool import process_count


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """This process may use one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_cpu")
def test_the_affinity_limits_the_cpus() -> None:
    assert (cpu_count(), process_count(1_000_000, per_process=1)) == (1, 1)


def test_the_processes_of_a_pack_are_the_cpus_of_the_machine_or_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 4)  # it counts the quota of a container, of cgroup 1 too

    assert (process_count(1_000_000, per_process=1), this_machine().cpus) == (4, 4)
    assert process_count(2, per_process=1) == 3
