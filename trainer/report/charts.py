"""Charts of a training by epoch, and what all charts of a report share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.report.svg_chart import Axis, Chart, Line, Mark, chart, padded_range
from trainer.specs.metric import loss_of

Epochs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ReportChart:
    """A chart with title and caption; a wide chart takes the whole width of the page."""

    chart: Chart
    title: str
    caption: str
    wide: bool = False


def loss_curves(epochs: Epochs, best: int | None) -> Chart:
    """Return training and validation loss by epoch."""
    named = {"train_loss": "training loss", "valid_loss": "validation loss"}
    return _over_epochs(epochs, named, best, Axis(name="loss", low=0.0, high=_highest(epochs, named)))


def validation_curves(epochs: Epochs, best: int | None) -> Chart:
    """Return validation accuracy and AUROC by epoch."""
    named = {"valid_accuracy": "accuracy", "valid_auroc": "AUROC"}
    values = [value for name in named for _, value in _series(epochs, name)]
    low, _ = padded_range(values)
    return _over_epochs(epochs, named, best, Axis(name="value", low=max(0.0, low), high=1.0))


def best_epoch(epochs: Epochs, by: str) -> int | None:
    """Return the first epoch with the best value of the validation metric `by`: lowest loss, else highest value."""
    found = _series(epochs, f"valid_{by}")
    if not found:
        return None
    return int(min(found, key=lambda pair: (loss_of(pair[1], by), pair[0]))[0])


def _over_epochs(epochs: Epochs, named: Mapping[str, str], best: int | None, y: Axis) -> Chart:
    lines, marks = list[Line](), list[Mark]()
    for colour, (key, name) in enumerate(named.items()):
        pairs = _series(epochs, key)
        lines.append(Line(name=name, xs=[p[0] for p in pairs], ys=[p[1] for p in pairs], colour=colour, dots=True))
        chosen = [value for epoch, value in pairs if epoch == best]
        if chosen and key.startswith("valid") and not marks:
            marks.append(Mark(name=f"best epoch: {best}", x=float(best or 0), y=chosen[0], colour=colour, guide=True))
    last = max((float(epoch["epoch"]) for epoch in epochs), default=1.0)
    first = min((float(epoch["epoch"]) for epoch in epochs), default=0.0)
    x = Axis(name="epoch", low=first, high=max(last, first + 1), whole=True)
    return chart(lines, x=x, y=y, description=f"{' and '.join(named.values())} by epoch", marks=marks)


def _series(epochs: Epochs, key: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of each epoch with a finite value; the last line of an epoch counts."""
    found = {float(line["epoch"]): line.get(key) for line in epochs}
    return [(epoch, float(v)) for epoch, v in sorted(found.items()) if v is not None and math.isfinite(v)]


def _highest(epochs: Epochs, named: Mapping[str, str]) -> float:
    return padded_range([value for name in named for _, value in _series(epochs, name)], least=0.0)[1]
