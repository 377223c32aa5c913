"""What click refuses, in the words of this project: the option, its value, the fault, then the cure."""

import difflib
import re

import click
from click.core import ParameterSource

CLICK_WORDS = (  # of the types of click that the commands use
    (re.compile(r"is not a valid integer( range)?\.?$"), "is not a whole number"),
    (re.compile(r"is not a valid float( range)?\.?$"), "is not a number"),
    (re.compile(r"is not a valid boolean\..*$"), "is neither true nor false"),
    (re.compile(r"^(?:Path|File|Directory) ('.*') does not exist\.$"), r"\1 does not exist; check the path"),
)
SET = "--set"  # of fork: an option of the command that it repeats
OF_OTHER_TOOLS = {"learning_rate": "lr", "max_epochs": "epochs", "bs": "batch_size"}  # our names of their options
RANGE = re.compile(r"^(\S+) is not in the range .*$")


def usage_line(error: click.UsageError) -> str:
    """Return the fault and its cure in one line."""
    if isinstance(error, click.NoSuchOption):
        return f"there is no option {error.option_name}; {_meant(error)}"
    if isinstance(error, click.MissingParameter):
        return f"{_name(error)} is missing; {_help_cure(error)}"
    if isinstance(error, click.BadParameter):
        return _bad_value(error)
    message = error.message.rstrip(".")
    if surplus := re.match(r"^Got unexpected extra arguments? \((.*)\)$", message):
        return f"unexpected argument: {surplus[1]}; {_surplus_cure(error, surplus[1])}"
    message = re.sub(r"^Option '(.*)' requires an argument$", r"\1 needs a value; write it after the option", message)
    message = re.sub(r"^Option '(.*)' does not take a value$", r"\1 takes no value; write it alone", message)
    return message if ";" in message else f"{message}; {_help_cure(error)}"


def _meant(error: click.NoSuchOption) -> str:
    """Return the cure for an option that does not exist: those that are spelt like it, or how to give it."""
    name = error.option_name
    same = [option for option in _option_names(error) if _letters(option) == _letters(name)]
    ours = "--" + OF_OTHER_TOOLS.get(name.removeprefix("--").replace("-", "_"), "").replace("_", "-")
    close = same or [option for option in _option_names(error) if option == ours] or list(error.possibilities or ())[:3]
    if close:
        return f"did you mean {' or '.join(sorted(close))}?"
    if SET in _option_names(error) and name.startswith("--"):
        return f"write {SET} {name.removeprefix('--')}=VALUE"
    return _help_cure(error)


def _surplus_cure(error: click.UsageError, surplus: str) -> str:
    if "=" in surplus and SET in _option_names(error):
        return f"write {SET} {surplus}"
    if error.ctx is not None and error.ctx.command.name == "list":
        return f"`nightshift show {surplus}` shows one run, and `--name {surplus}` selects runs"
    return _help_cure(error)


def _option_names(error: click.UsageError) -> list[str]:
    params = error.ctx.command.params if error.ctx else []
    return [name for one in params if isinstance(one, click.Option) for name in one.opts if name.startswith("--")]


def _letters(option: str) -> str:
    return re.sub("[-_]", "", option).lower()


def _bad_value(error: click.BadParameter) -> str:
    name, kind = _name(error), error.param.type if error.param else None
    message = error.message
    if isinstance(kind, click.Choice) and "is not one of" in message:
        value = message.partition(" is not one of")[0]
        choices = [str(choice) for choice in kind.choices]
        close = difflib.get_close_matches(value.strip("'\""), choices, n=1)
        message = f"{value} is not one of {', '.join(choices)}{f'; did you mean {close[0]}?' if close else ''}"
    elif isinstance(kind, click.IntRange | click.FloatRange) and (found := RANGE.match(message)):
        message = f"{found[1]} is {_range_fault(kind, float(found[1]))}"
    for pattern, words in CLICK_WORDS:
        message = pattern.sub(words, message)
    if message.startswith(f"{(plain := name.removeprefix('--'))} "):  # such as a window, which says what it is
        message = message.removeprefix(f"{plain} ")
    return message if message.startswith(name) else f"{name} {message}"


def _range_fault(kind: "click.IntRange | click.FloatRange", value: float) -> str:
    """Return on which side of its range a value is, and the cure; no range of a command leaves out its own ends."""
    if kind.min is not None and value < kind.min:
        return f"below {kind.min:g}; use {kind.min:g} or more"
    return f"above {kind.max:g}; use {kind.max:g} or less"


def _name(error: click.BadParameter) -> str:
    """Return what a person wrote to give the parameter: its option, its place, or its key in a file."""
    parameter, context = error.param, error.ctx
    if parameter is None:
        return str(error.param_hint or "value").strip("'\"")
    name = parameter.name or ""
    if context is not None and context.get_parameter_source(name) == ParameterSource.DEFAULT_MAP:
        return f"{name} in {context.meta.get(CONFIG_NAME, 'the configuration')}:"
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len) if len(parameter.opts) == 1 else parameter.opts[0]
    place = parameter.make_metavar(context).strip("[].") if context else ""
    return place if place.isupper() else name.upper()


CONFIG_NAME = "nightshift.config"  # key of a context's `meta`: where the values of its `default_map` come from


def _help_cure(error: click.UsageError) -> str:
    return f"`{error.ctx.command_path if error.ctx else 'nightshift'} --help` shows how to use it"
