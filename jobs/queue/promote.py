"""Promotes a model: gives it a name, unless it is worse than the model that has the name."""

from pathlib import Path

from cluster.errors import StorageError
from cluster.files import read_json_object
from cluster.settings import Settings
from data_shards.counted import counted
from data_shards.index import SPLITS
from jobs.errors import Refused
from jobs.queue.checks import model_of
from jobs.runs import promotions
from jobs.runs import state as run_state
from jobs.runs.evaluations import find_model
from jobs.runs.promotions import Promotion
from trainer.errors import CheckpointError, ModelMismatch
from trainer.evaluation.metric_text import figure_text
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD_FILE, MANIFEST_FILE
from trainer.specs.positive import OF_POSITIVE, refuse_unknown_positive, refuse_unstated_positive

TRIED_SPLITS = (SPLITS[-1], SPLITS[1])  # test, else valid


def promote_model(
    settings: Settings,
    model: str,
    *,
    name: str,
    why: str | None = None,
    force: bool = False,
    split: str | None = None,
    positive: str | None = None,
    metric: str = "auroc",
    margin: float = 0.0,
) -> tuple[Promotion, Promotion | None]:
    """Give a model a name and return its promotion, and the promotion that had the name before.

    Args:
        settings: The storage, and who promotes.
        model: A run, a promoted name, or a folder.
        name: The name.
        why: The reason.
        force: Promote a model that is worse.
        split: On which both models are compared; None means test, else valid.
        positive: The positive class; None means that of the evaluations.
        metric: In which the model may not be worse.
        margin: The largest loss in `metric` that is accepted, 0 to 1.

    Raises:
        CheckpointError: It is not a model, or has not been published yet.
        InvalidOption: The name cannot be used.
        Refused: The model is worse, has the name already, or cannot be compared on the split.
        SpecError: An option contradicts the evaluations, or the evaluations need one.
    """
    found = _published(settings, model)
    refuse_unknown_positive(positive, HeadConfig.read(Path(found.folder) / HEAD_FILE).classes)
    known = promotions.history_of(settings.storage, name)
    before = known[-1] if known else None
    compared, is_worse = None, False
    if before is not None:
        if before.weights == found.weights:
            raise Refused(f"{name} is {before.model} already; `nightshift models history {name}` shows since when")
        compared, is_worse = _compared(
            settings.storage, before, found, split=split, positive=positive, metric=metric, margin=margin
        )
        if is_worse and not force:
            raise Refused(f"{model} is worse than {name} ({before.model}): {compared}; --force promotes it")
    chosen = found.model_copy(update={"why": why, "compared": compared, "forced": is_worse})
    promotions.add(settings.storage, name, chosen, after=before)
    return chosen, before


def _published(settings: Settings, text: str) -> Promotion:
    """Return the promotion of the model that a text names.

    Raises:
        CheckpointError: It is not a model, or has not been published yet.
        Refused: It is not the model that the result of its run names.
    """
    named = model_of(settings, text)
    folder = named.published_folder()
    return Promotion(
        model=named.name,
        folder=str(folder),
        weights=find_model(settings.storage, str(folder)).weights,
        who=settings.owner,
        when=run_state.now(),
    )


def _compared(
    storage: Path,
    before: Promotion,
    candidate: Promotion,
    *,
    split: str | None,
    positive: str | None,
    metric: str,
    margin: float,
) -> tuple[str, bool]:
    """Return how a model compares with the one before, and whether it is worse.

    Raises:
        Refused: They cannot be compared on the split that a person named.
        SpecError: An option contradicts the evaluations, or the evaluations need one.
    """
    from jobs.runs.comparison import compared  # noqa: PLC0415 -- takes a second, and --help does not wait for it

    reasons = []
    for tried in TRIED_SPLITS if split is None else (split,):
        try:
            view = compared(
                storage, (before.model, candidate.model), split=tried, positive=positive, margin=margin, metric=metric
            )
        except (CheckpointError, ModelMismatch) as error:
            reasons.append(str(error))
            continue
        result = view.comparison.candidates[0]
        figure = next(each for each in result.figures if each.name == metric)
        if figure.first is None or figure.second is None:
            reasons.append(f"{metric} is undefined on the {tried} split; choose another --metric")
            continue
        worse_in = "".join(
            f"; worse in {one.name}: {figure_text(one.second)} instead of {figure_text(one.first)}"
            for one in result.figures
            if one.name in result.margin.worse_in and one.first is not None and one.second is not None
        )
        text = (
            f"{metric} {figure_text(figure.second)} instead of {figure_text(figure.first)} on "
            f"{counted(view.comparison.images, 'image')} of the {tried} split{worse_in}"
        )
        return text, not result.margin.passes
    found = _by_published_metrics(before, candidate, split=split, positive=positive, metric=metric, margin=margin)
    if found is None and split is not None:
        raise Refused(reasons[0])
    return found or (f"no: {reasons[0]}", False)


def _by_published_metrics(
    before: Promotion, candidate: Promotion, *, split: str | None, positive: str | None, metric: str, margin: float
) -> tuple[str, bool] | None:
    """Compare the metrics with which two models were published.

    Returns:
        None if they are not of one data set and split, not of `split`, or of another positive class where the metric is
        about it.

    Raises:
        SpecError: The metric is about the positive class, and nobody has said which this is.
    """
    try:
        old, new = (read_json_object(Path(each.folder) / MANIFEST_FILE) for each in (before, candidate))
        data, of_split, count = new["data"], new["metrics"]["split"], int(new["metrics"]["n"])
        is_same = old["data"] == data and old["metrics"]["split"] == of_split
        first, second = float(old["metrics"][metric]), float(new["metrics"][metric])
        of_positive = {each["metrics"].get("positive") for each in (old, new)}
        is_stated = any(each["metrics"].get("positive_stated", True) for each in (old, new))
        is_multi_label = bool(new["metrics"].get("multi_label"))
    except (StorageError, KeyError, TypeError, AttributeError, ValueError):  # published without, or by version 0.1.0
        return None
    if not is_same or split not in (None, of_split):
        return None
    if metric in OF_POSITIVE:
        if positive is None and not is_stated:
            refuse_unstated_positive(metric, HeadConfig.read(Path(candidate.folder) / HEAD_FILE).classes)
        if len(of_positive) > 1 or positive not in (None, *of_positive):
            return None
    elif positive is not None and is_multi_label:  # published is the mean of all labels
        return None
    images = counted(count, "image")
    text = f"{metric} {figure_text(second)} instead of {figure_text(first)} on the {images} of the {of_split} split"
    return text, not second >= first - margin
