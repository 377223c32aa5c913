"""The last thing that a run does: its report."""

import logging

from trainer.attempt import Attempt
from trainer.result import RunResult
from trainer.specs import EvaluateSpec, TrainOptions

logger = logging.getLogger(__name__)


def report_on(attempt: Attempt, spec: TrainOptions | EvaluateSpec, result: RunResult) -> None:
    """Write `report.html` of a run that has its figures.

    A page that cannot be drawn is no reason to lose a training: the reason goes to the log with its traceback.

    Raises:
        LeaseLost: A newer attempt owns the run.
    """
    attempt.lease.check()
    try:
        # What draws pictures takes a second to import, and the first image need not wait for it.
        from trainer.report.gather import gathered  # noqa: PLC0415
        from trainer.report.page import write_report  # noqa: PLC0415

        write_report(attempt.paths, gathered(attempt, spec, result))
    except Exception:
        logger.exception("the report could not be written; the run's figures and model are not affected")
