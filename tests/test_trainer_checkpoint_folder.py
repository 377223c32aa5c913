import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch

from cluster.access import INODE_CURE, NO_INODE
from cluster.errors import StorageAway, StorageError
from tests.disks import small_disk
from tests.trained import lease_in
from trainer.errors import CheckpointError, infrastructure_fault
from trainer.model.checkpoint_folder import (
    latest_valid_checkpoint,
    read_tensors,
    read_verified_manifest,
    remove_old_checkpoints,
    step_folder,
    write_checkpoint_folder,
)

FILES = ("model.safetensors", "position.json", "manifest.json")


def write(folder, value=1.0):
    write_checkpoint_folder(
        folder,
        lease=lease_in(folder.parent),
        tensors={"model.safetensors": {"weight": torch.full((1000,), value)}},
        json_files={"position.json": {"step": 3}},
        manifest={"attempt": 1},
    )


def names_in(folder):
    """The checkpoints in a folder, which the tests use as the folder of a run too."""
    return sorted(path.name for path in folder.iterdir() if path.name != "attempts")


def test_a_checkpoint_reads_back_as_written(tmp_path):
    write(tmp_path / "step-3")

    manifest = read_verified_manifest(tmp_path / "step-3")

    assert manifest["attempt"] == 1
    assert manifest["files"].keys() == {"model.safetensors", "position.json"}
    assert torch.equal(read_tensors(tmp_path / "step-3" / "model.safetensors")["weight"], torch.ones(1000))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [0, 1, 40])
def test_a_truncated_file_is_detected_and_the_checkpoint_before_it_is_used(tmp_path, caplog, name, size):
    write(step_folder(tmp_path, 1))
    write(step_folder(tmp_path, 2))
    with (step_folder(tmp_path, 2) / name).open("r+b") as file:
        file.truncate(min(size, (step_folder(tmp_path, 2) / name).stat().st_size - 1))

    found = latest_valid_checkpoint(tmp_path)

    assert found == step_folder(tmp_path, 1)
    assert "using the checkpoint before it" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_each_missing_file_is_detected(tmp_path, name):
    write(tmp_path / "step-1")
    (tmp_path / "step-1" / name).unlink()

    with pytest.raises(CheckpointError, match="step-1"):
        read_verified_manifest(tmp_path / "step-1")


def test_one_changed_byte_is_detected(tmp_path):
    write(tmp_path / "step-1")
    with (tmp_path / "step-1" / "model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\xff")

    with pytest.raises(CheckpointError, match=r"is damaged: model\.safetensors does not match its sha256"):
        read_verified_manifest(tmp_path / "step-1")


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    write(tmp_path / "step-1")
    manifest = json.loads((tmp_path / "step-1" / "manifest.json").read_text())
    (tmp_path / "step-1" / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))

    with pytest.raises(CheckpointError, match="has version 2 and this program reads version 1"):
        read_verified_manifest(tmp_path / "step-1")


@pytest.mark.parametrize("files", [None, {}, [], "model.safetensors", 5, {"model.safetensors": 5}, {"": "0" * 64}])
def test_a_checkpoint_whose_manifest_names_no_file_is_damaged(tmp_path, files):
    for step in (1, 2):
        write(step_folder(tmp_path, step))
    (step_folder(tmp_path, 2) / "manifest.json").write_text(json.dumps({"version": 1, "files": files}))

    with pytest.raises(CheckpointError, match="is damaged"):
        read_verified_manifest(step_folder(tmp_path, 2))

    assert latest_valid_checkpoint(tmp_path) == step_folder(tmp_path, 1)


def test_a_pickle_is_not_read_as_tensors(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "model.safetensors")


def test_a_full_disk_leaves_the_last_valid_checkpoint_and_no_partial_file(tmp_path):
    write(step_folder(tmp_path, 1))

    with file_size_limit(2000), pytest.raises(CheckpointError, match="free space there and retry the run"):
        write(step_folder(tmp_path, 2))

    assert names_in(tmp_path) == ["step-000000001"]
    assert not list(tmp_path.glob("attempts/*.drafts/*"))
    assert latest_valid_checkpoint(tmp_path) == step_folder(tmp_path, 1)


