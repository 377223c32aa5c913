"""`python -m tests.gpu`: run the tests that need GPUs, measure, and write `gpu-report.json`, a file to send."""

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.measure import measure
from tests.gpu.report import TEXT_LENGTH, TestOutcomes, write_report

REPORT = Path("gpu-report.json")


def main(arguments: list[str]) -> int:
    """Run pytest with the given arguments on this folder; return its exit code, 1 if nothing could be measured."""
    outcomes = TestOutcomes()
    code = int(pytest.main([str(Path(__file__).parent), "--verbose", *arguments], plugins=[outcomes]))
    measured = _measured() if torch.cuda.is_available() else {}
    write_report(REPORT, outcomes.tests, measured)
    sys.stdout.write(f"{REPORT.absolute()} has the outcome; it holds no data of yours\n")
    return code or int("failed" in measured)


def _measured() -> dict[str, Any]:
    """Return what was measured, or why nothing could be: the outcomes of the tests are reported in any case."""
    try:
        return measure()
    except Exception:
        traceback.print_exc()
        return {"failed": traceback.format_exc()[-TEXT_LENGTH:]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
