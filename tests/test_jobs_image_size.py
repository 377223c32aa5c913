"""What submit commands say of shards whose images are smaller than the network's input."""

import json
from pathlib import Path

import pytest

from cluster.files import write_json
from data_shards.index import read_index, write_index
from tests.conftest import Say
from trainer.model.head import HeadConfig


@pytest.fixture
def small(shards: str) -> str:
    """A data set that was packed with a short side of 64 pixels."""
    index = read_index(shards).model_copy(update={"image_size": 64, "widths": (300,) * 3, "heights": (200,) * 3})
    write_index(Path(shards), index.sealed())
    return shards


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model whose input has 128 pixels."""
    folder = tmp_path / "model"
    folder.mkdir()
    head = HeadConfig(classes=("covid", "normal"), width=8, dropout=0.1, image_size=128)
    write_json(folder / "head.json", head.model_dump(mode="json"))
    return str(folder)


@pytest.mark.parametrize("command", [("train",), ("search", "--trials", "2"), ("train", "--dry-run")])
def test_an_input_above_what_the_shards_hold_is_refused_at_submit(
    say: Say, small: str, command: tuple[str, ...]
) -> None:
    code, out, err = say(command[0], small, *command[1:], "--weights", "none", "--image-size", "128")

    assert (code, out) == (2, "")
    assert f"--image-size 128 is above the 64 pixels of the short side that {small} stores" in " ".join(err.split())
    assert "pack the images again with --image-size 128" in " ".join(err.split())


def test_an_input_that_the_shards_hold_is_queued(say: Say, small: str) -> None:
    code, out, _ = say("train", small, "--weights", "none", "--image-size", "64", "--dry-run")

    assert code == 0
    assert json.loads(out)["image_size"] == 64


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_model_with_a_larger_input_is_refused_at_submit(say: Say, small: str, model: str, command: str) -> None:
    code, out, err = say(command, model, small)

    assert (code, out) == (1, "")
    assert f"the model's input has 128 pixels and the images in {small}" in " ".join(err.split())
    assert "pack them again with --image-size 128" in " ".join(err.split())
