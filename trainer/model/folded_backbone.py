"""Fast inference with a frozen backbone: folded batch norms, channels last, bf16 and micro-batches."""

import copy
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from efficientnet_pytorch.model import EfficientNet, MBConvBlock
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trainer.model.efficientnet import Backbone
from trainer.model.precision import DTYPES

# Images per micro-batch. Few on a CPU, so that a layer's activations stay in the cache; many on a GPU to fill it.
MICRO_BATCH_CPU = 8
MICRO_BATCH_GPU = 256
FEWEST_GPU = 16  # images that a GPU computes: with fewer it has nothing to do in parallel
FEW_GPU = 32  # the smaller one of two sizes


class FoldedBackbone:
    """A frozen copy of a backbone: batch norms folded into convolutions, channels last, in micro-batches.

    On a CPU each thread computes its own micro-batches. Threads that share one synchronise after every small
    operation: 80 instead of 110 images/s on two idle cores, and 10 instead of 70 on busy ones.

    On a GPU a batch is filled up to the next power of two, because cuDNN plans each convolution anew for each size of
    batch, which takes seconds. With `two_sizes` it is filled up to one of two: for batches that are full but for the
    last ones of shards, which have any size.
    """

    def __init__(self, backbone: Backbone, precision: str, device: torch.device, *, two_sizes: bool = False) -> None:
        self.device, self.two_sizes = device, two_sizes
        self.dtype = DTYPES[precision]
        self.fills = device.type == "cuda"
        self.micro_batch = MICRO_BATCH_GPU if self.fills else MICRO_BATCH_CPU
        self.network = _fold_network(copy.deepcopy(backbone.network).eval().requires_grad_(False))
        self.network = self.network.to(device, self.dtype).to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `(B, 1280) float32` features of `(B, C, S, S) uint8` images, on the CPU."""
        return self.on_device(images, normalise).cpu()

    def on_device(self, images: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `(B, 1280) float32` features of `(B, C, S, S) uint8` images, on the device.

        On a GPU this does not wait for them; copies of pinned images overlap with the computation before.
        """

        def features(part: Tensor) -> Tensor:
            return self._maps(part, normalise).mean((2, 3), dtype=torch.float32)

        return self._in_parts(images, features)

    def feature_maps(self, images: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the last feature maps `(B, 1280, S/32, S/32)` of `(B, C, S, S) uint8` images, on the device."""
        return self._in_parts(images, lambda part: self._maps(part, normalise))

    def _in_parts(self, images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        if self.fills:
            parts = torch.split(images.to(self.device, non_blocking=True), self.micro_batch)
            return torch.cat([compute(self._filled(part))[: len(part)] for part in parts])
        parts, threads = torch.split(images, self.micro_batch), torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1 or len(parts) == 1:
            return torch.cat([compute(part) for part in parts])
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return torch.cat(list(pool.map(compute, parts)))
        finally:
            torch.set_num_threads(threads)  # the last value also applies to threads that start later

    def _filled(self, images: Tensor) -> Tensor:
        """Return the images with black ones behind them, as many as other batches have."""
        if self.two_sizes:
            size = FEW_GPU if len(images) <= FEW_GPU else self.micro_batch
        else:
            size = max(FEWEST_GPU, 1 << (len(images) - 1).bit_length())
        return filled_up(images, size)

    @torch.no_grad()  # not inference_mode: autograd saves features as inputs of a head that trains
    def _maps(self, images: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
        on_device = normalise(images.to(self.device, non_blocking=True)).to(self.dtype)
        return self.network.extract_features(on_device)  # type: ignore[no-any-return]  # (b, 1280, S/32, S/32)


def filled_up(images: Tensor, size: int) -> Tensor:
    """Return images `(B, C, S, S)` with images of zeros behind them, `size` in all."""
    return functional.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(images)))


def _fold_network(network: EfficientNet) -> EfficientNet:
    """Fold each batch norm into the convolution before it, and symmetric padding into the convolution."""
    _fold(network, "_conv_stem", "_bn0")
    _fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        _fold_block(block)
    return network


def _fold_block(block: MBConvBlock) -> None:
    if block._block_args.expand_ratio != 1:
        _fold(block, "_expand_conv", "_bn0")
    _fold(block, "_depthwise_conv", "_bn1")
    _fold(block, "_project_conv", "_bn2")


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(parent, convolution), getattr(parent, norm))
    _fold_padding(fused)
    setattr(parent, convolution, fused)
    setattr(parent, norm, nn.Identity())


def _fold_padding(convolution: nn.Module) -> None:
    pad = convolution.static_padding
    if isinstance(pad, nn.ZeroPad2d) and len(set(itertools.chain(pad.padding))) == 1:
        convolution.padding = (pad.padding[0], pad.padding[0])  # type: ignore[assignment]
        convolution.static_padding = nn.Identity()
