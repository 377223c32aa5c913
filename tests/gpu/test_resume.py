"""A training on a GPU that is resumed equals the uninterrupted one bit for bit."""

import pytest
import torch

from tests.gpu.marks import needs_gpus
from tests.resumable import STEPS, Training
from trainer.training.train_state import TrainState

pytestmark = needs_gpus(1)

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def deterministic_kernels(monkeypatch):
    """Kernels whose sums have a fixed order: else two trainings differ in the last bits whether resumed or not."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("freeze", ["none", "3", "all"])
def test_a_training_resumed_at_a_step_equals_the_uninterrupted_one(tmp_path, step, freeze):
    uninterrupted = Training(tmp_path, freeze, save_after=step, device=GPU)
    expected_state = uninterrupted.run(TrainState())

    resumed = Training(tmp_path, freeze, device=GPU)
    state = resumed.run(resumed.checkpoint.load(next(tmp_path.glob(f"step-{step:09d}"))))

    assert state == expected_state
    found, expected = resumed.tensors, uninterrupted.tensors
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert [name for name in found if found[name].stride() != expected[name].stride()] == []
