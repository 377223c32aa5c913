"""Options under headings, and those that commands share which import no spec: specs make the shortest commands slow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from jobs.cli.completion import complete_model, complete_path, complete_run

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

COLD = click.option(
    "--cold",
    is_flag=True,
    help="Start each run as a new process that imports torch and Ray, not as a fork of one that has.",
)


@dataclass(frozen=True)
class OptionGroup:
    """Options that `--help` shows under one heading."""

    heading: str
    options: tuple[Decorator, ...]

    def without(self, *left_out: Decorator) -> "OptionGroup":
        """Return the group without some of its options, for a command that has others in their place."""
        return OptionGroup(self.heading, tuple(one for one in self.options if one not in left_out))


def options(*groups: OptionGroup) -> Callable[[Function], Function]:
    """Return a decorator that adds groups of options to a command, shown in their order."""

    def add(function: Function) -> Function:
        for group in reversed(groups):
            for decorate in reversed(group.options):
                function = decorate(function)
                vars(function)["__click_params__"][-1].heading = group.heading
        return function

    return add


def run_argument(name: str, **more: Any) -> Decorator:
    """Return an argument that names a run or a model; the shell completes ids and names."""
    return click.argument(name, shell_complete=complete_model if name == "model" else complete_run, **more)


def path_argument(name: str, **more: Any) -> Decorator:
    """Return an argument that is a path or an address; the shell completes paths."""
    return click.argument(name, shell_complete=complete_path, **more)


def json_option(what: str = "Print the result as JSON.") -> Decorator:
    """Return the option `--json`."""
    return click.option("--json", "as_json", is_flag=True, help=what)
