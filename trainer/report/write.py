"""Write the report of a run after its metrics are known. Imports the rendering modules only then."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.errors import LeaseLost
from cluster.files import read_json_object
from trainer.attempt import Attempt
from trainer.progress import Progress
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
    """Write `report.html`; `search` returns the section that only the report of a search has.

    An error while rendering does not fail the run: the traceback goes to the log.

    Raises:
        LeaseLost: A newer attempt owns the run.
    """
    attempt.lease.check()
    try:
        with attempt.times.measure("report"):
            _start_phase(attempt)
            # These imports take a second, and training does not wait for them.
            from trainer.report.gather import gather_report  # noqa: PLC0415
            from trainer.report.page import write_page  # noqa: PLC0415

            write_page(attempt.lease, gather_report(attempt, spec, result, None if search is None else search()))
    except LeaseLost:
        raise
    except Exception:
        logger.exception("the report could not be written; the metrics and the model of the run are not affected")


def _start_phase(attempt: Attempt) -> None:
    """Say in `progress.json` that the report is written, which takes half a minute on few processors (Grad-CAM)."""
    before = read_json_object(attempt.paths.progress) if attempt.paths.progress.exists() else {}
    progress = Progress(
        attempt.paths, attempt.lease, gpus=before.get("gpus", 0)
    )  # the process keeps them until it ends
    progress.start_phase("report", total=0)
