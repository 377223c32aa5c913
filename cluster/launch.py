"""Start the trainer for a run and stop it, by its command line and never by import.

Two places: a process on this machine, and a Ray cluster that stands (`cluster/ray_jobs.py`).
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Protocol

from cluster import guard
from cluster.errors import LaunchError
from cluster.process_env import trainer_environment
from cluster.run_paths import RunPaths

TRAINER = (sys.executable, "-m", "trainer")
THIS_MACHINE = "here"  # the place where trainers end with whoever watches them


class RunningTrainer(Protocol):
    """A trainer that was started."""

    @property
    def sends_own_heartbeat(self) -> bool:
        """Whether the trainer's own beat alone says that it lives."""

    def wait(self, seconds: float) -> int | None:
        """Return the trainer's exit code as soon as it has ended, or None after so many seconds."""

    def kill(self) -> None:
        """End the trainer and everything it started, at once; safe to call twice."""


class Launcher(Protocol):
    """A place where trainers run."""

    @property
    def place(self) -> str:
        """The place's name, as a run's state keeps it."""

    def start(self, paths: RunPaths, attempt: int) -> RunningTrainer:
        """Start the trainer of a run.

        Raises:
            LaunchError: It cannot be started there.
        """

    def attach(self, paths: RunPaths, attempt: int) -> RunningTrainer:
        """Watch a trainer that somebody else started and does not watch any more.

        Raises:
            LaunchError: None goes on there without its watcher.
        """


@dataclass(frozen=True)
class LocalLauncher:
    """The trainer as a process of this machine, below a guard that lets nothing of it outlive it or its starter.

    Attributes:
        command: What is run with the run's folder and attempt number as arguments.
    """

    command: tuple[str, ...] = TRAINER
    place: str = THIS_MACHINE

    def start(self, paths: RunPaths, attempt: int) -> "LocalRun":
        """Start the trainer; its output is appended to the run's log."""
        order = [*self.command, str(paths.folder), "--attempt", str(attempt)]
        leash = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *order]
        try:
            with paths.log.open("ab") as log:
                process = subprocess.Popen(
                    leash,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=trainer_environment(paths.storage, paths.run_id),
                )
        except OSError as error:
            raise LaunchError(f"{paths.run_id}: the trainer cannot be started: {error}") from error
        return LocalRun(process)

    def attach(self, paths: RunPaths, attempt: int) -> "LocalRun":
        """Refuse: a trainer of this machine ends with its watcher."""
        raise LaunchError(f"{paths.run_id}: attempt {attempt} does not run on this machine")


@dataclass
class LocalRun:
    """A trainer on this machine."""

    process: "subprocess.Popen[bytes]"
    sends_own_heartbeat: bool = False

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, 128 + N when signal N ended it, or None while it runs."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else guard.STATUS_OF_SIGNAL - code

    def kill(self) -> None:
        """End it at once: the guard ends everything below itself and then itself."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
