"""The precision of a run: decided once, by its first workers, for all workers, trials and attempts.

So the features of a run's backbone do not depend on which GPU computes them. The decision is kept in the run's folder;
who joins later uses it or is refused.
"""

from typing import Any, cast

import torch

from cluster.files import locked, read_json_object_if_any
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.worker import WorkerContext
from trainer.errors import UnsupportedPrecision
from trainer.model.precision import DTYPES, Computed, best_precision, common_precision, is_supported
from trainer.specs import TrainOptions


def run_precision(context: WorkerContext[Any]) -> Computed:
    """Return the precision of the run's backbone. Collective: every rank must call it.

    Raises:
        UnsupportedPrecision: The device of a rank does not compute in it; raised on every rank.
        StorageAway: The decision cannot be read now; raised on rank 0.
    """
    spec, group, attempt = context.spec, context.process_group, context.task.attempt
    backbone = _backbone_of(spec)
    best = _best_of_ranks(group, trains=backbone == "trained")
    decided = cast(Computed | None, group.broadcast(_read(attempt.paths, backbone) if group.is_rank_zero else None))
    precision = decided or common_precision(spec.precision, best)
    # What was trained on GPUs may be scored on a CPU, slowly.
    supported = is_supported(precision, group.device) or (decided is not None and group.device.type == "cpu")
    lacking = _ranks_with(group, not supported)
    if lacking:
        raise UnsupportedPrecision(_refusal(spec, precision, group, lacking[0]))
    if decided is None:
        mine = _write(attempt.paths, attempt.lease, backbone, precision) if group.is_rank_zero else None
        if group.broadcast(mine) != precision:  # another trial was faster, on other hardware
            return run_precision(context)
    return precision


def is_precision_decided(paths: RunPaths, spec: TrainOptions) -> bool:
    """Whether workers of the run have decided on the precision of this training's backbone."""
    return _read(paths, _backbone_of(spec)) is not None


def _backbone_of(spec: TrainOptions) -> str:
    """Return which decision counts: a trained backbone uses another precision on a CPU than a frozen one."""
    return "frozen" if spec.freeze == "all" else "trained"


def _best_of_ranks(group: ProcessGroup, *, trains: bool) -> list[Computed]:
    own = best_precision(group.device, trains=trains)
    names = cast(list[Computed], list(DTYPES))
    counts = group.all_reduce_sum(*(float(own == name) for name in names))
    return [name for name, count in zip(names, counts, strict=True) if count]


def _ranks_with(group: ProcessGroup, fact: bool) -> list[int]:
    """Return the ranks on which `fact` is true."""
    facts = group.all_reduce_sum(*(float(fact and rank == group.rank) for rank in range(group.world_size)))
    return [rank for rank, found in enumerate(facts) if found]


def _read(paths: RunPaths, backbone: str) -> Computed | None:
    return _known(read_json_object_if_any(paths.precision), backbone)


def _write(paths: RunPaths, lease: Lease, backbone: str, precision: Computed) -> Computed:
    """Write a decision unless there is one, and return the one that counts.

    Under a lock: trials on different machines may start at the same time.
    """
    with locked(paths.folder / ".precision.lock"):
        content = read_json_object_if_any(paths.precision)
        found = _known(content, backbone)
        if found is None:
            lease.write_json(paths.precision, content | {backbone: precision})
        return found or precision


def _known(content: dict[str, Any], backbone: str) -> Computed | None:
    found = content.get(backbone)
    return cast(Computed, found) if isinstance(found, str) and found in DTYPES else None


def _refusal(spec: TrainOptions, precision: Computed, group: ProcessGroup, rank: int) -> str:
    if group.device.type == "cpu":
        return f"--precision {precision} needs a GPU for every worker; use --precision auto, bf16 or fp32"
    name = f" ({torch.cuda.get_device_name(group.device)})" if rank == group.rank else ""
    fault = f"the GPU of worker {rank}{name} has no hardware for it"
    if spec.precision == precision:
        return f"--precision {precision} cannot be used: {fault}; use --precision auto, fp16 or fp32"
    return (
        f"the run started with the precision {precision}, and {fault}; retry it on GPUs as those that it started on, "
        "or start a new run with --precision fp16"
    )
