"""README.md and the user guide name only what exists: commands with their options, settings, source files, links."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cluster.environment_variables import VARIABLES
from cluster.run_paths import RunPaths
from jobs.cli.command import HELP_NAMES
from jobs.cli.main import cli
from tests.k8s_manifests import K8S, ROOT

DOCS = ROOT / "docs"
FILES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
GUIDE = "\n".join(file.read_text() for file in FILES)
FENCED = re.findall(r"^```([^\n]*)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)  # language and text of each block
BLOCKS = "\n".join(text for language, text in FENCED if not language).replace("\\\n", " ")
PROSE = re.sub(r"^```.*?^```", "", GUIDE, flags=re.DOTALL | re.MULTILINE)
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)]
LINES = re.findall(r"(?:^|\$\(|\| )nightshift ([^)#>&|\n]+)", BLOCKS, re.MULTILINE)
IN_TEXT = [*SPANS, *re.findall(r"`([^`\n]+)`", (K8S / "README.md").read_text())]
CALLS = [span.removeprefix("nightshift ") for span in IN_TEXT if re.match("nightshift [a-z]", span)]
OTHERS = {"--logdir", "--shm-size", "--help"}  # of TensorBoard, of Docker, and of every command
INTERNAL = {"NIGHTSHIFT_COMPLETE", "NIGHTSHIFT_RUN"}  # set by the shell's completion, and by us for child processes
WIDEST = 150  # columns of a line, tables included
SHORT = 40  # characters; shorter sentences may stand twice
FOREIGN = re.compile(  # what a browser would load by itself
    r"""src=["']?(?:https?:)?//[^\s"'>]+|<link[^>]+href=["']?(?:https?:)?//[^\s"'>]+|url\(["']?(?:https?:)?//|@import"""
)


def spellings(command: click.Command) -> set[str]:
    return {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}


def all_commands(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command with all below it that `--help` shows, and the words that call each."""
    yield words, command
    if isinstance(command, click.Group):
        with click.Context(command, **HELP_NAMES) as context:
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below
                if not below.hidden:
                    yield from all_commands(below, (*words, name))


def resolve(words: list[str]) -> click.Command:
    """The command that the first words name; they are taken from the list."""
    command: click.Command = cli
    with click.Context(cli, **HELP_NAMES) as context:
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(context, words[0])
            assert found, f"{words[0]} is no command"
            command = found
            words.pop(0)
    return command


@pytest.mark.parametrize("call", sorted(set(LINES)))
def test_every_command_to_type_is_complete_and_has_valid_values(call: str) -> None:
    words = shlex.split(call.replace("HEX", "0" * 64))
    command = resolve(words)

    with click.Context(command, **{**HELP_NAMES, **command.context_settings}) as context:
        values, rest, _ = command.make_parser(context).parse_args(words)

        assert rest == []
        for parameter in command.params:
            value = values.get(parameter.name or "")
            assert value or not parameter.required, f"{parameter.name} is missing"
            if isinstance(value, str | list | tuple) and not isinstance(parameter.type, click.Path | click.File):
                parameter.type_cast_value(context, value)


def test_the_commands_of_all_blocks_are_checked() -> None:
    assert len(set(LINES)) > 40


@pytest.mark.parametrize("call", sorted(set(CALLS)))
def test_every_command_in_the_text_exists_and_takes_its_options(call: str) -> None:
    words = shlex.split(call)
    command = resolve(words)

    assert command is not cli
    assert {word for word in words if word.startswith("-")} - {"--help"} <= spellings(command)


def test_every_option_that_it_names_belongs_to_a_command() -> None:
    named = {word for span in SPANS for word in span.split() if re.fullmatch("--[a-z][a-z-]+", word)}

    known = {text for _, command in all_commands(cli) for text in spellings(command)}

    assert len(named) > 50
    assert named - known <= OTHERS


def test_every_environment_variable_of_the_code_is_described() -> None:
    code = "\n".join(path.read_text() for path in sources("cluster", "jobs", "trainer", "data_shards"))

    used = set(re.findall(r"\bNIGHTSHIFT_[A-Z_]*[A-Z]", code))
    listed = {found.name for found in VARIABLES}

    assert used - INTERNAL == {name for name in listed if name.startswith("NIGHTSHIFT_")}
    assert set(re.findall(r"NIGHTSHIFT_[A-Z_]+", GUIDE)) <= listed


def test_every_source_file_that_it_names_exists() -> None:
    files = [*sources("cluster", "jobs", "trainer", "data_shards", "docs"), ROOT / "nightshift.py"]
    named = {span for span in SPANS if re.fullmatch(r"[a-z_/]+\.py", span)}

    missing = [name for name in named if not any(file.as_posix().endswith(f"/{name}") for file in files)]

    assert len(named) > 10
    assert missing == []


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in (ROOT / package).rglob("*.py")]


def test_its_table_has_every_file_of_a_run(tmp_path: Path) -> None:
    section = (DOCS / "run_files.md").read_text()
    paths = RunPaths.of(tmp_path, "train-20261123-203000-a1b2c3")
    fields = [name for kind in RunPaths.__mro__ for name, value in vars(kind).items() if isinstance(value, property)]
    values = [*(getattr(paths, name) for name in fields), paths.predicted("csv"), paths.predicted("json")]
    values += [paths.exported("onnx"), paths.exported("pt")]
    names = {value.name for value in values if isinstance(value, Path) and value.parent == paths.folder}

    missing = [name for name in names if f"`{name}`" not in section and f"`{name}/`" not in section]

    assert len(names) > 20
    assert missing == [".lock"]


def test_no_sentence_stands_twice() -> None:
    sentences = [" ".join(text.split()) for text in re.split(r"(?<=[.:;])\s+|\n\n|\||^- ", PROSE, flags=re.MULTILINE)]

    twice = [text for text, count in Counter(sentences).items() if count > 1 and len(text) > SHORT]

    assert twice == []


def test_no_line_is_too_wide_for_an_editor() -> None:
    wide = [
        f"{file.name}:{number}"
        for file in (*FILES, ROOT / "CONTRIBUTING.md")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if len(line) > WIDEST
    ]

    assert wide == []


def test_the_links_of_the_readme_lead_to_files() -> None:
    linked = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())

    assert [name for name in linked if not (ROOT / name).is_file()] == []
    assert {name for name in linked if name.startswith("docs/")} >= {"docs/getting_started.md", "docs/data.md"}


def test_the_guide_is_built_without_a_warning_and_needs_no_internet(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-d",
            tmp_path / "trees",
            DOCS,
            tmp_path / "site",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    built = [path for path in (tmp_path / "site").rglob("*") if path.suffix in (".html", ".css", ".js")]
    foreign = {found for path in built for found in FOREIGN.findall(path.read_text())}
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.stem for file in DOCS.glob("*.md")} <= {path.stem for path in built}
    assert foreign == set()
    assert "NIGHTSHIFT_UMASK" in (tmp_path / "site" / "settings.html").read_text()


def test_its_reference_of_commands_is_what_help_prints() -> None:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)

    text = reference.commands()

    for words, _ in all_commands(cli):
        called = " ".join(("nightshift", *words))
        help_text = CliRunner().invoke(
            cli,
            [*words, "--help"],
            prog_name="nightshift",
            terminal_width=reference.WIDTH,
            max_content_width=reference.WIDTH,
        )
        assert f"\n## {called}\n\n```text\n{help_text.output.rstrip()}\n```\n" in text
