"""What a fork server must not have touched, and what an attempt that was forked from it sets anew."""

import multiprocessing
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import trainer.__main__
from trainer.fork_server import attempt


@pytest.fixture(autouse=True)
def _generators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the generators of this process afterwards."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    before, key = torch.get_rng_state(), multiprocessing.current_process().authkey
    yield
    torch.set_rng_state(before)
    multiprocessing.current_process().authkey = key


def test_two_attempts_draw_as_new_processes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float, bytes, list[str]]] = []

    def main(arguments: list[str]) -> int:
        key = bytes(multiprocessing.current_process().authkey)
        drawn.append((float(torch.rand(())), float(np.random.random()), key, sys.argv[1:]))
        return 3

    monkeypatch.setattr(trainer.__main__, "main", main)
    torch.manual_seed(7)
    first = float(torch.rand(()))

    codes = []
    for folder in ("one", "other"):
        np.random.seed(7)  # as both are forks of one process
        codes.append(attempt([folder]))

    numbers, others, keys, arguments = zip(*drawn, strict=True)
    assert codes == [3, 3]
    assert numbers == (first, first)  # torch begins with a constant in any process
    assert len(set(others)) == len(set(keys)) == 2
    assert arguments == (["one"], ["other"])
