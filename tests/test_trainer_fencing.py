"""An attempt that is stopped before any of its file operations, and continues when its successor has published, changes
nothing that the successor published.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.files import copy_atomically, read_json, write_json
from cluster.lease import Lease, revoke
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from tests.stopped import LEASE_LOST, StoppedProcess, content_of
from trainer.attempt import Attempt
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.predictions import Predictions
from trainer.inference.prediction_table import PredictionRow, open_prediction_table
from trainer.model.checkpoint_folder import write_checkpoint_folder
from trainer.progress import Progress
from trainer.report import page
from trainer.result import RunResult
from trainer.search.journal import TrialJournal
from trainer.search.trial_files import write_candidate
from trainer.search.trial_messages import TrialAssignment, TrialReport
from trainer.search.trials import TrialTable, read_trial_events
from trainer.tracking.history import read_epoch_lines
from trainer.training.checkpointer import TrainingCheckpoint
from trainer.training.ema import ModelEma
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import TrainState

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
CPU = torch.device("cpu")
Publish = Callable[[Lease], object]


def result(lease: Lease) -> None:
    RunResult(kind="train", checkpoint=None, metrics={"by": lease.attempt}, seconds=1.0).publish(lease)


def best_model(lease: Lease) -> None:
    tensors = {"model.safetensors": {"weight": torch.full((3,), float(lease.attempt))}}
    write_checkpoint_folder(lease.paths.best, lease=lease, tensors=tensors, json_files={}, manifest={})


def model_and_result(lease: Lease) -> None:
    best_model(lease)
    result(lease)


def checkpoints(lease: Lease) -> None:
    module = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(module.weight, lease.attempt)
    optimizer = build_optimizer(module, None, backbone_factor=1.0, weight_decay=0.0, device=CPU)
    for old in (1, 2):
        (lease.paths.checkpoints / f"step-{old:09d}").mkdir(parents=True, exist_ok=True)
    state = TrainState(step=3)
    TrainingCheckpoint(module, optimizer, ModelEma(module, None)).save(lease.paths.checkpoints, state, lease=lease)


def candidate(lease: Lease) -> None:
    write_candidate(lease.paths.checkpoints, {"w": torch.full((2,), lease.attempt)}, trial=1, epoch=2, lease=lease)


def calibration(lease: Lease) -> None:
    lease.paths.best.mkdir(exist_ok=True)
    Calibration(temperature=float(lease.attempt)).write(lease.paths.best, "ab" * 32, lease)


def calibration_of_another_model(lease: Lease) -> None:
    Calibration(temperature=float(lease.attempt)).write(lease.paths.folder.parent / "model", "ab" * 32, lease)


def predictions(lease: Lease) -> None:
    one = np.full(1, lease.attempt)
    Predictions(ids=one, labels=one, probabilities=np.ones((1, 2))).write(lease.paths.predictions, lease)


def prediction_table(lease: Lease) -> None:
    with open_prediction_table(lease.paths.predicted("csv"), ("a", "b"), lease.atomic_write) as write:
        write(PredictionRow(file=f"{lease.attempt}.png", error="damaged"))


def exported_model(lease: Lease) -> None:
    with lease.atomic_write(lease.paths.exported("onnx")) as draft:
        draft.write_text(str(lease.attempt))
    copy_atomically(
        lease.paths.exported("onnx"), lease.paths.folder.parent / "model" / "out.onnx", write=lease.atomic_write
    )


def report(lease: Lease) -> None:
    page.write_page(lease, f"attempt {lease.attempt}")  # type: ignore[arg-type]  # `render` returns it as it is


def progress(lease: Lease) -> None:
    Progress(lease.paths, lease).start_phase("train", total=lease.attempt)


def error(lease: Lease) -> None:
    Attempt(paths=lease.paths, lease=lease, settings=Settings(storage=lease.paths.storage)).fail(
        ValueError(f"attempt {lease.attempt}")
    )


def removal(lease: Lease) -> None:
    """Remove a folder, and write it again."""
    lease.remove(lease.paths.checkpoints)
    lease.paths.checkpoints.mkdir(exist_ok=True)
    lease.write_text(lease.paths.checkpoints / "step", str(lease.attempt))


FILES = (
    result,
    best_model,
    checkpoints,
    candidate,
    calibration,
    calibration_of_another_model,
    predictions,
    prediction_table,
    exported_model,
    report,
    progress,
    error,
    removal,
)


@dataclass(frozen=True)
class Runs:
    """Makes a new run with attempt 1 claimed, beside a folder for files outside the run."""

    folder: Path

    def new(self, number: int) -> Lease:
        """Return the lease of the first attempt of run `number`."""
        paths = RunPaths(self.folder / str(number) / "run")
        paths.folder.mkdir(parents=True)
        (paths.folder.parent / "model").mkdir()
        return Lease.claim(paths, after=0)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(page, "render", lambda data: data)
    monkeypatch.setattr("os.fsync", lambda _handle: None)  # hundreds of processes write here; none loses its power
    return Runs(tmp_path)


AGAIN = (best_model, checkpoints, exported_model)
CASES = [pytest.param(publish, False, id=publish.__name__) for publish in FILES]
CASES += [pytest.param(publish, True, id=f"{publish.__name__} again") for publish in AGAIN]


@pytest.mark.parametrize(("publish", "was_published_before"), CASES)
def test_an_attempt_that_wakes_up_late_changes_nothing(
    runs: Runs, publish: Publish, was_published_before: bool
) -> None:
    codes = list[int]()
    while True:
        first = runs.new(len(codes))
        if was_published_before:
            publish(first)
        late = StoppedProcess(lambda lease=first: publish(lease), number=len(codes) + 1)
        if not late.is_stopped:
            break

        publish(Lease.claim(first.paths, after=1))
        published = content_of(first.paths.folder.parent)
        codes.append(late.finish())

        assert content_of(first.paths.folder.parent) == published, f"stopped before file operation {len(codes)}"
    assert late.finish() == 0
    assert codes.count(LEASE_LOST) >= (0 if publish is error else 2)  # `fail` says nothing when the lease is lost
    assert set(codes) <= {0, LEASE_LOST}


@pytest.mark.parametrize("publish", [result, best_model, calibration], ids=lambda publish: publish.__name__)
def test_an_attempt_that_was_marked_dead_publishes_nothing_in_its_run(runs: Runs, publish: Publish) -> None:
    number = 0
    while True:
        number += 1
        lease = runs.new(number)
        dead = StoppedProcess(lambda lease=lease: publish(lease), number=number)
        if not dead.is_stopped:
            break

        revoke(lease.paths, 1)
        left = content_of(lease.paths.folder)
        dead.finish()

        assert content_of(lease.paths.folder) == left, f"stopped before file operation {number}"
    assert number > 2


def test_a_folder_that_a_dead_attempt_was_about_to_replace_is_put_back(runs: Runs) -> None:
    number, states = 0, list[bool]()
    while True:
        number += 1
        lease = runs.new(number)
        best_model(lease)
        published = content_of(lease.paths.folder)
        dead = StoppedProcess(lambda lease=lease: best_model(lease), number=number)
        states.append(lease.paths.best.exists())
        if not dead.is_stopped:
            break

        revoke(lease.paths, 1)
        dead.finish()

        assert content_of(lease.paths.folder) == published
    assert not all(states)  # it was stopped between its two renames


def test_a_late_event_of_an_older_attempt_does_not_count_in_the_trial_journal(runs: Runs) -> None:
    number = 0
    while True:
        number += 1
        first = runs.new(number)
        late = StoppedProcess(lambda lease=first: search(lease, value=0.1), number=number)
        if not late.is_stopped:
            break

        table = search(Lease.claim(first.paths, after=1), value=0.5).table
        late.finish()

        found = TrialTable.fold(read_trial_events(first.paths.trials).lines, "loss")
        assert (found.trials, found.best()) == (table.trials, table.best())
    assert number > 3


def search(lease: Lease, value: float) -> TrialJournal:
    journal = TrialJournal.opened(lease, "loss", NOON)
    journal.start(TrialAssignment(trial=0, config={"lr": 1e-3}, value_to_beat=None), NOON)
    journal.report(0, TrialReport(epoch=len(journal.table.reports()) + 1, value=value), NOON)
    return journal


def test_a_late_epoch_of_an_older_attempt_does_not_count_in_the_metrics(runs: Runs) -> None:
    first = runs.new(0)
    late = StoppedProcess(lambda: first.append_line(first.paths.metrics, {"epoch": 1, "valid_loss": 0.1}), number=1)

    Lease.claim(first.paths, after=1).append_line(first.paths.metrics, {"epoch": 1, "valid_loss": 0.5})
    late.finish()

    assert read_epoch_lines(first.paths.metrics) == [{"epoch": 1, "valid_loss": 0.5, "attempt": 2}]


def test_a_late_epoch_before_the_first_of_the_next_attempt_is_replaced_by_it(runs: Runs) -> None:
    first = runs.new(0)
    late = StoppedProcess(lambda: first.append_line(first.paths.metrics, {"epoch": 1, "valid_loss": 0.1}), number=1)

    second = Lease.claim(first.paths, after=1)
    late.finish()
    second.append_line(first.paths.metrics, {"epoch": 1, "valid_loss": 0.5})

    assert read_epoch_lines(first.paths.metrics) == [{"epoch": 1, "valid_loss": 0.5, "attempt": 2}]


def test_a_stopped_attempt_does_not_block_its_successor_and_leaves_no_draft(runs: Runs) -> None:
    number = 0
    while True:
        number += 1
        first = runs.new(number)
        late = StoppedProcess(lambda lease=first: model_and_result(lease), number=number)
        if not late.is_stopped:
            break

        model_and_result(Lease.claim(first.paths, after=1))
        late.finish()

        assert read_json(first.paths.result)["metrics"] == {"by": 2}
        assert sorted(path.name for path in first.paths.attempts.iterdir()) == [
            "1.claimed", "1.json", "2.claimed", "2.drafts", "2.json",
        ]  # fmt: skip
        assert not list((first.paths.attempts / "2.drafts").iterdir())


def test_an_attempt_that_version_0_1_0_claimed_can_publish(runs: Runs) -> None:
    lease = runs.new(0)
    lease.drafts.rmdir()

    result(Lease.join(lease.paths, 1))

    assert read_json(lease.paths.result)["metrics"] == {"by": 1}


def test_a_claim_that_cannot_fence_off_the_older_attempts_is_undone(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = runs.new(0)

    def refuse(_paths: RunPaths, *, before: int) -> None:
        raise PermissionError(before)

    monkeypatch.setattr("cluster.fencing.fence_off", refuse)
    with pytest.raises(PermissionError):
        Lease.claim(lease.paths, after=1)
    monkeypatch.undo()

    lease.check()
    assert Lease.claim(lease.paths, after=1).attempt == 2


def test_a_write_into_a_folder_that_does_not_exist_is_no_lost_lease(runs: Runs) -> None:
    lease = runs.new(0)

    with pytest.raises(FileNotFoundError):
        lease.write_text(lease.paths.folder / "absent" / "file", "text")

    write_json(lease.paths.folder / "file", 1)
    lease.write_json(lease.paths.folder / "file", 2)
    assert read_json(lease.paths.folder / "file") == 2
