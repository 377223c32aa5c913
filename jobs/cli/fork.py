"""`nightshift fork`: submit a run again with changed options."""

from typing import Any

import click

from cluster.files import read_json_object
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.main import cli
from jobs.cli.option_types import OptionValue
from jobs.cli.option_values import as_text, option_values
from jobs.cli.options import NAME, NOTE, TAG, OptionGroup, json_option, options, run_argument
from jobs.cli.usage_errors import CONFIG_NAME
from jobs.errors import InvalidOption, Refused
from jobs.runs import state as run_state
from jobs.runs.request import read_request

KEPT = ("priority", "window", "timezone", "max_duration_seconds", "retries")  # of the request; the rest is of one run


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
    spec = read_json_object(paths.spec)
    kind = str(spec.get("kind"))
    submit = cli.get_command(click.get_current_context(), kind)
    if submit is None:
        raise Refused(f"{paths.spec} is damaged: it names no kind of run; restore it from a backup")
    request = read_request(paths).to_json()
    kept = {name: request[name] for name in KEPT if request.get(name) is not None}
    kept["tags"] = run_state.read_state(paths).tags
    values = option_values(submit, as_text({**spec, **kept}), paths.run_id)
    values |= option_values(submit, _without_repeats(changes), "--set")
    values |= {name: given.pop(name) for name in ("name", "tags", "note") if given.get(name)}
    flags = {"waits": "--wait", "as_json": "--json", "dry_run": "--dry-run"}
    words = [flag for name, flag in flags.items() if given[name]]
    context = click.get_current_context()
    context.meta[CONFIG_NAME] = "--set" if changes else paths.run_id
    with submit.make_context(kind, words, parent=context, default_map=values) as inner:
        submit.invoke(inner)


def _without_repeats(changes: tuple[tuple[str, str], ...]) -> dict[str, str]:
    names = [name for name, _ in changes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidOption(f"--set gives {twice} twice; give it once")
    return dict(changes)
