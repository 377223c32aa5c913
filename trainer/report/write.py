"""Write the report of a run after its metrics are known. Imports the rendering modules only then."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.errors import LeaseLost, StorageError
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
    _start_phase(attempt)
    try:
        with attempt.times.measure("report"):
            # These imports take a second, and training does not wait for them.
            from trainer.report.gather import gather_report  # noqa: PLC0415
            from trainer.report.page import write_page  # noqa: PLC0415

            write_page(attempt.lease, gather_report(attempt, spec, result, None if search is None else search()))
    except LeaseLost:
        raise
    except Exception:
        logger.exception("the report could not be written; the metrics and the model of the run are not affected")


def _start_phase(attempt: Attempt) -> None:
    """Say in `progress.json` that the report is written, which takes half a minute on few processors (Grad-CAM).

    The file keeps what the workers wrote: their GPUs, which the process has until it ends, and how long they may hang.

    Raises:
        LeaseLost: A newer attempt owns the run.
    """
    try:
        before = read_json_object(attempt.paths.progress) if attempt.paths.progress.exists() else {}
        gpus, hang_seconds = before.get("gpus", 0), before.get("hang_seconds")
        progress = Progress(attempt.paths, attempt.lease, gpus=gpus, hang_seconds=hang_seconds)
        progress.start_phase("report", total=0)
    except (OSError, StorageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        logger.warning("the progress does not say that the report is being written (%s)", reason)
