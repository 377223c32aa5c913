"""The precision of a run on GPUs of any generation; no GPU is needed."""

import errno
import json
import threading

import pytest
import torch
from torch import nn

from cluster.errors import StorageAway
from cluster.settings import Settings
from tests.trained import new_run, train_spec
from trainer.attempt import Attempt
from trainer.data.batches import DeviceBatch
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import SpecError, UnsupportedPrecision
from trainer.model.head import HeadConfig
from trainer.model.precision import (
    best_precision,
    common_precision,
    compute_in_float32,
    grad_scaler,
    is_supported,
    usable_config,
)
from trainer.progress import Progress
from trainer.training.micro_batching import accumulate_gradients
from trainer.training.optimizer import load_scaler, scaler_tensors
from trainer.training.run_precision import run_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
H100, T4, P100 = (9, 0), (7, 5), (6, 0)
NAMES = {H100: "NVIDIA H100", T4: "Tesla T4", P100: "Tesla P100"}


class Cards:
    """What torch says of the GPU of each thread: a rank is a thread here."""

    def __init__(self, monkeypatch):
        self.of_thread, self.default = {}, H100
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: self.mine() >= (8, 0))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: self.mine())
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: NAMES[self.mine()])

    def mine(self):
        return self.of_thread.get(threading.current_thread().name, self.default)


@pytest.fixture
def cards(monkeypatch):
    return Cards(monkeypatch)


class Threads:
    """Collectives between threads; the values meet at a barrier."""

    def __init__(self, ranks):
        self.barrier, self.values = threading.Barrier(ranks), [None] * ranks

    def exchange(self, rank, value):
        self.values[rank] = value
        self.barrier.wait(600)
        found = list(self.values)
        self.barrier.wait(600)
        return found


class ThreadGroup(ProcessGroup):
    """A rank that is a thread."""

    threads = None

    def all_reduce_sum(self, *values):
        return [sum(column) for column in zip(*self.threads.exchange(self.rank, values), strict=True)]

    def broadcast(self, value):
        return self.threads.exchange(self.rank, value)[0]


@pytest.fixture
def attempt(tmp_path):
    paths = new_run(tmp_path, train_spec("x"))
    return Attempt.of(paths.folder, None, Settings(storage=tmp_path))


def decide(attempt, device=GPU, group=None, **options):
    spec = train_spec("x", **{"freeze": "none"} | options)
    task = WorkerTask(attempt=attempt, spec=spec, source=None)
    group = group or ProcessGroup(0, 1, device)
    progress = Progress(attempt.paths, attempt.lease, writes=False)
    return run_precision(WorkerContext(task=task, process_group=group, progress=progress, stop=None))


def decide_on_ranks(attempt, cards, of_ranks, **options):
    """Return what each rank decides or raises, with a GPU of its own."""
    found, ThreadGroup.threads = [None] * len(of_ranks), Threads(len(of_ranks))

    def work(rank):
        try:
            found[rank] = decide(attempt, group=ThreadGroup(rank, len(of_ranks), GPU), **options)
        except UnsupportedPrecision as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,), name=f"rank {rank}") for rank in range(len(of_ranks))]
    cards.of_thread = {thread.name: card for thread, card in zip(threads, of_ranks, strict=True)}
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    return found


@pytest.mark.parametrize(("card", "best"), [(H100, "bf16"), ((8, 0), "bf16"), (T4, "fp16"), (P100, "fp32")])
def test_the_best_precision_of_a_gpu_is_the_fastest_that_it_has_hardware_for(cards, card, best):
    cards.default = card

    assert best_precision(GPU, trains=True) == best_precision(GPU, trains=False) == best
    assert is_supported("bf16", GPU) == (card >= (8, 0))
    assert is_supported("fp16", GPU)
    assert is_supported("fp32", GPU)


