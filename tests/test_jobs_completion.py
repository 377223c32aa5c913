"""What the shell completes: ids, names and paths."""

import os
import pty
import subprocess
import sys

import click
import pytest

from cluster.process_env import job_worker_environment
from cluster.settings import Settings
from jobs.cli.completion import complete_model
from jobs.cli.main import cli
from tests.conftest import Say

COMMAND = [sys.executable, "-c", "from jobs.__main__ import main; main()"]
PATHS = {"FILE", "SHARDS", "IMAGES", "SOURCE", "TABLE", "FOLDER"}


def completed(settings: Settings, line: str) -> str:
    """Return what bash is offered at the end of a line."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    environment = {**job_worker_environment(settings), "_NIGHTSHIFT_COMPLETE": "bash_complete", **words}
    return subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    "line",
    [
        "nightshift train sh",
        "nightshift evaluate night sh",
        "nightshift search sh",
        "nightshift predict night sh",
        "nightshift shards show sh",
        "nightshift train shards --weights sh",
        "nightshift predict runs/night/best sh",
    ],
)
def test_the_shell_completes_paths(settings: Settings, line: str) -> None:
    assert completed(settings, line) == "file,sh\n"


def test_the_shell_completes_the_run_to_start_after(say: Say, shards: str, settings: Settings) -> None:
    say("train", shards, "--weights", "none", "--name", "night")

    assert completed(settings, "nightshift train shards --after n") == "plain,night\n"


def test_a_model_that_is_no_run_and_no_name_is_completed_as_a_path(
    say: Say, shards: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    say("train", shards, "--weights", "none", "--name", "night")
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(settings.storage))

    offered = [[(item.type, item.value) for item in complete_model(None, None, typed)] for typed in ("n", "./be")]  # type: ignore[arg-type]

    monkeypatch.setenv("NIGHTSHIFT_LEASE_SECONDS", "many")
    without_settings = complete_model(None, None, "./be")  # type: ignore[arg-type]

    assert offered == [[("plain", "night")], [("file", "./be")]]
    assert [(item.type, item.value) for item in without_settings] == [("file", "./be")]


def test_every_argument_and_option_that_is_a_path_is_completed_as_one() -> None:
    without, todo = [], [("nightshift", cli, click.Context(cli))]
    while todo:
        name, command, context = todo.pop()
        if isinstance(command, click.Group):
            found = [(sub, command.get_command(context, sub)) for sub in command.list_commands(context)]
            todo += [(f"{name} {sub}", one, click.Context(one)) for sub, one in found if one is not None]
            continue
        for parameter in command.params:
            metavar = parameter.metavar or (parameter.name or "").upper()
            is_path = bool(PATHS & set(metavar.split("|")))
            if is_path and [item.type for item in parameter.shell_complete(context, "x")] not in (["file"], ["dir"]):
                without.append(f"{name} {parameter.name}")

    assert without == []


def test_the_advice_to_add_the_line_is_given_at_a_terminal_only(settings: Settings) -> None:
    line = [*COMMAND, "completion", "bash"]
    environment = job_worker_environment(settings)
    ours, theirs = pty.openpty()

    redirected = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    typed = subprocess.run(line, env=environment, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    os.close(ours)

    assert redirected.stderr == ""
    assert typed.stderr == "Add this line to ~/.bashrc and start a new shell.\n"


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", 'eval "$(_NIGHTSHIFT_COMPLETE=bash_source nightshift)"'),
        ("zsh", 'eval "$(_NIGHTSHIFT_COMPLETE=zsh_source nightshift)"'),
        ("fish", "_NIGHTSHIFT_COMPLETE=fish_source nightshift | source"),
    ],
)
def test_completion_prints_the_line_of_the_start_file(say: Say, shell: str, line: str) -> None:
    code, out, _ = say("completion", shell)

    assert (code, out) == (0, f"{line}\n")


def test_the_shell_completes_run_ids_and_names(say: Say, shards: str, settings: Settings) -> None:
    run_id = say("train", shards, "--weights", "none", "--name", "night")[1].strip()

    offered = [
        subprocess.run(
            [sys.executable, "-c", "from jobs.__main__ import main; main()"],
            env={**job_worker_environment(settings), "_NIGHTSHIFT_COMPLETE": "bash_complete",
                 "COMP_WORDS": f"nightshift show {typed}", "COMP_CWORD": "2"},
            capture_output=True, text=True, check=False,
        ).stdout
        for typed in ("n", "train-")
    ]  # fmt: skip

    assert offered == ["plain,night\n", f"plain,{run_id}\n"]
