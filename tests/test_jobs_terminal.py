"""What other programs and people wrote never reaches a terminal as escape sequences."""

import os
import subprocess
import sys

import pytest

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.terminal import terminal_text
from jobs.cli.text_table import Column, table_text
from jobs.queue.submit import submit
from jobs.runs import state as run_state
from tests.conftest import Say
from tests.stack import FakeSpec

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


@pytest.mark.parametrize("command", [("logs",), ("show",), ("list",), ("wait",)], ids=" ".join)
def test_no_command_prints_an_escape_sequence_of_a_run(say: Say, settings: Settings, command: tuple[str, ...]) -> None:
    paths = RunPaths.of(settings.storage, submit(settings, FakeSpec()))
    paths.log.write_text(f"epoch 1{CLEAR_SCREEN}{TITLE}\n")
    write_json(paths.result, {"metrics": {"split": f"valid{TITLE}", "n": 3, "loss": 0.5}, "checkpoint": CLEAR_SCREEN})
    with run_state.changing(paths) as found:
        run_state.write_state(paths, found.with_state("succeeded", f"why{CLEAR_SCREEN}"))

    code, out, err = say(*command, *([] if command == ("list",) else [paths.run_id]))

    assert code == 0, err
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


def test_an_error_prints_no_escape_sequence(say: Say) -> None:
    code, _, err = say("show", f"train{CLEAR_SCREEN}")

    assert code == 1
    assert "\x1b" not in err


def test_a_terminal_without_unicode_shows_escapes_instead_of_a_traceback() -> None:
    script = "from jobs.cli.terminal import accept_every_character as a; a(); print('cut\\u2026')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}

    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "cut\\u2026\n", "")
