"""What a model reaches on the split that has chosen nothing."""

from pathlib import Path
from typing import Any

from data_shards.index import ShardIndex
from trainer.distributed.ray_train import on_workers
from trainer.distributed.worker import Order
from trainer.evaluate import evaluate_on_worker
from trainer.specs import EvaluateSpec, SearchSpec, build


def verdict(order: Order[SearchSpec], index: ShardIndex, folder: Path) -> dict[str, Any]:
    """Return the figures of a published model on the test split; on the valid split where there is none."""
    spec = order.spec
    wish = build(
        EvaluateSpec,
        model=str(folder),
        shards=spec.shards,
        split="test" if "test" in index.splits else "valid",
        seed=spec.seed,
        workers=spec.workers,
        gpus_per_worker=spec.gpus_per_worker,
    )
    return dict(on_workers(evaluate_on_worker, Order(attempt=order.attempt, spec=wish, source=folder), wish))
