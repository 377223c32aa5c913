"""The measurements of GPUs: their arithmetic, which a CPU can prove."""

import importlib.util

import pytest
import torch
from torch import nn

from tests.bench.gpu import Bench
from tests.fake_cuda import bytes_of
from tests.gpu.measure import forward_bytes

CPU, NO_DATA = torch.device("cpu"), torch.device("meta")


def test_the_bytes_that_kernels_read_and_write_are_counted():
    source, target = torch.empty(2, 8, 4, 4, device=NO_DATA), torch.empty(2, 8, 4, 4, device=NO_DATA)
    convolution = nn.Conv2d(8, 16, 1, bias=False, device=NO_DATA, dtype=torch.bfloat16)

    copied = bytes_of(lambda: target.copy_(source), NO_DATA)
    halved = bytes_of(lambda: source.to(torch.bfloat16), NO_DATA)
    convolved = bytes_of(lambda: convolution(source.bfloat16()), NO_DATA) - halved

    assert (copied, halved) == (2 * 256 * 4, 256 * 4 + 256 * 2)
    assert convolved == 2 * (256 + 8 * 16 + 512)
    assert bytes_of(lambda: source.view(-1)[1:].unsqueeze(0), NO_DATA) == 0


def test_the_bytes_of_a_forward_pass_hardly_depend_on_the_number_of_images():
    assert forward_bytes(256) == pytest.approx(80.6e6, rel=0.01)
    assert forward_bytes(512) == pytest.approx(forward_bytes(256), rel=1e-6)


@pytest.mark.parametrize("with_timm", [False, pytest.param(True, marks=pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"))])  # fmt: skip
def test_the_rows_of_our_own_need_neither_timm_nor_the_xrays(monkeypatch, with_timm):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    bench = Bench(device=CPU, forward_batch=2, step_batch=2, repeats=1, pairs=1, copy_bytes=2**20, with_timm=with_timm)

    rows = list(bench.rows())

    expected = [
        ("frozen forward, bf16, batch 2: memory bandwidth", "GB/s"),
        ("frozen forward, bf16, batch 2", "images/s"),
        ("fine-tuning step, bf16, batch 2", "images/s"),
    ]
    assert [(row.what, row.unit) for row in rows] == expected + 2 * expected[1:] * with_timm
    assert min(min(row.ours, row.peer) for row in rows) > 0
    assert rows[0].ours == pytest.approx(rows[0].ratio * rows[0].peer)
