"""Data sets to which tests add images."""

import shutil
from datetime import UTC, datetime

import pytest

from data_shards.index import read_index
from data_shards.pack.add import add
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from tests.datasets import image_folder, noise
from tests.test_data_shards_pack import infos

GROUP = "(p[0-9]+)-"


NEW = 10_000  # seeds of new images


def options(**chosen):
    return PackOptions(**{"processes": 1, "shard_bytes": 20_000, "plain_groups": True, **chosen})


def added(shards, source, **given):
    moment = datetime(2026, 11, 26, 2, 0, tzinfo=UTC)
    return add(str(shards), source, {"processes": 1, **given}, clock=lambda: moment)


def new_images(folder, names, *, seed=NEW, size=(40, 36), mode="L"):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(seed + number, size, mode).save(folder / name)
    return folder


def files_of(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def split_of(shards):
    """Return the split of each image by the name of its file."""
    index = read_index(str(shards))
    splits = [shard.split for shard in index.shards for _ in range(shard.samples)]
    return {info["source"]: split for info, split in zip(infos(shards), splits, strict=True)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data sets that are made once: one divided by shares, one from split folders, one with two images a patient."""
    folder = tmp_path_factory.mktemp("made")
    names = [f"{'ab'[patient % 2]}/p{patient:02d}-{n}.png" for patient in range(20) for n in range(2)]
    sources = {
        "plain": image_folder(folder / "plain/images", {"a": 20, "b": 20}),
        "divided": image_folder(folder / "divided/images", {"train/a": 6, "train/b": 6, "test/a": 3, "test/b": 3}),
        "grouped": new_images(folder / "grouped/images", names, seed=0),
    }
    chosen = {"plain": {"split": "70/15/15"}, "divided": {}, "grouped": {"split": "70/15/15", "group_by": GROUP}}
    for name, source in sources.items():
        pack(source, folder / name / "shards", options(**chosen[name]))
    return folder


def copied(made, name, tmp_path):
    return shutil.copytree(made / name / "shards", tmp_path / "shards")


@pytest.fixture
def source(made, tmp_path):
    return shutil.copytree(made / "plain/images", tmp_path / "images")


@pytest.fixture
def shards(made, tmp_path):
    return copied(made, "plain", tmp_path)


@pytest.fixture
def divided(made, tmp_path):
    return copied(made, "divided", tmp_path)


@pytest.fixture
def grouped(made, tmp_path):
    return copied(made, "grouped", tmp_path)
