"""Charts of a report: loss, ROC, precision-recall and reliability curves, computed by scikit-learn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from trainer.report.svg_chart import Axis, Chart, Line, Mark, chart, downsampled, padded_range
from trainer.specs.metric import loss_of

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Epochs = Sequence[Mapping[str, Any]]

CURVES = 6  # the most classes with a curve each; more curves are unreadable
BINS = 10


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


def roc_curves(
    probabilities: Floats, labels: Labels, *, classes: Sequence[str], positive: int, point: tuple[float, float] | None
) -> Chart:
    """Return the one-vs-rest ROC curve of each class (for two classes, of the positive class).

    `point` is the operating point: sensitivity and specificity.
    """
    lines = [Line(name="chance", xs=(0, 1), ys=(0, 1), reference=True)]
    for colour, c in enumerate(_classes_with_curve(labels, classes, positive)):
        false, true, _ = sk.roc_curve(labels == c, probabilities[:, c])
        lines.append(downsampled(classes[c], false, true, colour))
    marks = [] if point is None else [Mark(name="operating point", x=1 - point[1], y=point[0])]
    return chart(
        lines,
        x=Axis(name="false positive rate (1 − specificity)", low=0, high=1),
        y=Axis(name="true positive rate (sensitivity)", low=0, high=1),
        description="ROC curve",
        marks=marks,
        square=True,
    )


def precision_recall_curves(
    probabilities: Floats, labels: Labels, *, classes: Sequence[str], positive: int, point: tuple[float, float] | None
) -> Chart:
    """Return precision-recall curves of the same classes; `point` is the operating point: recall and precision."""
    share = float((labels == positive).mean())
    lines = [Line(name="chance", xs=(0, 1), ys=(share, share), reference=True)]
    for colour, c in enumerate(_classes_with_curve(labels, classes, positive)):
        precision, recall, _ = sk.precision_recall_curve(labels == c, probabilities[:, c], drop_intermediate=True)
        lines.append(downsampled(classes[c], recall[::-1], precision[::-1], colour))
    marks = [] if point is None else [Mark(name="operating point", x=point[0], y=point[1])]
    return chart(
        lines,
        x=Axis(name="recall (sensitivity)", low=0, high=1),
        y=Axis(name="precision (PPV)", low=0, high=1),
        description="Precision-recall curve",
        marks=marks,
        square=True,
    )


def reliability(probabilities: Floats, labels: Labels, *, classes: Sequence[str], positive: int) -> Chart:
    """Return the reliability diagram of the positive class; bars show the share of images in each bin."""
    scores, hits = probabilities[:, positive], labels == positive
    observed, predicted = calibration_curve(hits, scores, n_bins=BINS)
    counts, edges = np.histogram(scores, bins=BINS, range=(0, 1))
    shares = counts / counts.sum()
    return chart(
        [
            Line(name="perfect calibration", xs=(0, 1), ys=(0, 1), reference=True),
            Line(name="this model", xs=predicted, ys=observed, dots=True),
        ],
        x=Axis(name=f"predicted probability of {classes[positive]}", low=0, high=1),
        y=Axis(name=f"observed frequency of {classes[positive]}", low=0, high=1),
        description="Reliability diagram",
        bars=[(a, b, s) for a, b, s in zip(edges, edges[1:], shares, strict=False) if s > 0],
        square=True,
    )


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


def _classes_with_curve(labels: Labels, classes: Sequence[str], positive: int) -> list[int]:
    """Return the classes that get a curve, the positive one first: those with both positive and negative images."""
    chosen = [positive]
    if len(classes) > 2:  # noqa: PLR2004 - for two classes the other curve is its mirror image
        chosen += [c for c in range(len(classes)) if c != positive]
    return [c for c in chosen[:CURVES] if 0 < (labels == c).sum() < len(labels)]
