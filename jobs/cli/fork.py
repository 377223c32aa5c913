"""`nightshift fork`: submit a run again with changed options."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.main import cli
from jobs.cli.option_groups import OptionGroup, json_option, options, run_argument
from jobs.cli.option_types import OptionValue
from jobs.cli.option_values import as_text, option_values
from jobs.cli.options import NAME, NOTE, TAG
from jobs.cli.submission import SpecCollector
from jobs.cli.usage_errors import CONFIG_NAME, usage_line
from jobs.errors import InvalidOption, Refused
from jobs.queue.submit import submit as submit_run
from jobs.runs import state as run_state
from jobs.runs.request import read_request

KEPT = ("priority", "window", "timezone", "max_duration_seconds", "retries")  # of the request; the rest is of one run
LABELS = ("name", "tags", "note")
OUTPUT_FILE = "output"  # the option with a file that the job worker writes outside of the storage

CHANGES = OptionGroup(
    "Changes",
    (
        click.option("--set", "changes", type=OptionValue(), multiple=True,
                     help="Give an option another value, such as epochs=20 or class-weights=false; can be repeated."),
        NAME, TAG, NOTE,
    ),
)  # fmt: skip
OUTPUT = OptionGroup(
    "Output",
    (
        click.option("--wait", "waits", is_flag=True,
                     help="Follow the run until it ends; the exit code is 0 if it succeeds, else 1."),
        json_option("Print the run id as JSON; with --wait, print the finished run."),
        click.option("--dry-run", is_flag=True, help="Print the spec as JSON, without submitting a run."),
    ),
)  # fmt: skip


@command(example="nightshift fork first-night --set epochs=60 --set lr=1e-4 --name longer")
@run_argument("run", metavar="ID")
@options(CHANGES, OUTPUT)
def fork(run: str, changes: tuple[tuple[str, str], ...], **given: Any) -> None:
    """Submit the spec of a run again, with the changes of --set, and print the new run id.

    Priority, window, time limit, retries and tags are those of the run; its name, note, start time and webhook are not.
    ID is a run id, a unique prefix of one, or a run's name.
    """
    paths = run_state.find(Settings.read().storage, run)
    context = click.get_current_context()
    submit, values = _forked(paths, changes, {name: given.pop(name) for name in LABELS})
    flags = {"waits": "--wait", "as_json": "--json", "dry_run": "--dry-run"}
    words = [flag for name, flag in flags.items() if given[name]]
    context.meta[CONFIG_NAME] = "--set" if changes else paths.run_id
    with submit.make_context(str(submit.name), words, parent=context, default_map=values) as inner:
        submit.invoke(inner)


def submit_fork(settings: Settings, paths: RunPaths, lines: Sequence[str], labels: Mapping[str, Any]) -> str:
    """Submit the spec of a run again with changes, and return the new run id: what the page does.

    Args:
        settings: The storage and the queue.
        paths: The run.
        lines: Changes such as `epochs=20`, as `--set` takes them; not of the file that the run writes.
        labels: Some of `name`, `tags` and `note`.

    Raises:
        InvalidOption: A change is not an option and a value that the run's command takes, or names a file to write.
        ClusterError, JobError, ShardError, TrainerError: As `nightshift fork` refuses it.
    """
    context = click.Context(cli, info_name="nightshift")
    context.meta[CONFIG_NAME] = "--set" if lines else paths.run_id
    try:
        with context:
            changes = tuple(OptionValue().convert(line, None, None) for line in lines)
            _refuse_output(changes)
            submit, values = _forked(paths, changes, labels)
            # With other images or another model, it would replace what the user has there.
            values.pop(OUTPUT_FILE, None)
            spec, request = SpecCollector.invoke(submit, [], context, default_map=values)
    except click.UsageError as error:
        raise InvalidOption(usage_line(error)) from error
    return submit_run(settings, spec, request)


def _forked(
    paths: RunPaths, changes: tuple[tuple[str, str], ...], labels: Mapping[str, Any]
) -> tuple[click.Command, dict[str, Any]]:
    """Return the command that submits a run like this one, and the values of its options with the changes."""
    spec = read_json_object(paths.spec)
    submit = cli.get_command(click.get_current_context(), str(spec.get("kind")))
    if submit is None:
        raise Refused(f"{paths.spec} is damaged: it names no kind of run; restore it from a backup")
    request = read_request(paths).to_json()
    kept = {name: request[name] for name in KEPT if request.get(name) is not None}
    kept["tags"] = run_state.read_state(paths).tags
    values = option_values(submit, as_text({**spec, **kept}), paths.run_id)
    values |= option_values(submit, _without_repeats(changes), "--set")
    return submit, values | {name: labels[name] for name in LABELS if labels.get(name)}


def _refuse_output(changes: Sequence[tuple[str, str]]) -> None:
    """Refuse a file to write: who may use the page may not write the files of the user who started it.

    Raises:
        InvalidOption: There is one.
    """
    if any(name == OUTPUT_FILE for name, _ in changes):
        raise InvalidOption(
            f"--set: the page writes no file outside of the storage; leave {OUTPUT_FILE} out, or use `nightshift fork`"
        )


def _without_repeats(changes: tuple[tuple[str, str], ...]) -> dict[str, str]:
    names = [name for name, _ in changes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidOption(f"--set gives {twice} twice; give it once")
    return dict(changes)
