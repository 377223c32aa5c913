"""What an evaluation, a prediction and an export are asked to do. Imports neither torch nor ray."""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from trainer.specs.base import Spec

S = TypeVar("S", bound=Spec)


class EvaluateSpec(Spec):
    """Score a published model on one split.

    Attributes:
        model: Run id, search id or folder, as the user gave it or as submit resolved it.
        positive: The class whose sensitivity and false negatives are reported; None takes the first.
        min_sensitivity: Choose the decision threshold on the validation split so that sensitivity is at least this.
        cache: Keep the features of the model's backbone under the storage.
    """

    kind: Literal["evaluate"] = "evaluate"
    model: Annotated[str, Field(min_length=1)]
    shards: Annotated[str, Field(min_length=1)]
    split: Annotated[str, Field(min_length=1)] = "test"
    positive: str | None = None
    min_sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    cache: bool = True


class PredictSpec(Spec):
    """Say of images what a published model takes them for.

    Attributes:
        model: Run id, search id or folder, as the user gave it or as submit resolved it.
        images: Image files, folders of them, and folders or URLs of shards, in the order of the table.
        split: Of shards only this split; None takes all.
        output: Where the table is copied to besides the run's folder.
        form: Of the table.
    """

    kind: Literal["predict"] = "predict"
    model: Annotated[str, Field(min_length=1)]
    images: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    split: str | None = None
    output: Annotated[str, Field(min_length=1)] | None = None
    form: Literal["csv", "json"] = "csv"
    batch_size: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _one_worker(self) -> Self:
        return _of_one_worker(self)


class ExportSpec(Spec):
    """Write a published model as one file for other programs.

    Attributes:
        model: Run id, search id or folder, as the user gave it or as submit resolved it.
        samples: Shards or images that the file is compared with the model on; None takes the model's own data.
        output: Where the file is copied to besides the run's folder.
    """

    kind: Literal["export"] = "export"
    model: Annotated[str, Field(min_length=1)]
    format: Literal["onnx", "torchscript"] = "onnx"
    samples: Annotated[str, Field(min_length=1)] | None = None
    output: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_worker(self) -> Self:
        return _of_one_worker(self)


def _of_one_worker(spec: S) -> S:
    if spec.workers > 1:
        raise ValueError(f"workers {spec.workers} is more than this kind of run uses; use --workers 1")
    return spec
