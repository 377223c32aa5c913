"""The report is written whether or not `progress.json` can say so; the rendering itself has tests of its own."""

import errno
import logging
import os
from pathlib import Path

import pytest

from cluster.errors import LeaseLost
from cluster.files import read_json, write_json
from cluster.lease import Lease
from cluster.settings import Settings
from tests.trained import lease_in
from trainer.attempt import Attempt
from trainer.report import gather, page
from trainer.report.write import write_report
from trainer.result import RunResult
from trainer.specs import EvaluateSpec

SPEC = EvaluateSpec(model="train-20261123-010000-abc123", shards="/shards")
RESULT = RunResult(kind="evaluate", checkpoint="best", metrics={}, seconds=1.0)


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """An attempt whose page has a single word."""
    monkeypatch.setattr(gather, "gather_report", lambda *_: "page")
    monkeypatch.setattr(page, "write_page", lambda lease, text: lease.write_text(lease.paths.report, text))
    lease = lease_in(tmp_path / "runs" / "run")
    return Attempt(paths=lease.paths, lease=lease, settings=Settings(storage=tmp_path))


def test_the_phase_of_the_report_keeps_the_gpus_and_the_limit_of_the_workers(attempt: Attempt) -> None:
    write_json(attempt.paths.progress, {"phase": "evaluation", "gpus": 2, "hang_seconds": 2600.0})

    write_report(attempt, SPEC, RESULT)

    progress = read_json(attempt.paths.progress)
    assert (progress["phase"], progress["gpus"], progress["hang_seconds"]) == ("report", 2, 2600.0)


def test_the_phase_of_a_report_without_workers_has_no_limit_of_its_own(attempt: Attempt) -> None:
    write_report(attempt, SPEC, RESULT)

    progress = read_json(attempt.paths.progress)
    assert (progress["phase"], progress["gpus"], "hang_seconds" in progress) == ("report", 0, False)


def test_a_damaged_progress_costs_no_report(attempt: Attempt, caplog: pytest.LogCaptureFixture) -> None:
    attempt.paths.progress.write_text("{")

    write_report(attempt, SPEC, RESULT)

    assert attempt.paths.report.read_text() == "page"
    assert [(record.levelno, record.exc_info) for record in caplog.records] == [(logging.WARNING, None)]
    assert str(attempt.paths.progress) in caplog.text


def test_a_progress_that_cannot_be_written_costs_no_report(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_lease: Lease, path: Path, _value: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Lease, "write_json", refuse)

    write_report(attempt, SPEC, RESULT)

    assert attempt.paths.report.read_text() == "page"
    assert caplog.messages == []


def test_an_attempt_that_loses_its_lease_as_the_phase_starts_writes_no_report(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, successors = Lease.write_json, list[Lease]()

    def write_late(lease: Lease, path: Path, value: object) -> None:
        successors.append(Lease.claim(lease.paths, after=lease.attempt))
        write(lease, path, value)

    monkeypatch.setattr(Lease, "write_json", write_late)

    with pytest.raises(LeaseLost):
        write_report(attempt, SPEC, RESULT)

    assert len(successors) == 1
    assert not attempt.paths.report.exists()
