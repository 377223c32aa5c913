"""Charts of what the options of a search do: parallel coordinates, and the importance of each option (fANOVA)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cluster.run_paths import RunPaths
from jobs.web.charts import TRIALS_DRAWN
from trainer.report.charts import ReportChart
from trainer.search.trial_charts import importance_bars, parallel_coordinates
from trainer.search.trials import TrialTable
from trainer.specs import SearchSpec, read_spec

SEARCHES_KEPT = 64


@dataclass(frozen=True)
class _Ended:
    """The trials of a search that have ended: the key of its importance, which is the same until one more ends."""

    run: str
    trials: tuple[int, ...]
    table: TrialTable = field(compare=False)
    spec: SearchSpec = field(compare=False)


def option_charts(paths: RunPaths, table: TrialTable) -> tuple[tuple[ReportChart, ...], str]:
    """Return the charts of the options, and a line that says why one is missing ("" if none is).

    Raises:
        SpecError: The spec of the search cannot be read.
    """
    spec = read_spec(paths.spec)
    if not isinstance(spec, SearchSpec) or not spec.space.dimensions:
        return (), ""
    judged = [trial for trial in table.ranked() if trial.best(table.metric) is not None]
    shown = [trial for trial in judged if all(name in trial.config for name in spec.space.dimensions)]
    if len(shown) < 2:  # noqa: PLR2004 -- a line has nothing to be compared with
        return (), ""
    of_how_many = f"the best {TRIALS_DRAWN} of {len(shown)}" if len(shown) > TRIALS_DRAWN else f"{len(shown)}"
    lines = ReportChart(
        chart=parallel_coordinates(table, spec, most=TRIALS_DRAWN),
        title="Parallel coordinates",
        caption=f"one line per trial ({of_how_many} trials), stronger for better ones; the last axis is "
        f"{table.metric}, the better end at the top",
        wide=True,
    )
    return _with_importance(paths, table, spec, lines)


def _with_importance(
    paths: RunPaths, table: TrialTable, spec: SearchSpec, lines: ReportChart
) -> tuple[tuple[ReportChart, ...], str]:
    from trainer.search.importance import ENOUGH, complete_trials  # noqa: PLC0415 -- Optuna takes a second to import

    complete = complete_trials(table, spec)
    if len(spec.space.dimensions) < 2:  # noqa: PLR2004 -- a single option explains all
        return (lines,), ""
    shares = _shares(_Ended(str(paths.folder), tuple(trial.number for trial in complete), table, spec))
    if not shares:
        return (lines,), _why_no_importance(len(complete), ENOUGH, table.metric)
    bars = ReportChart(
        chart=importance_bars(shares),
        title="Importance of the options (fANOVA)",
        caption=f"share of the variance of {table.metric} between the {len(complete)} trials that ran all their epochs "
        "which each option alone explains; the rest is of their combinations; an estimate by a random forest, which "
        f"counts chance between trials too, shown from {ENOUGH} trials and rough below 30",
    )
    return (lines, bars), ""


def _why_no_importance(complete: int, enough: int, metric: str) -> str:
    if complete >= enough:
        return (
            f"No option has an importance: the {complete} trials that ran all their epochs do not differ in {metric}."
        )
    count = "there is 1" if complete == 1 else f"there are {complete}"
    return f"The importance of the options is shown from {enough} trials that ran all their epochs; {count}."


@lru_cache(maxsize=SEARCHES_KEPT)
def _shares(search: _Ended) -> Mapping[str, float]:
    from trainer.search.importance import importance  # noqa: PLC0415

    return importance(search.table, search.spec)
