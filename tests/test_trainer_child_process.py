"""Processes that do a part of the trainer's work; no GPU is needed."""

import pytest
import torch

from trainer.distributed import child_process
from trainer.distributed.child_process import forks_can_use_gpus


@pytest.fixture
def open_files(tmp_path, monkeypatch):
    """The files that this process seems to have open: a folder of links to them. CUDA has not been started."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(child_process, "OPEN_FILES", tmp_path)
    (tmp_path / "0").symlink_to("/dev/null")
    return tmp_path


def test_forks_can_use_gpus_until_this_process_has_opened_one(open_files):
    before = forks_can_use_gpus()

    (open_files / "3").symlink_to("/dev/nvidiactl")

    assert (before, forks_can_use_gpus()) == (True, False)


def test_forks_cannot_use_gpus_once_torch_has_started_cuda(open_files, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    assert not forks_can_use_gpus()
