"""The published model: `best/` with `model.safetensors`, `head.json` and `manifest.json`."""

from pathlib import Path
from typing import Any

import torch

from trainer.errors import CheckpointError
from trainer.model.efficientnet import Classifier, build_model
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD, MODEL
from trainer.model.tensor_folder import read_manifest, read_tensors, write_folder


def publish_model(folder: Path, model: Classifier, config: HeadConfig, about: dict[str, Any]) -> None:
    """Write the model so that it appears whole.

    Raises:
        CheckpointError: The storage is full or cannot be written.
    """
    write_folder(folder, tensors={MODEL: model.state_dict()}, facts={HEAD: config.model_dump(mode="json")}, about=about)


def weights_sha256(folder: Path) -> str:
    """Return the sha256 of a published model's weights, which its manifest vouches for.

    Raises:
        CheckpointError: The folder is no published model, damaged, or of another version.
    """
    return str(read_manifest(folder)["files"][MODEL])


def read_model(folder: Path) -> tuple[Classifier, HeadConfig, dict[str, Any]]:
    """Return a published model in eval mode, its description and its manifest.

    Raises:
        CheckpointError: The folder is no published model, damaged, or of another version.
    """
    manifest = read_manifest(folder)
    if missing := {MODEL, HEAD} - manifest["files"].keys():
        raise CheckpointError(f"{folder} is no published model: its manifest has no {min(missing)}")
    config = HeadConfig.read(folder / HEAD)
    with torch.device("meta"):
        model = build_model(config)
    tensors = read_tensors(folder / MODEL)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: {MODEL} does not fit {HEAD}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.to(memory_format=torch.channels_last).eval(), config, manifest
