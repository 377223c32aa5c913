"""What the page shows of two models side by side, by the functions of `nightshift compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from cluster.run_paths import RUN_ID
from jobs.errors import InvalidOption
from jobs.runs.names import NAME
from jobs.runs.state import age_key
from trainer.specs.metric import COMPARED, MARGIN

FIELDS = ("a", "b", "split", "positive", "metric", "margin")


@dataclass(frozen=True, kw_only=True)
class ComparePage:
    """A comparison.

    Attributes:
        fields: What was asked for.
        found: As `nightshift compare --json` prints it; None before two models are chosen.
        body: The figures, curves and options.
        metrics: Those that a margin can be about.
    """

    fields: Mapping[str, str]
    found: Mapping[str, Any] | None = None
    body: Markup | None = None
    metrics: Sequence[str] = COMPARED

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as `nightshift compare --json` prints it; empty before two models are chosen."""
        return dict(self.found or {})


def chosen_address(runs: Sequence[str]) -> str:
    """Return the address that compares two runs that were chosen in the list; the older one is the reference.

    Raises:
        InvalidOption: Not two runs were chosen.
    """
    if len(runs) != 2 or not all(RUN_ID.fullmatch(run) for run in runs):  # noqa: PLR2004
        count = "1 run is" if len(runs) == 1 else f"{len(runs)} runs are"
        raise InvalidOption(f"{count} chosen; go back to the list and choose two")
    first, second = sorted(runs, key=age_key)
    return f"/compare?{urlencode({'a': first, 'b': second})}"


def compare_page(storage: Path, query: Mapping[str, str]) -> ComparePage:
    """Return the comparison that a query asks for.

    Args:
        storage: The storage.
        query: `a` and `b` are run ids, names of runs or promoted names; `split`, `positive`, `metric` and `margin` are
            as of the command.

    Raises:
        CheckpointError: A model does not exist, has no evaluation of the split, or they share no image.
        InvalidOption: A value cannot be used.
        ModelMismatch: The models have different classes.
        SpecError: A value contradicts the evaluations.
    """
    fields = {name: query.get(name, "").strip() for name in FIELDS}
    if not (fields["a"] and fields["b"]):
        return ComparePage(fields=fields)
    for name in ("a", "b"):
        if not NAME.fullmatch(fields[name]):  # a folder of this machine is nobody's business
            raise InvalidOption(f"{name}={fields[name]!r} is neither a run id nor a name; the list of runs shows both")
    metric = metric_in(fields)
    # Takes a second, and the other pages do not wait for it.
    from jobs.runs.comparison import compared  # noqa: PLC0415
    from trainer.report.comparison_page import comparison_body  # noqa: PLC0415

    view = compared(
        storage,
        (fields["a"], fields["b"]),
        split=fields["split"] or None,
        positive=fields["positive"] or None,
        margin=_margin(fields["margin"]),
        metric=metric,
    )
    return ComparePage(fields=fields, found=view.to_json(), body=comparison_body(view.page()))


def metric_in(fields: Mapping[str, str]) -> str:
    """Return the metric that a form or a query chooses, the usual one if it does not.

    Raises:
        InvalidOption: There is no such metric.
    """
    metric = fields.get("metric") or COMPARED[0]
    if metric not in COMPARED:
        raise InvalidOption(f"metric={metric!r} is not one of {', '.join(COMPARED)}; choose one of them")
    return metric


def _margin(text: str) -> float:
    try:
        margin = float(text or MARGIN)
    except ValueError:
        margin = -1.0
    if not 0 <= margin <= 1:
        raise InvalidOption(f"margin={text!r} is not a number from 0 to 1; write 0.02")
    return margin
