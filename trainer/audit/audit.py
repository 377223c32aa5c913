"""Audits a data set: what classifies its images without looking at their subject, and which labels contradict."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from data_shards.index import ShardIndex
from data_shards.pack.near_duplicates import ImageHash, find_near_duplicates
from trainer.audit.cross_validation import Folds, best_feature_scores, classifier_scores, make_folds, mark_scores
from trainer.audit.describe import ImageSet, describe
from trainer.audit.saved import AuditScores
from trainer.errors import SpecError
from trainer.evaluation.bootstrap import ranked_classes
from trainer.evaluation.intervals import auroc_interval, group_ids
from trainer.evaluation.metric_text import figure_text

MAX_IMAGES = 3000
IMAGE_SIZE = 224  # pixels, as `train` has by default
CHANCE = 0.6  # AUROC whose lower limit above this is more than chance and small imbalances explain
MARKED = 0.95  # AUROC above which a constant mark gives the class away
EXPLANATIONS = {
    "image size": "width, height and their ratio, in the source",
    "file format": "format, channels and JPEG quantization of the stored file",
    "file size": "bytes of the stored file, and bytes per pixel",
    "brightness histogram": "how often each brightness occurs, without its place",
    "outer rim": "the outer eighth of the square on each side",
    "constant mark near the edge": "a spot in the outer half that looks the same in all images of a class",
    "one patch near the edge": "mean, maximum or minimum of a single small patch in the outer half",
    "everything but the center": "the square at 16 x 16 pixels without its inner quarter",
    "8 x 8 thumbnail": "the whole square at 8 x 8 pixels",
}
NO_SUBJECT = ("image size", "file format")  # they say nothing about what an image shows
MARK = "constant mark near the edge"
NO_ALARM = (
    "No alarm: these images do not show that the size or format of the files, or a constant mark near the edge, "
    "classifies them. This does not prove that a model looks at their subject."
)
SCORERS = {MARK: mark_scores, "one patch near the edge": best_feature_scores}  # the others: `classifier_scores`

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Check:
    """How well one property classifies the images.

    Attributes:
        auroc: AUROC; for more than two classes, the mean over the classes against all others.
        low: Lower limit of its 95 % confidence interval; None if it says nothing, as for images of one size.
        high: Upper limit, or None.
        worst_class: The class that it tells from the others best.
        worst_auroc: AUROC of that class.
        alarm: Whether a model can reach its figures by this instead of the subject.
    """

    name: str
    explanation: str
    auroc: float
    low: float | None
    high: float | None
    worst_class: str
    worst_auroc: float
    alarm: bool


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Two images that look alike and have different labels. Split and key name an image."""

    first: str
    first_label: str
    second: str
    second_label: str
    bits: int


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of an audit.

    Attributes:
        checks: In order of AUROC, the greatest first.
        images: Images that were read.
        total: Images of the data set.
        scores: What the classifiers gave out for each image; None in an audit that is read back.
    """

    checks: tuple[Check, ...]
    contradictions: tuple[Contradiction, ...]
    images: int
    total: int
    sentence: str
    scores: AuditScores | None = None

    @property
    def alarm(self) -> bool:
        """Whether any check raises an alarm."""
        return any(check.alarm for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values, without the scores."""
        found = asdict(replace(self, scores=None))
        del found["scores"]
        return {**found, "alarm": self.alarm}


