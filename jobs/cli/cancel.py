"""`nightshift cancel`."""

import sys

import click

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.command import INTERRUPTED, command
from jobs.cli.several import act_on_each, find_all, runs_argument
from jobs.cli.terminal import waits_for_storage
from jobs.queue import actions
from jobs.runs.state import RunState


@command(example="nightshift cancel train-20261123-203000-a1b2c3")
@runs_argument
@click.option("--now", is_flag=True, help="Kill the runs without waiting for their next checkpoints.")
def cancel(runs: tuple[str, ...], now: bool) -> None:
    """Stop runs after their next checkpoints, and wait until their processes have exited.

    ID is a run id, a unique prefix of one, or a run's name. `nightshift retry ID` continues a cancelled run.
    """
    settings = Settings.read()
    stopping = dict[str, tuple[RunPaths, RunState, actions.Heartbeat]]()

    def ask(paths: RunPaths) -> None:
        before = actions.request_cancel(settings, paths, at_once=now)
        stopping[paths.run_id] = paths, before, actions.Heartbeat.seen(paths)

    def wait(paths: RunPaths) -> None:
        ended = actions.wait_until_stopped(settings, *stopping[paths.run_id], waits_for_storage())
        click.echo(f"{paths.run_id}: {ended.state}", err=True)
        del stopping[paths.run_id]

    found = find_all(settings.storage, runs)
    try:
        code = act_on_each(found, ask)  # all stop at the same time
        code = max(code, act_on_each([paths for paths, *_ in stopping.values()], wait))
    except KeyboardInterrupt:
        if stopping:
            still = "the run still stops" if len(stopping) == 1 else f"{len(stopping)} runs still stop"
            click.echo(
                f"\nstopped waiting; {still}: {'; '.join(f'nightshift wait {run_id}' for run_id in stopping)}", err=True
            )
        sys.exit(INTERRUPTED)
    sys.exit(code)
