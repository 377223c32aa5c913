"""Writes the report of a run that has its figures. Imports what draws only when it is time to draw."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer.attempt import Attempt
from trainer.result import RunResult
from trainer.specs import EvaluateSpec, TrainOptions

if TYPE_CHECKING:
    from trainer.report.page import SearchSection

logger = logging.getLogger(__name__)


def write_report(
    attempt: Attempt,
    spec: TrainOptions | EvaluateSpec,
    result: RunResult,
    search: "Callable[[], SearchSection] | None" = None,
) -> None:
    """Write `report.html`; `search` gives what only a search's report has.

    A page that cannot be drawn is no reason to lose a training: the reason goes to the log with its traceback.

    Raises:
        LeaseLost: A newer attempt owns the run.
    """
    attempt.lease.check()
    try:
        # What draws takes a second to import, and training should not wait for it.
        from trainer.report.gather import gather_report  # noqa: PLC0415
        from trainer.report.page import write_page  # noqa: PLC0415

        write_page(attempt.paths, gather_report(attempt, spec, result, None if search is None else search()))
    except Exception:
        logger.exception("the report could not be written; the run's metrics and model are not affected")
