"""`result.json`: the outcome of a run that succeeded. Imports neither torch nor ray."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.files import read_json_object
from cluster.lease import Lease
from cluster.run_paths import RunPaths

SHOWN_DIGITS = 12  # of a sha256 in an error


@dataclass
class FeatureCounts:
    """Where an attempt's features of the frozen backbone came from.

    Attributes:
        cached: Images whose features were in the cache.
        computed: Images that went through the backbone.
    """

    cached: int = 0
    computed: int = 0

    def add(self, cached: int, computed: int) -> None:
        """Count images of a split."""
        self.cached += cached
        self.computed += computed

    def add_first(self, other: "FeatureCounts") -> None:
        """Take over the counts of the first workers; later ones of the attempt read what those have computed."""
        if not self.cached and not self.computed:
            self.add(other.cached, other.computed)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        kind: train, evaluate, search, predict or export.
        checkpoint: Folder of the published or evaluated model, None if there is none.
        metrics: Metrics of that model on the split `metrics["split"]`.
        seconds: Duration of the attempt.
        model_sha256: sha256 of the weights of that model; None if there is none.
        timing: Seconds of each part of the run, named in `phase_times.ORDER`, such as queue, start and training.
        features: Where the features of the frozen backbone came from.
        details: Further results of this kind of run; in the file its keys are at the top level.
    """

    kind: str
    checkpoint: str | None
    metrics: dict[str, Any]
    seconds: float
    model_sha256: str | None = None
    timing: dict[str, float] = field(default_factory=dict)
    features: FeatureCounts = field(default_factory=FeatureCounts)
    details: dict[str, Any] = field(default_factory=dict)

    def publish(self, lease: Lease) -> None:
        """Write `result.json`.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        content = asdict(self)
        lease.write_json(lease.paths.result, content.pop("details") | content)


def result_mismatch(folder: Path, weights: str) -> str | None:
    """Return why the model in a folder is not the one that its run's `result.json` describes; None if it is.

    A model that is not in `best/` of a run that has its result is never refused, nor is a result of version 0.1.0,
    which does not name its model.

    Args:
        folder: The folder of the model.
        weights: sha256 of its weights.
    """
    paths = RunPaths(folder.parent)
    if folder != paths.best or not paths.result.is_file():
        return None
    try:
        named = read_json_object(paths.result).get("model_sha256")
    except StorageError as error:
        return f"{error}; restore it from a backup, or train the model again"
    if named is None or named == weights:
        return None
    return (
        f"{folder} is not the model that {paths.result.name} describes: its weights have the sha256 "
        f"{weights[:SHOWN_DIGITS]}... and the result names {str(named)[:SHOWN_DIGITS]}...; "
        "restore both from one backup, or train the model again"
    )
