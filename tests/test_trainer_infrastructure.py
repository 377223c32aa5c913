"""Messages that Ray, NCCL, CUDA, gloo and the system really write, and whether another attempt may succeed."""

import pytest

from tests.infrastructure_errors import NOT_RETRIED, RETRIED, UNKNOWN
from trainer.distributed.infrastructure import TABLE, infrastructure_error
from trainer.errors import InfrastructureError, TrainerError


def name_of(error):
    return f"{type(error).__name__}: {error}"[:90]


@pytest.mark.parametrize("error", RETRIED, ids=name_of)
def test_a_fault_of_the_infrastructure_is_retried(error):
    assert type(infrastructure_error(error)) is InfrastructureError


@pytest.mark.parametrize("error", NOT_RETRIED, ids=name_of)
def test_a_fault_that_every_attempt_would_meet_is_not_retried(error):
    assert type(infrastructure_error(error)) is TrainerError


@pytest.mark.parametrize("error", UNKNOWN, ids=name_of)
def test_an_error_of_a_program_is_no_fault_of_the_infrastructure(error):
    assert infrastructure_error(error) is None


@pytest.mark.parametrize("error", [*RETRIED, *NOT_RETRIED], ids=name_of)
def test_a_persons_line_holds_no_words_of_a_library(error):
    text = str(infrastructure_error(error))

    assert "\n" not in text
    assert not any(word in text.lower() for word in ("nccl error", "pytorch", "errno", "exception", "c10d"))


def test_every_row_of_the_table_is_reached_by_a_message_of_its_own_or_is_a_remainder():
    reached = {str(infrastructure_error(error)) for error in (*RETRIED, *NOT_RETRIED)}

    missed = {row.text for row in TABLE} - reached

    assert missed == {
        text for text in missed if text.startswith(("Ray refuses this token", "the GPU has no memory", "the storage"))
    }


@pytest.mark.parametrize("error", ["CUDA error: out of memory", "CUDA out of memory", "Cuda failure 'out of memory'"])
def test_a_gpu_without_memory_left_is_told_the_cure(error):
    assert str(infrastructure_error(RuntimeError(error))) == "the GPU has no memory left; use a smaller --batch-size"


def test_a_process_of_the_data_loader_that_crashed_is_no_lost_node():
    error = RuntimeError("DataLoader worker (pid 4711) crashed")

    assert str(infrastructure_error(error)) == "a process that loads images was killed"
