"""`gpu-report.json`: the machine, the versions, the outcome of each test, and what was measured."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.gpus import ask_torch
from cluster.version import VERSION

PACKAGES = ("torch", "torchvision", "ray", "rq", "numpy", "efficientnet_pytorch")
TEXT_LENGTH = 2000  # of the failure of a test


class TestOutcomes:
    """A pytest plugin that keeps the outcome of each test."""

    __test__ = False

    def __init__(self) -> None:
        self.tests: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call of a test, or the phase before or after it that did not pass."""
        if report.when == "call" or not report.passed:
            test = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
            self.tests.append(test if report.passed else test | {"why": _why(report)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep a file that cannot be imported."""
        if report.failed:
            self.tests.append({"test": report.nodeid, "outcome": "failed", "why": _why(report)})


def describe_machine() -> dict[str, Any]:
    """Return the GPUs, their driver and topology, and the versions of the packages."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "--no-optional-locks", "describe", "--always", "--dirty"),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {"nightshift": VERSION, **{name: _version(name) for name in PACKAGES}},
        "devices": asdict(ask_torch()),
        "nvidia_smi": _output(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total,pcie.link.gen.max", "--format=csv,noheader"
        ),
        "topology": _output("nvidia-smi", "topo", "-m"),
    }


def write_report(path: Path, tests: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    """Write the report."""
    outcomes = [test["outcome"] for test in tests]
    summary = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}
    content = {"summary": summary, "machine": describe_machine(), "measured": measured, "tests": tests}
    path.write_text(json.dumps(content, indent=2) + "\n")


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    found = report.longrepr
    text = found[2] if isinstance(found, tuple) else str(found)
    return text[-TEXT_LENGTH:]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
