"""What a terminal shows of a run that is followed."""

import pytest

from cluster.settings import Settings
from tests.cli_runs import LONG_AGO, rendered, set_state, submitted
from tests.conftest import Say


def test_a_run_that_starts_shows_its_seconds_and_the_newest_line_of_its_log(
    say: Say, settings: Settings, shards: str
) -> None:
    run = submitted(say, settings, shards, "--name", "night")
    state = set_state(run, "running").with_changes(changed=LONG_AGO, attempt=2)
    run.log.write_text("first\n\x1b[36m(worker)\x1b[0m Started a local Ray instance\n")

    lines = rendered(settings.storage, state, {"attempt": 1, "phase": "train", "epoch": 3, "epochs": 9})

    assert " night " in lines[0]
    assert "starting " in lines[0]
    assert "d" in lines[0].split("starting ")[1]  # days since then
    assert lines[1].strip() == "(worker) Started a local Ray instance"


def test_the_spinner_turns_until_the_run_has_ended(say: Say, settings: Settings, shards: str) -> None:
    paths = submitted(say, settings, shards, "--name", "night")
    running = set_state(paths, "running")
    full = {"phase": "evaluate", "done": 8, "total": 8}

    line = rendered(settings.storage, running, full)[0]
    ended = rendered(settings.storage, set_state(paths, "succeeded"), full)[0]

    assert line[0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    assert ended.startswith("  night ")


RUNNING = {"phase": "train", "epoch": 12, "epochs": 300, "images_per_second": 12345.0, "eta_seconds": 11_000.0}


PROGRESS = "train, epoch 12/300, 12345 images/s, 3h03m left"


@pytest.mark.parametrize("name", [None, "night"])
def test_speed_and_time_left_are_whole_at_80_columns(
    say: Say, settings: Settings, shards: str, name: str | None
) -> None:
    run = submitted(say, settings, shards, *(("--name", name) if name else ()))
    state = set_state(run, "running")

    lines = [line.rstrip() for line in rendered(settings.storage, state, RUNNING)]

    assert f" {name or run.run_id} " in lines[0]
    assert lines[-1].endswith(PROGRESS)
    assert len(lines) == (1 if name else 2)  # an id leaves no room for a bar and the progress
    assert max(map(len, lines)) <= 80


def test_where_a_long_name_leaves_no_room_the_progress_is_on_the_next_line(
    say: Say, settings: Settings, shards: str
) -> None:
    run = submitted(say, settings, shards, "--name", "the-night-of-all-films-of-the-year")
    state = set_state(run, "running")

    lines = [line.strip() for line in rendered(settings.storage, state, RUNNING, width=60)]

    assert "the-night-of-all-films-of-the-year" in lines[0]
    assert lines[1] == PROGRESS
