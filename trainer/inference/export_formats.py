"""The file formats of `export`: writing a model with its metadata, and running the file."""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_shards.pack.options import EncodeOptions
from trainer.errors import SpecError
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.multi_label_calibration import label_calibration, thresholds
from trainer.model.efficientnet import Classifier
from trainer.model.head import HeadConfig

METADATA_FILE = "nightshift.json"  # inside a TorchScript file

Metadata = Mapping[str, str]
Probabilities = NDArray[np.float32]

RESIZE = "short side to image_size with antialiased bilinear filter, then the centre square"


class ExportedModel(nn.Module):
    """`(B, 3, S, S) uint8` RGB images, cut to the square, to `(B, classes) float32` probabilities.

    Normalisation and temperature are part of the model, so that the caller cannot get them wrong.
    """

    mean: Tensor
    std: Tensor
    temperatures: Tensor

    def __init__(self, model: Classifier, config: HeadConfig, calibration: Calibration) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)
        self.multi_label = config.multi_label
        self.temperature = calibration.temperature
        if config.multi_label:
            each = [label_calibration(calibration, name).temperature for name in config.classes]
            self.register_buffer("temperatures", torch.tensor(each))
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1) * 255)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of each class."""
        logits = self.model((images.float() - self.mean) / self.std)  # (B, classes)
        if self.multi_label:
            return torch.sigmoid(logits / self.temperatures)
        return torch.softmax(logits / self.temperature, dim=1)


def export_metadata(config: HeadConfig, calibration: Calibration, weights: str) -> dict[str, str]:
    """Return the metadata of the file as text values; `classes` is a JSON list."""
    threshold, positive = calibration.threshold, calibration.positive
    decision = (
        "the likeliest class" if threshold is None else f"{positive} from {threshold}, else the likeliest other class"
    )
    return {
        "classes": json.dumps(config.classes),
        "input": f"images: uint8 (batch, 3, {config.image_size}, {config.image_size}), RGB, not normalised",
        "pack": _pack_step(config),
        "pack_options": json.dumps(_pack_options(config)),
        "color": config.color,
        "resize": RESIZE,
        "image_size": str(config.image_size),
        "normalisation": "inside",
        "mean": " ".join(map(str, config.mean)),
        "std": " ".join(map(str, config.std)),
        "temperature": f"inside, {calibration.temperature}",
        "positive": positive or "",
        "threshold": "" if threshold is None else repr(threshold),
        "threshold_name": calibration.threshold_name or "",
        "decision": decision,
        "weights_sha256": weights,
        **(_label_metadata(config, calibration) if config.multi_label else {}),
    }


def _label_metadata(config: HeadConfig, calibration: Calibration) -> dict[str, str]:
    """Return what differs in the metadata of a multi-label model; `thresholds` is a JSON object by label."""
    each = {name: label_calibration(calibration, name).temperature for name in config.classes}
    at = dict(zip(config.classes, thresholds(calibration, config.classes).tolist(), strict=True))
    return {
        "multi_label": "true",
        "temperature": f"inside, {json.dumps(each)}",
        "thresholds": json.dumps(at),
        "decision": "each label whose probability is at least its threshold; none or several",
    }


def _pack_options(config: HeadConfig) -> dict[str, int | str]:
    """Return what `_pack_step` says, for programs; a size of 0 means that images keep theirs."""
    pack = config.pack or EncodeOptions(image_size=0)
    return {"image_size": pack.image_size, "encoding": pack.encoding, "quality": pack.quality}


def _pack_step(config: HeadConfig) -> str:
    """Describe what was done to the training images before `resize`; "" if the model does not record it."""
    if config.pack is None:
        return ""
    gray = "; color images converted to gray" if config.color == "L" else ""
    form = "PNG" if config.pack.encoding == "lossless" else f"JPEG of quality {config.pack.quality} without subsampling"
    if not config.pack.image_size:
        return f"before the resize: JPEG and PNG files unchanged, others as {form}{gray}"
    size = f"short side reduced to {config.pack.image_size} with a Lanczos filter"
    if config.pack.keep_small:
        return f"before the resize: {size} and stored as {form}; smaller JPEG and PNG files unchanged{gray}"
    return f"before the resize: {size} if it is longer, and stored as {form}{gray}"


class ExportFormat(Protocol):
    """One file format."""

    @property
    def ending(self) -> str:
        """Suffix of the file name."""

    def write(self, model: ExportedModel, sample: Tensor, metadata: Metadata, path: Path) -> None:
        """Write the model with its metadata; `sample` is a batch of example images."""

    def run(self, path: Path, images: Tensor) -> Probabilities:
        """Return the probabilities that the file computes for images."""

    def metadata(self, path: Path) -> dict[str, str]:
        """Return the metadata of a file."""


@dataclass(frozen=True)
class Onnx:
    """ONNX, written by torch.export and run by onnxruntime."""

    ending: str = "onnx"

    def write(self, model: ExportedModel, sample: Tensor, metadata: Metadata, path: Path) -> None:
        """Write the model with its metadata; the batch may have any size.

        Raises:
            SpecError: The packages for ONNX are not installed.
        """
        onnx = _onnx()
        for name in ("onnxscript", "onnx_ir"):  # they log every folded constant
            logging.getLogger(name).setLevel(logging.WARNING)
        with _deprecated_in_torch():
            program = torch.onnx.export(
                model,
                (sample,),
                dynamo=True,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes={"images": {0: "batch"}},
                verbose=False,
            )
        assert program is not None  # noqa: S101 -- None only without dynamo
        proto = program.model_proto
        onnx.helper.set_model_props(proto, dict(metadata))
        onnx.checker.check_model(proto)
        onnx.save(proto, path)

    def run(self, path: Path, images: Tensor) -> Probabilities:
        """Return the probabilities that onnxruntime computes."""
        session = _session(path)
        return np.asarray(session.run(None, {"images": images.numpy()})[0])

    def metadata(self, path: Path) -> dict[str, str]:
        """Return the metadata as onnxruntime reads it."""
        return dict(_session(path).get_modelmeta().custom_metadata_map)


@dataclass(frozen=True)
class TorchScript:
    """TorchScript by tracing, for C++ programs that load it; deprecated in torch."""

    ending: str = "pt"

    def write(self, model: ExportedModel, sample: Tensor, metadata: Metadata, path: Path) -> None:
        """Write the model with its metadata.

        Raises:
            OSError: The disk is full or not writable.
        """
        with torch.no_grad(), _deprecated_in_torch():
            traced = torch.jit.freeze(torch.jit.trace(model, sample))  # type: ignore[no-untyped-call]
            file = io.BytesIO()  # torch's own writer aborts the process where the disk is full
            torch.jit.save(traced, file, _extra_files={METADATA_FILE: json.dumps(dict(metadata))})
            path.write_bytes(file.getbuffer())

    def run(self, path: Path, images: Tensor) -> Probabilities:
        """Return the probabilities that the loaded file computes."""
        with torch.no_grad():
            return np.asarray(self._load(path)(images).numpy())

    def metadata(self, path: Path) -> dict[str, str]:
        """Return the metadata."""
        content = {METADATA_FILE: b""}
        self._load(path, content)
        return dict(json.loads(content[METADATA_FILE]))

    def _load(self, path: Path, extra: dict[str, Any] | None = None) -> Any:
        with _deprecated_in_torch():
            return torch.jit.load(path, _extra_files=extra)  # type: ignore[no-untyped-call]


@contextmanager
def _deprecated_in_torch() -> Iterator[None]:
    """Let torch not warn of TorchScript, which the user asked for, and of what its export to ONNX does itself.

    The kind of warning differs between versions of torch.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


EXPORT_FORMATS: dict[str, ExportFormat] = {"onnx": Onnx(), "torchscript": TorchScript()}


def _onnx() -> Any:
    try:
        import onnx  # noqa: PLC0415 -- an optional dependency
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise SpecError(f"--format onnx needs the package {error.name}; pip install 'nightshift[onnx]'") from error
    return onnx


def _session(path: Path) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415 -- an optional dependency
    except ImportError as error:
        raise SpecError(f"--format onnx needs the package {error.name}; pip install 'nightshift[onnx]'") from error
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
