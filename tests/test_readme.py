"""README.md names only what exists: commands with their options, settings, source files, files of a run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cluster.run_paths import RunPaths
from jobs.cli.main import cli
from tests.k8s_manifests import K8S, ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```\n(.+?)^```", README, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
SPANS = re.findall(r"`([^`\n]+)`", README)
LINES = [found[1] for line in BLOCKS.splitlines() if (found := re.match(r"(?:id=\$\()?nightshift ([^)#>&]+)", line))]
IN_TEXT = [*SPANS, *re.findall(r"`([^`\n]+)`", (K8S / "README.md").read_text())]
CALLS = [*LINES, *(span.removeprefix("nightshift ") for span in IN_TEXT if re.match("nightshift [a-z]", span))]
OTHERS = {"--logdir", "--shm-size", "--help"}  # of TensorBoard, of Docker, and of every command
INTERNAL = {"NIGHTSHIFT_COMPLETE", "NIGHTSHIFT_RUN"}  # set by the shell's completion, and by us for child processes


def spellings(command: click.Command) -> set[str]:
    return {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}


def all_commands(command: click.Command) -> Iterator[click.Command]:
    """A command with all below it, aliases left out."""
    yield command
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below
                yield from all_commands(below)


def resolve(words: list[str]) -> click.Command:
    """The command that the first words name; they are taken from the list."""
    command: click.Command = cli
    with click.Context(cli) as context:
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(context, words[0])
            assert found, f"{words[0]} is no command"
            command = found
            words.pop(0)
    return command


@pytest.mark.parametrize("call", CALLS)
def test_every_command_exists_and_takes_its_options(call: str) -> None:
    words = shlex.split(call)
    command = resolve(words)

    assert command is not cli
    assert {word for word in words if word.startswith("-")} <= spellings(command)


def test_every_option_that_it_names_belongs_to_a_command() -> None:
    named = {word for span in SPANS for word in span.split() if re.fullmatch("--[a-z][a-z-]+", word)}

    known = {text for command in all_commands(cli) for text in spellings(command)}

    assert len(named) > 50
    assert named - known <= OTHERS


def test_its_table_has_every_command() -> None:
    table = README.split("\n## Commands\n")[1].split("\n## ")[0]
    rows = "\n".join(re.findall(r"^\| (.+?) \|", table, re.MULTILINE))

    named = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", rows))

    assert [name for name in visible_names(cli) if name not in named] == []


def visible_names(group: click.Group) -> Iterator[str]:
    """The names of all commands below a group that `--help` shows."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command
            if not command.hidden:
                yield name
            if isinstance(command, click.Group):
                yield from visible_names(command)


def test_it_lists_every_environment_variable_of_the_settings() -> None:
    code = "\n".join(path.read_text() for path in sources("cluster", "jobs", "trainer", "data_shards"))

    used = set(re.findall(r"\bNIGHTSHIFT_[A-Z_]*[A-Z]", code))
    listed = set(re.findall(r"NIGHTSHIFT_[A-Z_]+", README.split("\n## Settings\n")[1].split("\n## ")[0]))

    assert used - INTERNAL == listed


def test_every_source_file_that_it_names_exists() -> None:
    files = [*sources("cluster", "jobs", "trainer", "data_shards"), ROOT / "nightshift.py"]
    named = {span for span in SPANS if re.fullmatch(r"[a-z_/]+\.py", span)}

    missing = [name for name in named if not any(file.as_posix().endswith(f"/{name}") for file in files)]

    assert len(named) > 10
    assert missing == []


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in (ROOT / package).rglob("*.py")]


def test_its_table_has_every_file_of_a_run(tmp_path: Path) -> None:
    section = README.split("\n## Files of a run")[1].split("\n## ")[0]
    paths = RunPaths.of(tmp_path, "train-20261123-203000-a1b2c3")
    fields = [name for kind in RunPaths.__mro__ for name, value in vars(kind).items() if isinstance(value, property)]
    values = [*(getattr(paths, name) for name in fields), paths.predicted("csv"), paths.predicted("json")]
    values += [paths.exported("onnx"), paths.exported("pt")]
    names = {value.name for value in values if isinstance(value, Path) and value.parent == paths.folder}

    missing = [name for name in names if f"`{name}`" not in section and f"`{name}/`" not in section]

    assert len(names) > 20
    assert missing == [".lock"]
