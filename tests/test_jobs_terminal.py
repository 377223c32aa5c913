"""What other programs and people wrote never reaches a terminal as escape sequences."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.terminal import log_to_terminal, terminal_text
from jobs.cli.text_table import Column, table_text
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from tests.conftest import Say
from tests.datasets import noise
from tests.stack import FakeSpec
from tests.test_jobs_worker_list import register

OTHER_COMMANDS = (("queue", "show"), ("worker", "list"), ("doctor",))
CLEAR_SCREEN, TITLE, RIGHT_TO_LEFT = "\x1b[2J", "\x1b]0;owned\x07", "\u202e"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a{CLEAR_SCREEN}b", "a\\x1b[2Jb"),
        (TITLE, "\\x1b]0;owned\\x07"),
        ("\x9b31m", "\\x9b31m"),
        (f"x{RIGHT_TO_LEFT}y", "x\\u202ey"),
        ("50 %\r100 %\r\ndone\n", "50 %\n100 %\ndone\n"),
        ("one\ttwo\nthree", "one\ttwo\nthree"),
        ("Größe µ 肺 …", "Größe µ 肺 …"),
        ("a\ud800b", "a\\ud800b"),
        ("", ""),
    ],
)
def test_control_characters_are_escaped_and_other_text_stays(text: str, shown: str) -> None:
    assert terminal_text(text) == shown


def test_a_cell_of_a_table_is_one_line_without_escape_sequences() -> None:
    table = table_text((Column(title="CLASS"),), [(f"covid{CLEAR_SCREEN}",), ("a\nb",)], None)

    assert table.splitlines() == ["CLASS", "covid\\x1b[2J", "a b"]


@pytest.mark.parametrize("command", [("logs",), ("show",), ("list",), ("wait",), ("edit", "--note", "x")], ids=" ".join)
def test_no_command_prints_an_escape_sequence_of_a_run(say: Say, settings: Settings, command: tuple[str, ...]) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    paths.log.write_text(f"epoch 1{CLEAR_SCREEN}{TITLE}\n")
    write_json(paths.result, {"metrics": {"split": f"valid{TITLE}", "n": 3, "loss": 0.5}, "checkpoint": CLEAR_SCREEN})
    with run_state.changing(paths) as found:
        run_state.write_state(paths, found.with_state("succeeded", f"why{CLEAR_SCREEN}", tags=(f"tag{TITLE}",)))

    code, out, err = say(*command, *([] if command == ("list",) else [paths.run_id]))

    assert code == 0, err
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


def test_no_command_prints_an_escape_sequence_or_markup_of_a_data_set_or_of_redis(
    say: Say, settings: Settings, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "images"
    for number, split in enumerate(("train", "valid", "test")):
        for label in ("a", "[red]b"):
            folder = source / split / label
            folder.mkdir(parents=True)
            noise(number * 2 + len(label)).save(folder / f"x{CLEAR_SCREEN}.png")
    (source / "train" / "a" / f"notes{TITLE}.txt").write_text("no image")
    redis.lpush("nightshift:refused", f"entry{CLEAR_SCREEN}")
    register(redis, "w", "nightshift-normal")
    redis.rename("rq:worker:w", f"rq:worker:w{CLEAR_SCREEN}")
    redis.sadd("rq:workers:nightshift-normal", f"rq:worker:w{CLEAR_SCREEN}")
    monkeypatch.setenv("COLUMNS", "300")
    shards = str(tmp_path / "shards")

    packed = say("shards", "pack", str(source), shards, "--allow-leakage", "--image-size", "0")
    shown = say("shards", "show", shards)
    others = [say(*words) for words in OTHER_COMMANDS]
    drained = say("worker", "drain", "--all")

    assert (packed[0], shown[0], drained[0]) == (0, 0, 0), (packed, shown, drained)
    printed = "".join(out + err for _, out, err in (packed, shown, drained, *others))
    assert not set("\x1b\x07") & set(printed)
    assert "[red]b" in shown[1]
    assert "entry\\x1b[2J" in others[0][1]
    assert drained[1] == "w\\x1b[2J\n"


def test_the_log_of_a_job_worker_has_no_escape_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        log_to_terminal()
        logging.getLogger("nightshift.test").warning("entry %s", CLEAR_SCREEN)
    finally:
        root.handlers = before

    assert capsys.readouterr().err.endswith("nightshift.test entry \\x1b[2J\n")


def test_an_error_prints_no_escape_sequence(say: Say) -> None:
    code, _, err = say("show", f"train{CLEAR_SCREEN}")

    assert code == 1
    assert "\x1b" not in err


def test_a_terminal_without_unicode_shows_escapes_instead_of_a_traceback() -> None:
    script = "from jobs.cli.terminal import accept_every_character as a; a(); print('cut\\u2026')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}

    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "cut\\u2026\n", "")
