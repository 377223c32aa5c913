"""What Nightshift says of the GPUs is what torch says of them."""

import json
import os
import subprocess
import sys

import pytest
import torch

from cluster.gpus import count_gpus
from tests.gpu.marks import needs_gpus
from trainer.model.precision import best_precision

pytestmark = needs_gpus(1)

AMPERE = (8, 0)  # the first compute capability with bf16


def test_doctor_names_the_cards_that_torch_names(tmp_path):
    environment = os.environ | {"NIGHTSHIFT_STORAGE": str(tmp_path)}
    command = [sys.executable, "-m", "jobs", "doctor", "--json"]

    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    checks = {check["check"]: check for check in json.loads(printed)}
    for number in range(torch.cuda.device_count()):
        assert checks[f"GPU {number}"]["ok"]
        assert checks[f"GPU {number}"]["found"].startswith(torch.cuda.get_device_name(number))
    assert checks["torch"]["ok"]


@pytest.mark.parametrize("variable", ["", "0", "0,0", "99", "-1", "0,99", "UUID", "UUID,UUID", "nothing"])
def test_cuda_visible_devices_hides_as_many_gpus_as_it_does_from_torch(monkeypatch, variable):
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable.replace("UUID", uuid))

    code = (
        "import torch; print(sum(torch.ones(1, device=f'cuda:{n}').item() for n in range(torch.cuda.device_count())))"
    )
    of_torch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert count_gpus().usable == float(of_torch)


def test_bf16_is_chosen_where_the_card_has_it():
    has_it = torch.cuda.get_device_capability(0) >= AMPERE

    assert (best_precision(torch.device("cuda"), trains=True) == "bf16") == has_it
