"""Commands that act on several runs: all are looked up before the first is acted on."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.run_paths import RunPaths
from jobs.cli.command import FAILED
from jobs.cli.option_groups import Decorator, run_argument
from jobs.cli.terminal import echo
from jobs.errors import JobError
from jobs.runs import state as run_state

runs_argument: Decorator = run_argument("runs", metavar="ID...", nargs=-1, required=True)


def find_all(storage: Path, texts: Sequence[str]) -> list[RunPaths]:
    """Return the runs with these ids, prefixes of ids, or names, each once.

    Raises:
        UnknownRun: No run matches one of them.
        SeveralRuns: Several runs match one of them.
    """
    found = {paths.run_id: paths for paths in (run_state.find(storage, text) for text in texts)}
    return list(found.values())


def act_on_each(runs: Sequence[RunPaths], act: Callable[[RunPaths], None]) -> int:
    """Act on each run; of several, one that refuses is printed and the others follow.

    Returns:
        The exit code: 1 if a run refused.

    Raises:
        JobError, ClusterError: The only run refuses.
    """
    code = 0
    for paths in runs:
        try:
            act(paths)
        except (JobError, ClusterError) as error:
            if len(runs) == 1:
                raise
            echo(f"Error: {' '.join(str(error).split())}", err=True)
            code = FAILED
    return code
