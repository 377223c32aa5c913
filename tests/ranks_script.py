"""Run by test_trainer_process_group in two processes; rank 0 prints what it found as JSON."""

import json
import os
import sys
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.test_trainer_step_budget import FEATURES, head, loop_on_cpu
from trainer.data.batches import DeviceBatch
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import Head
from trainer.model.sync_batch_norm import SyncBatchNorm1d
from trainer.training.micro_batching import accumulate_gradients
from trainer.training.train_state import TrainState

SIZES = (5, 4)  # of the ranks' parts of one step of 9 samples


def main() -> None:
    """Compare what two ranks find with what one process finds on the same samples."""
    rank = int(sys.argv[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(9, 1280, generator=generator), torch.arange(9) % 3
    alone = gradients(rows, labels)
    alone_at_once = gradients(rows, labels, kept=True)
    dist.init_process_group("gloo")
    process_group = ProcessGroup(rank, 2, torch.device("cpu"))
    mine = slice(0, 5) if rank == 0 else slice(5, 9)
    together = gradients(rows[mine], labels[mine], distribute=DistributedDataParallel)
    in_parts = gradients(rows[mine], labels[mine], distribute=DistributedDataParallel, micro_batches=2, kept=True)
    gather_rows = process_group.gather_rows(torch.arange(mine.start, mine.stop).double().unsqueeze(1))
    found = {
        "total": process_group.all_reduce_sum(1.0, float(rank)),
        "from_leader": process_group.broadcast({"said by": rank}),
        "gathered": gather_rows.squeeze(1).tolist(),
        "no_rows": process_group.gather_rows(torch.ones(rank, 2, dtype=torch.float64)).tolist(),
        "gradient_error": largest_error(together["gradients"], alone["gradients"]),
        "parts_error": largest_error(in_parts["gradients"], alone_at_once["gradients"]),
        "statistics_error": largest_error(together["statistics"], alone["statistics"]),
        "fp16": overflowing_step(process_group),
        "bf16": bf16_gradients(process_group, rows[mine], labels[mine], alone["gradients"]),
        "gradient_scale": max(float(value.abs().max()) for value in alone["gradients"].values()),
    }
    dissolved = process_group.dissolved()
    if rank == 0:  # the other rank ends
        again = gradients(rows, labels)
        found["dissolved"] = [dissolved.world_size, dissolved.is_whole]
        found["error_after"] = largest_error(again["gradients"], alone["gradients"])
        print(json.dumps(found))


def gradients(rows, labels, *, distribute=None, micro_batches=1, kept=False):
    """Return the gradients and running statistics of one step, weighted as the loop weighs it."""
    torch.manual_seed(1)
    head = Head(3, 16, dropout=0.0).train(not kept)
    model = distribute(head) if distribute else head
    step = DeviceBatch(rows, labels, torch.arange(len(rows)), images=9)
    accumulate_gradients(
        model, step, loss_weight=(2 if distribute else 1) / 9, class_weights=None, micro_batches=micro_batches
    )
    norms = [module for module in head if isinstance(module, SyncBatchNorm1d)]
    return {
        "gradients": {name: parameter.grad for name, parameter in head.named_parameters()},
        "statistics": {str(n): torch.cat([norm.running_mean, norm.running_var]) for n, norm in enumerate(norms)},
    }


def bf16_gradients(process_group, rows, labels, expected):
    """Return what sending gradients as bfloat16 changes in them, and in the trainings of a head."""
    sends = replace(process_group, sends_bf16=True)
    sent = gradients(rows, labels, distribute=partial(sends.distributed, in_bf16=True))["gradients"]
    found = {
        "exact": trained(process_group, "bf16"),
        "sent": trained(sends, "bf16"),
        "fp32": trained(sends, "fp32"),
        "exact fp32": trained(process_group, "fp32"),
    }
    weights = found["sent"][1]
    return {
        "are_bfloat16": all(torch.equal(value, value.bfloat16().float()) for value in sent.values()),
        "error": largest_error(sent, expected),
        "losses": {name: loss for name, (loss, _) in found.items()},
        "ranks_differ": process_group.all_reduce_sum(largest_error(weights, of_rank_zero(weights)))[0],
    }


def trained(process_group, precision):
    """Train a head for an epoch of three steps; return the sum of the losses and the weights."""
    torch.manual_seed(2)
    module = head()
    torch.manual_seed(3 + process_group.rank)
    loop = loop_on_cpu(module, FEATURES, rank=process_group.rank, world_size=2)
    state = replace(loop, process_group=process_group, precision=precision).train_epoch(TrainState())
    return state.loss_sum, module.state_dict()


def overflowing_step(process_group):
    """Take three steps in float16, of which the second overflows on rank 0 alone; return the scale after each."""
    torch.manual_seed(4)
    module = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    parts = {"module": module, "optimizer": optimizer, "scaler": scaler, "precision": "fp16"}
    loop = replace(
        loop_on_cpu(head(), FEATURES, rank=process_group.rank, world_size=2), process_group=process_group, **parts
    )
    scales = []
    for largest in (1.0, 3e3, 1.0):
        rows = torch.randn(4, 8) * (largest if process_group.is_rank_zero else 1.0)
        loop._train_on(DeviceBatch(rows, torch.arange(4) % 2, torch.arange(4), images=8))
        scales.append(scaler.get_scale())
    weights = module.state_dict()
    return {
        "scales": process_group.all_reduce_sum(*scales),
        "steps": process_group.all_reduce_sum(float(optimizer.state[module[0].weight]["step"]))[0],
        "ranks_differ": process_group.all_reduce_sum(largest_error(weights, of_rank_zero(weights)))[0],
    }


def of_rank_zero(weights):
    """Return the weights of rank 0, on every rank."""
    found = {name: value.clone() for name, value in weights.items()}
    for value in found.values():
        dist.broadcast(value, src=0)
    return found


def largest_error(found, expected):
    """Return the largest difference over all tensors."""
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


if __name__ == "__main__":
    main()
