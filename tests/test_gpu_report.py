"""`make test-gpu`: the report says what ran, what was skipped, and what could not be measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu import __main__ as tests_of_gpus
from tests.gpu import report

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_without_a_gpu_every_test_is_skipped_and_the_report_says_so(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "-q"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-report.json").read_text())
    assert found["summary"] == {"passed": 0, "failed": 0, "skipped": len(found["tests"])}
    assert {test["why"].split(";")[1] for test in found["tests"]} == {" torch finds 0"}
    assert found["machine"]["devices"]["devices"] == []
    assert found["measured"] == {}


@pytest.mark.parametrize("code", [0, 1])
def test_a_measurement_that_fails_is_reported_beside_the_outcomes_of_the_tests(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(report, "describe_machine", dict)
    monkeypatch.setattr(tests_of_gpus, "measure", lambda: 1 / 0)
    outcome = {"test": "tests/gpu/test_devices.py::test", "outcome": "passed", "seconds": 1.0}
    monkeypatch.setattr(pytest, "main", lambda _, plugins: plugins[0].tests.append(outcome) or code)

    ended = tests_of_gpus.main([])

    found = json.loads(Path("gpu-report.json").read_text())
    assert ended == 1
    assert found["tests"] == [outcome]
    assert "ZeroDivisionError" in found["measured"]["failed"]
