"""EfficientNet-B0 with a new classification head, and freezing of the backbone."""

from typing import Self

import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn

from trainer.model.head import FEATURES, HeadConfig, Layout
from trainer.model.names import BLOCKS_PER_STAGE
from trainer.model.sync_batch_norm import MOMENTUM, SyncBatchNorm1d

TORCHVISION_EPSILON = 1e-5  # torchvision keeps nn.BatchNorm2d's default; efficientnet_pytorch uses 1e-3


class Backbone(nn.Module):
    """EfficientNet-B0 up to the pooled features: `(B, 3, S, S) float32` to `(B, 1280)`.

    Frozen modules stay in eval mode: with `requires_grad=False` alone, `train()` would still update
    their batch-norm statistics and apply drop connect.
    """

    def __init__(self, image_size: int, layout: Layout = "efficientnet_pytorch") -> None:
        super().__init__()
        self.network: EfficientNet = EfficientNet.from_name("efficientnet-b0", include_top=False, image_size=image_size)
        self.network.set_swish(memory_efficient=False)  # SiLU: 21 instead of 15 images/s on two cores
        self.eval_modules: list[nn.Module] = []  # stay in eval mode when the model trains
        for norm in _batch_norms(self.network):
            norm.momentum = MOMENTUM  # with the package's 0.01 the statistics lag the weights by thousands of steps
        if layout == "torchvision":
            _use_torchvision_layout(self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features of normalised images."""
        return self.network(images).flatten(1)  # type: ignore[no-any-return]  # (B, 1280)

    def freeze(self, what: str, *, freeze_bn_statistics: bool = False) -> Self:
        """Freeze "all", "none", or the stem and the first N stages ("1" to "7").

        With `freeze_bn_statistics` the batch norms of the trainable part keep the running statistics of the
        pretrained weights; their scales and shifts train.
        """
        frozen = self._frozen_part(what)
        for part in frozen:
            part.requires_grad_(False)
        self.eval_modules = [*frozen, *(_batch_norms(self.network) if freeze_bn_statistics else [])]
        return self.train(self.training)

    def convert_sync_batchnorm(self) -> Self:
        """Replace the trainable batch norms by SyncBatchNorm, which needs GPUs.

        The names in the state dict do not change.
        """
        in_eval_mode = {module for part in self.eval_modules for module in part.modules()}
        for parent in list(self.network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d) and child not in in_eval_mode:
                    setattr(parent, name, _sync_batch_norm(child))
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the modules that are not frozen."""
        super().train(mode)
        for part in self.eval_modules:
            part.eval()
        return self

    def _frozen_part(self, what: str) -> list[nn.Module]:
        if what == "none":
            return []
        if what == "all":
            return [self.network]
        blocks = sum(BLOCKS_PER_STAGE[: int(what)])
        return [self.network._conv_stem, self.network._bn0, *self.network._blocks[:blocks]]


class Head(nn.Sequential):
    """Classification head, which always trains: `(B, 1280)` features to `(B, classes)` logits."""

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__(
            SyncBatchNorm1d(FEATURES),
            nn.Linear(FEATURES, width),
            nn.ReLU(),
            SyncBatchNorm1d(width),
            nn.Linear(width, width // 4),
            nn.ReLU(),
            SyncBatchNorm1d(width // 4),
            nn.Dropout(dropout),
            nn.Linear(width // 4, classes),
        )


class LinearHead(nn.Module):
    """A linear layer over standardized features: `(B, inputs)` features to `(B, classes)` logits.

    `trainer.training.linear_heads` fits it; it has no dropout and no steps.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, classes: int, inputs: int = FEATURES) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.output = nn.Linear(inputs, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits."""
        return self.output((features - self.mean) / self.scale)  # type: ignore[no-any-return]  # (B, classes)


class Classifier(nn.Module):
    """Backbone and head: normalised images `(B, 3, S, S) float32` to logits `(B, classes) float32`."""

    def __init__(self, backbone: Backbone, head: Head | LinearHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits; the head computes in float32 under autocast too, as on cached features."""
        features = self.backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.head(features.float())  # type: ignore[no-any-return]  # (B, classes)


def build_head(config: HeadConfig) -> Head | LinearHead:
    """Return a head with fresh weights."""
    if config.head != "mlp":
        return LinearHead(len(config.classes))
    return Head(len(config.classes), config.width, config.dropout)


def build_model(config: HeadConfig) -> Classifier:
    """Return the model with fresh weights in channels-last memory format, in which convolutions are fastest."""
    model = Classifier(Backbone(config.image_size, config.layout), build_head(config))
    return model.to(memory_format=torch.channels_last)


def _batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def _sync_batch_norm(norm: nn.BatchNorm2d) -> nn.Module:
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]  # untyped in torch
    return converted


def _use_torchvision_layout(network: nn.Module) -> None:
    for norm in _batch_norms(network):
        norm.eps = TORCHVISION_EPSILON
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and hasattr(module, "static_padding"):
            module.static_padding = nn.Identity()
            module.padding = tuple((size - 1) // 2 for size in module.kernel_size)
