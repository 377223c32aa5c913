"""`result.json`: the outcome of a run that succeeded. Imports neither torch nor ray."""

from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.files import write_json
from cluster.lease import Lease


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to.

    Attributes:
        kind: Of the run: train, evaluate, ...
        checkpoint: Folder of the published model, None when the run publishes none.
        metrics: Of the published model on `metrics["split"]`.
        seconds: From the start of the attempt to here.
        details: Whatever else a kind has to tell; its keys stand beside the others in the file.
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
        lease.check()
        content = asdict(self)
        write_json(lease.paths.result, content.pop("details") | content)
