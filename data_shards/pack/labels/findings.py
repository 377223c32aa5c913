"""The labels that rows of a table give an image. Several rows of one image agree, are voted, or are joined. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from data_shards.errors import SourceError
from data_shards.pack.labels.cells import BINARY, is_list, is_missing, labels_of, normalized_label, whole_numbers
from data_shards.pack.labels.columns import listed
from data_shards.pack.labels.joining import Rows
from data_shards.pack.options import LabelOptions
from data_shards.targets import ABSENT, PRESENT, UNKNOWN

UNCERTAIN = {"mask": UNKNOWN, "positive": PRESENT, "negative": ABSENT}
DEFAULT_SEPARATOR = "|"
OTHER_SEPARATORS = (";", ",")
SHOWN = 60  # characters of a cell in an error


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a row, or all rows of an image, say of its labels; each other label is absent.

    Attributes:
        present: The labels that it has.
        unknown: The labels of which it is unknown whether it has them.
    """

    present: frozenset[str]
    unknown: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Voted:
    """The findings of one image, or why its rows give none.

    Attributes:
        fault: Why there are none, with the cure; "" if there are.
    """

    findings: Findings | None
    fault: str = ""


def findings_of_cells(
    rows: Rows, position: int, options: LabelOptions, *, kept: Collection[str], multi_label: bool
) -> list[Findings | None]:
    """Return the findings of each row from a column of labels, None for a row without one.

    Args:
        rows: The table.
        position: The column.
        options: The separator, what -1 means, and with several labels per image what a blank cell means.
        kept: Labels that are known to be labels, though they look like gaps, such as "NA".
        multi_label: Whether an image may have several labels.

    Raises:
        SourceError: The column holds -1 beside 0 and 1, and the options do not say what it means.
    """
    column = rows.column(position)
    numbers = whole_numbers(column)
    if multi_label and options.label_separator is None:
        _refuse_other_separator(rows, column, position)
    separator = DEFAULT_SEPARATOR if options.label_separator is None else options.label_separator
    blank = Findings(present=frozenset()) if multi_label and options.blank == "negative" else None
    meaning: dict[str, Findings | None] = {}
    for cell in set(column):
        labels = [normalized_label(label) for label in labels_of(numbers.get(cell, cell), separator or None)]
        labels = [label for label in labels if not is_missing(label) or label in kept]
        meaning[cell] = Findings(present=frozenset(labels)) if labels else blank
    if _is_uncertain(column):
        _refuse_unexplained(rows, column, position, options)
        meaning |= _explained(meaning, options)
    return [meaning[cell] for cell in column]


def _refuse_other_separator(rows: Rows, column: Sequence[str], position: int) -> None:
    """Refuse cells such as `fox,badger` beside `fox`: without their separator, each would be a label of its own."""
    cells = set(column)
    if any(DEFAULT_SEPARATOR in cell for cell in cells):
        return
    for separator in OTHER_SEPARATORS:
        for number, cell in enumerate(column):
            parts = set(labels_of(cell, separator))
            if separator in cell and not is_list(cell) and parts & cells:
                raise SourceError(
                    f"{rows.place(number, position)} has {cell[:SHOWN]!r} in the column {rows.columns[position]!r}, "
                    f"and other rows a part of it; use --label-separator {separator!r} if these are several labels, "
                    "and --label-separator '' if it is one"
                )


def _is_uncertain(column: Sequence[str]) -> bool:
    values = {BINARY.get(cell.casefold()) for cell in set(column) if not is_missing(cell)}
    return values <= {PRESENT, ABSENT, UNKNOWN} and UNKNOWN in values


def _explained(meaning: Mapping[str, Findings | None], options: LabelOptions) -> dict[str, Findings | None]:
    """Return what -1 means in a column of 1, 0 and -1: the same as one of the others, or no label."""
    value = UNCERTAIN[str(options.uncertain)]
    same = next((meaning[cell] for cell in meaning if BINARY.get(cell.casefold()) == value), None)
    known = same or Findings(present=frozenset({str(value)}))
    uncertain = [cell for cell in meaning if BINARY.get(cell.casefold()) == UNKNOWN]
    return dict.fromkeys(uncertain, None if value == UNKNOWN else known)