@pytest.mark.parametrize(("has_bf16", "frozen"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_trains_a_backbone_in_float32(monkeypatch, has_bf16, frozen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    assert best_precision(CPU, trains=True) == "fp32"
    assert best_precision(CPU, trains=False) == frozen


@pytest.mark.parametrize(
    ("requested", "best", "found"),
    [
        ("auto", ["bf16"], "bf16"),
        ("auto", ["bf16", "fp16"], "fp16"),
        ("auto", ["bf16", "fp32", "fp16"], "fp32"),
        ("bf16", ["fp16"], "bf16"),
        ("fp32", ["bf16"], "fp32"),
    ],
)
def test_the_common_precision_is_the_best_that_all_have(requested, best, found):
    assert common_precision(requested, best) == found


def test_ranks_on_different_cards_take_the_precision_that_all_have(attempt, cards):
    assert decide_on_ranks(attempt, cards, [H100, T4, H100, H100]) == ["fp16"] * 4
    assert json.loads(attempt.paths.precision.read_text()) == {"trained": "fp16"}


def test_bf16_on_one_card_without_it_is_refused_on_every_rank(attempt, cards):
    found = decide_on_ranks(attempt, cards, [H100, H100, T4], precision="bf16")

    fault = "--precision bf16 cannot be used: the GPU of worker 2"
    assert all(text.startswith(fault) and text.endswith("use --precision auto, fp16 or fp32") for text in found)
    assert "(Tesla T4)" in found[2]
    assert not attempt.paths.precision.exists()


def test_a_run_keeps_the_precision_that_its_first_workers_decided_on(attempt, cards):
    cards.default = T4
    first = decide(attempt)
    cards.default = H100

    assert (first, decide(attempt), decide(attempt, CPU)) == ("fp16", "fp16", "fp16")


def test_a_run_that_started_in_bf16_is_not_continued_on_a_card_without_it(attempt, cards):
    decide(attempt)
    cards.default = T4

    with pytest.raises(UnsupportedPrecision, match=r"started with the precision bf16, and .* 0 \(Tesla T4\)"):
        decide(attempt)


def test_the_head_of_a_frozen_backbone_and_a_trained_backbone_have_decisions_of_their_own(attempt, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)

    assert (decide(attempt, CPU, freeze="all"), decide(attempt, CPU)) == ("bf16", "fp32")
    assert json.loads(attempt.paths.precision.read_text()) == {"frozen": "bf16", "trained": "fp32"}


def test_fp16_on_a_cpu_is_refused_as_wrong_usage(attempt):
    with pytest.raises(UnsupportedPrecision, match=r"fp16 needs a GPU for every worker; use --precision auto, bf16"):
        decide(attempt, CPU, precision="fp16")

    assert issubclass(UnsupportedPrecision, SpecError)


def test_a_storage_that_does_not_answer_does_not_change_the_decision(attempt, cards, monkeypatch):
    cards.default = T4
    before = decide(attempt)
    cards.default = H100

    def fail(_path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr("cluster.files.read_content", fail)
        with pytest.raises(StorageAway, match="Input/output error"):
            decide(attempt)

    assert decide(attempt) == before == "fp16"


@pytest.mark.parametrize("content", ["", "[]", '{"trained": "int8"}', '{"trained": ["bf16"]}'])
def test_a_damaged_decision_is_made_again(attempt, cards, content):
    attempt.paths.precision.write_text(content)

    assert decide(attempt) == "bf16"


@pytest.mark.parametrize(
    ("precision", "device", "used"),
    [("bf16", GPU, "fp32"), ("fp16", CPU, "fp32"), ("fp16", GPU, "fp16"), ("bf16", CPU, "bf16")],
)
def test_a_model_is_loaded_in_its_precision_or_in_float32_with_a_warning(cards, caplog, precision, device, used):
    cards.default = T4
    config = HeadConfig(classes=("a", "b"), width=16, dropout=0.0, image_size=32, precision=precision)

    found = usable_config(config, ProcessGroup(0, 1, device))

    assert found.precision == used
    assert bool(caplog.records) == (used != precision)


def gradients(scaler, precision):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 2))
    batch = DeviceBatch(torch.randn(6, 8), torch.arange(6) % 2, torch.arange(6), 6)
    accumulate_gradients(
        module, batch, loss_weight=1e-6, class_weights=None, micro_batches=2, precision=precision, scaler=scaler
    )
    return module


def test_the_scaled_loss_keeps_gradients_that_would_vanish_in_float16():
    expected = gradients(None, "fp32")[0].weight.grad

    scaler = grad_scaler(CPU, "fp16")
    scaled = gradients(scaler, "fp16")
    optimizer = torch.optim.AdamW(scaled.parameters(), fused=True)
    scaler.unscale_(optimizer)
    vanished = gradients(None, "fp16")[0].weight.grad

    assert (scaled[0].weight.grad - expected).norm() / expected.norm() < 0.01
    assert (vanished - expected).norm() / expected.norm() > 0.1


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_is_saved():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    module = gradients(scaler, "fp16")
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)

    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    resumed = torch.amp.GradScaler("cpu")
    load_scaler(resumed, scaler_tensors(scaler))

    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert resumed.get_scale() == scaler.get_scale() == 2.0**59
    assert grad_scaler(CPU, "bf16") is grad_scaler(CPU, "fp32") is None


@pytest.fixture
def cudnn():
    """The switches of cuDNN, as they were before when the test ends."""
    found = torch.backends.cudnn
    before = found.allow_tf32
    yield found
    found.allow_tf32 = before


def test_float32_convolutions_are_float32(cudnn):
    cudnn.allow_tf32 = True

    compute_in_float32()

    assert not cudnn.allow_tf32
    assert cudnn.conv.fp32_precision != "tf32"
