"""What the GPU does: memory bandwidth, and images per second of each part of a training, on images of noise.

Nothing is compared here; `python -m tests.bench gpu` sets the network beside a peer.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from data_shards.index import Shard, ShardIndex
from data_shards.pack.packing import PackOptions, pack
from data_shards.plan import EpochPlan
from data_shards.read.stream import open_batches
from tests.bench.data import draw_images
from tests.bench.steps import CONFIG, batch_of
from tests.fake_cuda import bytes_of
from tests.gpu.step_times import step_times
from trainer.data.batches import DeviceBatch
from trainer.data.feature_extraction import FeatureExtractor
from trainer.data.transforms import Augmentation, normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import Backbone, build_model
from trainer.model.folded_backbone import MICRO_BATCH_GPU, FoldedBackbone
from trainer.specs import TrainSpec, build
from trainer.training import loop as training_loop
from trainer.training.loop import LoopHooks, TrainLoop
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import TrainState

IMAGES = 6000
CLASSES = 2
REPEATS = 20
STEPS = 20  # of an epoch of fine-tuning
BATCH_SIZES = (32, 64, 128, 256)  # of fine-tuning
COPY_BYTES = 2**30
GPU, NO_DATA = torch.device("cuda"), torch.device("meta")


def measure() -> dict[str, Any]:
    """Return what was measured on the first GPU."""
    with tempfile.TemporaryDirectory() as folder:
        location, index = _packed(Path(folder))
        copied = 2 * COPY_BYTES / _mean_seconds(_copy()) / 1e9
        forward, moved = {size: _forward(size) for size in (64, 256, 1024)}, forward_bytes()
        return {
            "gpu": torch.cuda.get_device_name(0),
            "cpu_cores": len(os.sched_getaffinity(0)),
            "copy_gb_per_s": round(copied),
            "decoding_images_per_s": round(_decoding(location, index)),
            "frozen_forward_bf16_images_per_s": {size: round(rate) for size, rate in forward.items()},
            "frozen_forward_bf16_megabytes_per_image": round(moved / 1e6, 1),
            "frozen_forward_bf16_share_of_copy": {
                size: round(rate * moved / 1e9 / copied, 3) for size, rate in forward.items()
            },
            "extraction_images_per_s": _extraction(location, index),
            "augmentation_images_per_s": round(_augmentation(256)),
            **finetuning_speeds(),
            **step_times(),
        }


def finetuning_speeds() -> dict[str, dict[int, int]]:
    """Return images per second by the number of images in a step, as CUDA graphs and eager."""
    found = {"finetuning_bf16_images_per_s": {size: round(_finetuning(size)) for size in BATCH_SIZES}}
    with mock.patch.object(training_loop, "DEVICES", ()):
        found["eager_finetuning_bf16_images_per_s"] = {size: round(_finetuning(size)) for size in BATCH_SIZES}
    return found


def _packed(folder: Path) -> tuple[str, ShardIndex]:
    draw_images(folder / "images", images=IMAGES, classes=CLASSES, size=224)
    return str(folder / "shards"), pack(folder / "images", folder / "shards", PackOptions()).index


def _copy() -> Callable[[], object]:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=GPU)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _loader_workers() -> int:
    return max(1, min(12, len(os.sched_getaffinity(0)) - 1))


def _decoding(location: str, index: ShardIndex) -> float:
    """Return images per second of the loader alone."""
    plan = EpochPlan(index=index, split="train", batch_size=256, shuffle=False)
    started = time.perf_counter()
    for _ in open_batches(location, index, plan, image_size=224, loader_workers=_loader_workers(), pin_memory=True):
        pass
    return index.samples_in("train") / (time.perf_counter() - started)


def _forward(images: int) -> float:
    network = FoldedBackbone(Backbone(224, CONFIG.layout).eval(), "bf16", GPU)
    pixels = torch.randint(0, 256, (images, 1, 224, 224), dtype=torch.uint8, device=GPU)
    normalise = partial(normalised, config=CONFIG)
    return images / _mean_seconds(lambda: network.on_device(pixels, normalise))


def forward_bytes(images: int = 256) -> float:
    """Return the bytes an image that the kernels of a frozen forward pass read and write, each kernel by itself.

    They are counted on tensors without data. A copy that takes as long moves `images/s x bytes`: that over what a copy
    moves in fact is the share of the memory's bandwidth that is used. Fused kernels move fewer bytes, so that a share
    above 1 is possible.
    """
    network = FoldedBackbone(Backbone(224, CONFIG.layout).eval(), "bf16", NO_DATA)
    network.micro_batch = MICRO_BATCH_GPU
    pixels = torch.empty(images, 1, 224, 224, dtype=torch.uint8, device=NO_DATA)
    return bytes_of(lambda: network.on_device(pixels, partial(normalised, config=CONFIG)), NO_DATA) / images


def _extraction(location: str, index: ShardIndex) -> dict[str, int]:
    """Return images per second of the first split, which starts the loader and loads the kernels, and of the next."""
    extractor = FeatureExtractor(
        location=location,
        index=index,
        config=CONFIG.model_copy(update={"precision": "bf16"}),
        backbone=Backbone(224, CONFIG.layout).eval(),
        process_group=ProcessGroup(0, 1, GPU),
        cache=None,
        loader_workers=_loader_workers(),
    )
    found = {}
    for split in ("valid", "train"):
        started = time.perf_counter()
        extractor.extract(split)
        found[split] = round(index.samples_in(split) / (time.perf_counter() - started))
    return found


def _augmentation(images: int) -> float:
    augment = Augmentation()
    pixels = torch.randint(0, 256, (images, 1, 224, 224), dtype=torch.uint8, device=GPU)
    return images / _mean_seconds(lambda: augment(pixels), repeats=3)


def _finetuning(images: int) -> float:
    """Return images per second of the training loop on a batch that is on the GPU, all layers training."""
    inputs, labels = batch_of(images, GPU)
    samples = images * STEPS
    shard = Shard(
        name="train-0.tar", split="train", samples=samples, per_class=(samples // 2,) * 2, bytes=1, sha256="0" * 64
    )

    def batches(plan: EpochPlan, start: int = 0) -> Iterator[DeviceBatch]:
        for number in range(start, plan.batches):
            yield DeviceBatch(inputs, labels, torch.from_numpy(plan.ids(number)), images)

    model = build_model(CONFIG).to(GPU)
    loop = TrainLoop(
        spec=build(TrainSpec, shards="memory", epochs=STEPS, batch_size=images, freeze="none", patience=None),
        index=ShardIndex(classes=CONFIG.classes, shards=(shard,)),
        process_group=ProcessGroup(0, 1, GPU),
        module=model,
        optimizer=build_optimizer(model.head, model.backbone, backbone_factor=0.1, weight_decay=0.0, device=GPU),
        loader=batches,
        class_weights=None,
        hooks=LoopHooks(),
        precision="bf16",
    )
    state = loop.train_epoch(TrainState())  # loads the kernels, captures
    return samples / _mean_seconds(lambda: loop.train_epoch(state), repeats=1)


def _mean_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the mean seconds of a call after two that are not counted; the GPU is synchronized before and after."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats
