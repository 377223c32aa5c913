"""Adding at the same time, and after an add that was killed."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from data_shards.errors import ShardError, SourceError
from data_shards.index import read_index, write_index
from data_shards.pack import add as add_module
from data_shards.verify import verify
from tests import adding
from tests.adding import NEW, added, new_images
from tests.test_data_shards_pack import infos

made, shards = adding.made, adding.shards


def test_a_second_add_at_the_same_time_is_refused(tmp_path, shards):
    (shards / ".adding").mkdir()

    with (
        FileLock(shards / ".adding/lock"),
        pytest.raises(SourceError, match=r"another add works on .*shards; wait for it"),
    ):
        added(shards, new_images(tmp_path / "new", ["a/1.png"]))


def test_a_data_set_that_changes_during_an_add_is_not_overwritten(tmp_path, shards, monkeypatch):
    changed = tmp_path / "changed"
    shutil.copytree(shards, changed)
    added(changed, new_images(tmp_path / "other", ["b/9.png"], seed=NEW + 50))
    write = add_module.write_shards

    def write_while_somebody_changes_the_index(*arguments, **options):
        shutil.copyfile(changed / "index.json", shards / "index.json")
        return write(*arguments, **options)

    monkeypatch.setattr(add_module, "write_shards", write_while_somebody_changes_the_index)

    with pytest.raises(SourceError, match="was changed while images were added to it; add them again"):
        added(shards, new_images(tmp_path / "new", ["a/1.png"]))

    assert read_index(str(shards)) == read_index(str(changed))
    assert not (shards / ".adding").exists()


def test_an_add_that_starts_while_another_one_removes_its_folder_adds_its_images(tmp_path, shards, monkeypatch):
    def lock_after_the_other_add_has_ended(path, **options):
        shutil.rmtree(path.parent)
        return FileLock(path, **options)

    monkeypatch.setattr("data_shards.pack.add_folder.FileLock", lock_after_the_other_add_has_ended)

    report = added(shards, new_images(tmp_path / "new", ["a/1.png"]))

    assert sum(report.added.values()) == 1
    assert not (shards / ".adding").exists()


def test_an_add_whose_process_was_killed_keeps_its_work_for_the_next_one(tmp_path, shards, monkeypatch):
    def write_and_lose_a_process(*arguments, **options):
        raise ShardError("one of 2 processes was killed")

    new = new_images(tmp_path / "new", [f"a/{n}.png" for n in range(4)])
    with monkeypatch.context() as patched:
        patched.setattr(add_module, "write_shards", write_and_lose_a_process)
        with pytest.raises(ShardError, match="was killed"):
            added(shards, new)
    encoded_before = {file.name: file.stat().st_mtime_ns for file in (shards / ".adding/spool").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(add_module, "write_shards", write_and_lose_a_process)
        with pytest.raises(ShardError, match="was killed"):
            added(shards, new)

    assert encoded_before
    assert {file.name: file.stat().st_mtime_ns for file in (shards / ".adding/spool").iterdir()} == encoded_before
    assert sum(added(shards, new).added.values()) == 4
    assert not (shards / ".adding").exists()


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(monkeypatch, number):
    """End the add at the file operation with this number: a rename or a written file."""
    count = 0

    def counting(function):
        def counted(*arguments, **options):
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return function(*arguments, **options)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", counting(Path.replace))
        try:
            yield
        except Killed:
            pass
        else:
            pytest.fail(f"there are fewer than {number} renames")


@pytest.mark.parametrize("number", [1, 3, 5, 9, 13, 14, 15, 17, 20, 21])
def test_an_add_that_is_killed_anywhere_leaves_the_data_set_and_the_next_one_completes_it(
    tmp_path, shards, monkeypatch, number
):
    expected = tmp_path / "expected"
    shutil.copytree(shards, expected)
    new = new_images(tmp_path / "new", [f"a/{n}.png" for n in range(12)])
    added(expected, new)
    before = read_index(str(shards))

    with killed_at(monkeypatch, number):
        added(shards, new)
    between = read_index(str(shards))
    added(shards, new)

    assert between == before
    assert read_index(str(shards)) == read_index(str(expected))
    assert {file.name for file in shards.iterdir()} == {file.name for file in expected.iterdir()}
    assert verify(str(shards)) == ()


def test_an_add_that_is_killed_after_the_index_is_written_has_added_its_images(tmp_path, shards, monkeypatch):
    def write_index_and_die(*arguments):
        write_index(*arguments)
        raise Killed

    new = new_images(tmp_path / "new", ["a/1.png"])
    monkeypatch.setattr("data_shards.pack.add_folder.write_index", write_index_and_die)
    with pytest.raises(Killed):
        added(shards, new)
    monkeypatch.undo()
    between = read_index(str(shards))
    added(shards, new_images(tmp_path / "other", ["b/2.png"], seed=NEW + 500))

    assert sum(between.per_class_in("train+valid+test")) == 41
    assert len(infos(shards)) == 42
    assert verify(str(shards)) == ()
    assert not (shards / ".adding").exists()


@pytest.mark.parametrize("number", [4, 15, 18, 21])
def test_leftovers_of_a_killed_add_are_removed_by_an_add_of_other_images(tmp_path, shards, monkeypatch, number):
    expected = tmp_path / "expected"
    shutil.copytree(shards, expected)
    other = new_images(tmp_path / "other", ["b/other.png"], seed=NEW + 500)
    added(expected, other)

    with killed_at(monkeypatch, number):
        added(shards, new_images(tmp_path / "new", [f"a/{n}.png" for n in range(12)]))
    added(shards, other)

    assert read_index(str(shards)) == read_index(str(expected))
    assert {file.name for file in shards.iterdir()} == {file.name for file in expected.iterdir()}
    assert verify(str(shards)) == ()
