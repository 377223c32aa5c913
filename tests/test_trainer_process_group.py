"""Two real processes under gloo, of which one holds 5 and the other 4 of a step's 9 samples."""

import json
import subprocess
import sys

import pytest

from tests.stack import free_port

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
