"""Checkpoint folders: safetensors and JSON files with a manifest of their sha256, written atomically and verified.

Both formats are plain data: reading them cannot run code.
"""

import errno
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cluster.access import has_no_inode, why_not
from cluster.errors import StorageAway, StorageError
from cluster.files import INFRASTRUCTURE_ERRNOS, is_unanswered, read_json, sha256_of, write_json
from cluster.lease import Lease
from trainer.errors import CheckpointError
from trainer.model.names import MANIFEST_FILE

VERSION = 1
STEP = "step-"  # how the names of checkpoints of a training begin
FOLD = "fold-"  # and those of the models of folds
CHECKPOINTS_TO_KEEP = 2  # the latest, and the one before it in case the latest is damaged

NOT_SPACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ESTALE, errno.EIO)

logger = logging.getLogger(__name__)


def write_checkpoint_folder(
    folder: Path,
    *,
    lease: Lease,
    tensors: Mapping[str, Mapping[str, Tensor]],
    json_files: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Write a safetensors file per entry of `tensors`, a JSON file per entry of `json_files`, and `manifest`.

    The write is atomic: into a draft folder, synced, then renamed; an existing folder of that name is replaced.

    Raises:
        LeaseLost: A newer attempt owns the run; an existing folder stays unchanged.
        CheckpointError: The storage is full or not writable; an existing folder stays unchanged.
    """
    try:
        with lease.atomic_folder(folder) as draft:
            for name, group in tensors.items():
                content = save({key: value.detach().cpu().contiguous() for key, value in group.items()})
                (draft / name).write_bytes(content)
            for name, value in json_files.items():
                write_json(draft / name, value)
            files = {file.name: sha256_of(file) for file in sorted(draft.iterdir())}
            write_json(draft / MANIFEST_FILE, {"version": VERSION, "files": files, **manifest})
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
        raise CheckpointError(
            f"{folder.name} ({size / 10**6:.1f} MB) cannot be saved in {folder.parent}: {_fault(error, folder.parent)} "
            "and retry the run; it resumes from its last valid checkpoint"
        ) from error


def read_verified_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest after comparing the sha256 of every file with it.

    Raises:
        CheckpointError: The folder does not exist, is damaged, or has another version.
        StorageError: The disk of a file or its server fails, so nobody knows; its cause says why.
        OSError: A file cannot be read for another reason, such as missing permission.
    """
    try:
        manifest = read_json(folder / MANIFEST_FILE)
    except StorageError as error:
        if is_unanswered(error):
            raise StorageAway(str(error)) from error
        raise CheckpointError(f"{folder} is not a checkpoint: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else None
        raise CheckpointError(f"{folder} has version {found} and this program reads version {VERSION}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{folder} is damaged: {MANIFEST_FILE} names no files")
    for name, expected in files.items():
        path = folder / Path(name).name
        if not path.is_file() or _sha256(path) != expected:
            raise CheckpointError(f"{folder} is damaged: {name} does not match its sha256 in {MANIFEST_FILE}")
    return manifest


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        if error.errno not in INFRASTRUCTURE_ERRNOS:
            raise
        cure = "restore it"
        if path.parent.name.startswith(STEP):
            cure = f"delete {path.parent}: the run resumes from the checkpoint before it"
        elif path.parent.name.startswith(FOLD):
            cure = f"delete {path.parent}: the run trains this fold again"
        raise StorageError(
            f"{path} cannot be read ({error.strerror}); repair its disk or its server, or {cure}"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        CheckpointError: The file does not exist, is damaged, or has another format, such as a pickle.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {_reason(error)}") from error


def latest_valid_checkpoint(folder: Path) -> Path | None:
    """Return the latest valid `step-N` folder; log a warning for each damaged one."""
    for candidate in reversed(_by_step(folder)):
        try:
            read_verified_manifest(candidate)
        except CheckpointError as error:
            logger.warning("%s; using the checkpoint before it", error)
            continue
        return candidate
    return None


def step_folder(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return folder / f"{STEP}{step:09d}"


def remove_old_checkpoints(folder: Path, lease: Lease) -> None:
    """Delete all but the latest checkpoints."""
    for old in _by_step(folder)[:-CHECKPOINTS_TO_KEEP]:
        lease.remove(old)


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{STEP}*"))


def _fault(error: Exception, folder: Path) -> str:
    """Return why nothing could be written, and the cure."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not has_no_inode(folder):
        return f"{_reason(error)}, {shutil.disk_usage(folder).free / 10**6:.1f} MB are free; free space there"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, *NOT_SPACE):
        return why_not(error, folder, "make it writable")
    return f"{_reason(error)}; free space there"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
