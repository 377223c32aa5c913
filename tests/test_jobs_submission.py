"""What all submit commands do with a checked spec: `--dry-run` refuses what the command itself refuses."""

from pathlib import Path

import pytest

from cluster.files import write_json
from cluster.settings import Settings
from jobs.runs import state as run_state
from tests.conftest import Say
from trainer.model.head import HeadConfig


@pytest.fixture
def commands(shards: str, tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """The words of each submit command; the model that two of them name has no weights."""
    model = tmp_path / "model"
    model.mkdir()
    write_json(
        model / "head.json", HeadConfig(classes=("covid", "normal"), width=8, dropout=0.1, image_size=32).model_dump()
    )
    return {
        "train": ("train", shards, "--weights", "none"),
        "search": ("search", shards, "--weights", "none", "--trials", "2"),
        "evaluate": ("evaluate", str(model), shards, "--split", "valid"),
        "predict": ("predict", str(model), shards),
    }


@pytest.mark.parametrize("kind", ["train", "search", "evaluate", "predict"])
def test_a_dry_run_refuses_the_name_of_another_run(
    say: Say, settings: Settings, commands: dict[str, tuple[str, ...]], kind: str
) -> None:
    taken = say(*commands["train"], "--name", "night")[1].strip()

    dry = say(*commands[kind], "--name", "night", "--dry-run")
    real = say(*commands[kind], "--name", "night")

    assert dry == (1, "", f"Error: name 'night' belongs to {taken}; choose another, or delete that run\n")
    assert real == dry
    assert run_state.all_ids(settings.storage) == [taken]


@pytest.mark.parametrize("kind", ["train", "search", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("address", "code", "line"),
    [
        ("file:///etc/passwd", 2, "--notify file:// is not an http:// or https:// URL"),
        ("https://hooks.example/x", 1, "--notify may not send to hooks.example"),
    ],
)
def test_a_dry_run_refuses_an_address_that_no_message_is_sent_to(
    say: Say, commands: dict[str, tuple[str, ...]], kind: str, *, address: str, code: int, line: str
) -> None:
    dry = say(*commands[kind], "--notify", address, "--dry-run")
    real = say(*commands[kind], "--notify", address)

    assert dry[:2] == (code, "")
    assert line in dry[2]
    assert real == dry


def test_a_dry_run_does_not_take_the_name_that_it_checks(say: Say, settings: Settings, shards: str) -> None:
    words = ("train", shards, "--weights", "none", "--name", "night")

    dry = say(*words, "--dry-run")
    real = say(*words)

    assert (dry[0], real[0]) == (0, 0)
    assert run_state.all_ids(settings.storage) == [real[1].strip()]