def audit(
    location: str,
    index: ShardIndex,
    *,
    image_size: int = IMAGE_SIZE,
    max_images: int = MAX_IMAGES,
    processes: int | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Audit:
    """Return the audit of a data set. Classifiers are cross-validated by group over the images of all splits.

    Raises:
        SpecError: It has several labels per image, one class, or a class with images of a single group.
        DamagedShard, RemoteError: A shard or sample is not what the index says, or cannot be fetched.
    """
    if index.multi_label:
        raise SpecError("an audit of a multi-label data set is not available; pack one of its labels as classes")
    if len(index.classes) < 2:  # noqa: PLR2004
        raise SpecError(f"{location} has one class; an audit needs two")
    images = describe(location, index, size=image_size, limit=max_images, processes=processes, on_progress=on_progress)
    try:
        folds = make_folds(images.labels, images.groups)
    except ValueError as error:
        raise SpecError(f"{location}: {error}") from error
    drawn = set(images.labels.tolist())
    if missing := [name for label, name in enumerate(index.classes) if label not in drawn]:
        raise SpecError(
            f"{location}: none of the {len(images.labels)} images that were read is of class {', '.join(missing)}; "
            "use a larger --max-images"
        )
    scores = _scores(images, folds, len(index.classes))
    units = group_ids(images.groups, len(images.labels))
    found = [_check(name, one, images.labels, units, index.classes) for name, one in scores.items()]
    checks = tuple(sorted(found, key=lambda check: -check.auroc))
    return Audit(
        checks=checks,
        contradictions=_contradictions(images, index.classes),
        images=len(images.labels),
        total=images.total,
        sentence=_sentence(checks, len(index.classes)),
        scores=AuditScores(samples=images.samples, labels=images.labels, scores=scores),
    )


def _scores(images: ImageSet, folds: Folds, classes: int) -> dict[str, Floats]:
    """Return the scores of each check, (N, classes), by its name."""
    return {
        name: SCORERS.get(name, classifier_scores)(features, images.labels, folds, classes)
        for name, features in images.features.items()
    }


def _check(
    name: str, scores: Floats, labels: NDArray[np.int64], units: NDArray[np.int64], classes: tuple[str, ...]
) -> Check:
    ranked = ranked_classes(len(classes), 1)
    known = ~np.isnan(scores).any(axis=1)
    labels, units = labels[known], np.unique(units[known], return_inverse=True)[1]
    areas, limits = _areas(scores[known], labels), []
    for chosen in (ranked, *([label] for label in ranked)):
        scored = [(scores[known, label], labels == label) for label in chosen]
        limits.append(auroc_interval(scored, units))
    worst = max(ranked, key=lambda label: areas[label])
    return Check(
        name=name,
        explanation=EXPLANATIONS[name],
        auroc=float(np.mean(areas[ranked])),
        low=limits[0][0] if limits[0] else None,
        high=limits[0][1] if limits[0] else None,
        worst_class=classes[worst],
        worst_auroc=float(areas[worst]),
        alarm=any(
            _is_alarm(name, areas[label], found[0]) for label, found in zip(ranked, limits[1:], strict=True) if found
        ),
    )


def _is_alarm(name: str, area: float, low: float) -> bool:
    return (name in NO_SUBJECT and low > CHANCE) or (name == MARK and area > MARKED)


def _areas(scores: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return the AUROC of each class against the others, (classes,)."""
    return np.array([roc_auc_score(labels == label, scores[:, label]) for label in range(scores.shape[1])])


def _contradictions(images: ImageSet, classes: tuple[str, ...]) -> tuple[Contradiction, ...]:
    label_of = dict(zip(images.keys, images.labels.tolist(), strict=True))
    hashes = [
        ImageHash(name=key, sha256=key, phash=digest) for key, digest in zip(images.keys, images.hashes, strict=True)
    ]
    by_label = {key: str(label) for key, label in label_of.items()}  # as splits: pairs across labels are kept
    pairs = find_near_duplicates(hashes, by_label)
    return tuple(
        Contradiction(
            first=pair.first,
            first_label=classes[label_of[pair.first]],
            second=pair.second,
            second_label=classes[label_of[pair.second]],
            bits=pair.bits,
        )
        for pair in pairs
        if label_of[pair.first] != label_of[pair.second]
    )


def _sentence(checks: tuple[Check, ...], classes: int) -> str:
    """Return what the checks mean, in one plain sentence."""
    alarms = [check for check in checks if check.alarm]
    if not alarms:
        return NO_ALARM
    first = alarms[0]
    what = first.name[0].upper() + first.name[1:]
    value, of_class = first.auroc, ""
    if classes > 2:  # noqa: PLR2004
        value, of_class = first.worst_auroc, f" for {first.worst_class!r}"
    return (
        f"{what} alone reaches an AUROC of {figure_text(value, 3)}{of_class}: these images cannot show that a model "
        "looks at their subject."
    )
