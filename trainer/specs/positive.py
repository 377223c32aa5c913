"""Checks of the positive class that a spec names. Imports neither torch nor ray."""

from data_shards.index import ShardIndex
from trainer.errors import SpecError
from trainer.specs.inference import EvaluateSpec

OF_POSITIVE = ("sensitivity", "specificity")  # metrics that are about the positive class


def refuse_unknown_positive(positive: str | None, classes: tuple[str, ...]) -> None:
    """Refuse a positive class that the data set does not have.

    Raises:
        SpecError: It has none of this name.
    """
    if positive is not None and positive not in classes:
        raise SpecError(f"--positive {positive!r} is not a class; use one of {', '.join(classes)}")


def refuse_unstated_positive(metric: str, classes: tuple[str, ...]) -> None:
    """Refuse to compare models in a metric about the positive class where nobody has said which class this is.

    Raises:
        SpecError: The metric is about it.
    """
    if metric in OF_POSITIVE:
        raise SpecError(f"--metric {metric} needs a positive class; add --positive with one of {', '.join(classes)}")


def refuse_without_positive(spec: EvaluateSpec, of_model: str | None, index: ShardIndex) -> None:
    """Refuse options that need a positive class where neither the evaluation nor the training names one.

    Args:
        spec: The evaluation.
        of_model: The positive class that the model was trained for.
        index: The data set.

    Raises:
        SpecError: An option needs one.
    """
    if spec.positive or of_model:
        return
    if spec.min_sensitivity is not None:
        option = "--min-sensitivity"
    elif spec.prevalence is not None and (spec.threshold is None or index.multi_label):  # a threshold is about a class
        option = "--prevalence"
    else:
        return
    what = "label" if index.multi_label else "class"
    raise SpecError(
        f"{option} needs the {what} that it is meant for; add --positive with one of {', '.join(index.classes)}"
    )
