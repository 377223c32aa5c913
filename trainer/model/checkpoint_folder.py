"""Folders of tensors and facts that appear whole, say what they hold, and are checked before they are loaded.

Tensors are safetensors and facts are JSON: nothing here can run code when it is read.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cluster.errors import StorageError
from cluster.files import read_json, sha256_of, write_json
from trainer.errors import CheckpointError
from trainer.model.names import MANIFEST_FILE

VERSION = 1
KEEP = 2  # the newest, and the one before it for when the newest is damaged

logger = logging.getLogger(__name__)


def write_checkpoint_folder(
    folder: Path,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    json_files: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Write a safetensors file per entry of `tensors`, a JSON file per entry of `json_files`, and `manifest`.

    The folder appears whole: it is written aside, synced and renamed; one of the same name is replaced.

    Raises:
        CheckpointError: The storage is full or cannot be written; what was there before stays.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(parents=True)
        for name, group in tensors.items():
            (draft / name).write_bytes(save({key: value.detach().cpu().contiguous() for key, value in group.items()}))
        for name, value in json_files.items():
            write_json(draft / name, value)
        files = {file.name: sha256_of(file) for file in sorted(draft.iterdir())}
        write_json(draft / MANIFEST_FILE, {"version": VERSION, "files": files, **manifest})
        _sync(draft)
        _replace(draft, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder.name} cannot be saved in {folder.parent}: {_reason(error)}; "
            "free space there and retry the run: it goes on from the last good checkpoint"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_verified_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder whose files are all as it says.

    Raises:
        CheckpointError: The folder is absent, damaged, or of another version.
    """
    try:
        manifest = read_json(folder / MANIFEST_FILE)
    except StorageError as error:
        raise CheckpointError(f"{folder} is no checkpoint: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else None
        raise CheckpointError(f"{folder} is of version {found}, this program reads version {VERSION}")
    for name, promised in manifest["files"].items():
        path = folder / Path(name).name
        if not path.is_file() or sha256_of(path) != promised:
            raise CheckpointError(f"{folder} is damaged: {name} differs from its sha256 in {MANIFEST_FILE}")
    return manifest


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        CheckpointError: The file is absent, damaged, or of another format, such as a pickle.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {_reason(error)}") from error


def latest_valid_checkpoint(folder: Path) -> Path | None:
    """Return the newest undamaged `step-N` folder; of each damaged one a warning is logged."""
    for candidate in reversed(_numbered(folder)):
        try:
            read_verified_manifest(candidate)
        except CheckpointError as error:
            logger.warning("%s; going on from the one before", error)
            continue
        return candidate
    return None


def step_folder(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return folder / f"step-{step:09d}"


def remove_old_checkpoints(folder: Path) -> None:
    """Keep the newest checkpoints only."""
    for old in _numbered(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _replace(draft: Path, folder: Path) -> None:
    if folder.exists():
        aside = draft.with_name(f"{draft.name}.old")
        folder.rename(aside)
        draft.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        draft.rename(folder)
    _sync(folder.parent, files=False)


def _sync(folder: Path, *, files: bool = True) -> None:
    for path in [*(sorted(folder.iterdir()) if files else []), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
