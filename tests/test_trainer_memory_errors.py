"""What an out-of-memory error says for each kind of run, and the shared memory of a worker; no GPU is needed."""

from types import SimpleNamespace

import pytest
import torch

from cluster.errors import InsufficientResources
from cluster.settings import Settings
from tests.trained import lease_in, train_spec
from trainer.distributed import ray_train
from trainer.distributed.memory_errors import out_of_memory
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import OutOfMemory
from trainer.progress import Progress
from trainer.specs import EvaluateSpec, PredictSpec, build

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def context_of(folder, spec, *, phase="train", done=0, total=10, device=CPU):
    progress = Progress(None, lease_in(folder), writes=False, phase=phase, done=done, total=total)
    task = WorkerTask(attempt=None, spec=spec, source=None)
    return WorkerContext(task=task, process_group=ProcessGroup(1, spec.workers, device), progress=progress, stop=None)


@pytest.mark.parametrize(
    ("options", "doing", "what", "cure"),
    [
        ({"freeze": "none"}, {}, "a training step of 32 images over 1", "--batch-size 16 or more --workers, --a"),
        ({"freeze": "3", "batch_size": 12, "workers": 4}, {}, "12 images over 4 workers", "use a smaller --image-size"),
        ({"freeze": "3", "batch_size": 24, "workers": 4}, {}, "24 images over 4 workers", "--batch-size 12 or more"),
        ({"freeze": "3", "accumulate": True}, {}, "a training step", "more --workers, or freeze more with --freeze"),
        ({"folds": 5, "patience": 10}, {}, "the features of all images,", "use --gpus-per-worker 0: a CPU"),
        ({"augment": True}, {}, "a batch of 32 images", "use --batch-size 16 or more --workers"),
        ({"cache": False}, {}, "a batch of 32 images", "use --batch-size 16 or more --workers"),
        ({}, {"phase": "features", "done": 3}, "the frozen backbone with its images", "use a smaller --image-size"),
        ({}, {"phase": "features", "done": 10}, "the features of all images,", "use --no-cache, which reads"),
        ({}, {}, "the features of all images,", "or --gpus-per-worker 0"),
    ],
)  # fmt: skip
def test_a_training_without_memory_says_what_helps_it(tmp_path, options, doing, what, cure):
    error = out_of_memory(context_of(tmp_path, train_spec("x", **options), **doing))

    assert isinstance(error, OutOfMemory)
    assert what in str(error).partition("; ")[0]
    assert cure in str(error).partition("; ")[2]
    assert "(worker 1)" in str(error)


@pytest.mark.parametrize(
    ("spec", "smaller"),
    [
        (build(EvaluateSpec, model="m", shards="x"), ""),  # computes features in batches of its own
        (build(PredictSpec, model="m", images=["x"], batch_size=64), "--batch-size 32 or "),
        (build(PredictSpec, model="m", images=["x"], batch_size=1), ""),
    ],
)
def test_a_model_that_does_not_fit_can_run_on_the_cpu(tmp_path, spec, smaller):
    error = str(out_of_memory(context_of(tmp_path, spec)))

    assert error.endswith(f"; use {smaller}--gpus-per-worker 0, which computes on the CPU")


@pytest.mark.parametrize(("free", "said"), [(10, "of which other programs use 50.0 of 80.0 GB"), (59, None)])
def test_memory_that_other_programs_use_is_named(tmp_path, monkeypatch, free, said):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 20 * 10**9)

    error = str(out_of_memory(context_of(tmp_path, train_spec("x"), device=GPU)))

    assert ("other programs" in error) == (said is not None)
    assert said is None or said in error


def test_the_error_of_a_worker_without_memory_names_the_cure(tmp_path, monkeypatch):
    context = context_of(tmp_path, train_spec("x", freeze="none"))
    monkeypatch.setattr(ray_train.WorkerContext, "of", lambda task: context)

    def work(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    with pytest.raises(OutOfMemory, match="a training step of 32 images over 1 worker does not fit"):
        ray_train._run(work, context.task)


@pytest.mark.parametrize(("neighbours", "gpus_of_machine", "expected"), [(1, 0, 400), (4, 0, 100), (2, 8, 50)])
def test_a_worker_prefetches_into_its_part_of_half_of_the_free_shared_memory(
    monkeypatch, neighbours, gpus_of_machine, expected
):
    monkeypatch.setattr("trainer.distributed.worker.free_shared_memory", lambda: 800)
    task = WorkerTask(attempt=None, spec=train_spec("x"), source=None, gpus_of_machine=gpus_of_machine)

    context = WorkerContext(task=task, process_group=ProcessGroup(0, 1, GPU, neighbours), progress=None, stop=None)

    assert context.prefetch_bytes == expected


def test_a_worker_refuses_a_machine_with_the_shared_memory_that_docker_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(ProcessGroup, "of_this_worker", lambda on_cpu: ProcessGroup(0, 2, GPU))
    monkeypatch.setattr("cluster.shared_memory.shared_memory_bytes", lambda _: 64 * 2**20)
    attempt = SimpleNamespace(settings=Settings(storage=tmp_path))

    with pytest.raises(
        InsufficientResources, match="/dev/shm has 64 MiB and loader processes need 128 MiB; start the "
    ):
        WorkerContext.of(WorkerTask(attempt=attempt, spec=train_spec("x"), source=None))
