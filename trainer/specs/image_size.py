"""Compares the input size of a model with the size of the images in a data set. Imports neither torch nor ray."""

from data_shards.index import ShardIndex
from trainer.errors import ModelMismatch, SpecError

NATIVE_PIXELS = 224  # EfficientNet-B0 was trained with this input (Tan & Le 2019); smaller images are enlarged to it


def check_training_size(image_size: int, index: ShardIndex, shards: str) -> None:
    """Refuse to train with a larger input than the images have.

    Raises:
        SpecError: The shards hold smaller images; the text says how to get larger ones.
    """
    largest = largest_input(index)
    if largest is None or image_size <= largest:
        return
    if _is_reduced(index) or image_size <= NATIVE_PIXELS:
        raise SpecError(
            f"--image-size {image_size} is above the {largest} pixels of the short side that {shards} stores; "
            f"use --image-size {largest} or less, or pack the images again with --image-size {image_size}"
        )
    raise SpecError(
        f"--image-size {image_size} is above the short side of every image in {shards}, "
        f"{_short_side(index)} pixels or less; use --image-size {largest} or less"
    )


def check_model_input(image_size: int, index: ShardIndex, shards: str) -> None:
    """Refuse a data set with smaller images than the model's input.

    Raises:
        ModelMismatch: The shards hold smaller images; the text says how to get larger ones.
    """
    largest = largest_input(index)
    if largest is None or image_size <= largest:
        return
    fault = f"the model's input has {image_size} pixels and the images in {shards} have a short side of at most"
    if _is_reduced(index) or image_size <= NATIVE_PIXELS:
        raise ModelMismatch(f"{fault} {index.image_size}; pack them again with --image-size {image_size}")
    raise ModelMismatch(f"{fault} {_short_side(index)}; use larger images, or a model with a smaller --image-size")


def largest_input(index: ShardIndex) -> int | None:
    """Return the largest input size in pixels that the images of a data set can fill; None if it is not known.

    Packing limits it with `--image-size`. Source images that are smaller still are enlarged up to `NATIVE_PIXELS`.
    """
    source = _short_side(index)
    limits = [index.image_size] if index.image_size else []
    if source:
        limits.append(max(source, NATIVE_PIXELS))
    return min(limits, default=None)


def _short_side(index: ShardIndex) -> int:
    """Return an upper bound of the short side of the source images in pixels; 0 if it is not known."""
    return min(index.widths[2], index.heights[2])


def _is_reduced(index: ShardIndex) -> bool:
    """Whether packing made images smaller, so that packing again gives larger ones."""
    return bool(index.image_size) and not 0 < _short_side(index) <= index.image_size
