"""Run by test_trainer_process_group in two processes; rank 0 prints what it found as JSON."""

import json
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainer.data.batches import DeviceBatch
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import Head
from trainer.model.sync_batch_norm import SyncBatchNorm1d
from trainer.training.micro_batching import accumulate_gradients

SIZES = (5, 4)  # of the ranks' parts of one step of 9 samples


def main() -> None:
    """Compare what two ranks find with what one process finds on the same samples."""
    rank = int(sys.argv[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(9, 1280, generator=generator), torch.arange(9) % 3
    alone = gradients(rows, labels, parallel=False)
    alone_at_once = gradients(rows, labels, parallel=False, kept=True)
    dist.init_process_group("gloo")
    process_group = ProcessGroup(rank, 2, torch.device("cpu"))
    mine = slice(0, 5) if rank == 0 else slice(5, 9)
    together = gradients(rows[mine], labels[mine], parallel=True)
    in_parts = gradients(rows[mine], labels[mine], parallel=True, micro_batches=2, kept=True)
    gather_rows = process_group.gather_rows(torch.arange(mine.start, mine.stop).double().unsqueeze(1))
    found = {
        "total": process_group.all_reduce_sum(1.0, float(rank)),
        "from_leader": process_group.broadcast({"said by": rank}),
        "gathered": gather_rows.squeeze(1).tolist(),
        "no_rows": process_group.gather_rows(torch.ones(rank, 2, dtype=torch.float64)).tolist(),
        "gradient_error": largest_error(together["gradients"], alone["gradients"]),
        "parts_error": largest_error(in_parts["gradients"], alone_at_once["gradients"]),
        "statistics_error": largest_error(together["statistics"], alone["statistics"]),
        "gradient_scale": max(float(value.abs().max()) for value in alone["gradients"].values()),
    }
    dissolved = process_group.dissolved()
    if rank == 0:  # the other rank ends
        again = gradients(rows, labels, parallel=False)
        found["dissolved"] = [dissolved.world_size, dissolved.is_whole]
        found["error_after"] = largest_error(again["gradients"], alone["gradients"])
        print(json.dumps(found))


def gradients(rows, labels, *, parallel, micro_batches=1, kept=False):
    """Return the gradients and running statistics of one step, weighted as the loop weighs it."""
    torch.manual_seed(1)
    head = Head(3, 16, dropout=0.0).train(not kept)
    model = DistributedDataParallel(head) if parallel else head
    step = DeviceBatch(rows, labels, torch.arange(len(rows)), images=9)
    accumulate_gradients(
        model, step, loss_weight=(2 if parallel else 1) / 9, class_weights=None, micro_batches=micro_batches
    )
    norms = [module for module in head if isinstance(module, SyncBatchNorm1d)]
    return {
        "gradients": {name: parameter.grad for name, parameter in head.named_parameters()},
        "statistics": {str(n): torch.cat([norm.running_mean, norm.running_var]) for n, norm in enumerate(norms)},
    }


def largest_error(found, expected):
    """Return the largest difference over all tensors."""
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


if __name__ == "__main__":
    main()
