"""The command line's table of contents. Commands are imported when they are used, so that `--help` is instant."""

import importlib
import importlib.util
from typing import NamedTuple

import click


class Entry(NamedTuple):
    """Where a command lives and what its line in `--help` says."""

    module: str
    name: str
    summary: str


COMMANDS: dict[str, Entry] = {
    "demo": Entry("jobs.cli.demo", "demo", "The whole path on sample data, start to report."),
    "up": Entry("jobs.cli.up", "up", "Redis and job workers in the foreground; Ctrl-C ends all of it."),
    "worker": Entry("jobs.cli.up", "worker", "One job worker; `list` and `drain` those that run."),
    "doctor": Entry("jobs.cli.doctor", "doctor", "Check Redis, Ray, GPUs, storage, shards, weights; say the cures."),
    "shards": Entry("jobs.cli.shards", "shards", "Pack, verify and show shards."),
    "train": Entry("jobs.cli.train", "train", "Fine-tune EfficientNet-B0 on shards."),
    "evaluate": Entry("jobs.cli.train", "evaluate", "Score a model on one split."),
    "search": Entry("jobs.cli.search", "search", "Search learning rate, dropout and head width overnight."),
    "trials": Entry("jobs.cli.search", "trials", "The leaderboard of a search."),
    "best": Entry("jobs.cli.search", "best", "A search's best trial and its published model."),
    "predict": Entry("jobs.cli.predict", "predict", "What a model takes images for, as a table."),
    "export": Entry("jobs.cli.predict", "export", "A model as one file: ONNX or TorchScript."),
    "list": Entry("jobs.cli.watch", "list_runs", "A row a run."),
    "show": Entry("jobs.cli.watch", "show", "One run whole."),
    "logs": Entry("jobs.cli.watch", "logs", "A run's log, from storage."),
    "wait": Entry("jobs.cli.watch", "wait", "Until a run ends."),
    "cancel": Entry("jobs.cli.actions", "cancel", "Stop a run after a checkpoint, or at once."),
    "retry": Entry("jobs.cli.actions", "retry", "Let a run that ended badly go on from its last checkpoint."),
    "resume": Entry("jobs.cli.actions", "resume", "The same as retry."),
    "delete": Entry("jobs.cli.actions", "delete", "A run and its files."),
    "cache": Entry("jobs.cli.cache", "cache", "Show and prune stored features."),
    "k8s": Entry("jobs.cli.k8s", "k8s", "Manifests of a run with a Ray cluster of its own."),
    "queue": Entry("jobs.cli.queue", "queue", "Show, pause and resume the queues."),
    "schedule": Entry("jobs.cli.schedule", "schedule", "Runs that repeat, by a cron line."),
    "reconcile": Entry("jobs.cli.actions", "reconcile", "Put the queue right from the run folders."),
}


class Contents(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names, in the order people meet them."""
        return [name for name, entry in COMMANDS.items() if importlib.util.find_spec(entry.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.name)
        assert isinstance(command, click.Command)  # noqa: S101
        return _with_breaks(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])


def _with_breaks(command: click.Command) -> click.Command:
    """Keep the lines of examples apart: docstrings are raw, as those with a backslash must be; click wants the sign."""
    command.help = (command.help or "").replace("\\b\n", "\b\n")
    for sub in command.commands.values() if isinstance(command, click.Group) else ():
        _with_breaks(sub)
    return command


@click.group(cls=Contents, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nightshift")
def cli() -> None:
    """Fine-tune image classifiers on a cluster's GPUs, from a job queue.

    Settings come from the environment: NIGHTSHIFT_STORAGE, NIGHTSHIFT_REDIS_URL, NIGHTSHIFT_RAY_JOBS_URL.
    """
