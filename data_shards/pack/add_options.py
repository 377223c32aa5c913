"""The options of `shards add`: those of the data set, and those that may be given for the new images."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from data_shards.errors import OptionError
from data_shards.index import ShardIndex
from data_shards.pack.options import EncodeOptions, PackOptions
from data_shards.pack.split import parse_shares

OF_THE_DATA_SET = ("image_size", "encoding", "quality", "multi_label")  # the same for all images
OF_ONE_SOURCE = ("processes", "allow_leakage", "classes", "drop_classes")


def add_options(index: ShardIndex, given: Mapping[str, Any]) -> PackOptions:
    """Return the options for new images of a data set.

    Args:
        index: The data set's index.
        given: The options that were given, by the names of their fields.

    Raises:
        OptionError: An option contradicts the data set.
    """
    stored = _without(_known(PackOptions, index.options), OF_ONE_SOURCE)
    encode = EncodeOptions.of_index(index.options) or EncodeOptions(image_size=index.image_size, keep_small=False)
    options = PackOptions(encode=encode, **stored)
    for name in OF_THE_DATA_SET:
        before = getattr(encode, name, None) if hasattr(encode, name) else getattr(options, name)
        if name in given and given[name] != before:
            raise OptionError(
                f"{_flag(name)} {given[name]} differs from the {before} of the data set; leave the option out, or pack "
                "a new data set"
            )
    _check_split(options.split, given.get("split"))
    _check_groups(index, options.group_by, given.get("group_by"))
    encode = replace(encode, **_known(EncodeOptions, given))
    return replace(options, encode=encode, **_known(PackOptions, given))


def _check_split(before: str | None, given: str | None) -> None:
    if before and given and parse_shares(before) != parse_shares(given):
        raise OptionError(
            f"--split {given} differs from the --split {before} of the data set; leave the option out, and the new "
            "images are divided like the others"
        )


def _check_groups(index: ShardIndex, before: str | None, given: str | None) -> None:
    if given and not index.grouped:
        raise OptionError(
            f"--group-by {given}: the images of the data set have no groups; leave the option out, or pack a new data "
            "set with groups"
        )
    if index.grouped and not given and (not before or before.lower().endswith(".csv")):
        raise OptionError(
            f"the images of the data set have groups, from {before}; give the groups of the new images with --group-by"
        )


def _known(kind: type[EncodeOptions | PackOptions], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are fields of a kind; an index keeps a list of names as a text with commas."""
    defaults = {field.name: field.default for field in fields(kind) if field.name in options}
    return {
        name: tuple(options[name].split(",")) if isinstance(default, tuple) and isinstance(options[name], str)
        else options[name]
        for name, default in defaults.items()
    }  # fmt: skip


def _without(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
