"""Classify image files with an exported model, without Nightshift; needs numpy, onnxruntime and pillow.

nightshift export MODEL --format onnx --output model.onnx
python predict_onnx.py model.onnx IMAGE...
"""

import io
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(file, size, color, packed):
    """Return an 8-bit image as the model's input, uint8 (1, 3, size, size), as `shards pack` and `predict` treat it."""
    image = Image.open(file)
    if 0 < packed["image_size"] < min(image.size):  # smaller images were stored unchanged
        image = ImageOps.exif_transpose(image).convert("RGB")
        scale, stored = packed["image_size"] / min(image.size), io.BytesIO()
        form = "PNG" if packed["encoding"] == "lossless" else "JPEG"
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
        image.save(stored, format=form, quality=packed["quality"], subsampling=0)
        image = Image.open(stored)
    image.draft(
        color, [side * size // min(image.size) for side in image.size]
    )  # a large JPEG is decoded at 1/2 or less
    image = ImageOps.exif_transpose(image).convert(color)
    (left, right), (top, bottom) = (center(side, size, min(image.size)) for side in image.size)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(square.convert("RGB")).transpose(2, 0, 1)[None]


def center(side, size, short):
    """Return the part of a side that stays when the short side becomes `size` and the center is cut out."""
    resized = int(size * side / short)
    first = round((resized - size) / 2)
    return first * side / resized, (first + size) * side / resized


def main(model, files):
    """Print the probabilities of each file as a line of JSON."""
    session = onnxruntime.InferenceSession(model)
    about = session.get_modelmeta().custom_metadata_map
    size, color, packed = int(about["image_size"]), about["color"], json.loads(about["pack_options"])
    classes = json.loads(about["classes"])
    for file in files:
        (found,) = session.run(None, {"images": pixels(file, size, color, packed)})[0]
        print(json.dumps({"file": file, **dict(zip(classes, found.round(6).tolist(), strict=True))}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
