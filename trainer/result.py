"""`result.json`: the outcome of a run that succeeded. Imports neither torch nor ray."""

from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.lease import Lease


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        kind: train, evaluate, search, predict or export.
        checkpoint: Folder of the published or evaluated model, None if there is none.
        metrics: Metrics of that model on the split `metrics["split"]`.
        seconds: Duration of the attempt.
        details: Further results of this kind of run; in the file its keys are at the top level.
    """

    kind: str
    checkpoint: str | None
    metrics: dict[str, Any]
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    def publish(self, lease: Lease) -> None:
        """Write `result.json`.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        content = asdict(self)
        lease.write_json(lease.paths.result, content.pop("details") | content)
