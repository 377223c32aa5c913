"""The wishes: what a run shall do. Frozen, checked, JSON; imports neither torch nor ray."""

import json
import zoneinfo
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from cluster.errors import SettingsError
from cluster.windows import Window
from trainer.errors import SpecError
from trainer.search.space import Config, Space

STAGES = 7  # stages of blocks in EfficientNet-B0, Tan & Le 2019, table 1, rows 2 to 8

Freeze = Annotated[str, Field(pattern=r"^(all|none|[1-7])$")]
Precision = Literal["auto", "fp32", "bf16"]
GpusPerWorker = Literal["auto", 0, 1]
Metric = Literal["loss", "accuracy", "balanced_accuracy", "auroc"]


class Spec(BaseModel):
    """What all wishes share: unknown fields are refused, nothing changes after the check."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    gpus_per_worker: GpusPerWorker = "auto"

    def to_json(self) -> dict[str, Any]:
        """Return the wish as plain JSON values, `kind` included."""
        return self.model_dump(mode="json")


class TrainOptions(Spec):
    """How to fine-tune EfficientNet-B0 on one set of shards; what `train` and `search` share.

    Attributes:
        shards: Folder or URL that holds `index.json` and the tar files it lists.
        batch_size: Images per step over all workers together, not per worker.
        lr: Peak learning rate of the head (Adam).
        head_width: Width of the head's first layer; its second has a quarter of it.
        freeze: "all" trains the head alone, "none" everything, N freezes the stem and the first N of 7 stages.
        weights: "imagenet" (the official file), "none" (random), or a file.
        image_size: Side of the square that the network sees, in pixels.
        class_weights: Weigh the loss by class balance; None decides by the data (ratio above 2).
        best_by: The validation metric that chooses the published model; loss is best when low, others when high.
        patience: Stop after so many epochs without a better `best_by`.
        cache: Keep the features of a frozen backbone under the storage.
        workers: Ray Train workers, one GPU each (one CPU each where there is no GPU).
    """

    shards: Annotated[str, Field(min_length=1)]
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0, le=10)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4
    head_width: Annotated[int, Field(ge=4, le=65_536, multiple_of=4)] = 512
    freeze: Freeze = "all"
    weights: Annotated[str, Field(min_length=1)] = "imagenet"
    image_size: Annotated[int, Field(ge=32, le=2048)] = 224
    augment: bool = False
    precision: Precision = "auto"
    class_weights: bool | None = None
    best_by: Metric = "loss"
    patience: Annotated[int, Field(ge=1)] | None = None
    cache: bool = True

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} does not split evenly over {self.workers} workers")
        if self.batch_size < 2 * self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} gives {self.workers} workers less than 2 images each, "
                "and batch norm needs 2; use a larger --batch-size"
            )
        return self


class TrainSpec(TrainOptions):
    """One training."""

    kind: Literal["train"] = "train"


class SearchSpec(TrainOptions):
    """Many trainings, to find what suits the data; options that the space does not vary hold for all of them.

    Attributes:
        trials: Configurations to try, those of `extend` included.
        space: What varies and between which bounds.
        algorithm: "tpe" learns from the trials before, "random" does not, "grid" goes through the space's points.
        concurrency: Trials at once; None takes what the machine or cluster holds.
        early_stopping: End trials that lag behind at a rung; None does so where they are long enough to gain by it.
        repeats: Trainings of each configuration with different seeds; it is ranked by their mean.
        max_failures: The search fails when more trials than this have failed.
        until: No trial starts that cannot end by then; at that moment those that run pause and the search ends.
        max_duration_seconds: The same, counted from the search's first start.
        window: Daily span of wall time in which it runs, as `20:00-07:00`; it goes on when the window opens again.
        timezone: IANA name of the zone of `window`, by default the machine's.
        extend: Id of a search whose trials this one takes over as its first.
    """

    kind: Literal["search"] = "search"
    trials: Annotated[int, Field(ge=1, le=100_000)] = 32
    space: Space = Space()
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    concurrency: Annotated[int, Field(ge=1, le=4096)] | None = None
    early_stopping: bool | None = None
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    max_failures: Annotated[int, Field(ge=0)] = 10
    until: AwareDatetime | None = None
    max_duration_seconds: Annotated[float, Field(gt=0)] | None = None
    window: str | None = None
    timezone: str | None = None
    extend: str | None = None

    @property
    def reads_features(self) -> bool:
        """Whether all trials train heads on the stored features of one frozen backbone."""
        varies_more = self.space.freeze is not None or self.space.augment is not None
        return self.freeze == "all" and self.cache and not self.augment and not varies_more

    def trial_spec(self, config: Config) -> TrainSpec:
        """Return the training of one configuration.

        Raises:
            SpecError: The configuration is out of range.
        """
        shared = {name: getattr(self, name) for name in TrainOptions.model_fields}
        return build(TrainSpec, **shared | config)

    @field_validator("window")
    @classmethod
    def _window_opens(cls, window: str | None) -> str | None:
        return None if window is None else _or_value_error(lambda: str(Window.parse(window)))

    @field_validator("timezone")
    @classmethod
    def _timezone_is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in zoneinfo.available_timezones():
            raise ValueError(f"timezone {name!r} is unknown; write an IANA name such as Europe/Berlin")
        return name

    @model_validator(mode="after")
    def _every_trial_can_run(self) -> Self:
        for config in self.space.corners():
            _or_value_error(partial(self.trial_spec, config))
        if self.algorithm == "grid" and self.trials > self.space.grid_size:
            raise ValueError(
                f"{self.trials} trials are more than the {self.space.grid_size} points of the grid; "
                f"use --trials {self.space.grid_size}, or more points as in --lr 1e-5:1e-2:9"
            )
        if self.repeats > 1 and not self.reads_features:
            raise ValueError("repeats of a configuration need --freeze all without augmentation; use --seeds 1")
        return self


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


AnySpec = TrainSpec | EvaluateSpec | SearchSpec | PredictSpec | ExportSpec
_ANY: TypeAdapter[AnySpec] = TypeAdapter(Annotated[AnySpec, Field(discriminator="kind")])


S = TypeVar("S", bound=Spec)
T = TypeVar("T")


def build(kind: type[S], **options: Any) -> S:
    """Return the checked wish.

    Raises:
        SpecError: An option is out of range, or options contradict each other; one line.
    """
    try:
        return kind(**options)
    except ValidationError as error:
        raise SpecError(_one_line(error)) from error


def read_spec(path: Path) -> AnySpec:
    """Read a wish from a run's `spec.json`.

    Raises:
        SpecError: The file is absent, no JSON, or no wish of a known kind.
    """
    try:
        return _ANY.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise SpecError(f"{path}: {_one_line(error)}") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read as a spec: {error}") from error


def _of_one_worker(spec: S) -> S:
    if spec.workers > 1:
        raise ValueError(f"workers {spec.workers} is more than this kind of run uses; use --workers 1")
    return spec


def _or_value_error(make: Callable[[], T]) -> T:
    """Return what `make` returns; an error of ours becomes one that pydantic reports as its own."""
    try:
        return make()
    except (SpecError, SettingsError) as error:
        raise ValueError(str(error)) from error


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    hidden = ("train", "evaluate", "search", "predict", "export", "Range")  # what pydantic names members of a union
    names = [str(part) for part in first["loc"] if part not in hidden]
    if first["type"] == "value_error" or not names:
        return message
    return f"{'.'.join(names)} {first['input']!r}: {message[0].lower()}{message[1:]}"
