"""The drawings of a report: how a model learned, ranks and errs. Curves by scikit-learn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from trainer.report.svg_chart import Axis, Chart, Line, Mark, chart, span
from trainer.specs.metric import loss_of

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Epochs = Sequence[Mapping[str, Any]]

CURVE_POINTS = 400  # more than pixels across the chart help nobody
CURVES = 6  # classes with a curve of their own; more would be a thicket
BINS = 10


def loss_curves(epochs: Epochs, best: int | None) -> Chart:
    """Draw training and validation loss over the epochs."""
    named = {"train_loss": "training loss", "valid_loss": "validation loss"}
    return _over_epochs(epochs, named, best, Axis(name="loss", low=0.0, high=_highest(epochs, named)))


def validation_curves(epochs: Epochs, best: int | None) -> Chart:
    """Draw validation accuracy and AUROC over the epochs."""
    named = {"valid_accuracy": "accuracy", "valid_auroc": "AUROC"}
    values = [value for name in named for _, value in _series(epochs, name)]
    low, _ = span(values)
    return _over_epochs(epochs, named, best, Axis(name="share", low=max(0.0, low), high=1.0))


def roc_curves(
    probabilities: Floats, labels: Labels, *, classes: Sequence[str], positive: int, point: tuple[float, float] | None
) -> Chart:
    """Draw the ROC curve of each class against the rest (with two classes the positive one's).

    `point` is the sensitivity and specificity of the decisions made.
    """
    lines = [Line(name="chance", xs=(0, 1), ys=(0, 1), reference=True)]
    for colour, c in enumerate(_drawn(labels, classes, positive)):
        false, true, _ = sk.roc_curve(labels == c, probabilities[:, c])
        lines.append(_thinned(classes[c], false, true, colour))
    marks = [] if point is None else [Mark(name="in use", x=1 - point[1], y=point[0])]
    return chart(
        lines,
        x=Axis(name=f"false alarms among not {classes[positive]}", low=0, high=1),
        y=Axis(name=f"{classes[positive]} found (sensitivity)", low=0, high=1),
        description="ROC curve",
        marks=marks,
        square=True,
    )


def precision_recall_curves(
    probabilities: Floats, labels: Labels, *, classes: Sequence[str], positive: int, point: tuple[float, float] | None
) -> Chart:
    """Draw precision over recall, likewise; `point` is the sensitivity and precision of the decisions made."""
    share = float((labels == positive).mean())
    lines = [Line(name="chance", xs=(0, 1), ys=(share, share), reference=True)]
    for colour, c in enumerate(_drawn(labels, classes, positive)):
        precision, recall, _ = sk.precision_recall_curve(labels == c, probabilities[:, c], drop_intermediate=True)
        lines.append(_thinned(classes[c], recall[::-1], precision[::-1], colour))
    marks = [] if point is None else [Mark(name="in use", x=point[0], y=point[1])]
    return chart(
        lines,
        x=Axis(name="found (recall)", low=0, high=1),
        y=Axis(name="right when called (precision)", low=0, high=1),
        description="Precision and recall curve",
        marks=marks,
        square=True,
    )


def reliability(probabilities: Floats, labels: Labels, *, classes: Sequence[str], positive: int) -> Chart:
    """Draw how often the positive class is true where its probability is so and so; bars show where images lie."""
    scores, hits = probabilities[:, positive], labels == positive
    happened, said = calibration_curve(hits, scores, n_bins=BINS)
    counts, edges = np.histogram(scores, bins=BINS, range=(0, 1))
    shares = counts / counts.sum()
    return chart(
        [
            Line(name="perfect", xs=(0, 1), ys=(0, 1), reference=True),
            Line(name="this model", xs=said, ys=happened, dots=True),
        ],
        x=Axis(name=f"predicted probability of {classes[positive]}", low=0, high=1),
        y=Axis(name=f"share that is {classes[positive]}", low=0, high=1),
        description="Reliability diagram",
        bars=[(a, b, s) for a, b, s in zip(edges, edges[1:], shares, strict=False) if s > 0],
        square=True,
    )


def best_epoch(epochs: Epochs, by: str) -> int | None:
    """Return the first epoch with the best value of a validation metric; loss is best when low."""
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
            marks.append(
                Mark(name=f"published: epoch {best}", x=float(best or 0), y=chosen[0], colour=colour, guide=True)
            )
    last = max((float(epoch["epoch"]) for epoch in epochs), default=1.0)
    first = min((float(epoch["epoch"]) for epoch in epochs), default=0.0)
    x = Axis(name="epoch", low=first, high=max(last, first + 1), whole=True)
    return chart(lines, x=x, y=y, description=f"{' and '.join(named.values())} over the epochs", marks=marks)


def _series(epochs: Epochs, key: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of the epochs that have a finite value; a later line of one epoch replaces the earlier."""
    found = {float(line["epoch"]): line.get(key) for line in epochs}
    return [(epoch, float(v)) for epoch, v in sorted(found.items()) if v is not None and math.isfinite(v)]


def _highest(epochs: Epochs, named: Mapping[str, str]) -> float:
    return span([value for name in named for _, value in _series(epochs, name)], least=0.0)[1]


def _drawn(labels: Labels, classes: Sequence[str], positive: int) -> list[int]:
    """Return the classes that get a curve: the positive one first, and only such as have images and others."""
    chosen = [positive]
    if len(classes) > 2:  # noqa: PLR2004 - with two classes the other curve is the same one mirrored
        chosen += [c for c in range(len(classes)) if c != positive]
    return [c for c in chosen[:CURVES] if 0 < (labels == c).sum() < len(labels)]


def _thinned(name: str, xs: Floats, ys: Floats, colour: int) -> Line:
    kept = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), CURVE_POINTS)).round().astype(int))
    return Line(name=name, xs=xs[kept].tolist(), ys=ys[kept].tolist(), colour=colour)
