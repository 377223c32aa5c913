"""The table of commands: which module holds each. A command is imported when it is used, so that `--help` is instant.

`nightshift NAME` is in `jobs/cli/NAME.py`; `resume` is in `retry.py` and `best` in `trials.py`.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import click

from cluster.settings import wants_color
from cluster.version import VERSION
from jobs.cli.command import ALIASES, HELP_NAMES, Group


class Entry(NamedTuple):
    """Where a command is and its line in `nightshift --help`."""

    module: str
    name: str
    heading: str
    summary: str


START, DATA, JOBS, WATCH, ACT, OPERATE = "Start", "Data", "Submit jobs", "Watch runs", "Change runs", "Operate"
COMMANDS: dict[str, Entry] = {
    "demo": Entry("jobs.cli.demo", "demo", START, "Train and evaluate on sample data, from images to report."),
    "up": Entry("jobs.cli.up", "up", START, "Run Redis and job workers in the foreground until Ctrl-C."),
    "ui": Entry("jobs.cli.ui", "ui", START, "Serve the page of runs and searches; print its address."),
    "completion": Entry("jobs.cli.completion", "completion", START, "Print the shell command that enables completion."),
    "doctor": Entry("jobs.cli.doctor", "doctor", START, "Check Redis, Ray, GPUs, storage, shards and weights."),
    "shards": Entry("jobs.cli.shards", "shards", DATA, "Pack, extend, audit, verify and show WebDataset shards."),
    "cache": Entry("jobs.cli.cache", "cache", DATA, "Show and prune cached features and downloads."),
    "train": Entry("jobs.cli.train", "train", JOBS, "Fine-tune EfficientNet-B0 on shards."),
    "evaluate": Entry("jobs.cli.evaluate", "evaluate", JOBS, "Evaluate a model on one split."),
    "search": Entry("jobs.cli.search", "search", JOBS, "Tune learning rate, dropout and head width."),
    "predict": Entry("jobs.cli.predict", "predict", JOBS, "Classify images and write a table of predictions."),
    "export": Entry("jobs.cli.export", "export", JOBS, "Export a model to ONNX or TorchScript."),
    "list": Entry("jobs.cli.list", "list_runs", WATCH, "List runs, newest first."),
    "show": Entry("jobs.cli.show", "show", WATCH, "Show the spec, state, metrics and files of a run."),
    "logs": Entry("jobs.cli.logs", "logs", WATCH, "Print or follow the log of a run."),
    "wait": Entry("jobs.cli.wait", "wait", WATCH, "Wait until a run ends."),
    "trials": Entry("jobs.cli.trials", "trials", WATCH, "Show the leaderboard of a search."),
    "best": Entry("jobs.cli.trials", "best", WATCH, "Show the best trial of a search and its published model."),
    "compare": Entry("jobs.cli.compare", "compare", WATCH, "Compare models on the same images."),
    "fork": Entry("jobs.cli.fork", "fork", JOBS, "Submit a run again with changed options."),
    "models": Entry("jobs.cli.models", "models", WATCH, "Give names to models in use; list them and their history."),
    "cancel": Entry("jobs.cli.cancel", "cancel", ACT, "Stop a run after its next checkpoint, or immediately."),
    "retry": Entry("jobs.cli.retry", "retry", ACT, "Queue a failed, lost or cancelled run again."),
    "resume": Entry("jobs.cli.retry", "retry", ACT, "Alias of retry."),
    "edit": Entry("jobs.cli.edit", "edit", ACT, "Change the tags and the note of a run."),
    "delete": Entry("jobs.cli.delete", "delete", ACT, "Delete a run and its files."),
    "schedule": Entry("jobs.cli.schedule", "schedule", OPERATE, "Submit runs on a cron schedule."),
    "queue": Entry("jobs.cli.queue", "queue", OPERATE, "Show, pause and resume the job queues."),
    "worker": Entry("jobs.cli.worker", "worker", OPERATE, "Run a job worker; list and drain job workers."),
    "reconcile": Entry("jobs.cli.reconcile", "reconcile", OPERATE, "Run the reconciler once."),
    "k8s": Entry("jobs.cli.k8s", "k8s", OPERATE, "Render a run as a Kubernetes RayJob; serve metrics."),
}


class LazyGroup(Group):
    """A group that knows its commands by name and imports one when it is called."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "status": "show", "stop": "cancel", "kill": "cancel", "rm": "delete", "submit": "train", "infer": "predict",
        "help": "--help", "version": "--version", "pack": "shards pack", "verify": "shards verify",
        "audit": "shards audit", "promote": "models promote",
    }  # fmt: skip

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of the table."""
        return [name for name, entry in COMMANDS.items() if importlib.util.find_spec(entry.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command."""
        entry = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.name)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing any."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            sections.setdefault(COMMANDS[name].heading, []).append((name, COMMANDS[name].summary))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings=HELP_NAMES)
@click.version_option(VERSION)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Fine-tune image classifiers on a cluster's GPUs, from a job queue.

    Environment variables set the storage, the queue and the Ray cluster: NIGHTSHIFT_STORAGE, NIGHTSHIFT_REDIS_URL,
    NIGHTSHIFT_RAY_JOBS_URL. The settings page of the user guide lists all of them.
    """
    if not wants_color():
        ctx.color = False
