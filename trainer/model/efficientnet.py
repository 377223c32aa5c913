"""EfficientNet-B0 with our head, and what of it trains."""

from typing import Self

import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor, nn

from trainer.model.head import FEATURES, HeadConfig, Layout
from trainer.model.names import BLOCKS_PER_STAGE
from trainer.model.sync_batch_norm import MOMENTUM, SyncBatchNorm1d

TORCHVISION_EPSILON = 1e-5  # torchvision's EfficientNet-B0 keeps nn.BatchNorm2d's default; the other uses 1e-3


class Backbone(nn.Module):
    """EfficientNet-B0 up to the pooled features: `(B, 3, S, S) float32` to `(B, 1280)`.

    Frozen modules stay in eval mode: with `requires_grad=False` alone, `train()` would still move
    their batch-norm statistics and drop their connections.
    """

    def __init__(self, image_size: int, layout: Layout = "efficientnet_pytorch") -> None:
        super().__init__()
        self.network: EfficientNet = EfficientNet.from_name("efficientnet-b0", include_top=False, image_size=image_size)
        self.network.set_swish(memory_efficient=False)  # SiLU: 21 instead of 15 images/s on two cores
        self.still: list[nn.Module] = []  # stay in eval mode
        for norm in _norms(self.network):
            norm.momentum = MOMENTUM  # the package's 0.01 would take thousands of steps to follow the weights
        if layout == "torchvision":
            _follow_torchvision(self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features of normalised images."""
        return self.network(images).flatten(1)  # type: ignore[no-any-return]  # (B, 1280)

    def freeze(self, what: str, *, freeze_bn_statistics: bool = False) -> Self:
        """Freeze "all", "none", or the stem and the first N stages ("1" to "7").

        With `freeze_bn_statistics` the batch norms of the trainable part keep the running statistics of the weights.
        Their scales and shifts learn all the same.
        """
        frozen = self._parts(what)
        for part in frozen:
            part.requires_grad_(False)
        self.still = [*frozen, *(_norms(self.network) if freeze_bn_statistics else [])]
        return self.train(self.training)

    def convert_sync_batchnorm(self) -> Self:
        """Let the batch norms that train take the statistics of a step over all ranks; on GPUs only.

        The names of the tensors stay as they are.
        """
        still = {module for part in self.still for module in part.modules()}
        for parent in list(self.network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d) and child not in still:
                    setattr(parent, name, _synchronised(child))
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of what is not frozen."""
        super().train(mode)
        for part in self.still:
            part.eval()
        return self

    def _parts(self, what: str) -> list[nn.Module]:
        if what == "none":
            return []
        if what == "all":
            return [self.network]
        blocks = sum(BLOCKS_PER_STAGE[: int(what)])
        return [self.network._conv_stem, self.network._bn0, *self.network._blocks[:blocks]]


class Head(nn.Sequential):
    """The part that always trains: `(B, 1280)` features to `(B, classes)` logits."""

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


class Classifier(nn.Module):
    """Backbone and head: normalised images `(B, 3, S, S) float32` to logits `(B, classes) float32`."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits; the head computes in float32 even under autocast, as it does on stored features."""
        features = self.backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.head(features.float())  # type: ignore[no-any-return]  # (B, classes)


def build_head(config: HeadConfig) -> Head:
    """Return a head with fresh weights."""
    return Head(len(config.classes), config.width, config.dropout)


def build_model(config: HeadConfig) -> Classifier:
    """Return the whole model with fresh weights, in the memory format that convolutions run fastest in."""
    model = Classifier(Backbone(config.image_size, config.layout), build_head(config))
    return model.to(memory_format=torch.channels_last)


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def _synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    found: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]  # torch's
    return found


def _follow_torchvision(network: nn.Module) -> None:
    for norm in _norms(network):
        norm.eps = TORCHVISION_EPSILON
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and hasattr(module, "static_padding"):
            module.static_padding = nn.Identity()
            module.padding = tuple((size - 1) // 2 for size in module.kernel_size)
