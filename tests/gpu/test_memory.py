"""A batch that does not fit into the memory of the GPU is refused with one that does, or is taken in parts."""

import re

import pytest
import torch

from cluster.exit_codes import ExitCode
from data_shards.pack.packing import PackOptions, pack
from tests.datasets import image_folder
from tests.gpu.marks import needs_gpus
from tests.trained import done, new_run, train_spec, trainer_process
from trainer.errors import OutOfMemory

pytestmark = needs_gpus(1)

LIMIT_BYTES = 3 * 2**30
OPTIONS = {"freeze": "none", "image_size": 224, "epochs": 1, "precision": "fp32", "gpus_per_worker": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    counts = {"train/a": 96, "train/b": 96, "valid/a": 4, "valid/b": 4}
    pack(image_folder(folder / "images", counts, size=(224, 224)), folder / "shards", PackOptions(processes=1))
    return folder / "shards"


@pytest.fixture(autouse=True)
def little_memory():
    """Let this process use 3 GiB of the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(LIMIT_BYTES / torch.cuda.mem_get_info()[1])
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_is_too_large_is_refused_with_one_that_fits(tmp_path, shards):
    with pytest.raises(OutOfMemory) as refusal:
        done(tmp_path / "large", train_spec(shards, batch_size=192, **OPTIONS))

    named = re.search(r"use --batch-size (\d+), which fits, or --accumulate", str(refusal.value))
    assert named, refusal.value
    assert done(tmp_path / "named", train_spec(shards, batch_size=int(named[1]), **OPTIONS))[1].metrics


def test_a_batch_that_is_too_large_is_taken_in_parts(tmp_path, shards):
    paths, _ = done(tmp_path, train_spec(shards, batch_size=192, accumulate=True, **OPTIONS))

    assert '"micro_batches": 1,' not in paths.metrics.read_text()


@pytest.fixture
def full_second_gpu():
    """Leave 3 GiB of the second GPU."""
    second = torch.device("cuda", 1)
    free = torch.cuda.mem_get_info(second)[0]
    held = torch.empty(free - LIMIT_BYTES, dtype=torch.uint8, device=second)
    yield
    del held
    torch.cuda.empty_cache()


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=needs_gpus(2))])
@pytest.mark.usefixtures("full_second_gpu")
def test_ranks_agree_on_a_batch_that_does_not_fit_on_one_of_them(tmp_path, shards, ranks):
    options = OPTIONS | {"workers": ranks, "batch_size": 192}
    refused = new_run(tmp_path, train_spec(shards, **options), "large")
    taken = new_run(tmp_path, train_spec(shards, accumulate=True, **options), "parts")

    codes = [trainer_process(paths).wait(timeout=800) for paths in (refused, taken)]

    assert codes == [ExitCode.FAILED, ExitCode.SUCCEEDED], refused.log.read_text() + taken.log.read_text()
    fault = r"192 images over 2 workers does not fit .*use --batch-size \d+, which fits"
    assert re.search(fault, refused.log.read_text())
    assert '"micro_batches": 1,' not in taken.metrics.read_text()
