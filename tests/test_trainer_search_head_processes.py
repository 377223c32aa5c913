"""A search of heads on this machine: in processes of the trainer, without Ray."""

import errno
import itertools
import os
import signal
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import ray

from cluster.files import read_lines
from cluster.resources import cpu_count
from cluster.settings import Settings
from tests.searched import SimulatedSearch, killed_when, search_spec, started, table_of
from tests.trained import done, new_run
from trainer.attempt import Attempt
from trainer.distributed.child_process import ChildProcess
from trainer.distributed.worker import WorkerTask
from trainer.errors import InfrastructureError
from trainer.search import head_group, head_processes, run
from trainer.search.head_processes import HeadProcess, Places, _on_gpu, _train_trials_on, run_head_trials
from trainer.search.head_trial import HeadTrial
from trainer.search.trial_messages import RESTARTS, TrialAssignment, TrialEnd, TrialStep

SEARCH = "search-20261123-000000-abcdef"


@pytest.fixture
def no_ray(monkeypatch):
    """Let the test fail where Ray is started; leave out the report."""

    def refuse(**_options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(run, "write_report", lambda *_: None)  # takes longer than the search


def let_trials_die(monkeypatch, folder):
    """Let the process of trial 0 die whenever it trains it, and that of trial 1 once."""
    heads_to_train = HeadTrial.heads_to_train

    def dying(trial):
        number = trial.assignment.trial
        if number == 0 or (number == 1 and not (folder / "died").exists()):
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return heads_to_train(trial)

    monkeypatch.setattr(HeadTrial, "heads_to_train", dying)


def curves_of(paths, spec):
    return {
        number: [r.report.train_loss for r in trial.reports.values()]
        for number, trial in table_of(paths, spec).trials.items()
    }


def test_a_search_of_heads_needs_no_ray_and_ranks_the_same_with_two_processes(tmp_path, digits_shards, no_ray):
    spec = search_spec(digits_shards, trials=3, epochs=1, concurrency=2, seed=11)

    paths, result = done(tmp_path, spec, SEARCH)
    _, alone = done(tmp_path, spec.model_copy(update={"concurrency": 1}), "search-20261123-000001-abcdef")

    assert result.details["trials"] == {"asked": 3, "finished": 3, "failed": 0, "paused": 0}
    assert {trial.state for trial in table_of(paths, spec).trials.values()} == {"finished"}
    assert result.details["best"]["config"] == alone.details["best"]["config"]
    assert result.metrics == alone.metrics


def test_a_trial_whose_process_is_killed_resumes_and_fails_if_it_dies_again_and_again(
    tmp_path, digits_shards, no_ray, monkeypatch
):
    let_trials_die(monkeypatch, tmp_path)
    spec = search_spec(digits_shards, trials=3, epochs=1, concurrency=2)

    paths, result = done(tmp_path, spec, SEARCH)

    table = table_of(paths, spec)
    assert [trial.state for trial in table.trials.values()] == ["failed", "finished", "finished"]
    assert table.trials[0].error == f"its process died {RESTARTS + 1} times: signal 9 ended it"
    assert result.details["trials"]["failed"] == 1


def test_trials_that_train_together_have_the_curves_of_trials_that_do_not(tmp_path, digits_shards, no_ray, monkeypatch):
    spec = search_spec(digits_shards, trials=4, epochs=2, concurrency=4, seed=11, algorithm="random", repeats=2)
    alone, _ = done(tmp_path, spec.model_copy(update={"concurrency": 1}), "search-20261123-000001-abcdef")
    monkeypatch.setattr(head_processes, "cpu_count", lambda: 1)
    train_epoch = head_group._Stack.train_epoch

    def counted(stack, stop_reason):
        (tmp_path / f"stack-of-{len(stack.heads)}").touch()
        return train_epoch(stack, stop_reason)

    monkeypatch.setattr(head_group._Stack, "train_epoch", counted)

    paths, result = done(tmp_path, spec, SEARCH)

    assert result.details["trials"] == {"asked": 4, "finished": 4, "failed": 0, "paused": 0}
    together, expected = curves_of(paths, spec), curves_of(alone, spec)
    assert sorted(together) == [0, 1, 2, 3]
    for number, losses in together.items():
        assert losses == pytest.approx(expected[number], abs=1e-4)
    assert list(tmp_path.glob("stack-of-*"))


def test_a_trial_that_kills_its_process_fails_alone(tmp_path, digits_shards, no_ray, monkeypatch):
    let_trials_die(monkeypatch, tmp_path)
    monkeypatch.setattr(head_processes, "cpu_count", lambda: 1)
    spec = search_spec(digits_shards, trials=4, epochs=1, concurrency=4)

    paths, result = done(tmp_path, spec, SEARCH)

    table = table_of(paths, spec)
    assert [table.trials[number].state for number in range(4)] == ["failed", "finished", "finished", "finished"]
    assert table.trials[0].error == f"its process died {RESTARTS + 1} times: signal 9 ended it"
    assert result.details["trials"]["failed"] == 1


def test_trials_share_the_gpus_or_cpus_of_a_machine(monkeypatch):
    monkeypatch.setattr(head_processes, "cpu_count", lambda: 8)

    def places(gpus=0, left=64, **options):
        found = Places.of(search_spec("shards", trials=64, **options), gpus=gpus, left=left)
        return found.trials, found.processes, found.in_process

    narrow, wide = {"head_width": (32, 64)}, {"head_width": (64, 512)}
    assert places(space=wide) == (8, 8, 1)
    assert places(space=wide, concurrency=20) == (20, 8, 3)
    assert places(space=narrow) == (16, 8, 2)
    assert places(space=narrow, concurrency=32) == (32, 8, 4)
    assert places(space=narrow, folds=3, concurrency=9, patience=10) == (9, 9, 1)
    assert places(space=wide, left=3) == (3, 3, 1)
    assert places(gpus=2, folds=3, patience=10) == (8, 8, 1)
    assert places(gpus=2, folds=3, concurrency=3, patience=10) == (3, 3, 1)
    assert places(gpus=2, space=wide) == (16, 2, 8)
    assert places(gpus=2, concurrency=32, space=wide) == (32, 2, 16)
    assert places(gpus=2, left=5, space=wide) == (5, 2, 3)
    assert places(gpus=8, concurrency=4, space=wide) == (4, 4, 1)


@pytest.mark.parametrize(
    ("trials", "processes", "shared"),
    [(9, 8, [1, 1, 1, 1, 1, 1, 1, 2]), (5, 4, [1, 1, 1, 2]), (20, 8, [2, 2, 2, 2, 3, 3, 3, 3]), (4, 4, [1, 1, 1, 1])],
)
def test_trials_are_shared_evenly_among_the_processes(trials, processes, shared):
    numbers = itertools.count()
    controller = SimpleNamespace(running=set())

    def next_trial():
        number = next(numbers)
        controller.running.add(number)
        return TrialAssignment(trial=number, config={}, value_to_beat=None)

    controller.next_trial = next_trial
    made = [HeadProcess(FakeChild) for _ in range(processes)]

    head_processes._start_trials(controller, made, Places(trials=trials, processes=processes))

    assert sorted(len(process.trials) for process in made) == shared
    assert all(process.training <= set(process.trials) and process.training for process in made)


class FakeChild:
    """A process that trains nothing."""

    def send(self, assignments):
        """Take trials."""


class MortalChild:
    """A process that dies whenever it trains trial 1.

    Attributes:
        sent: Numbers of the trials that such processes were given, each time.
    """

    exit_code = -signal.SIGKILL

    def __init__(self, sent):
        self.sent, self.connection = sent, self

    def send(self, assignments):
        self.sent.append({assignment.trial for assignment in assignments})

    def recv(self):
        if 1 in self.sent[-1]:
            raise EOFError
        return {number: TrialStep() for number in self.sent[-1]}

    def end(self):
        """Be dead already."""


def test_trials_train_together_again_when_the_one_that_kills_their_process_has_failed():
    sent, failed = [], []

    def record(number, step):
        failed.extend([number] if step.end else [])
        return step.end is None

    process = HeadProcess(lambda: MortalChild(sent))
    for number in (1, 2, 3):
        process.add(TrialAssignment(trial=number, config={}, value_to_beat=None))
    process.start()

    for _ in range(4):
        process.take(SimpleNamespace(record=record))

    assert sent == [{1, 2, 3}, {1, 2, 3}, {1}, {2, 3}, {2, 3}]
    assert failed == [1]


class ChildThatLosesATrial(MortalChild):
    """A process whose first trial is lost, while the others report."""

    def recv(self):
        first, *others = sorted(self.sent[-1])
        lost = TrialStep(end=TrialEnd.lost_by(OSError(errno.EIO, "Input/output error")))
        return {first: lost, **{number: TrialStep() for number in others}}


def test_what_other_trials_report_is_recorded_before_a_lost_one_ends_the_attempt():
    recorded = []

    def record(number, step):
        recorded.append(number)
        if step.end:
            step.end.raise_if_lost()
        return True

    process = HeadProcess(lambda: ChildThatLosesATrial([]))
    for number in (1, 2, 3):
        process.add(TrialAssignment(trial=number, config={}, value_to_beat=None))
    process.start()

    with pytest.raises(InfrastructureError, match="Input/output error"):
        process.take(SimpleNamespace(record=record))

    assert recorded == [2, 3, 1]


@pytest.mark.parametrize(("usable", "method"), [(True, "fork"), (False, "spawn")])
def test_a_process_of_a_gpu_is_a_fork_where_that_can_use_it(monkeypatch, usable, method):
    begun = []
    monkeypatch.setattr(head_processes, "forks_can_use_gpus", lambda: usable)
    monkeypatch.setattr(head_processes, "ChildProcess", lambda *_, method: begun.append(method))

    _on_gpu(None, 0)

    assert begun == [method]


def test_a_process_of_a_gpu_sees_no_other(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    monkeypatch.setattr(
        head_processes,
        "_train_trials_on",
        lambda connection, _, device: connection.send((device, os.environ["CUDA_VISIBLE_DEVICES"])),
    )

    processes = [_on_gpu(None, number) for number in (0, 1)]

    assert [process.connection.recv() for process in processes] == [("cuda:0", "MIG-a"), ("cuda:0", "MIG-b")]
    for process in processes:
        process.end()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_a_gpu_reads_the_features_itself(tmp_path, digits_shards, monkeypatch, method):
    spec = search_spec(digits_shards, trials=3, epochs=2)
    paths = new_run(tmp_path, spec, SEARCH)
    search = SimulatedSearch(paths, spec, lambda: datetime.now(UTC))
    attempt = Attempt.of(paths.folder, 1, Settings(storage=tmp_path))
    task = WorkerTask(attempt=attempt, spec=spec, source=None)
    monkeypatch.setattr(
        head_processes, "_on_gpu", lambda task, _: ChildProcess(_train_trials_on, task, "cpu", method=method)
    )

    run_head_trials(
        search.controller,
        task,
        Places(trials=3, processes=1, gpus=1),
        extract=lambda: done(tmp_path, spec.trial_spec({}), "features"),
        on_poll=lambda: None,
    )

    assert [trial.why for trial in search.controller.journal.table.trials.values()] == ["epochs"] * 3


@pytest.mark.slow
def test_trials_with_folds_share_the_gpus_of_a_machine_without_ray(tmp_path, digits_shards, no_ray, monkeypatch):
    given, spec = tmp_path / "gpus", search_spec(digits_shards, trials=3, epochs=2, folds=2, patience=10)
    given.mkdir()

    def on_gpu(task, gpu):
        (given / f"{gpu}-{len(list(given.iterdir()))}").touch()
        return ChildProcess(_train_trials_on, task, "cpu", method="spawn")

    monkeypatch.setattr(head_processes, "_on_gpu", on_gpu)
    _, expected = done(tmp_path, spec.model_copy(update={"concurrency": 1}), "search-20261123-000001-abcdef")
    monkeypatch.setattr(run, "lease_local_gpus", lambda *_, **__: (SimpleNamespace(gpus=2), 1))

    _, result = done(tmp_path, spec, SEARCH)

    assert sorted(path.name for path in given.iterdir()) == ["0-0", "0-2", "1-1"]
    assert result.details["trials"] == {"asked": 3, "finished": 3, "failed": 0, "paused": 0}
    assert result.metrics == expected.metrics


@pytest.mark.slow
def test_nothing_is_lost_when_a_search_whose_trials_train_together_is_killed(tmp_path, digits_shards):
    count = 2 * cpu_count()
    spec = search_spec(digits_shards, trials=count + 2, epochs=9, concurrency=count, algorithm="random", patience=0)
    alone, _ = done(tmp_path / "alone", spec.model_copy(update={"concurrency": 1, "early_stopping": False}), SEARCH)
    paths = new_run(tmp_path / "killed", spec.model_copy(update={"early_stopping": False}), SEARCH)

    code = killed_when(paths, lambda: len(list(read_lines(paths.trials))) > 3 * count)
    ended = started(paths).wait(600)

    assert (code, ended) == (128 + signal.SIGKILL, 0)
    found, expected = curves_of(paths, spec), curves_of(alone, spec)
    assert sorted(found) == list(range(count + 2))
    for number, losses in found.items():
        assert losses == pytest.approx(expected[number], abs=1e-3)
