"""Steps from tables ask a GPU for nothing that a CUDA graph cannot repeat; counted on a CPU, which does the same."""

import pytest
import torch

from tests.fake_cuda import DeviceCounts
from tests.head_loops import CPU, OPTIONS, HeadLoop
from tests.test_trainer_batched_heads import data_of, fit_of, heads_of
from trainer.training import batched_heads
from trainer.training.batched_heads import HeadBatch
from trainer.training.table_steps import StepTable, TableSteps

# Whatever the values are, these launch the same kernels, wait for nothing and read nothing of the CPU.
CAPTURABLE = {
    "_foreach_add_", "_foreach_copy_", "_foreach_mul_", "_foreach_norm", "_fused_adamw_", "_log_softmax",
    "_log_softmax_backward_data", "_to_copy", "add", "add_", "addmm", "arange", "baddbmm", "bernoulli_",
    "binary_cross_entropy_with_logits", "bmm", "clamp", "clone", "div", "div_", "eq", "gather", "ge", "index",
    "index_select", "lerp_", "linalg_vector_norm", "lt", "mm", "mul", "mul_", "native_batch_norm",
    "native_batch_norm_backward", "neg", "nll_loss_backward", "nll_loss_forward", "ones_like", "pow", "reciprocal",
    "relu", "rsqrt", "sigmoid", "stack", "sub", "sum", "threshold_backward", "where", "zeros", "zeros_like",
}  # fmt: skip


class StepCounts(DeviceCounts):
    """Counts also the numbers that a step would copy from the CPU, and reads of values, which are not fake here."""

    constants = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.constants += func._schema.name == "aten::lift_fresh"  # of `torch.tensor(number)`
        self.waits += func._schema.name == "aten::_local_scalar_dense"  # of `.item()`, `float()` and `if`
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture
def steps(monkeypatch):
    """What each step from tables asks for, on a CPU."""
    found, take = [], TableSteps._step

    def counted(self, *arguments):
        with StepCounts("cpu") as counts:
            take(self, *arguments)
        found.append(counts)

    monkeypatch.setattr("trainer.training.loop.DEVICES", ("cpu",))
    monkeypatch.setattr(batched_heads, "DEVICES", ("cpu",))
    monkeypatch.setattr(TableSteps, "_step", counted)
    return found


def kernels(counts):
    return sum(counts.kernels.values())


@pytest.mark.parametrize(("name", "most_kernels"), list(zip(OPTIONS, (58, 79, 54, 89), strict=True)))
def test_a_step_of_a_head_waits_for_nothing_and_copies_nothing(name, most_kernels, steps):
    HeadLoop(**OPTIONS[name]).run()

    assert {(each.waits, each.constants) for each in steps} == {(0, 0)}
    assert sorted(set().union(*(each.kernels for each in steps)) - CAPTURABLE) == []
    assert max(kernels(each) for each in steps[1:]) < most_kernels  # the first one also creates the optimizer's state


@pytest.mark.parametrize("multi_label", [False, True], ids=["one class", "several labels"])
@pytest.mark.parametrize(("sizes", "most_kernels"), [((120, 120), 118), ((119, 125), 212)])
def test_a_step_of_several_heads_waits_for_nothing_and_copies_nothing(multi_label, sizes, most_kernels, steps):
    features, labels = data_of(multi_label=multi_label)
    fit = fit_of(multi_label=multi_label, ema=0.5)

    HeadBatch(fit=fit, features=features, labels=labels, heads=heads_of(*sizes)).train()

    assert {(each.waits, each.constants) for each in steps} == {(0, 0)}
    assert sorted(set().union(*(each.kernels for each in steps)) - CAPTURABLE) == []
    assert max(kernels(each) for each in steps[1:]) < most_kernels


def test_a_wait_a_copy_and_an_operation_that_depends_on_values_are_noticed(steps):
    training = HeadLoop()
    taken = training.loop._train_on

    def careless(batch):
        torch.tensor(1.0)
        batch.labels.nonzero()
        float(batch.inputs.sum())
        return taken(batch)

    object.__setattr__(training.loop, "_train_on", careless)
    training.run()

    assert {(each.waits, each.constants) for each in steps} == {(1, 1)}
    assert sorted(set().union(*(each.kernels for each in steps)) - CAPTURABLE) == ["_local_scalar_dense", "nonzero"]


def test_a_table_keeps_its_tensors_while_their_shapes_stay():
    table = StepTable(CPU)
    table.fill(0, {"number": torch.arange(3), "found": torch.zeros(3, 2)})
    before = [tensor.data_ptr() for tensor in table.tensors()]

    table.fill(1, {"number": torch.arange(3), "found": torch.ones(3, 2)})
    table.end_step("found", torch.tensor([5.0, 6.0]))

    assert [tensor.data_ptr() for tensor in table.tensors()] == before
    assert table.columns["found"].tolist() == [[1, 1], [5, 6], [1, 1]]
    assert table.row("found").tolist() == [1, 1]
    assert table.row("number").item() == 2

    table.fill(0, {"found": torch.zeros(4, 2)})

    assert table.columns["found"].shape == (4, 2)
