"""When steps are taken eagerly, captured and replayed; the CUDA of torch is faked where there is no GPU."""

import logging
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import pytest
import torch
from torch import nn

from trainer.training import step_graphs
from trainer.training.step_graphs import StepGraphs

GPU = torch.device("cuda", 0)


class Training:
    """Notes what happens to its steps."""

    def __init__(self):
        self.parameter = nn.Parameter(torch.zeros(3))
        self.optimizer = torch.optim.AdamW([self.parameter], lr=0.1)
        self.graphs = StepGraphs(GPU, self.optimizer)
        self.events = []
        self.graphs.start([self.parameter])

    def take(self, shape="full"):
        self.graphs.take(shape, lambda: self.step(shape), lambda: self.events.append("seed"))

    def step(self, shape):
        self.events.append(f"step {shape}")
        HELD["bytes"] = 500
        self.parameter.grad = torch.ones(3)


ALLOCATED = 100
HELD = {"bytes": ALLOCATED}  # by torch, of the memory of the GPU


class FakeGraph:
    """A graph that notes its replays."""

    made: ClassVar[list] = []

    def __init__(self):
        self.replays = 0
        FakeGraph.made.append(self)

    def replay(self):
        self.replays += 1

    def pool(self):
        return id(self)


class FakeGenerator:
    renewed = 0

    def clone_state(self):
        return self

    def graphsafe_set_state(self, _):
        FakeGenerator.renewed += 1


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    """Fake what `StepGraphs` asks of `torch.cuda`; return the memory pools of captures, and their fault."""
    seen = {"pools": [], "fault": None, "free": 1000, "share": 1.0}

    @contextmanager
    def graph(graph, *, pool, stream, capture_error_mode):
        seen["pools"].append(pool)
        yield
        if seen["fault"]:
            raise RuntimeError(seen["fault"])

    monkeypatch.setattr(FakeGraph, "made", [])
    monkeypatch.setattr(FakeGenerator, "renewed", 0)
    monkeypatch.setattr(step_graphs, "failed", [])
    monkeypatch.setattr(step_graphs, "_run_aside", lambda stream, step: step())
    monkeypatch.setattr(step_graphs, "_STREAMS", {GPU: "stream"})
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(step_graphs, "short_of_memory", [])
    monkeypatch.setitem(HELD, "bytes", 900)  # the cache of what was before
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: HELD.update(bytes=ALLOCATED))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: HELD["bytes"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: ALLOCATED)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (seen["free"], 10_000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: seen["share"])
    monkeypatch.setattr(torch.cuda, "default_generators", [FakeGenerator()])
    return seen


def test_the_first_step_of_a_shape_is_eager_the_second_is_captured_and_later_ones_are_replayed():
    training = Training()

    for shape in ("full", "less", "full", "full", "less", "full"):
        training.take(shape)

    seeded = ["seed", "step full", "seed", "step less"]  # both eager
    captured = ["step full", "seed", "seed", "step less", "seed", "seed"]  # the seed is set before each replay
    assert training.events == seeded + captured
    assert [graph.replays for graph in FakeGraph.made] == [3, 1]


def test_the_graphs_of_a_training_share_their_memory(cuda):
    training, other = Training(), Training()

    for each in (training, training, other, other):
        for shape in ("full", "less"):
            each.take(shape)

    first = [FakeGraph.made[0], FakeGraph.made[2]]
    assert cuda["pools"] == [None, id(first[0]), None, id(first[1])]


def test_the_optimizer_is_capturable_only_during_a_capture():
    training, seen = Training(), []
    training.step = lambda _: seen.append(training.optimizer.param_groups[0]["capturable"])

    training.take()
    training.take()
    training.take()

    assert seen == [False, True]
    assert training.optimizer.param_groups[0]["capturable"] is False


def test_after_a_failed_capture_all_steps_of_the_process_are_eager_and_one_line_says_so(cuda, caplog):
    training, other = Training(), Training()
    for _ in range(2):
        other.take()
    cuda["fault"] = "operation not permitted when stream is capturing\nmore"

    training.take()
    with caplog.at_level(logging.WARNING):
        training.take()
    training.take()
    other.take()

    assert training.events == ["seed", "step full", "step full", "seed", "step full", "seed", "step full"]
    assert other.events[-2:] == ["seed", "step full"]
    assert [graph.replays for graph in FakeGraph.made] == [1, 0]
    assert step_graphs.failed == [FakeGraph.made[1]]
    assert (FakeGenerator.renewed, training.optimizer.param_groups[0]["capturable"]) == (1, False)
    assert [record.getMessage() for record in caplog.records] == [
        "no step is a CUDA graph from now on, and steps are slower: a capture failed: "
        "operation not permitted when stream is capturing"
    ]


def test_the_eager_step_after_a_failed_capture_finds_no_gradient_of_it(cuda):
    training, found = Training(), []

    def step(_):
        found.append(training.parameter.grad)
        training.parameter.grad = torch.ones(3)
        if len(found) == 1:
            training.optimizer.zero_grad()

    training.step = step
    training.take()
    cuda["fault"] = "out of memory"

    training.take()

    assert found == [None, None, None]  # eager, captured, eager instead


@pytest.mark.parametrize("moves", ["parameter", "moment"])
def test_graphs_of_tensors_that_have_moved_are_captured_again(moves):
    training = Training()
    training.optimizer.state[training.parameter]["exp_avg"] = torch.zeros(3)
    for _ in range(2):
        training.take()

    training.graphs.start([training.parameter])  # nothing has moved
    training.take()
    kept = len(FakeGraph.made)
    if moves == "parameter":
        training.graphs.start([nn.Parameter(torch.zeros(3))])
    else:
        training.optimizer.state[training.parameter]["exp_avg"] = torch.zeros(3)
        training.graphs.start([training.parameter])
    training.take()
    eager = len(FakeGraph.made)
    training.take()

    assert (kept, eager, len(FakeGraph.made)) == (1, 1, 2)


def test_a_step_whose_graph_leaves_too_little_memory_stays_eager_and_one_line_says_so(cuda, caplog):
    training, other = Training(), Training()
    cuda["free"] = 399  # of the GPU; torch has 400 more, which the step has needed

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            training.take()
            other.take()

    assert training.events == other.events == ["seed", "step full"] * 3
    assert FakeGraph.made == []
    assert len(caplog.messages) == 1
    assert "steps are not CUDA graphs" in caplog.text


@pytest.mark.parametrize(("limit", "graphs"), [({"free": 400}, 1), ({"share": 0.09}, 1), ({"share": 0.0899}, 0)])
def test_a_step_is_captured_where_the_graph_leaves_enough_of_the_memory_that_the_process_may_use(cuda, limit, graphs):
    training = Training()
    cuda.update(limit)  # of 10,000 bytes torch holds 500 after a step

    training.take()
    training.take()

    assert len(FakeGraph.made) == graphs


def test_all_steps_on_a_cpu_are_eager():
    training = Training()
    training.graphs.device = torch.device("cpu")

    for _ in range(3):
        training.take()

    assert training.events == ["seed", "step full"] * 3
    assert FakeGraph.made == []
