"""A comparison of models on the images that all of them have scored: finds the evaluations and compares them."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.run_paths import RunPaths
from data_shards.counted import counted
from data_shards.index import BOTH
from jobs.runs.evaluations import (
    EvaluatedModel,
    Evaluation,
    evaluations_of,
    find_model,
    spec_of,
    with_most_in_common,
)
from trainer.errors import CheckpointError
from trainer.evaluation.comparison import (
    Candidate,
    Comparison,
    compare_predictions,
    comparison_json,
    margin_sentence,
)
from trainer.evaluation.metric_text import is_binary, quoted
from trainer.evaluation.predictions import Predictions
from trainer.report.comparison_page import ComparisonPage
from trainer.specs import SearchSpec, TrainSpec

NOT_OPTIONS = ("kind", "shards", "workers", "gpus_per_worker", "cache")
OF_SEARCH = tuple(SearchSpec.model_fields.keys() - TrainSpec.model_fields.keys())
SPLIT_NOTES = {
    "valid": "models are chosen on the valid split: their metrics there are optimistic",
    "train": "models are trained on the train split: their metrics there are optimistic, unless they are out of fold",
    BOTH: "the metrics are out of fold: each image was scored by a head that was trained without its fold, and the "
    "models themselves are trained on all of these images; intervals and tests are about other images, not about other "
    "folds or seeds",
}


@dataclass(frozen=True, kw_only=True)
class ComparisonView:
    """A comparison as JSON and as a page.

    Attributes:
        names: What a person called each model, the reference first.
        evaluations: Of each model.
        options: Value of each model, for options that differ.
    """

    names: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    comparison: Comparison
    options: dict[str, list[Any]]

    @property
    def letters(self) -> list[str]:
        """The letter of each model."""
        return [chr(ord("A") + number) for number in range(len(self.names))]

    def to_json(self) -> dict[str, Any]:
        """Return what `nightshift compare --json` prints."""
        comparison = self.comparison
        return {
            "split": self.evaluations[0].about.split,
            "images": comparison.images,
            "groups": comparison.groups,
            "classes": list(comparison.classes),
            "positive": comparison.positive,
            "models": [
                {"model": name, "evaluation": one.paths.run_id, "scored": scored}
                for name, one, scored in zip(self.names, self.evaluations, comparison.scored, strict=True)
            ],
            "comparisons": [
                {"a": self.names[0], "b": name, **found}
                for name, found in zip(self.names[1:], comparison_json(comparison), strict=True)
            ],
            "options": self.options,
            "notes": self.notes(),
            "passes": comparison.passes,
            "shown": comparison.is_shown,
        }

    def page(self) -> ComparisonPage:
        """Return the content of the page."""
        return ComparisonPage(
            comparison=self.comparison,
            headline=self.headline(),
            models=tuple(self.models()),
            sentences=tuple(self.sentence(letter, candidate) for letter, candidate in self.candidates()),
            options=self.options,
            notes=tuple(self.notes()),
        )

    def headline(self) -> str:
        """Return the split and the number of images."""
        comparison = self.comparison
        groups = "" if comparison.groups is None else f" of {counted(comparison.groups, 'group')}"
        return f"{self.evaluations[0].about.split} split: {counted(comparison.images, 'image')}{groups}"

    def notes(self) -> list[str]:
        """Return what limits the figures, a line each."""
        comparison = self.comparison
        found = []
        if any(scored != comparison.images for scored in comparison.scored):
            counts = ", ".join(f"{letter} {n}" for letter, n in zip(self.letters, comparison.scored, strict=True))
            found.append(f"note: the models share {counted(comparison.images, 'image')}; each has scored: {counts}")
        if not comparison.positive_stated:
            found.append(
                f"note: no positive class was stated: sensitivity and specificity are about "
                f"{quoted(comparison.positive)}, the first class; choose one with --positive"
            )
        if not is_binary(comparison.classes):
            found.append("note: AUROC is the mean over the classes, of each against the rest")
        found += self._split_notes()
        if len({one.about.threshold_of(comparison.positive) for one in self.evaluations}) > 1:
            found.append(
                "note: the decision thresholds differ: all metrics but AUROC depend on them, not on the models alone"
            )
        unscaled = [letter for letter, one in zip(self.letters, self.evaluations, strict=True) if _is_unscaled(one)]
        if unscaled:
            found.append(
                f"note: the evaluations of {', '.join(unscaled)} do not say their temperature: the AUROC is before "
                "temperature scaling, which changes it for more than two classes; evaluate again"
            )
        if len(comparison.candidates) > 1:
            found.append("note: the intervals are not corrected for several candidates; p (Holm) is")
        return found

    def _split_notes(self) -> list[str]:
        """Return what the split limits: images that models may have seen, and classes without images."""
        split = self.evaluations[0].about.split
        note = SPLIT_NOTES.get(BOTH if BOTH in split else split)
        found = [] if note is None else [f"note: {note}"]
        present = set(self.comparison.labels.tolist())
        if absent := [name for c, name in enumerate(self.comparison.classes) if c not in present]:
            found.append(
                f"note: no shared image is of {', '.join(map(quoted, absent))}: means over the classes are without it, "
                "and what needs it is undefined"
            )
        return found

    def models(self) -> list[tuple[str, str]]:
        """Return letter and name of each model."""
        rows = zip(self.letters, self.names, self.evaluations, strict=True)
        return [
            (letter, name if name == one.paths.run_id else f"{name} ({one.paths.run_id})") for letter, name, one in rows
        ]

    def candidates(self) -> list[tuple[str, Candidate]]:
        """Return the models that are compared with the first, by letter."""
        return list(zip(self.letters[1:], self.comparison.candidates, strict=True))

    def sentence(self, letter: str, candidate: Candidate) -> str:
        """Return whether a model passes its margin, and why, in a sentence."""
        return margin_sentence(candidate, self.letters[0], letter)


def compared(
    storage: Path, models: Sequence[str], *, split: str | None, positive: str | None, margin: float, metric: str
) -> ComparisonView:
    """Compare models on the images that all of them have scored.

    Raises:
        CheckpointError: A model does not exist, has no evaluation of the split, or they share no image.
        ModelMismatch: The models have different classes.
        SpecError: An option contradicts the evaluations.
    """
    found, evaluations = _evaluations(storage, models, split)
    predictions = [Predictions.read(one.paths.predictions) for one in evaluations]
    comparison = compare_predictions(predictions, positive=positive, metric=metric, margin=margin)
    return ComparisonView(
        names=tuple(models),
        evaluations=tuple(evaluations),
        comparison=comparison,
        options=differing_options(found, evaluations, comparison.positive),
    )


def _evaluations(
    storage: Path, models: Sequence[str], split: str | None
) -> tuple[list[EvaluatedModel], list[Evaluation]]:
    """Return the models and one evaluation of each.

    Raises:
        CheckpointError: A model has no evaluation of the split.
    """
    found = [find_model(storage, model) for model in models]
    given = [model.evaluation.about.split for model in found if model.evaluation is not None]
    chosen = split or (given[0] if given else "test")
    candidates = [evaluations_of(storage, model, chosen) for model in found]
    for model, of_model in zip(found, candidates, strict=True):
        if not of_model:
            raise CheckpointError(
                f"{model.name} has no evaluation of the {chosen} split; run: nightshift evaluate "
                f"{shlex.quote(model.name)} {shlex.quote(_shards_of(model.origin))} --split {chosen} --wait"
            )
    return found, with_most_in_common(candidates)


def _shards_of(origin: RunPaths | None) -> str:
    return str(spec_of(origin).get("shards", "SHARDS"))


def differing_options(
    models: Sequence[EvaluatedModel], evaluations: Sequence[Evaluation], positive: str
) -> dict[str, list[Any]]:
    """Return by option the value of each model, for options of the training and of the decision that differ."""
    specs = [
        {
            **_training_options(spec_of(model.origin)),
            "training data": spec_of(model.origin).get("shards"),
            "decision threshold": evaluation.about.threshold_of(positive),
            "evaluated data": evaluation.about.data[:16],
        }
        for model, evaluation in zip(models, evaluations, strict=True)
    ]
    names = dict.fromkeys(name for spec in specs for name in spec)
    values = {name: [spec.get(name) for spec in specs] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def _training_options(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a model was trained with; of a search, those of the published trial."""
    options = {name: value for name, value in spec.items() if name not in NOT_OPTIONS}
    if spec.get("kind") == "search":
        of_training = {"head": "mlp", "folds": spec.get("folds"), "repeats": spec.get("fold_repeats", 1)}
        options = {name: value for name, value in options.items() if name not in OF_SEARCH} | of_training
    return options


def _is_unscaled(evaluation: Evaluation) -> bool:
    """Whether an evaluation of an earlier version lacks the temperature that its AUROC depends on."""
    about = evaluation.about
    return about.temperature is None and not about.multi_label and len(about.classes) > 2  # noqa: PLR2004
