"""The options of `shards pack` that read labels from tables: their types, and which of them fit together."""

import math
from dataclasses import fields
from itertools import pairwise
from typing import Any

import click

from data_shards.columns import KeptColumn
from data_shards.index import SPLITS
from data_shards.pack.names import split_of
from data_shards.pack.options import DICOM_PREFIX, LabelOptions


class NameList(click.ParamType[tuple[str, ...]]):
    """Names with commas between them."""

    name = "A,B,C"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names without blanks at their ends."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(","))
        return names if all(names) else self.fail(f"{value!r} has an empty name; write A,B,C", param, ctx)


class ColumnValue(click.ParamType[tuple[str, str]]):
    """A column and a value with = between them."""

    name = "COLUMN=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return the column and the value."""
        if isinstance(value, tuple):
            return value[0], value[1]
        column, equals, text = str(value).partition("=")
        if not equals or not column.strip():
            self.fail(f"{value!r} is not a column and a value; write COLUMN=VALUE", param, ctx)
        return column.strip(), text.strip()


class Column(click.ParamType[KeptColumn]):
    """A column to keep, or one of numbers and the bounds of bands with = between them."""

    name = "COLUMN[=BOUNDS]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> KeptColumn:
        """Return the column with its bounds."""
        if isinstance(value, KeptColumn):
            return value
        column, equals, text = str(value).partition("=")
        if not column.strip():
            self.fail(f"{value!r} has no column; write COLUMN or COLUMN=40,60,80", param, ctx)
        bounds = [_number(one) for one in text.split(",")] if equals else []
        known = [one for one in bounds if one is not None]
        if len(known) < len(bounds) or any(low >= high for low, high in pairwise(known)):
            self.fail(f"{value!r} does not end with rising numbers; write COLUMN=40,60,80", param, ctx)
        return KeptColumn(name=column.strip(), bounds=tuple(known))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class SplitFile(click.ParamType[tuple[str, str]]):
    """A split and a list of its images with = between them."""

    name = "SPLIT=LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return the split and the path of the list."""
        if isinstance(value, tuple):
            return value[0], value[1]
        name, equals, path = str(value).partition("=")
        split = split_of(name)
        if not equals or split is None or not path.strip():
            self.fail(f"{value!r} is not a split and a file; write {SPLITS[-1]}=LIST", param, ctx)
        return split, path.strip()


def label_options(choices: dict[str, Any]) -> LabelOptions | None:
    """Return the options of `--labels`, taken out of the chosen ones; None without tables.

    Raises:
        click.UsageError: An option needs a table, or contradicts another.
    """
    chosen = {field.name: choices.pop(field.name) for field in fields(LabelOptions)}
    given = {name: value for name, value in chosen.items() if value not in (None, (), False)}
    if not given.get("tables"):
        where = [column for column, _ in choices["where"] if not column.startswith(DICOM_PREFIX)]
        needing = [*given, *(["multi_label"] if choices["multi_label"] else []), *(["where"] if where else [])]
        if needing:
            raise click.UsageError(f"{_option(needing[0])} needs a table; give it with --labels TABLE")
        return None
    if "label_column" in given and "label_columns" in given:
        raise click.UsageError("--label-column and --label-columns exclude each other; give one of them")
    if "group_column" in given and choices["group_by"]:
        raise click.UsageError("--group-column and --group-by exclude each other; give one of them")
    if "split_column" in given and choices["split_files"]:
        raise click.UsageError("--split-column and --split-file exclude each other; give one of them")
    for name in ("tables", "image_column", "label_column", "group_column", "split_column"):
        if any(not text.strip() for text in _texts(given.get(name))):
            raise click.UsageError(f"{_option(name)} is empty; give {'a path' if name == 'tables' else 'a column'}")
    return LabelOptions(**given)


def _option(name: str) -> str:
    return {"tables": "--labels", "keep_columns": "--keep-column"}.get(name, f"--{name.replace('_', '-')}")


def _texts(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else () if value is None else (str(value),)
