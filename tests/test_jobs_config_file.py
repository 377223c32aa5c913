"""Config files: what is refused, and how; nothing here is submitted."""

import json
from pathlib import Path

import pytest

from cluster.settings import Settings
from jobs.runs import state as run_state
from jobs.runs.names import NAME_RULE
from tests.conftest import Say


@pytest.fixture
def settings(storage: Path) -> Settings:
    """Settings without a Redis: nothing here is submitted."""
    return Settings(storage=storage, redis_url=f"unix://{storage}/no-redis")


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "night.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("learning_rate: 3", "{file}: 'learning_rate' is not an option of nightshift train; did you mean lr?"),
        ("epoch: 3", "{file}: 'epoch' is not an option of nightshift train; did you mean epochs?"),
        ("zzz: 3", "{file}: 'zzz' is not an option of nightshift train; `nightshift train --help` shows the options"),
        ("dry-run: true", "{file}: 'dry-run' is for the command line alone; leave it out"),
        ("epochs: [3, 4]", "{file}: epochs is a list; give one value"),
        ("epochs: {a: 1}", "{file}: epochs is an object; give one value"),
        ("epochs: ten", "epochs in {file}: 'ten' is not a whole number"),
        ("at: 25:00", "at in {file}: '25:00' is not a time; write 22:00 or 2026-11-23T22:00"),
        ("epochs: 3\nepochs: 4", "{file}: the key 'epochs' is there twice; remove one of them"),
        ("best_by: loss\nbest-by: auroc", "{file}: 'best-by' and another key give the same option; remove one of them"),
        ("a: b: c", "{file} is not valid YAML at line 1; write lines such as epochs: 20"),
        ("epochs", "{file} has no keys and values; write lines such as epochs: 20"),
        ("", "{file} has no keys and values; write lines such as epochs: 20"),
        ("kind: search", "{file} is a spec for `nightshift search`; use it with that command"),
        ('{"epochs": 3, "epochs": 4}',
         "{file}: the key 'epochs' is there twice; remove one of them"),
        ("? [a, b]\n: 1", "{file}: a key is not a text; write lines such as epochs: 20"),
        ("[[[[[[1]]]]]]", "{file}: the values are nested too deeply; give a list of texts or numbers at most"),
    ],
)  # fmt: skip
def test_a_wrong_config_file_is_one_line_and_queues_nothing(
    say: Say, settings: Settings, shards: str, text: str, line: str
) -> None:
    file = write(settings.storage, text)

    code, out, err = say("train", shards, "--weights", "none", "--config", file)

    assert (code, out, err) == (2, "", f"Error: {line.format(file=file)}\n")
    assert run_state.all_ids(settings.storage) == []


def test_a_config_file_that_is_too_deep_or_too_large_is_one_line(say: Say, settings: Settings) -> None:
    deep = "the values are nested too deeply; give a list of texts or numbers at most"
    said = [
        say("train", "shards", "--config", write(settings.storage, text))
        for text in ("[" * 5000, '{"a": ' * 100_000, "x: y\n" * 300_000)
    ]

    file = settings.storage / "night.yaml"
    assert said == [
        (2, "", f"Error: {file}: {deep}\n"),
        (2, "", f"Error: {file}: {deep}\n"),
        (2, "", f"Error: {file} is larger than 1 MB; it is not a config file\n"),
    ]


def test_a_config_file_that_cannot_be_read_is_one_line(say: Say, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"note: M\xfcller\n")

    absent = say("train", "--config", str(tmp_path / "absent.yaml"))
    latin = say("train", "--config", str(tmp_path / "latin.yaml"))
    folder = say("train", "--config", str(tmp_path))

    assert absent[0] == latin[0] == folder[0] == 2
    assert absent[2].endswith("absent.yaml does not exist; check the path\n")
    assert folder[2] == f"Error: {tmp_path} is a folder without spec.json; give a file, or the folder of a run\n"
    assert latin[2].endswith("latin.yaml is not a text in UTF-8; save it as UTF-8\n")


def test_a_list_gives_the_choices_of_a_search(say: Say, shards: str, tmp_path: Path) -> None:
    config = write(tmp_path, "weights: none\nhead-width: [64, 128]\ndropout: 0.2\ntrials: 4")

    spec = json.loads(say("search", shards, "--config", config, "--dry-run")[1])

    assert spec["space"]["head_width"] == [64, 128]
    assert (spec["space"]["dropout"], spec["dropout"], spec["trials"]) == (None, 0.2, 4)


def test_a_wrong_tag_is_refused(say: Say, shards: str) -> None:
    code, _, err = say("train", shards, "--weights", "none", "--tag", "a b")

    assert code == 2
    assert err == f"Error: tag 'a b' is not valid; {NAME_RULE}\n"


def test_a_user_with_escape_sequences_is_refused(say: Say, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_USER", "\x1b[31mada")

    code, _, err = say("train", shards, "--weights", "none")

    assert code == 1
    assert "NIGHTSHIFT_USER '\\x1b[31mada' is not a name of up to 63 characters; correct it" in err
