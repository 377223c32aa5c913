"""The published model: `best/` with `model.safetensors`, `head.json` and `manifest.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.lease import Lease
from trainer.errors import CheckpointError
from trainer.model.checkpoint_folder import read_tensors, read_verified_manifest, write_checkpoint_folder
from trainer.model.efficientnet import Classifier, build_model
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD_FILE, MODEL_FILE
from trainer.result import result_mismatch


def publish_model(
    folder: Path,
    model: Classifier,
    config: HeadConfig,
    manifest: dict[str, Any],
    *,
    lease: Lease,
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a published model atomically; `beside` is further files of tensors, by name.

    Raises:
        LeaseLost: A newer attempt owns the run.
        CheckpointError: The storage is full or cannot be written.
    """
    write_checkpoint_folder(
        folder,
        lease=lease,
        tensors={MODEL_FILE: model.state_dict(), **(beside or {})},
        json_files={HEAD_FILE: config.to_json()},
        manifest=manifest,
    )


def weights_sha256(folder: Path) -> str:
    """Return the sha256 of a published model's weights from its verified manifest.

    Raises:
        CheckpointError: The folder is not a published model, is damaged, or has another version.
    """
    return str(_manifest(folder)["files"][MODEL_FILE])


def check_unchanged(folder: Path, weights: str) -> dict[str, Any]:
    """Return the verified manifest of a published model whose weights still have this sha256.

    Raises:
        CheckpointError: It was replaced since its metrics were computed, or is damaged.
    """
    manifest = _manifest(folder)
    if manifest["files"][MODEL_FILE] != weights:
        raise CheckpointError(f"{folder} was replaced while this run read it; start the run again")
    return manifest


def read_model(folder: Path) -> tuple[Classifier, HeadConfig, dict[str, Any]]:
    """Return a published model in eval mode, its `HeadConfig` and its manifest.

    Raises:
        CheckpointError: The folder is not a published model, is damaged, has another version, or is not the model that
            the result of its run names.
    """
    manifest = _manifest(folder)
    if mismatch := result_mismatch(folder, str(manifest["files"][MODEL_FILE])):
        raise CheckpointError(mismatch)
    config = HeadConfig.read(folder / HEAD_FILE)
    with torch.device("meta"):
        model = build_model(config)
    tensors = read_tensors(folder / MODEL_FILE)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: {MODEL_FILE} does not fit {HEAD_FILE}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.to(memory_format=torch.channels_last).eval(), config, manifest


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_verified_manifest(folder)
    if missing := {MODEL_FILE, HEAD_FILE} - manifest["files"].keys():
        raise CheckpointError(
            f"{folder} is not a published model: its manifest has no {min(missing)}; give the folder best/ of a run"
        )
    return manifest
