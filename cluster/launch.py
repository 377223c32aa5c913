"""Start and stop the trainer of a run, by its command line and never by import.

There are two launchers: a process on this machine, and a job on a Ray cluster (`cluster/ray_jobs.py`).
"""

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster import guard, stack_dumps
from cluster.errors import LaunchError
from cluster.fork_server import AttemptRequest
from cluster.process_env import trainer_environment
from cluster.run_paths import RunPaths

TRAINER = (sys.executable, "-P", "-m", "trainer")  # -P: never import a user's own trainer.py
DUMP_SECONDS = 1.0  # until the stacks are in the log
KILL_SECONDS = 10.0  # until a guard that was asked to end is killed
THIS_MACHINE = "here"  # here, trainers end together with the job worker that started them


class RunningTrainer(Protocol):
    """A trainer that was started."""

    @property
    def sends_own_heartbeat(self) -> bool:
        """Whether the trainer writes the heartbeat; if not, the job worker does."""

    def wait(self, seconds: float) -> int | None:
        """Return the trainer's exit code as soon as it has ended, or None after `seconds`."""

    def dump_stacks(self) -> None:
        """Let the trainer's processes write the stacks of their threads into the run's log, where that is possible."""

    def kill(self) -> None:
        """Kill the trainer and every process it started; safe to call twice."""


class Launcher(Protocol):
    """Starts trainers in one place: on this machine or on a Ray cluster."""

    @property
    def place(self) -> str:
        """The place's name, as it stands in a run's state."""

    def start(self, paths: RunPaths, attempt: int) -> RunningTrainer:
        """Start the trainer of a run.

        Raises:
            LaunchError: It cannot be started there.
        """

    def attach(self, paths: RunPaths, attempt: int) -> RunningTrainer:
        """Watch a trainer that another job worker started.

        Raises:
            LaunchError: Trainers of this place do not outlive the job worker that started them.
        """


@dataclass(frozen=True)
class LocalLauncher:
    """Starts the trainer as a process of this machine, under `guard`, which kills all of it when it or we end.

    Attributes:
        command: The command, to which the run's folder and attempt number are added.
        folder: Its working directory; by default the storage. Ray adds the working directory to the import path of its
            workers, so it must not be a folder with a user's own Python files.
    """

    command: tuple[str, ...] = TRAINER
    folder: Path | None = None
    place: str = THIS_MACHINE

    def start(self, paths: RunPaths, attempt: int) -> "LocalRun":
        """Start the trainer; its output is appended to the run's log."""
        request = self.request(paths, attempt)
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *request.command]
        try:
            with paths.log.open("ab") as log:
                process = subprocess.Popen(
                    guarded,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=request.folder,
                    env=request.environment,
                )
        except OSError as error:
            raise LaunchError(f"{paths.run_id}: the trainer cannot be started: {error}") from error
        return LocalRun(process)

    def request(self, paths: RunPaths, attempt: int) -> AttemptRequest:
        """Return how the trainer of an attempt is started."""
        arguments = [str(paths.folder), "--attempt", str(attempt)]
        return AttemptRequest(
            arguments=arguments,
            command=[*self.command, *arguments],
            folder=str(self.folder or paths.storage),
            environment=trainer_environment(paths.storage, paths.run_id),
            run_id=paths.run_id,
        )

    def attach(self, paths: RunPaths, attempt: int) -> "LocalRun":
        """Raise `LaunchError`: a trainer on this machine ends together with the job worker that started it."""
        raise LaunchError(f"{paths.run_id}: attempt {attempt} is not running on this machine")


@dataclass
class LocalRun:
    """A trainer on this machine."""

    process: "subprocess.Popen[bytes]"
    sends_own_heartbeat: bool = False

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, 128 + N if signal N ended the trainer, or None while it runs."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else guard.STATUS_OF_SIGNAL - code

    def dump_stacks(self) -> None:
        """Ask each process that listens for it to write its stacks, and give them time to do so."""
        dump_stacks_below(self.process.pid)

    def kill(self) -> None:
        """Terminate the guard, which kills all its descendants first."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def dump_stacks_below(guard_pid: int) -> None:
    """Let all processes below a guard write their stacks that listen for it, and give them time to do so."""
    asked = [pid for pid in guard.descendants(guard_pid) if stack_dumps.is_enabled_in(pid)]
    for pid in asked:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, stack_dumps.SIGNAL)
    if asked:
        time.sleep(DUMP_SECONDS)
