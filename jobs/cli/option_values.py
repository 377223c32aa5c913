"""From a spec or a config file to the values of a command's options, and from these to the line that repeats a run."""

import difflib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import click

from cluster.windows import local_zone_name
from jobs.cli.usage_errors import OF_OTHER_TOOLS
from jobs.errors import InvalidOption
from trainer.specs import SPEC_OF_KIND
from trainer.specs.command_text import OF_ONE_RUN
from trainer.specs.search_space import GRID_POINTS

NO_VALUES = frozenset({"config", "waits", "dry_run", "as_json", "help"})  # parameters that a file cannot give
ONCE = OF_ONE_RUN | {"name", "after", "at", "notify", "note", "owner"}  # not of the repetition of a run
OF_A_USER = ("notify", "owner")  # of a request, and no values of options
Values = dict[str, Any]  # by the names of click's parameters: texts, or lists of texts


def option_values(command: click.Command, content: Mapping[str, Any], source: str) -> Values:
    """Return the values of a command's options and arguments that a spec or a config file gives.

    Args:
        command: The command that submits this kind of run.
        content: The keys, spelt as options or as fields of the spec, and their values.
        source: Where they come from, for errors.

    Raises:
        InvalidOption: A key is not an option of the command, or its value cannot be given to it.
    """
    kind = content.get("kind", command.name)
    if kind != command.name:
        raise InvalidOption(f"{source} is a spec for `nightshift {kind}`; use it with that command")
    known, fields = _keys(command, of_spec="kind" in content), SPEC_OF_KIND[str(command.name)].model_fields
    values: Values = {}
    if content.get("form") == "json" and kind == "predict":
        values["as_json"] = "true"
    for key, value in _flat(content, source).items():
        name = known.get(key.replace("-", "_"))
        if name is None and key in fields:
            _refuse_other_than_default(command, key, value, fields[key].default, source)
        elif name is None and key.replace("-", "_") in _of_command_line(command):
            raise InvalidOption(f"{source}: {key!r} is for the command line alone; leave it out")
        elif name is None:
            ours = OF_OTHER_TOOLS.get(key.replace("-", "_"))
            close = [ours] if ours in known else difflib.get_close_matches(key.replace("-", "_"), known, n=1)
            cure = f"did you mean {close[0]}?" if close else f"`nightshift {command.name} --help` shows the options"
            raise InvalidOption(f"{source}: {key!r} is not an option of nightshift {command.name}; {cure}")
        elif name in values:
            raise InvalidOption(f"{source}: {key!r} and another key give the same option; remove one of them")
        elif value is not None:
            values[name] = _for_parameter(command, name, value, f"{source}: {key}")
    return values


def values_of_run(command: click.Command, spec: Mapping[str, Any], request: Mapping[str, Any], source: str) -> Values:
    """Return the values of a command's options and arguments that submit a run again.

    Args:
        command: The command that submits this kind of run.
        spec: The spec of the run as JSON.
        request: How it was submitted, as JSON.
        source: Where they come from, for errors.
    """
    given = {key: value for key, value in request.items() if key not in OF_A_USER and value not in (None, [])}
    return option_values(command, as_text({**spec, **given}), source)


def option_words(command: click.Command, values: Values) -> dict[str, list[str]]:
    """Return for each option that has a value the words that give it, by the name of its parameter."""
    context = click.Context(command)
    return {
        str(parameter.name): _words(parameter, context, values[str(parameter.name)])
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name in values
    }


def command_line(command: click.Command, values: Values) -> str:
    """Return the line that gives a command these values; options with their defaults are left out."""
    words, context = ["nightshift", str(command.name)], click.Context(command)
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.name in values:
            value = values[parameter.name]
            words += value if isinstance(value, list) else [value]
    given = option_words(command, {name: value for name, value in values.items() if name not in ONCE})
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name in given:
            words += [] if _is_default(parameter, context, values[parameter.name]) else given[parameter.name]
    return shlex.join(words)


