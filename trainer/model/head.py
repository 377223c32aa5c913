"""`head.json`: the configuration that rebuilds a published model. Imports neither torch nor ray."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.errors import StorageError
from cluster.files import read_json
from data_shards.index import ShardIndex
from data_shards.pack.options import EncodeOptions
from trainer.errors import CheckpointError, ModelMismatch
from trainer.specs.train import HeadKind

FEATURES = 1280  # width of EfficientNet-B0's last convolution, Tan & Le 2019, table 1, row 9

# Channel means and standard deviations of ImageNet in RGB, used by both published sets of weights.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Layout = Literal["efficientnet_pytorch", "torchvision"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class HeadConfig(BaseModel):
    """Configuration of a published model.

    Attributes:
        classes: Class names in the order of the outputs.
        width: Width of the head's first layer; its second has a quarter of it.
        image_size: Side of the square input image, in pixels.
        mean: Mean of each RGB channel on the scale 0 to 1; `std` is the standard deviation.
        layout: Library whose padding and batch-norm epsilon the backbone was trained with.
        backbone_sha256: sha256 of the published backbone's tensors, part of the feature cache's key.
        precision: Precision of the backbone in training and validation.
        pack: How the images that the model was trained on were packed; None for a model of version 0.1, which did not
            record it.
        color: "L" if the model was trained on gray images alone, and so takes color images as gray.
        multi_label: Whether an image can have several labels: the outputs are then the logits of sigmoids.
        head: "mlp", or how the linear head was fitted: "lda" or "logistic"; `width` and `dropout` then do not apply.
        positive: The class that the model is meant to find; None if nobody said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    width: Annotated[int, Field(ge=4, le=65_536, multiple_of=4)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    image_size: Annotated[int, Field(ge=32, le=8192)]
    mean: tuple[Finite, Finite, Finite] = IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD
    layout: Layout = "efficientnet_pytorch"
    backbone_sha256: str = ""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    pack: EncodeOptions | None = None
    color: Literal["L", "RGB"] = "RGB"
    multi_label: bool = False
    head: HeadKind = "mlp"
    positive: str | None = None

    @model_validator(mode="after")
    def _positive_is_a_class(self) -> Self:
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"the positive class {self.positive!r} is not one of the classes")
        return self

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if len(self.classes) == 1 and not self.multi_label:
            raise ValueError("a model of one class per image needs two classes or more")
        if len({*self.classes}) < len(self.classes):
            raise ValueError("a class is named twice")
        return self

    def check_data(self, index: ShardIndex, shards: str) -> None:
        """Refuse data with other labels than the model's.

        Raises:
            ModelMismatch: The classes differ, or only one of both is multi-label.
        """
        if self.classes != index.classes:
            raise ModelMismatch(
                f"{shards} has the classes {', '.join(index.classes)} and the model {', '.join(self.classes)}; "
                "use data packed with the model's classes"
            )
        if self.multi_label != index.multi_label:
            data, model = ("several labels", "one class") if index.multi_label else ("one class", "several labels")
            raise ModelMismatch(
                f"{shards} has {data} per image and the model {model}; use data packed as the model's "
                f"{'with' if self.multi_label else 'without'} --multi-label"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the content of `head.json`; what only some models have is left out of the others."""
        rare = {"multi_label": self.multi_label, "head": self.head != "mlp", "positive": self.positive is not None}
        return self.model_dump(mode="json", exclude={name for name, is_used in rare.items() if not is_used})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `head.json`.

        Raises:
            CheckpointError: The file does not exist, is damaged or has another version.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(
                f"{path} is damaged or has another version: {where}: {first['msg']}; export or publish the model again"
            ) from error
        except StorageError as error:
            raise CheckpointError(f"{error}; export or publish the model again") from error
