"""The spec of `train`: options, defaults and limits. Imports neither torch nor ray."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.specs.base import Spec
from trainer.specs.metric import Metric

BATCH_SIZE = 32
MIN_BATCH_NORM_IMAGES = 2  # batch norm cannot compute a variance from fewer

Freeze = Annotated[str, Field(pattern=r"^(all|none|[1-7])$")]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Norms = Literal["auto", "kept", "batch"]
HeadKind = Literal["mlp", "lda", "logistic"]

# Options of the training by steps, which a head that is fitted in one step does not have.
STEP_OPTIONS = (
    "epochs", "batch_size", "accumulate", "lr", "weight_decay", "dropout", "head_width", "ema", "best_by", "patience",
)  # fmt: skip
# Options that choose an epoch on the valid split; the heads of folds train all epochs.
EPOCH_CHOICE_OPTIONS = ("best_by", "patience")


class TrainOptions(Spec):
    """How to fine-tune EfficientNet-B0 on one data set; the options that `train` and `search` share.

    Attributes:
        shards: Folder or URL of the data set: `index.json` and the tar files that it lists.
        batch_size: Global batch size: images per step over all workers; "auto" means the default and `accumulate`.
        accumulate: Gradient accumulation: split a step that does not fit into GPU memory into micro-batches.
        lr: Peak learning rate of the head.
        weight_decay: Weight decay of AdamW, the optimizer.
        dropout: Probability in the head.
        head_width: Units of the head's first layer; the second has a quarter of them.
        freeze: "all" trains only the head, "none" everything; "N" freezes the stem and the first N of 7 stages.
        norms: Whether batch norm in the trainable backbone uses its running statistics in training ("kept") or those of
            each batch ("batch"); "auto" means "kept" unless the weights are random.
        head_epochs: Number of first epochs that train only the head; ignored where nothing else trains.
        ema: Decay per step of the exponential moving average (EMA) of the weights; the EMA is validated and published.
            0 is off.
        weights: "imagenet" (the official file), "none" (random), or a file.
        image_size: Side of the square input of the network, in pixels.
        augment: Random augmentation of the training images.
        augment_strength: Strength of rotations, shifts, zooms and contrast changes, in multiples of the default.
        precision: "bf16" and "fp16" compute with autocast, "fp16" also scales the loss; "auto" is bf16 on hardware that
            has it, fp16 on older GPUs, else fp32.
        class_weights: Weight the loss by inverse class frequency; None means when the classes differ more than 2:1. Of
            several labels per image: those that have and that lack a label get the same total weight.
        best_by: The validation metric that chooses the published model.
        patience: Early stopping: end after this many epochs without a better `best_by`; None is off, and so is 0.
        cache: Keep the features of a frozen backbone in the storage.
        positive: The class that the model is meant to find, for sensitivity and false negatives; kept with the model.
            None means that no class is the positive one.
        workers: Number of Ray Train workers, with one GPU each, or one CPU each on a machine without GPUs.
    """

    shards: Annotated[str, Field(min_length=1)]
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 30
    batch_size: Annotated[int, Field(ge=1)] = BATCH_SIZE
    accumulate: bool = False
    lr: Annotated[float, Field(gt=0, le=10)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4
    head_width: Annotated[int, Field(ge=4, le=65_536, multiple_of=4)] = 512
    freeze: Freeze = "all"
    norms: Norms = "auto"
    head_epochs: Annotated[int, Field(ge=0)] = 0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weights: Annotated[str, Field(min_length=1)] = "imagenet"
    image_size: Annotated[int, Field(ge=32, le=2048)] = 224
    augment: bool = False
    augment_strength: Annotated[float, Field(ge=0, le=4)] = 1.0
    precision: Precision = "auto"
    class_weights: bool | None = None
    best_by: Metric = "loss"
    patience: Annotated[int, Field(ge=0)] | None = 10
    cache: bool = True
    positive: Annotated[str, Field(min_length=1)] | None = None

    @property
    def required_splits(self) -> tuple[str, ...]:
        """The splits that a data set must have."""
        return "train", "valid"

    @property
    def trains_by_steps(self) -> bool:
        """Whether the training takes optimizer steps on batches."""
        return True

    @property
    def reads_features(self) -> bool:
        """Whether the heads train on cached features of a frozen backbone."""
        return self.freeze == "all" and self.cache and not self.augment

    @model_validator(mode="before")
    @classmethod
    def _auto_batch_size_accumulates(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("batch_size") == "auto":
            return {**given, "batch_size": BATCH_SIZE, "accumulate": True}
        return given

    @model_validator(mode="before")
    @classmethod
    def _zero_patience_is_off(cls, given: Any) -> Any:
        return {**given, "patience": None} if isinstance(given, dict) and given.get("patience") == 0 else given

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if not self.trains_by_steps:
            return self
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} does not split evenly over {self.workers} workers; "
                f"use a multiple of {self.workers}"
            )
        if self.batch_size < MIN_BATCH_NORM_IMAGES * self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} gives {self.workers} workers fewer than {MIN_BATCH_NORM_IMAGES} images "
                f"each, and batch norm needs {MIN_BATCH_NORM_IMAGES}; use a larger --batch-size"
            )
        return self

    @model_validator(mode="after")
    def _backbone_has_epochs(self) -> Self:
        if self.freeze != "all" and self.head_epochs >= self.epochs:
            raise ValueError(
                f"head_epochs {self.head_epochs} leaves the backbone none of {self.epochs} epochs; "
                "use fewer --head-epochs, or --freeze all"
            )
        return self


class TrainSpec(TrainOptions):
    """One training.

    Attributes:
        head: "mlp" trains a network of three layers by steps. "lda" (linear discriminant analysis with shrinkage) and
            "logistic" (logistic regression) fit a linear head on the features of the frozen backbone.
        folds: Cross-validation: K folds over train and valid, with groups kept whole. The predictions out of fold give
            the metrics and the temperature; the published model is trained on all images of both splits. None is off.
        repeats: Number of times that the images are divided into folds anew.
        min_workers: On a Ray cluster: start with so many workers, and go on with so many when machines go, up to
            `workers` when they come; None means always `workers`.
    """

    kind: Literal["train"] = "train"
    head: HeadKind = "mlp"
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    min_workers: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _min_workers_are_some_of_the_workers(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"--min-workers {self.min_workers} is more than --workers {self.workers}; "
                f"use --workers {self.min_workers} or more"
            )
        return self

    @model_validator(mode="after")
    def _linear_head_is_fitted_once(self) -> Self:
        if self.head != "mlp":
            self._require_features(f"--head {self.head}")
            self._refuse_changed(STEP_OPTIONS, f"--head {self.head} is fitted in one step")
        return self

    @model_validator(mode="after")
    def _folds_share_features(self) -> Self:
        if self.folds is None:
            if self.repeats > 1:
                raise ValueError(f"--repeats {self.repeats} repeats the folds of --folds; add --folds 5")
            return self
        self._require_features(f"--folds {self.folds}")
        if self.head == "mlp":
            self._refuse_changed(EPOCH_CHOICE_OPTIONS, f"--folds {self.folds} trains all epochs of each fold")
        if self.workers > 1:
            raise ValueError(f"--folds {self.folds} trains small heads in one process; leave out --workers")
        return self

    def _require_features(self, option: str) -> None:
        if self.freeze != "all":
            raise ValueError(f"{option} needs the features of a frozen backbone; leave out --freeze {self.freeze}")
        if self.augment:
            raise ValueError(f"{option} reads the features of each image once; leave out --augment")

    def _refuse_changed(self, names: tuple[str, ...], why: str) -> None:
        """Refuse options that would have no effect, if they have another value than their default."""
        for name in names:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{why}: --{name.replace('_', '-')} has no effect; leave it out")

    @property
    def required_workers(self) -> int:
        """Number of workers without which the training does not start."""
        return self.min_workers or self.workers

    @property
    def trains_by_steps(self) -> bool:
        """Whether the head is trained by optimizer steps; a linear head is fitted."""
        return self.head == "mlp"

    @property
    def trains_on_rank_zero(self) -> bool:
        """Whether one worker trains the head; the others only compute features."""
        return self.reads_features or not self.trains_by_steps

    @property
    def required_splits(self) -> tuple[str, ...]:
        """The splits that a data set must have; folds need no valid split."""
        return ("train", "valid") if self.folds is None else ("train",)

    @property
    def split(self) -> str:
        """The split to train on; a subclass that includes the valid split has no validation."""
        return "train"

    @property
    def last_epoch(self) -> int:
        """The epoch after which the training ends; the learning rate schedule covers all `epochs`."""
        return self.epochs
