"""Options from files and other runs: `--config`, `fork`, tags, owners, and the filters of `list`."""

import json
from pathlib import Path

import pytest

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.runs import state as run_state
from jobs.runs.names import NAME_RULE
from tests.conftest import Say

CONFIG = """
# a night run
weights: none
image-size: 64
epochs: 3
lr: 1e-4
class_weights: no
at: 2099-11-23T22:00
tag: [chest, v2]
note: "first: try"
"""


def spec_of(settings: Settings, printed: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(RunPaths.of(settings.storage, printed.strip()).spec.read_text())
    return content


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "night.yaml"
    path.write_text(text)
    return str(path)


def test_a_config_file_gives_options_and_the_command_line_comes_first(
    say: Say, settings: Settings, shards: str, tmp_path: Path
) -> None:
    config = write(tmp_path, f"shards: {shards}\n{CONFIG}")

    code, out, _ = say("train", "--config", config, "--epochs", "9")

    spec, state = spec_of(settings, out), run_state.read_state(RunPaths.of(settings.storage, out.strip()))
    assert code == 0
    assert (spec["epochs"], spec["lr"], spec["image_size"], spec["class_weights"]) == (9, 1e-4, 64, False)
    assert (state.tags, state.note, state.state) == (("chest", "v2"), "first: try", "scheduled")


SEARCH = ("--trials", "9", "--lr", "1e-4:1e-2:7", "--head-width", "128,512", "--seeds", "2", "--patience", "0")


@pytest.mark.parametrize("command", ["train", "search", "evaluate", "predict"])
def test_the_spec_of_a_run_is_a_config_file(say: Say, settings: Settings, shards: str, command: str) -> None:
    say("train", shards, "--weights", "none", "--name", "model", "--precision", "fp32", "--patience", "0")
    words = {
        "train": (shards, "--weights", "none", "--batch-size", "auto", "--window", "20:00-07:00"),
        "search": (shards, "--weights", "none", *SEARCH),
        "evaluate": ("model", shards, "--split", "valid"),
        "predict": ("model", shards, "--json"),
    }[command]
    paths = RunPaths.of(settings.storage, say(command, *words)[1].strip().removeprefix('{"id": "').removesuffix('"}'))

    for place in (paths.spec, paths.folder):
        code, out, err = say(command, "--config", str(place), "--dry-run")

        assert (code, err) == (0, "")
        assert json.loads(out) == json.loads(paths.spec.read_text())


def test_a_window_of_another_time_zone_is_refused(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    run_id = say("train", shards, "--weights", "none", "--window", "20:00-07:00")[1].strip()
    monkeypatch.setenv("TZ", "UTC")

    code, _, err = say("fork", run_id)

    assert code == 2
    assert (
        err == f"Error: {run_id}: the window is in the time zone Europe/Berlin; set TZ=Europe/Berlin for this command\n"
    )


def test_a_fork_changes_what_is_set_and_keeps_the_rest(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_USER", "ada")
    given = ("--weights", "none", "--epochs", "7", "--no-cache", "--priority", "low", "--tag", "chest", "--note", "old")
    first = say("train", shards, *given, "--name", "first", "--at", "2099-01-01T22:00")[1]

    code, out, _ = say("fork", "first", "--set", "epochs=9", "--set", "class-weights=false", "--name", "second")

    state = run_state.read_state(RunPaths.of(settings.storage, out.strip()))
    assert code == 0
    assert spec_of(settings, out) == {**spec_of(settings, first), "epochs": 9, "class_weights": False}
    assert (state.name, state.priority, state.tags, state.note) == ("second", "low", ("chest",), None)
    assert (state.owner, state.state) == ("ada", "queued")


def test_a_wrong_change_is_one_line_and_queues_nothing(say: Say, settings: Settings, shards: str) -> None:
    say("train", shards, "--weights", "none", "--name", "first")
    wrong = {
        ("epoch=9",): "--set: 'epoch' is not an option of nightshift train; did you mean epochs?",
        ("epochs=ten",): "epochs in --set: 'ten' is not a whole number",
        ("epochs=9", "epochs=8"): "--set gives epochs twice; give it once",
        ("epochs",): "--set 'epochs' is not an option and a value; write epochs=20",
        ("epochs=0",): "epochs 0 is below 1; use 1 or more",
    }

    said = {changes: say("fork", "first", *(word for each in changes for word in ("--set", each))) for changes in wrong}

    assert said == {changes: (2, "", f"Error: {line}\n") for changes, line in wrong.items()}
    assert len(run_state.all_ids(settings.storage)) == 1


def test_list_selects_by_tag_owner_name_and_age(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_USER", "ada")
    one = say("train", shards, "--weights", "none", "--name", "night-1", "--tag", "chest", "--tag", "v2")[1].strip()
    monkeypatch.setenv("NIGHTSHIFT_USER", "bob")
    two = say("train", shards, "--weights", "none", "--name", "day-1", "--tag", "chest")[1].strip()
    old = RunPaths.of(settings.storage, one)
    with run_state.changing(old) as state:
        run_state.write_state(old, state.with_changes(created="2026-01-01T00:00:00.000Z"))

    def listed(*options: str) -> list[str]:
        return [run["id"] for run in json.loads(say("list", "--json", *options)[1])]

    assert listed("--tag", "chest") == [two, one]
    assert listed("--tag", "chest", "--tag", "v2") == [one]
    assert listed("--mine") == [two]
    assert listed("--name", "night") == [one]
    assert listed("--name", "*-1") == [two, one]
    assert listed("--name", "ight-?") == []
    assert listed("--since", "1h") == [two]
    assert say("list")[1].splitlines()[1].split()[:4] == [two, "day-1", "chest", "bob"]


def test_tags_and_note_of_a_run_are_edited(say: Say, shards: str) -> None:
    say("train", shards, "--weights", "none", "--name", "night", "--tag", "chest", "--tag", "draft")

    changed = say("edit", "night", "--tag", "baseline", "--remove-tag", "draft", "--note", "first:\ntry")
    again = say("edit", "night", "--note", "", "--json")

    assert changed == (0, "tags  chest, baseline\nnote  first: try\n", "")
    assert json.loads(again[1]) == {"tags": ["chest", "baseline"], "note": None}


WRONG_EDITS: list[tuple[tuple[str, ...], int, str]] = [
    ((), 2, "there is nothing to change; give --tag, --remove-tag or --note"),
    (("--tag", "a b"), 2, f"tag 'a b' is not valid; {NAME_RULE}"),
    (("--remove-tag", "day"), 1, "has no tag 'day'; it has chest"),
    (("--tag", "x", "--remove-tag", "x"), 2, "--tag and --remove-tag both name x; give it to one of them"),
]


def test_a_wrong_edit_is_one_line_and_changes_nothing(say: Say, settings: Settings, shards: str) -> None:
    run_id = say("train", shards, "--weights", "none", "--tag", "chest")[1].strip()
    before = RunPaths.of(settings.storage, run_id).state.read_bytes()

    for words, code, error in WRONG_EDITS:
        found = say("edit", run_id, *words)

        assert (found[0], error in found[2]) == (code, True), found
        assert RunPaths.of(settings.storage, run_id).state.read_bytes() == before


def test_a_run_without_tags_and_owner_is_listed_as_before(say: Say, settings: Settings, shards: str) -> None:
    paths = RunPaths.of(settings.storage, say("train", shards, "--weights", "none")[1].strip())
    stored = json.loads(paths.state.read_text())
    paths.state.write_text(json.dumps({key: stored[key] for key in stored if key not in ("tags", "note", "owner")}))

    assert say("list")[1].splitlines()[0].split() == ["ID", "NAME", "KIND", "STATE", "BEST", "AGE", "PROGRESS"]
