"""Two real processes under gloo, of which one holds 5 and the other 4 of a step's 9 samples."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray.train.torch
import torch

from tests.stack import free_port
from trainer.distributed.process_group import ProcessGroup

BF16_ERROR = 2**-7  # relative: a bfloat16 has eight binary digits, and each of two ranks rounds once

GPUS = """
import ray
from trainer.distributed.process_group import _gpus_here
ray.init(num_gpus=3, num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
print(ray.get(ray.remote(_gpus_here).remote()))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def found():
    port = str(free_port())
    process_group = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.ranks_script", rank, port],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in "01"
    ]
    outputs = [rank.communicate(timeout=600) for rank in process_group]
    assert [rank.returncode for rank in process_group] == [0, 0], outputs
    return json.loads(outputs[0][0])


def test_gradients_of_two_unequal_ranks_are_those_of_one_process(found):
    assert found["gradient_scale"] > 1e-2
    assert found["gradient_error"] < 1e-5


def test_gradients_that_two_ranks_add_up_in_parts_are_those_of_one_process_at_once(found):
    assert found["parts_error"] < 1e-5


def test_gradients_are_sent_as_bfloat16_by_a_training_in_bf16_whose_group_does_that(found):
    sent = found["bf16"]

    assert sent["are_bfloat16"]
    assert 0 < sent["error"] < found["gradient_scale"] * BF16_ERROR


def test_losses_of_a_training_that_sends_bfloat16_are_near_those_of_one_that_does_not(found):
    losses = found["bf16"]["losses"]

    assert losses["sent"] != losses["exact"]
    assert losses["sent"] == pytest.approx(losses["exact"], rel=BF16_ERROR)
    assert found["bf16"]["ranks_differ"] == 0.0


def test_ranks_leave_out_a_step_whose_gradients_overflow_in_float16_on_one_of_them(found):
    fp16, both = found["fp16"], 2

    assert fp16["scales"] == [both * 2.0**16, both * 2.0**15, both * 2.0**15]
    assert fp16["steps"] == both * 2.0  # of three
    assert fp16["ranks_differ"] == 0.0


def test_a_training_in_float32_never_sends_bfloat16(found):
    losses = found["bf16"]["losses"]

    assert losses["fp32"] == losses["exact fp32"]


@pytest.mark.parametrize(
    ("device", "on_this_machine", "workers", "sends_bf16"),
    [("cuda", 2, 4, True), ("cuda", 1, 2, True), ("cuda", 4, 4, False), ("cuda", 1, 1, False), ("cpu", 2, 4, False)],
)
def test_bfloat16_is_sent_between_the_gpus_of_several_machines(
    monkeypatch, device, on_this_machine, workers, sends_bf16
):
    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: workers, get_local_world_size=lambda: on_this_machine
    )
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda", 0))

    group = ProcessGroup.of_this_worker(on_cpu=device == "cpu")

    assert group.device.type == device
    assert group.sends_bf16 is sends_bf16


def test_running_statistics_of_two_ranks_are_those_of_one_process(found):
    assert found["statistics_error"] < 1e-5


def test_sums_go_over_all_ranks(found):
    assert found["total"] == [2.0, 1.0]


def test_what_the_leader_says_reaches_all(found):
    assert found["from_leader"] == {"said by": 0}


def test_a_rank_that_goes_on_alone_computes_as_one_process_and_waits_for_no_other(found):
    assert found["dissolved"] == [1, False]
    assert found["error_after"] == 0.0


def test_rows_of_all_ranks_come_together_in_order(found):
    assert found["gathered"] == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_a_rank_without_rows_takes_part(found):
    assert found["no_rows"] == [[1.0, 1.0]]


@pytest.mark.slow
def test_a_worker_knows_of_the_gpus_that_it_is_not_shown():
    done = subprocess.run([sys.executable, "-c", GPUS], capture_output=True, text=True, timeout=600, check=True)

    assert done.stdout.split() == ["3"]