def _refuse_unexplained(rows: Rows, column: Sequence[str], position: int, options: LabelOptions) -> None:
    number = next((n for n, cell in enumerate(column) if BINARY.get(cell.casefold()) == UNKNOWN), None)
    if number is not None and options.uncertain is None:
        raise SourceError(
            f"{rows.place(number, position)} has -1 in the column {rows.columns[position]!r}; say what it means with "
            "--uncertain mask, positive or negative"
        )


def findings_of_columns(
    rows: Rows, positions: Sequence[int], options: LabelOptions, *, multi_label: bool
) -> list[Findings | None]:
    """Return the findings of each row from columns of 1, 0, -1 and blank, each named like its label.

    Raises:
        SourceError: A cell has another value, or -1 and the options do not say what it means.
    """
    for position in positions:
        column = rows.column(position)
        _refuse_other_values(rows, column, position)
        _refuse_unexplained(rows, column, position, options)
    blank = ABSENT if options.blank == "negative" or (options.blank is None and not multi_label) else UNKNOWN
    values = {PRESENT: PRESENT, ABSENT: ABSENT, UNKNOWN: UNCERTAIN.get(str(options.uncertain), UNKNOWN)}
    meaning: dict[tuple[str, ...], Findings | None] = {}
    found = []
    for row in rows.rows:
        cells = tuple(row[position] for position in positions)
        if cells not in meaning:
            known = [blank if is_missing(cell) else values[BINARY[cell.casefold()]] for cell in cells]
            meaning[cells] = (
                None if all(map(is_missing, cells)) and blank == UNKNOWN else _finding(rows, positions, known)
            )
        found.append(meaning[cells])
    return found


def _finding(rows: Rows, positions: Sequence[int], values: Sequence[int]) -> Findings:
    names = [rows.columns[position] for position in positions]
    return Findings(
        present=frozenset(name for name, value in zip(names, values, strict=True) if value == PRESENT),
        unknown=frozenset(name for name, value in zip(names, values, strict=True) if value == UNKNOWN),
    )


def _refuse_other_values(rows: Rows, column: Sequence[str], position: int) -> None:
    for number, cell in enumerate(column):
        if not is_missing(cell) and cell.casefold() not in BINARY:
            raise SourceError(
                f"{rows.place(number, position)} has {cell!r} in the column {rows.columns[position]!r}; a column of "
                "--label-columns holds 1, 0, -1 or nothing; leave it out, or use --label-column"
            )


def vote(findings: Sequence[Findings], readers: str, *, multi_label: bool) -> Voted:
    """Return what several rows of one image say together; `readers` is an option of `LabelOptions`."""
    if readers == "refuse" and len(findings) > 1:
        return Voted(
            findings=None, fault="has several rows; remove all but one, or use --readers agree, majority or any"
        )
    if len(set(findings)) == 1:
        return Voted(findings=findings[0])
    if readers == "any":
        return Voted(findings=join(findings))
    if readers == "majority":
        return _majority_of_labels(findings) if multi_label else _majority(findings)
    given = listed(sorted({"+".join(sorted(one.present)) or "none" for one in findings}))
    cure = "correct them, vote with --readers majority, or join them with --readers any"
    return Voted(findings=None, fault=f"has rows with different labels ({given}); {cure}")


def join(findings: Sequence[Findings]) -> Findings:
    """Return the labels that any of some findings has."""
    present = frozenset[str]().union(*(one.present for one in findings))
    unknown = frozenset[str]().union(*(one.unknown for one in findings))
    return Findings(present=present, unknown=unknown - present)


def _majority(findings: Sequence[Findings]) -> Voted:
    (first, most), *others = Counter(findings).most_common()
    if others and others[0][1] == most:
        names = [" ".join(sorted(one.present)) or "none" for one, count in ((first, most), *others) if count == most]
        return Voted(findings=None, fault=f"has as many rows for {' as for '.join(sorted(names))}; remove or add one")
    return Voted(findings=first)


def _majority_of_labels(findings: Sequence[Findings]) -> Voted:
    """Vote on each label alone. A row that does not know abstains; equal votes leave the label unknown."""
    names = frozenset[str]().union(*(one.present | one.unknown for one in findings))
    votes = {name: sum(_vote(one, name) for one in findings) for name in names}
    return Voted(
        findings=Findings(
            present=frozenset(name for name, sum_of_votes in votes.items() if sum_of_votes > 0),
            unknown=frozenset(name for name, sum_of_votes in votes.items() if sum_of_votes == 0),
        )
    )


def _vote(findings: Findings, name: str) -> int:
    return 1 if name in findings.present else 0 if name in findings.unknown else -1