def test_a_checkpoint_that_cannot_be_saved_says_how_much_it_needs_and_what_the_disk_lacks(tmp_path):
    last = "and retry the run; it resumes from its last valid checkpoint"
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        runs = disk.folder / "checkpoints"
        write(step_folder(runs, 1))
        lease = lease_in(runs)
        folder, why = step_folder(runs, 2), []
        for spoil in (lambda: None, disk.take_inodes, disk.make_read_only):
            spoil()
            with pytest.raises(CheckpointError) as error:
                write_checkpoint_folder(
                    folder,
                    lease=lease,
                    tensors={"model.safetensors": {"weight": torch.ones(500_000)}},
                    json_files={},
                    manifest={},
                )
            why.append(str(error.value))
        free = shutil.disk_usage(runs).free / 10**6

    start = f"step-000000002 (2.0 MB) cannot be saved in {runs}"
    assert why == [
        f"{start}: No space left on device, {free:.1f} MB are free; free space there {last}",
        f"{start}: {NO_INODE}; {INODE_CURE} {last}",
        f"{start}: Read-only file system; mount it writable or repair its server, then restart what mounts it; or "
        f"correct NIGHTSHIFT_STORAGE {last}",
    ]


def test_writing_a_checkpoint_again_replaces_it(tmp_path):
    write(tmp_path / "best", 1.0)
    write(tmp_path / "best", 2.0)

    read_verified_manifest(tmp_path / "best")

    assert read_tensors(tmp_path / "best" / "model.safetensors")["weight"][0] == 2
    assert names_in(tmp_path) == ["best"]


def test_the_latest_two_checkpoints_are_kept(tmp_path):
    for step in (9, 10, 100):
        write(step_folder(tmp_path, step))

    remove_old_checkpoints(tmp_path, lease_in(tmp_path))

    assert names_in(tmp_path) == ["step-000000010", "step-000000100"]


def test_without_a_checkpoint_none_is_returned(tmp_path):
    write(tmp_path / "step-1")
    shutil.rmtree(tmp_path / "step-1")

    assert latest_valid_checkpoint(tmp_path) is None


@contextmanager
def file_size_limit(size):
    """Make writes beyond `size` bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    write(step_folder(tmp_path, 1))
    write(step_folder(tmp_path, 2))

    def unanswered(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as failing:
        failing.setattr("cluster.files.read_content", unanswered)
        with pytest.raises(StorageAway, match="Input/output error"):
            latest_valid_checkpoint(tmp_path)

    assert latest_valid_checkpoint(tmp_path) == step_folder(tmp_path, 2)


def test_a_checkpoint_with_a_bad_block_is_named_with_the_cure(tmp_path):
    write(step_folder(tmp_path, 1))
    write(step_folder(tmp_path, 2))
    [file, *_] = sorted(step_folder(tmp_path, 2).glob("*.safetensors"))
    file.unlink()
    file.symlink_to("/proc/self/mem")  # reading it gives EIO, as a bad block does

    with pytest.raises(StorageError) as caught:
        latest_valid_checkpoint(tmp_path)

    assert str(caught.value) == (
        f"{file} cannot be read (Input/output error); repair its disk or its server, or delete {file.parent}: the run "
        "resumes from the checkpoint before it"
    )
    assert infrastructure_fault(caught.value) is not None  # so that it is tried again, for a while


@pytest.mark.parametrize(
    ("name", "cure"),
    [("fold-001-002", "delete {folder}: the run trains this fold again"), ("best", "restore it")],
)
def test_a_bad_block_of_what_is_no_step_has_its_own_cure(tmp_path, name, cure):
    write(tmp_path / name)
    [file, *_] = sorted((tmp_path / name).glob("*.safetensors"))
    file.unlink()
    file.symlink_to("/proc/self/mem")

    with pytest.raises(StorageError) as caught:
        read_verified_manifest(tmp_path / name)

    assert str(caught.value).endswith(f"repair its disk or its server, or {cure.format(folder=tmp_path / name)}")


def test_a_checkpoint_that_may_not_be_read_is_not_said_to_be_on_a_bad_disk(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    write(step_folder(tmp_path, 1))
    monkeypatch.setattr("trainer.model.checkpoint_folder.sha256_of", forbidden)

    with pytest.raises(PermissionError, match="Permission denied"):
        latest_valid_checkpoint(tmp_path)
