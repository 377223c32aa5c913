"""One template for many variants of a manifest: which fields depend on which switches.

A variant is what kustomize renders for one choice of switches. `merged` compares the variants of a value and keeps what
they share; where they differ, it learns on which switches the difference depends, as a decision tree does. The result
is evaluated for a choice (`value_of`), and written as a Go template (`Writer`), in which each switch is a Helm value.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Choice = frozenset[str]  # the switches that are on
Variant = tuple[Choice, Any]
ABSENT = "absent"  # the label of variants without the field
PLAIN = re.compile(r"[A-Za-z0-9/][A-Za-z0-9 ./_-]*")


class Missing:
    """The value of a field that a variant does not have."""


MISSING = Missing()


@dataclass(frozen=True)
class Literal:
    """A value that all variants share."""

    value: Any


@dataclass(frozen=True)
class Fields:
    """A mapping; a field may be missing in some variants."""

    fields: "dict[str, Node]"


@dataclass(frozen=True)
class Items:
    """A list; an item may be missing in some variants."""

    items: "list[Node]"


@dataclass(frozen=True)
class Branch:
    """Two nodes, of which a switch chooses one."""

    switch: str
    on: "Node"
    off: "Node"


@dataclass(frozen=True)
class Override:
    """A value that a Helm value replaces.

    Attributes:
        condition: Go expression: whether the value is given.
        template: Go template of the value; INDENT stands for the indentation of its lines.
        default: The node without the value.
    """

    condition: str
    template: str
    default: "Node"


Node = Literal | Fields | Items | Branch | Override | Missing


def merged(variants: Sequence[Variant], switches: Sequence[str]) -> Node:
    """Return the node that has the value of each variant for its choice."""
    labels = [_shape(value) for _, value in variants]
    if len(set(labels)) > 1:
        return _split(variants, labels, switches)
    first = variants[0][1]
    if labels[0] == ABSENT:
        return MISSING
    if all(value == first for _, value in variants):
        return Literal(first)
    if isinstance(first, dict):
        names = list(dict.fromkeys(name for _, value in variants for name in value))
        return Fields({n: merged([(c, v.get(n, MISSING)) for c, v in variants], switches) for n in names})
    if labels[0] == "items":
        return _merged_items(variants, switches)
    return _split(variants, [json.dumps(value) for _, value in variants], switches)


def _merged_items(variants: Sequence[Variant], switches: Sequence[str]) -> Node:
    """Merge lists item by item, by name or, if all have one length, by place; whole lists otherwise."""
    by_name = all(_have_names(value) for _, value in variants)
    lists = [[item["name"] if by_name else str(place) for place, item in enumerate(value)] for _, value in variants]
    order = list(dict.fromkeys(name for names in [max(lists, key=len), *lists] for name in names))
    same_length = len(set(map(len, lists))) == 1
    if not (by_name or same_length) or any([n for n in order if n in names] != names for names in lists):
        return _split(variants, [json.dumps(value) for _, value in variants], switches)
    named = [(c, dict(zip(names, value, strict=True))) for names, (c, value) in zip(lists, variants, strict=True)]
    return Items([merged([(c, v.get(n, MISSING)) for c, v in named], switches) for n in order])


def _have_names(items: Sequence[Any]) -> bool:
    names = [item.get("name") for item in items]
    return None not in names and len(set(names)) == len(names)


def _shape(value: Any) -> str:
    """Return the label of values that can be merged field by field."""
    if value is MISSING:
        return ABSENT
    if isinstance(value, dict) and value:
        return "fields"
    if isinstance(value, list) and value and all(isinstance(item, dict) and item for item in value):
        return "items"
    return "value"


def _split(variants: Sequence[Variant], labels: Sequence[str], switches: Sequence[str]) -> Node:
    """Split by the switch that separates the labels best."""

    def impurity(switch: str) -> float:
        sides = [
            [label for (c, _), label in zip(variants, labels, strict=True) if (switch in c) is on]
            for on in (True, False)
        ]
        return sum(map(_entropy, sides)) if all(sides) else math.inf

    best = min(switches, key=impurity)
    if impurity(best) == math.inf:
        raise ValueError(f"no switch explains the difference of {sorted(set(labels))[:2]}")
    on = [(choice, value) for choice, value in variants if best in choice]
    off = [(choice, value) for choice, value in variants if best not in choice]
    return Branch(best, merged(on, switches), merged(off, switches))


def _entropy(labels: Sequence[str]) -> float:
    return -sum(n * math.log2(n / len(labels)) for n in Counter(labels).values())


def value_of(node: Node, choice: Choice) -> Any:
    """Return the value for a choice without any Helm value that overrides it, MISSING if there is none."""
    match node:
        case Literal(value):
            return value
        case Fields(fields):
            found = {name: value_of(field, choice) for name, field in fields.items()}
            return {name: value for name, value in found.items() if value is not MISSING}
        case Items(items):
            return [value for item in items if (value := value_of(item, choice)) is not MISSING]
        case Branch(switch, on, off):
            return value_of(on if switch in choice else off, choice)
        case Override(default=default):
            return value_of(default, choice)
    return MISSING


class Writer:
    """Writes nodes as lines of a Go template.

    Args:
        conditions: The Go expression of each switch.
        sentinels: Text that stands for a Helm value in the rendered manifests -> its Go template.
    """

    def __init__(self, conditions: dict[str, str], sentinels: dict[str, str]) -> None:
        self.conditions = conditions
        self.sentinels = sentinels

    def lines(self, node: Node, prefix: str, indent: int) -> Iterator[str]:
        """Yield the lines of a node behind `prefix`, such as `replicas:`, `-`, or nothing for a whole manifest."""
        match node:
            case Branch(switch, on, off):
                yield from self._choice(self.conditions[switch], on, off, prefix, indent)
            case Override(condition, template, default):
                yield f"{{{{- if {condition} }}}}"
                yield f"{' ' * indent}{prefix} {template.replace('INDENT', str(indent + 2))}"
                if not isinstance(default, Missing):
                    yield "{{- else }}"
                    yield from self.lines(default, prefix, indent)
                yield "{{- end }}"
            case Literal(value) if isinstance(value, dict) and value:
                yield from self.lines(Fields({k: Literal(v) for k, v in value.items()}), prefix, indent)
            case Literal(value) if isinstance(value, list) and value:
                yield from self.lines(Items([Literal(item) for item in value]), prefix, indent)
            case Literal(value):
                yield from self._scalar(value, prefix, indent)
            case Fields(fields):
                yield from self._fields(fields, prefix, indent)
            case Items(items):
                yield f"{' ' * indent}{prefix}"
                for item in items:
                    yield from self.lines(item, "-", indent)

    def _choice(self, condition: str, on: Node, off: Node, prefix: str, indent: int) -> Iterator[str]:
        negated = isinstance(on, Missing)
        yield f"{{{{- if {f'not ({condition})' if negated else condition} }}}}"
        yield from self.lines(off if negated else on, prefix, indent)
        if not negated and not isinstance(off, Missing):
            yield "{{- else }}"
            yield from self.lines(off, prefix, indent)
        yield "{{- end }}"

    def _fields(self, fields: dict[str, Node], prefix: str, indent: int) -> Iterator[str]:
        inner = indent + 2 if prefix else indent
        lines = [line for name, node in fields.items() for line in self.lines(node, f"{self.scalar(name)}:", inner)]
        if prefix == "-" and not lines[0].startswith("{{"):  # the first field stands behind the dash
            lines[0] = f"{' ' * indent}- {lines[0].lstrip()}"
        elif prefix:
            yield f"{' ' * indent}{prefix}"
        yield from lines

    def _scalar(self, value: Any, prefix: str, indent: int) -> Iterator[str]:
        if isinstance(value, str) and "\n" in value and not value.startswith((" ", "\n")):
            ending = "" if value.endswith("\n") else "-"
            yield f"{' ' * indent}{prefix} |{ending}"
            for line in value.removesuffix("\n").split("\n"):
                yield f"{' ' * (indent + 2)}{self.text(line)}" if line else ""
            return
        yield f"{' ' * indent}{prefix} {self.scalar(value)}"

    def scalar(self, value: Any) -> str:
        """Return a scalar as YAML, with templates in it."""
        if not isinstance(value, str):
            return json.dumps(value)
        if PLAIN.fullmatch(value) and yaml.safe_load(value) == value and not any(s in value for s in self.sentinels):
            return value
        return self.text(json.dumps(value, ensure_ascii=False))

    def text(self, text: str) -> str:
        """Escape what is no template of ours, and replace the sentinels by their templates."""
        escaped = re.sub(r"\{\{|\}\}", lambda found: f'{{{{ "{found[0]}" }}}}', text)
        for sentinel, template in self.sentinels.items():
            escaped = escaped.replace(sentinel, template)
        return escaped
