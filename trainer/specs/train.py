"""What a training is asked to do: options, their defaults and their limits. Imports neither torch nor ray."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.specs.base import Spec
from trainer.specs.metric import Metric

BATCH_SIZE = 32

Freeze = Annotated[str, Field(pattern=r"^(all|none|[1-7])$")]
Precision = Literal["auto", "fp32", "bf16"]
Norms = Literal["auto", "kept", "batch"]


class TrainOptions(Spec):
    """How to fine-tune EfficientNet-B0 on one set of shards; what `train` and `search` share.

    Attributes:
        shards: Folder or URL that holds `index.json` and the tar files it lists.
        batch_size: Images per step over all workers together, not per worker; "auto" is the default, with `accumulate`.
        accumulate: Take a step that does not fit into a GPU's memory in parts, with the same gradients.
        lr: Peak learning rate of the head (Adam).
        head_width: Width of the head's first layer; its second has a quarter of it.
        freeze: "all" trains the head alone, "none" everything, N freezes the stem and the first N of 7 stages.
        norms: Whether the backbone's batch norms, where they train, keep the statistics of the weights ("kept") or take
            those of each batch ("batch"); "auto" keeps them unless the weights are random.
        head_epochs: So many epochs at first train the head alone; without meaning where nothing else trains.
        ema: Decay, at each step, of the moving average of the weights that is validated and published; 0 takes none.
        weights: "imagenet" (the official file), "none" (random), or a file.
        image_size: Side of the square that the network sees, in pixels.
        augment_strength: How far `augment` turns, shifts, zooms and changes contrast, in multiples of its mild default.
        class_weights: Weigh the loss by class balance; None decides by the data (ratio above 2).
        best_by: The validation metric that chooses the published model; loss is best when low, others when high.
        patience: Stop after so many epochs without a better `best_by`.
        cache: Keep the features of a frozen backbone under the storage.
        workers: Ray Train workers, one GPU each (one CPU each where there is no GPU).
    """

    shards: Annotated[str, Field(min_length=1)]
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
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
    patience: Annotated[int, Field(ge=1)] | None = None
    cache: bool = True

    @model_validator(mode="before")
    @classmethod
    def _auto_is_the_default_in_parts(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("batch_size") == "auto":
            return {**given, "batch_size": BATCH_SIZE, "accumulate": True}
        return given

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

    @model_validator(mode="after")
    def _backbone_has_epochs(self) -> Self:
        if self.freeze != "all" and self.head_epochs >= self.epochs:
            raise ValueError(
                f"head_epochs {self.head_epochs} leaves the backbone none of {self.epochs} epochs; "
                "use fewer --head-epochs, or --freeze all"
            )
        return self


class TrainSpec(TrainOptions):
    """One training."""

    kind: Literal["train"] = "train"

    @property
    def split(self) -> str:
        """What it learns from; where that holds the valid split too, nothing is validated."""
        return "train"

    @property
    def last_epoch(self) -> int:
        """Where it ends; the learning rate follows `epochs` all the same."""
        return self.epochs
