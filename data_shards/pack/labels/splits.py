"""The split of each image: from lists, from a column of the table, or from the split folders of the source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_shards.errors import OptionError, SourceError
from data_shards.index import SPLITS
from data_shards.pack.labels.chosen_columns import names_image
from data_shards.pack.labels.column_matching import match_cells
from data_shards.pack.labels.columns import find_image_column
from data_shards.pack.labels.matching import Ambiguous, ImageMatcher, nearest
from data_shards.pack.labels.tables import find_table, read_lines, read_table
from data_shards.pack.names import normalized_name
from data_shards.pack.split import parse_shares

SHOWN = 3  # names in an error
NO_SPLITS: Mapping[str, Any] = MappingProxyType({})
MIN_SPLITS = 2  # split folders that labelled images must be in to be a division


@dataclass(frozen=True, kw_only=True)
class SplitLists:
    """Lists of the images of splits.

    Attributes:
        split_of: The split of each image that is in a list, by its path.
        notes: For each list how many entries name no image, or one by its file name alone.
    """

    split_of: dict[str, str]
    notes: tuple[str, ...] = ()


def read_split_lists(folder: Path, matcher: ImageMatcher, lists: Sequence[tuple[str, str]]) -> SplitLists:
    """Return the split of each image that a list names.

    Args:
        folder: The source; a list may lie in it.
        matcher: The images below it.
        lists: A split and the path of its list: a text file with an image on each line, or a table.

    Raises:
        OptionError: A list is not there.
        SourceError: It cannot be read, names no image, or names one that is in another list too.
    """
    entries_of = [_entries(find_table(name, folder), name, matcher) for _, name in lists]
    matched = match_cells([entry for entries in entries_of for entry in entries], [matcher])
    split_of: dict[str, str] = {}
    notes = []
    end = 0
    for (split, name), entries in zip(lists, entries_of, strict=True):
        start, end = end, end + len(entries)
        unknown = []
        for entry, path in zip(entries, matched.images[start:end], strict=True):
            if isinstance(path, Ambiguous):
                raise SourceError(
                    f"{name}: {entry!r} fits {len(path.images)} images, {' and '.join(path.images[:2])}; "
                    "write its path into the list"
                )
            if path is None:
                unknown.append(entry)
            elif split_of.setdefault(path, split) != split:
                raise SourceError(
                    f"{normalized_name(path)} is in the lists of {split_of[path]} and {split}; remove it from one"
                )
        if len(unknown) == len(entries):
            raise SourceError(f"{name} names no image of the source{_shown(unknown, matcher)}; give another list")
        if unknown:
            notes.append(f"{name}: {len(unknown)} of {len(entries)} entries name no image{_shown(unknown, matcher)}")
        if by_name := matched.count_by_name(start, end):
            notes.append(f"{name}: {by_name} of {len(entries)} entries match by file name alone; their folders differ")
    return SplitLists(split_of=split_of, notes=tuple(notes))


def _entries(path: Path, name: str, matcher: ImageMatcher) -> list[str]:
    """Return what a list names: its lines, or the column of a table that names most images."""
    lines = read_lines(path, name)
    whole = [line for line in lines if isinstance(matcher.find(line), str)]
    if 2 * len(whole) >= len(lines) > 0:
        return lines[1:] if matcher.find(lines[0]) is None and len(whole) == len(lines) - 1 else lines
    table = read_table(path, name, lambda rows: not names_image(rows, matcher))
    found = find_image_column(table, matcher)
    return lines if found is None else table.column(found)


def _shown(unknown: Sequence[str], matcher: ImageMatcher) -> str:
    if not unknown:
        return ""
    close = nearest(unknown[0], matcher.names)
    return f", such as {unknown[0][:80]!r}{f' (nearest: {close})' if close else ''}"


def decide_splits(
    paths: Sequence[str],
    *,
    lists: SplitLists | None,
    shares: str | None,
    by_column: Mapping[str, str | None] = NO_SPLITS,
    column: str | None = None,
    is_column_told: bool = False,
    split_folders: Mapping[str, str] = NO_SPLITS,
    is_addition: bool = False,
) -> dict[str, str | None]:
    """Return the split of each image, None for those that `shares` divides.

    Args:
        paths: Paths of the images.
        lists: The lists of `--split-file`, None without any; they come before a column, and that before folders.
        shares: The option `--split`. It divides images without a split; or those of train, if none are valid.
        by_column: Split of each image in the column of splits.
        column: Name of that column, None without one.
        is_column_told: Whether an option names it.
        split_folders: The folder of each split, if there are such folders.
        is_addition: Whether the images are added to a data set: then any of them may have a split or none, and a
            single split folder is one.

    Raises:
        OptionError: `--split` has nothing to divide, or two things give different splits.
        SourceError: Images have no split, or all are in train.
    """
    by_folder = {path: _split_of_folder(path, split_folders) for path in paths}
    folders_divide = len(set(by_folder.values()) - {None}) >= MIN_SPLITS
    found: dict[str, str | None]
    if lists is not None:
        found, source = {path: lists.split_of.get(path) for path in paths}, "the lists of --split-file"
    elif column is not None and (is_column_told or not folders_divide):
        found, source = {path: by_column.get(path) for path in paths}, f"the column {column!r}"
    elif shares and not folders_divide and not (is_addition and any(by_folder.values())):
        found, source = dict.fromkeys(paths), "the source"
    else:
        found, source = dict(by_folder), "the split folders"
        _refuse_other_column(found, by_column, column)
    is_told = lists is not None or is_column_told or source == "the split folders"
    cure = "" if is_told else ", or use --split-column none"
    if shares and not is_addition:
        found = divided_train(found, shares, cure)
    if not (is_addition and (shares or all(found.values()))):
        _refuse_undivided(found, source, shares, cure)
    return found


def divided_train(found: Mapping[str, str | None], shares: str, cure: str = "") -> dict[str, str | None]:
    """Return the splits without train, so that shares divide its images, if every image has a split and none is valid.

    Args:
        found: Split of each image.
        shares: The option `--split`.
        cure: What else may be done about splits and shares that do not fit, for errors.

    Raises:
        OptionError: The shares have test images, and there are some already.
    """
    given = set(found.values())
    if None in given or "valid" in given or "train" not in given:
        return dict(found)
    if "test" in given and parse_shares(shares)[SPLITS.index("test")]:
        raise OptionError(
            f"--split {shares} takes test images out of train, but there are test images already; divide train with "
            f"--split 85/15/0{cure}"
        )
    return {path: None if split == "train" else split for path, split in found.items()}


def _split_of_folder(path: str, split_folders: Mapping[str, str]) -> str | None:
    return next((split for split, folder in split_folders.items() if path.startswith(f"{folder}/")), None)


def _refuse_other_column(
    found: Mapping[str, str | None], by_column: Mapping[str, str | None], column: str | None
) -> None:
    for path, split in found.items():
        if column is not None and by_column.get(path) not in (None, split):
            raise OptionError(
                f"{normalized_name(path)} is {by_column[path]} in the column {column!r}, but not by its folder; choose "
                f"the column with --split-column {column!r}, or the folders with --split-column none"
            )


def _refuse_undivided(found: Mapping[str, str | None], source: str, shares: str | None, cure: str) -> None:
    missing = [path for path, split in found.items() if split is None]
    given = {split for split in found.values() if split}
    if shares:
        if not missing and found:
            raise OptionError(f"every image has its split by {source} already; leave out --split{cure}")
        return
    if missing and not given:
        raise SourceError("the source has no folders train, valid and test; add --split 70/15/15")
    if missing:
        raise SourceError(
            f"{len(missing)} of {len(found)} images have no split by {source}, such as "
            f"{', '.join(map(normalized_name, missing[:SHOWN]))}; divide them with --split 85/15/0, or name them there"
        )
    if given == {SPLITS[0]}:
        raise SourceError(f"all images are in train by {source}; add --split 70/15/15, or the tables of other splits")
