"""How often training steps make the CPU wait for the GPU."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.gpu.marks import needs_gpus
from tests.resumable import EPOCHS, Training, batches
from trainer.training.train_state import TrainState

pytestmark = needs_gpus(1)

GPU = torch.device("cuda")


@pytest.mark.parametrize("freeze", ["none", "all"])
def test_the_steps_of_an_epoch_wait_for_the_gpu_twice(tmp_path, freeze):
    ready = {}

    def loader(plan, start=0):
        """Yield batches that are on the GPU already, but for the first training."""
        if plan.epoch not in ready:
            ready[plan.epoch] = list(batches(GPU, plan))
        yield from ready[plan.epoch]

    Training(tmp_path, freeze, device=GPU, loader=loader).run(TrainState())  # also loads the kernels
    training = Training(tmp_path, freeze, device=GPU, loader=loader)
    training.loop._gatherer.now = lambda: 0.0  # steps that take no time

    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training.run(TrainState())
        finally:
            torch.cuda.set_sync_debug_mode("default")

    places = Counter(Path(each.filename).name for each in waits if "called a synchronizing" in str(each.message))
    assert places == {"step_gatherer.py": 2 * EPOCHS}  # after the first step and after the last
