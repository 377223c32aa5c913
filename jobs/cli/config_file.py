"""`--config FILE.yaml`: the options of a submit command, from a file or from the spec of another run."""

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
import yaml

from jobs.cli.option_groups import OptionGroup
from jobs.cli.option_values import as_text, option_values
from jobs.cli.usage_errors import CONFIG_NAME
from jobs.errors import InvalidOption

SPEC_NAME = "spec.json"  # of a run folder
LARGEST_BYTES = 1_000_000
DEEPEST = 4  # a search space has lists in objects in an object
TOO_DEEP = "the values are nested too deeply; give a list of texts or numbers at most"
ABSENT = ("", "~", "null", "Null", "NULL")  # YAML's words for no value


def _load(ctx: click.Context, param: click.Parameter, file: Path | None) -> None:  # noqa: ARG001
    if file is not None and not ctx.resilient_parsing:
        path = file / SPEC_NAME if file.is_dir() else file
        if path != file and not path.exists():
            raise InvalidOption(f"{file} is a folder without {SPEC_NAME}; give a file, or the folder of a run")
        ctx.default_map = option_values(ctx.command, read_config(path), str(path))
        ctx.meta[CONFIG_NAME] = str(path)


CONFIG_OPTION = click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", callback=_load, is_eager=True, expose_value=False,
    help="YAML or JSON file with values for these options and arguments, such as `epochs: 20`, or the spec.json of a "
    "run; options of the command line take precedence.",
)  # fmt: skip
CONFIG = OptionGroup("Configuration", (CONFIG_OPTION,))


def read_config(path: Path, *, what: str = "config file", example: str = "epochs: 20") -> dict[str, Any]:
    """Return the keys of a config file; every value is a text, None, a list or an object.

    `what` and `example` are what errors call the file, and a line that it may have.

    Raises:
        InvalidOption: The file cannot be read, or is not a list of keys and values.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise InvalidOption(f"{path} is larger than {LARGEST_BYTES // 1_000_000} MB; it is not a {what}")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidOption(f"{path} is not a text in UTF-8; save it as UTF-8") from error
    except FileNotFoundError as error:
        raise InvalidOption(f"{what} {path} does not exist; check the path") from error
    except OSError as error:
        raise InvalidOption(f"{what} {path} cannot be read: {error.strerror}; check the path") from error
    content = _parsed(path, text, example)
    if not isinstance(content, dict):
        raise InvalidOption(f"{path} has no keys and values; write lines such as {example}")
    return {str(key): _or_none(value) for key, value in content.items()}


def _parsed(path: Path, text: str, example: str) -> Any:
    try:
        if text.lstrip().startswith("{"):
            with contextlib.suppress(ValueError):  # a flow mapping of YAML
                return as_text(json.loads(text, object_pairs_hook=_without_repeats))
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if root is None else _texts(root)
    except InvalidOption as error:
        raise InvalidOption(f"{path}: {error}") from error
    except RecursionError as error:
        raise InvalidOption(f"{path}: {TOO_DEEP}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise InvalidOption(f"{path} is not valid YAML{line}; write lines such as {example}") from error


def _texts(node: Any, depth: int = 0) -> Any:
    """Return a node of YAML with every value as text, so that 22:00, 1e-4 and a class called `no` stay as written."""
    if depth > DEEPEST:
        raise InvalidOption(TOO_DEEP)
    if isinstance(node, yaml.SequenceNode):
        return [_texts(item, depth + 1) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return node.value
    if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise InvalidOption("a key is not a text; write lines such as epochs: 20")
    return _without_repeats([(key.value, _texts(value, depth + 1)) for key, value in node.value])


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice is not None:
        raise InvalidOption(f"the key {twice!r} is there twice; remove one of them")
    return dict(pairs)


def _or_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _or_none(item) for key, item in value.items()}
    return None if isinstance(value, str) and value in ABSENT else value
