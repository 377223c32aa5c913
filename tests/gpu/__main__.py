"""`python -m tests.gpu`: run the tests that need GPUs, measure, and write `gpu-report.json`, a file to send."""

import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.measure import measure
from tests.gpu.report import TestOutcomes, write_report

REPORT = Path("gpu-report.json")


def main(arguments: list[str]) -> int:
    """Run pytest with the given arguments on this folder; return its exit code."""
    outcomes = TestOutcomes()
    code = pytest.main([str(Path(__file__).parent), *arguments], plugins=[outcomes])
    write_report(REPORT, outcomes.tests, measure() if torch.cuda.is_available() else {})
    sys.stdout.write(f"{REPORT.absolute()} has the outcome; it holds no data of yours\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
