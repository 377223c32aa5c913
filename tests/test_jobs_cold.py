"""`--cold` of `nightshift worker` and `nightshift up`: trainers start as new processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner

from cluster.launch import LocalLauncher
from cluster.settings import Settings
from cluster.warm_launch import WarmLauncher
from jobs.cli import up, worker
from jobs.errors import StackError
from jobs.queue import job_worker
from jobs.queue.stack import WORKER


class Started(Exception):
    """What a command was about to start."""


def launcher_of(monkeypatch: pytest.MonkeyPatch, storage: Path, **options: Any) -> object:
    """Return the launcher of a job worker that connects to no Redis."""

    def started(_settings: Settings, _priorities: Sequence[str], launcher: object, *_: object) -> NoReturn:
        raise Started(launcher)

    monkeypatch.setattr(job_worker, "JobWorker", started)
    with pytest.raises(Started) as caught:
        job_worker.work(Settings(storage=storage), **options)
    return caught.value.args[0]


def test_a_job_worker_forks_its_trainers_unless_it_is_cold_or_runs_only_one(
    monkeypatch: pytest.MonkeyPatch, storage: Path
) -> None:
    assert isinstance(launcher_of(monkeypatch, storage), WarmLauncher)
    assert isinstance(launcher_of(monkeypatch, storage, max_jobs=2), WarmLauncher)
    assert isinstance(launcher_of(monkeypatch, storage, cold=True), LocalLauncher)
    assert isinstance(launcher_of(monkeypatch, storage, max_jobs=1), LocalLauncher)


@pytest.mark.parametrize("cold", [False, True])
def test_both_commands_pass_the_option_on(monkeypatch: pytest.MonkeyPatch, storage: Path, cold: bool) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(storage))
    seen: list[Any] = []

    def start_stack(*_: object, worker_command: tuple[str, ...], **__: object) -> NoReturn:
        seen.append(worker_command)
        raise StackError("no stack in this test")

    monkeypatch.setattr(worker, "work", lambda _, **options: seen.append(options["cold"]))
    monkeypatch.setattr(up, "start_stack", start_stack)
    option = ["--cold"] if cold else []

    for command in (worker.worker, up.up):
        assert isinstance(command, click.Command)
        CliRunner().invoke(command, option)

    assert seen == [cold, (*WORKER, *option)]
