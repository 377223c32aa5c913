"""Cross-validated scores of simple classifiers. All images of a group are in one fold."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainer.evaluation.intervals import group_ids

FOLDS = 5
PENALTY = 0.01  # inverse strength of the L2 penalty on standardized features
CONSTANT_PERCENTILES = (5, 50, 95)  # of the images of a class, for which a mark looks the same
CONSTANT_LEVELS = 12  # gray levels, of which JPEG changes a few
BACKGROUND_LEVELS = 16  # gray levels by which a mark differs from the background
COLUMNS = 500  # features ranked at a time, to bound the memory
TWO = 2  # classes
FEW_FEATURES = 8  # up to so many features, a forest also finds what is not linear

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Features = NDArray[np.float32]
Folds = list[tuple[Labels, Labels]]


def make_folds(labels: Labels, groups: Sequence[str]) -> Folds:
    """Return the rows to fit on and the rows to score, for each of up to five folds.

    Raises:
        ValueError: A class has too few groups for a fold to be fitted and scored; the text names the cure.
    """
    units = group_ids(groups, len(labels))
    fewest = min(len(np.unique(units[labels == label])) for label in np.unique(labels))
    if fewest < 2:  # noqa: PLR2004
        raise ValueError("a class has images of a single group; an audit needs at least two groups in each class")
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=0)
    found = [(fit, score) for fit, score in folds.split(labels[:, None], labels, units)]
    classes = len(np.unique(labels))
    kept = [(fit, score) for fit, score in found if len(np.unique(labels[fit])) == classes]
    if len(np.unique(np.concatenate([labels[score] for _, score in kept]) if kept else [])) < classes:
        raise ValueError("all images of a class are in one fold; an audit needs more groups in each class")
    return kept


def classifier_scores(features: Features, labels: Labels, folds: Folds, classes: int) -> Floats:
    """Return the probability of each class for each image from a classifier fitted without its fold, (N, classes).

    A logistic regression; a random forest for few features, of which the classes may be no monotonic function.
    """
    if (features == features[0]).all():
        return np.zeros((len(labels), classes))
    scores = np.full((len(labels), classes), np.nan)
    for fit, score in folds:
        if features.shape[1] <= FEW_FEATURES:
            model = RandomForestClassifier(100, min_samples_leaf=3, random_state=0)
        else:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500))
        model.fit(features[fit], labels[fit])
        last = model if isinstance(model, RandomForestClassifier) else model[-1]
        scores[np.ix_(score, last.classes_)] = model.predict_proba(features[score])
    return scores


def best_feature_scores(features: Features, labels: Labels, folds: Folds, classes: int) -> Floats:
    """Return the score of each class from the one feature that ranks it best outside the image's fold, (N, classes).

    Another fold may choose another feature, so scores are ranks within the fold, from 0 to 1.
    """
    return _one_feature_scores(features, labels, folds, classes, only_constant=False)


def mark_scores(features: Features, labels: Labels, folds: Folds, classes: int) -> Floats:
    """Return such scores from the features alone that are constant in the class and differ from the background.

    A mark that somebody has put on the images of a class is the same in all of them. Strokes and anatomy are not, even
    where one pixel of them tells the classes apart. Without such a feature, the scores of a class are 0.5.
    """
    return _one_feature_scores(features, labels, folds, classes, only_constant=True)


def _one_feature_scores(
    features: Features, labels: Labels, folds: Folds, classes: int, *, only_constant: bool
) -> Floats:
    scores = np.full((len(labels), classes), np.nan)
    for fit, score in folds:
        areas_of = _areas(features[fit], labels[fit], classes)
        if only_constant:
            areas_of[~_constant(features[fit], labels[fit], classes)] = 0.5
        for label, areas in enumerate(areas_of):
            best = int(np.abs(areas - 0.5).argmax())
            if areas[best] == 0.5:  # noqa: PLR2004 -- exactly: no feature is left
                scores[score, label] = 0.5
                continue
            values = features[score, best] * (1 if areas[best] >= 0.5 else -1)  # noqa: PLR2004
            scores[score, label] = (rankdata(values) - 0.5) / len(values)
    return scores


def _constant(features: Features, labels: Labels, classes: int) -> NDArray[np.bool_]:
    """Return which features are constant in a class at a value that is not the most frequent one, (classes, F).

    Of two classes, those that are constant in either: they tell both apart, and an audit judges one of them.
    """
    values, counts = np.unique(features, return_counts=True)
    background = values[counts.argmax()]
    found = np.zeros((classes, features.shape[1]), dtype=bool)
    for label in range(classes):
        low, middle, high = np.percentile(features[labels == label], CONSTANT_PERCENTILES, axis=0)
        found[label] = (high - low <= CONSTANT_LEVELS) & (np.abs(middle - background) > BACKGROUND_LEVELS)
    return np.broadcast_to(found.any(axis=0), found.shape) if classes == TWO else found


def _areas(features: Features, labels: Labels, classes: int) -> Floats:
    """Return the AUROC of each class against the others by each feature alone (Mann-Whitney), (classes, F)."""
    areas = np.full((classes, features.shape[1]), 0.5)
    members = [labels == label for label in range(classes)]
    for start in range(0, features.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        ranks = rankdata(features[:, columns], axis=0)
        for label, hits in enumerate(members):
            positives, negatives = int(hits.sum()), int((~hits).sum())
            if positives and negatives:
                wins = ranks[hits].sum(axis=0) - positives * (positives + 1) / 2
                areas[label, columns] = wins / (positives * negatives)
    return areas
