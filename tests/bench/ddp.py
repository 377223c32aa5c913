"""Measure the speedup of fine-tuning on two ranks over one rank, with one thread per rank.

Ranks are processes as Ray Train starts them, with the gloo backend. The batch size per rank is the same in both cases.
All ranks use the same images, so loss and gradients must equal those of one rank. This is the parity check.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from tests.bench.data import require_xrays
from tests.bench.measure import Row, in_turn, row, seconds
from tests.bench.steps import Stepper, batch_of, pretrained
from trainer.distributed.process_group import ProcessGroup

BATCH = 16  # images per rank
STEPS = 4
PAIRS = 3
GOAL = 1.8
COMMAND = "python -m tests.bench ddp"


def run(*, pairs: int = PAIRS, steps: int = STEPS) -> list[Row]:
    """Measure steps after the first; process startup is not included."""
    require_xrays()
    losses: dict[int, float] = {}

    def speed(process_group: int) -> float:
        found = _together(process_group, process_group, steps)
        losses[process_group] = found[0]["loss"]
        return process_group * BATCH / statistics.median(found[0]["seconds"])

    two, one = in_turn(lambda: speed(2), lambda: speed(1), pairs=pairs)
    free = [BATCH / statistics.median(found["seconds"]) for found in _together(2, 1, steps)]
    return [
        row(
            two, one, more_is_better=True, what=f"fine-tuning step, 2 ranks x 1 thread, {BATCH} images per rank",
            beside="1 rank x 1 thread", unit="images/s", goal=GOAL, command=COMMAND,
            parity=f"loss of step {steps}: {losses[2]:.5f} and {losses[1]:.5f}",
            note=f"two processes that do not communicate reach {sum(free) / statistics.median(one):.2f}x "
            "on this machine; the difference is the time to exchange gradients",
        )
    ]  # fmt: skip


def _together(processes: int, world_size: int, steps: int) -> list[dict]:
    """Start processes at the same time, in one process group or each in its own, and return the output of each."""
    with tempfile.TemporaryDirectory() as folder:
        orders = [
            [sys.executable, "-m", "tests.bench.ddp", str(n % world_size), str(world_size), str(steps), folder]
            for n in range(processes)
        ]
        started = [subprocess.Popen(order, stdout=subprocess.PIPE) for order in orders]
        return [json.loads(process.communicate(timeout=600)[0]) for process in started]


def _rank(rank: int, world_size: int, steps: int, folder: Path) -> None:
    """Run one rank: print the seconds of each step after the first, and the loss of the last step."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    model = pretrained(device)
    parameters = model.backbone.network._global_params
    # Each rank has its own random numbers for stochastic depth; without it, the losses can be compared.
    model.backbone.network._global_params = parameters._replace(drop_connect_rate=0.0)
    stepper = Stepper(model, ProcessGroup(rank, world_size, device), *batch_of(BATCH, device))
    stepper.step()
    taken = [seconds(stepper.step) for _ in range(steps - 1)]
    print(json.dumps({"seconds": taken, "loss": (stepper.losses or [0.0])[-1]}))
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    _rank(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