def as_text(value: Any) -> Any:
    """Return a value of JSON as a config file would give it: texts, in lists and objects as they are."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return {str(key): as_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_text(item) for item in value]
    return value if value is None else str(value)


def _keys(command: click.Command, *, of_spec: bool) -> dict[str, str]:
    """Return the parameter of each key: its name, and its options without dashes.

    `repeats` is the name of `search --seeds` and an option of its own. A spec means the name, a person the option.
    """
    names, flags = dict[str, str](), dict[str, str]()
    for parameter in command.params:
        name = parameter.name or ""
        if name not in NO_VALUES:
            long = [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]
            names[name] = name
            flags.update(dict.fromkeys((option.replace("-", "_") for option in long), name))
    return flags | names if of_spec else names | flags


def _of_command_line(command: click.Command) -> set[str]:
    options = [option for parameter in command.params if parameter.name in NO_VALUES for option in parameter.opts]
    return {option.removeprefix("--").replace("-", "_") for option in options}


def _flat(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the keys of options alone: a search space as texts, and what a spec writes in another form."""
    flat = {key: value for key, value in content.items() if key not in ("kind", "space", "timezone", "form")}
    if "patience" in flat and flat["patience"] is None:
        flat["patience"] = "0"
    if "max_duration_seconds" in flat and str(flat["max_duration_seconds"]).replace(".", "").isdecimal():
        flat["max_duration_seconds"] = f"{float(flat['max_duration_seconds'])}s"
    if isinstance(space := content.get("space"), Mapping):
        flat |= {name: _dimension(name, value, source) for name, value in space.items() if value is not None}
    zone = content.get("timezone")
    if zone is not None and zone != local_zone_name():
        raise InvalidOption(f"{source}: the window is in the time zone {zone}; set TZ={zone} for this command")
    return flat


def _dimension(name: str, value: Any, source: str) -> str:
    if isinstance(value, list):
        return ",".join(_number(item) for item in value)
    if isinstance(value, Mapping) and {"low", "high"} <= value.keys():
        points = str(value.get("points", GRID_POINTS))
        return f"{_number(value['low'])}:{_number(value['high'])}{'' if points == str(GRID_POINTS) else f':{points}'}"
    raise InvalidOption(f"{source}: {name} of the search space is neither a range nor a list of choices")


def _number(value: Any) -> str:
    return str(value).removesuffix(".0")  # as a person writes it


def _refuse_other_than_default(command: click.Command, key: str, value: Any, default: Any, source: str) -> None:
    if value is not None and as_text(default) != value:
        raise InvalidOption(f"{source}: nightshift {command.name} has no option for {key} {value}; remove the key")


def _for_parameter(command: click.Command, name: str, value: Any, place: str) -> Any:
    parameter = next(each for each in command.params if each.name == name)
    takes_several = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        if takes_several:
            return value
        if command.name == "search":
            return ",".join(value)  # choices of a search space
    if isinstance(value, list | Mapping):
        raise InvalidOption(f"{place} is {'a list' if isinstance(value, list) else 'an object'}; give one value")
    return [value] if takes_several else value


def _is_default(parameter: click.Option, context: click.Context, value: Any) -> bool:
    default = parameter.get_default(context)
    if not isinstance(default, str | int | float | list | tuple):
        default = None  # click's sign for no default
    return bool(_cast(parameter, context, value) == _cast(parameter, context, default))


def _cast(parameter: click.Option, context: click.Context, value: Any) -> Any:
    return parameter.type_cast_value(context, value)


def _words(parameter: click.Option, context: click.Context, value: Any) -> list[str]:
    name = max(parameter.opts, key=len) if len(parameter.opts) == 1 else parameter.opts[0]
    if parameter.is_flag:
        return [name] if _cast(parameter, context, value) else parameter.secondary_opts[:1]
    values: Iterable[str] = value if isinstance(value, list) else [value]
    return [word for each in values for word in (name, each)]
