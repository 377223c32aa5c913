"""The options of `shards add`: those of the data set, and those that may be given for the new images."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias

from data_shards.errors import OptionError
from data_shards.index import ShardIndex
from data_shards.pack.options import (
    DICOM_PREFIX,
    TABLE_ENDINGS,
    AddedLabelOptions,
    EncodeOptions,
    LabelOptions,
    PackOptions,
)
from data_shards.pack.pseudonyms import key_fingerprint
from data_shards.pack.split import parse_shares

OF_THE_DATA_SET = (*(f.name for f in fields(EncodeOptions) if f.name != "max_megapixels"), "multi_label")
OF_ONE_SOURCE = ("processes", "allow_leakage", "classes", "drop_classes", "labels", "split_files", "where", "group_key")
OF_ONE_TABLE = ("tables", "allow_unmatched")

Conditions: TypeAlias = tuple[tuple[str, str], ...]


def add_options(index: ShardIndex, given: Mapping[str, Any]) -> PackOptions:
    """Return the options for new images of a data set.

    Args:
        index: The data set's index.
        given: The options that were given, by the names of their fields.

    Raises:
        OptionError: An option contradicts the data set.
    """
    stored = _without(_known(PackOptions, index.options), OF_ONE_SOURCE)
    labels = given.get("labels")
    if (labels and labels.group_column) or str(stored.get("group_by")).lower().endswith(TABLE_ENDINGS):
        stored["group_by"] = None  # the groups of the new images come from another table
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
    _check_groups(index, options.group_by, given)
    encode = replace(encode, **_known(EncodeOptions, given))
    options = replace(options, encode=encode, **_known(PackOptions, given))
    options = replace(
        options, where=_where(options.where, _stored_where(index)), plain_groups="group_key" not in index.options
    )
    if not options.plain_groups:
        _check_key(index, options.group_key() if options.group_key else None)
    if options.labels is None:
        return options
    _check_columns(options.labels, index)
    return replace(options, labels=_with_stored(options.labels, index, options.group_by))


def _with_stored(labels: LabelOptions, index: ShardIndex, group_by: str | None) -> LabelOptions:
    """Return the options of labels that were given, and for the others those of the data set."""
    default = LabelOptions(tables=())
    stored = _without(_known(LabelOptions, index.options), OF_ONE_TABLE)
    unchosen = {name: value for name, value in stored.items() if getattr(labels, name) == getattr(default, name)}
    if labels.label_column or labels.label_columns:
        unchosen = _without(unchosen, ("label_column", "label_columns"))
    if not index.grouped:
        unchosen["group_column"] = "none"
    found = replace(labels, **unchosen, keep_columns=index.columns)
    if not index.grouped or group_by:
        return found
    return AddedLabelOptions(**vars(found), former_group_column=index.group_column)


def _check_columns(labels: LabelOptions, index: ShardIndex) -> None:
    if labels.keep_columns and set(labels.keep_columns) != set(index.columns):
        given, before = (", ".join(map(str, columns)) or "none" for columns in (labels.keep_columns, index.columns))
        raise OptionError(
            f"--keep-column {given}: the data set keeps {before}; leave the option out, or pack a new data set"
        )


def _where(given: Conditions, stored: Conditions) -> Conditions:
    """Return the conditions on new images: those that were given, else the stored ones; on DICOM headers both."""
    if not given:
        return stored
    return (*given, *(condition for condition in stored if condition[0].startswith(DICOM_PREFIX)))


def _stored_where(index: ShardIndex) -> Conditions:
    """Return the conditions of the data set, which are stored as COLUMN=VALUE with commas between them."""
    found: list[tuple[str, str]] = []
    for text in str(index.options.get("where") or "").split(","):
        column, equals, value = text.partition("=")
        if equals:
            found.append((column, value))
        elif found:  # a further value of the condition before
            found[-1] = (found[-1][0], f"{found[-1][1]},{text}")
    return tuple(found)


def _check_split(before: str | None, given: str | None) -> None:
    if before and given and parse_shares(before) != parse_shares(given):
        raise OptionError(
            f"--split {given} differs from the --split {before} of the data set; leave the option out, and the new "
            "images are divided like the others"
        )


def _check_groups(index: ShardIndex, before: str | None, given: Mapping[str, Any]) -> None:
    labels = given.get("labels")
    option = "--group-by" if given.get("group_by") else "--group-column" if labels and labels.group_column else None
    if option and not index.grouped:
        raise OptionError(
            f"{option}: the images of the data set have no groups; leave the option out, or pack a new data set with "
            "groups"
        )
    if index.grouped and not (before or given.get("group_by") or labels):
        where = index.options.get("group_by") or index.options.get("labels")
        raise OptionError(
            f"the images of the data set have groups, from {where}; give those of the new images with --group-by, or "
            "with --labels TABLE --group-column COLUMN"
        )
    stored = str(index.options.get("group_by") or "")
    chosen = given.get("group_by") or (labels.group_column if labels and labels.group_column != "none" else None)
    if chosen and chosen != stored and DICOM_PREFIX in (chosen[: len(DICOM_PREFIX)], stored[: len(DICOM_PREFIX)]):
        raise OptionError(
            f"{option} {chosen}: the groups of the data set are from {stored or 'a table'}, and would not be "
            "recognized; leave the option out"
        )


def _check_key(index: ShardIndex, key: str | None) -> None:
    """Refuse another key than that of the data set: it would give known patients new names, and perhaps new splits."""
    if key is None:
        raise OptionError(
            "the groups of the data set are keyed hashes, and this storage has no group.key; set NIGHTSHIFT_STORAGE to "
            "the one that it was packed with, or copy its group.key here"
        )
    if key_fingerprint(key) != index.options["group_key"]:
        raise OptionError(
            "the groups of the data set were named with the key of another storage; set NIGHTSHIFT_STORAGE to the one "
            "that it was packed with"
        )


def _known(kind: type[EncodeOptions | LabelOptions | PackOptions], options: Mapping[str, Any]) -> dict[str, Any]:
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
