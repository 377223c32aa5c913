"""Specs of `evaluate`, `predict` and `export`. Imports neither torch nor ray."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from trainer.specs.base import Spec
from trainer.specs.threshold_name import checked_name, requested_threshold, threshold_name

ThresholdName: TypeAlias = Annotated[str | None, AfterValidator(requested_threshold)]


class OneWorkerSpec(Spec):
    """A kind of run that uses one worker."""

    @model_validator(mode="after")
    def _one_worker(self) -> Self:
        if self.workers > 1:
            raise ValueError(f"workers {self.workers} is more than this kind of run uses; use --workers 1")
        return self


class EvaluateSpec(Spec):
    """Score a published model on one split.

    Attributes:
        model: Run id or folder, as the user gave it or as submit resolved it.
        positive: The class whose sensitivity and false negatives are reported; None means that of the threshold, else
            that of the model, else none.
        min_sensitivity: Choose a decision threshold on the validation split so that sensitivity is at least this, from
            0 (exclusive) to 1, with the fewest false positives, keep it beside the model under a name, and evaluate at
            it.
        threshold_name: The name; None means `sensitivity-` and the sensitivity.
        threshold: Name of the threshold to evaluate at; None means the default decision, the most probable class.
        prevalence: Share of the positive class where the model is to be used, for PPV and NPV there; None means that
            they are not reported.
        batch_size: Images per step.
        cache: Keep the features of the model's backbone in the storage.
    """

    kind: Literal["evaluate"] = "evaluate"
    model: Annotated[str, Field(min_length=1)]
    shards: Annotated[str, Field(min_length=1)]
    split: Annotated[str, Field(min_length=1)] = "test"
    positive: str | None = None
    min_sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None
    threshold_name: str | None = None
    threshold: ThresholdName = None
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    cache: bool = True

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.min_sensitivity is not None and self.threshold is not None:
            raise ValueError("--min-sensitivity chooses a threshold and --threshold names one; use one of them")
        if self.threshold_name is not None:
            if self.min_sensitivity is None:
                raise ValueError("--threshold-name names what --min-sensitivity chooses; add --min-sensitivity")
            checked_name(self.threshold_name, "--threshold-name")
        return self

    @property
    def chosen_name(self) -> str | None:
        """The name under which `min_sensitivity` keeps its threshold, None if nothing is chosen."""
        if self.min_sensitivity is None:
            return None
        return self.threshold_name or threshold_name(self.min_sensitivity)


class PredictSpec(OneWorkerSpec):
    """Classify images with a published model.

    Attributes:
        model: Run id or folder, as the user gave it or as submit resolved it.
        images: Image files, folders of images, and folders or URLs of shards, in the order of the table.
        split: The split of the shards to predict; None means all.
        output: Where to copy the table; it is also in the run's folder.
        form: Format of the table.
        threshold: Name of the model's threshold to decide at; None means the default decision, the most probable class.
        batch_size: Images per step.
    """

    kind: Literal["predict"] = "predict"
    model: Annotated[str, Field(min_length=1)]
    images: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    split: str | None = None
    output: Annotated[str, Field(min_length=1)] | None = None
    form: Literal["csv", "json"] = "csv"
    threshold: ThresholdName = None
    batch_size: Annotated[int, Field(ge=1)] = 64


class ExportSpec(OneWorkerSpec):
    """Export a published model as one file for other programs.

    Attributes:
        model: Run id or folder, as the user gave it or as submit resolved it.
        samples: Shards or images on which to compare the file with the model; None means the model's own data.
        output: Where to copy the file; it is also in the run's folder.
        threshold: Name of the threshold that the file's metadata carries; None means the default decision.
    """

    kind: Literal["export"] = "export"
    model: Annotated[str, Field(min_length=1)]
    format: Literal["onnx", "torchscript"] = "onnx"
    samples: Annotated[str, Field(min_length=1)] | None = None
    output: Annotated[str, Field(min_length=1)] | None = None
    threshold: ThresholdName = None
