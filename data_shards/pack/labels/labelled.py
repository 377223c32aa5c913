"""Labels the images of a source by tables. Everything is checked here, before the first image is decoded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_shards.columns import KeptColumn
from data_shards.errors import SourceError
from data_shards.pack.labels.cells import group_in_cell, is_missing, whole_numbers
from data_shards.pack.labels.chosen_columns import ChosenColumns, choose_columns, read_tables
from data_shards.pack.labels.column_matching import SourceImages
from data_shards.pack.labels.columns import listed
from data_shards.pack.labels.conditions import fulfilled
from data_shards.pack.labels.findings import Findings, findings_of_cells, findings_of_columns, join, vote
from data_shards.pack.labels.joining import Rows
from data_shards.pack.labels.kept_columns import kept_note, kept_positions, kept_values
from data_shards.pack.labels.row_matching import MatchedRows, match_rows
from data_shards.pack.names import normalized_name, split_of
from data_shards.pack.options import LabelOptions, PackOptions


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """How the tables were read, and what they left out.

    Attributes:
        notes: Which columns were used, and what was assumed.
        rows_without_image: Place and cell of each row that names no image, the first ones with the nearest name.
        images_without_row: Names of the images that no row names.
        images_without_label: Names of the images whose rows have no label.
        filtered_rows: Number of rows that do not fulfil `--where`.
        filtered_images: Number of images that have no other rows.
        images_without_group: Number of images that have a label but no group, where others have one.
    """

    notes: tuple[str, ...] = ()
    rows_without_image: tuple[str, ...] = ()
    images_without_row: tuple[str, ...] = ()
    images_without_label: tuple[str, ...] = ()
    filtered_rows: int = 0
    filtered_images: int = 0
    images_without_group: int = 0

    def with_notes(self, notes: Sequence[str]) -> "LabelReport":
        """Return the report with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def to_json(self, most: int) -> dict[str, Any]:
        """Return the report as JSON values, with at most so many entries of each list."""
        return {name: value[:most] if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image with what the tables say of it.

    Attributes:
        path: Its path below the source.
        findings: Its labels.
        split: The split that a column gives it, None without one.
        group: Its group, None without one.
        columns: Its value in each column that is kept.
    """

    path: str
    findings: Findings
    split: str | None
    group: str | None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """The images that have a label.

    Attributes:
        label_columns: Names of the labels, if there is a column for each; else they are those of the images.
        is_found: Whether the label columns were found by their names.
        split_column: Name of the column that gives the splits, None without one.
        group_column: Name of the column of groups, None without one.
        groups: All groups in that column, those of rows without an image too.
    """

    images: tuple[LabelledImage, ...]
    label_columns: tuple[str, ...]
    is_found: bool
    split_column: str | None
    group_column: str | None
    groups: frozenset[str] = frozenset()
    report: LabelReport = field(default_factory=LabelReport)


def label_images(
    folder: Path,
    images: SourceImages,
    split_folders: Mapping[str, str],
    options: PackOptions,
    known: Sequence[str] = (),
) -> LabelledImages:
    """Return the images that the tables of `options.labels` label.

    Args:
        folder: The source.
        images: Its images.
        split_folders: The folder of each split, if there are such folders.
        options: The tables and how to read them.
        known: Labels of the data set that the images are added to, which are labels though they may look like gaps.

    Raises:
        OptionError: An option names a file, column or value that is not there.
        SourceError: The tables cannot be read, or contradict themselves or the images.
    """
    labels = options.labels or LabelOptions(tables=())
    rows, image = read_tables(folder, images.matcher, labels)
    columns = choose_columns(rows, image, labels, multi_label=options.multi_label)
    kept = fulfilled(rows, options.where)
    matched = match_rows(
        rows,
        image,
        images,
        folder=folder,
        split_folders=split_folders,
        allow_unmatched=labels.allow_unmatched,
    )
    findings = _findings(rows, columns, options, known)
    table = _ReadTable(
        rows,
        columns,
        matched,
        kept,
        findings,
        labels.readers,
        options.multi_label,
        groups_used=options.group_by is None,
    )
    return table.labelled(labels)


def _findings(rows: Rows, columns: ChosenColumns, options: PackOptions, known: Sequence[str]) -> list[Findings | None]:
    labels = options.labels or LabelOptions(tables=())
    if columns.is_binary:
        return findings_of_columns(rows, columns.labels, labels, multi_label=options.multi_label)
    names = (*options.classes, *options.drop_classes, *known)
    return findings_of_cells(rows, columns.labels[0], labels, kept=names, multi_label=options.multi_label)


@dataclass(frozen=True)
class _ReadTable:
    """The tables with what each row says and which image it names."""

    rows: Rows
    columns: ChosenColumns
    matched: MatchedRows
    kept: Sequence[bool]
    findings: Sequence[Findings | None]
    readers: str
    multi_label: bool
    groups_used: bool  # and not those of --group-by

    def labelled(self, labels: LabelOptions) -> LabelledImages:
        """Return the images that have a label."""
        used = {path: [n for n in numbers if self.kept[n]] for path, numbers in self.matched.of_image.items()}
        stating = {path: [n for n in numbers if self.findings[n] is not None] for path, numbers in used.items()}
        voted = self._votes({path: numbers for path, numbers in stating.items() if numbers})
        splits = self._one_of_each(used, self.columns.split, "split", _split_in)
        spelling = self._group_spelling()
        groups = self._one_of_each(used, self.columns.group, "group", spelling)
        cells = [] if self.columns.group is None else self.rows.column(self.columns.group)
        kept = self._kept_columns(labels, {path: used[path] for path in voted})
        images = tuple(
            LabelledImage(
                path=path,
                findings=findings,
                split=splits.get(path),
                group=groups.get(path),
                columns={column.name: values[path] for column, values in kept},
            )
            for path, findings in voted.items()
        )
        names = self.rows.columns
        return LabelledImages(
            images=images,
            label_columns=tuple(names[n] for n in self.columns.labels) if self.columns.is_binary else (),
            is_found=self.columns.is_found,
            split_column=None if self.columns.split is None else names[self.columns.split],
            group_column=None if self.columns.group is None else names[self.columns.group],
            groups=frozenset(filter(None, map(spelling, cells))),
            report=LabelReport(
                notes=(*self._notes(labels), *(kept_note(column, list(values.values())) for column, values in kept)),
                rows_without_image=self.matched.rows_without_image,
                images_without_row=tuple(map(normalized_name, self.matched.images_without_row)),
                images_without_label=tuple(normalized_name(path) for path in used if used[path] and not stating[path]),
                filtered_rows=self.kept.count(False),
                filtered_images=sum(not numbers for numbers in used.values()),
                images_without_group=sum(image.group is None for image in images) if groups and self.groups_used else 0,
            ),
        )

    def _votes(self, stating: Mapping[str, Sequence[int]]) -> dict[str, Findings]:
        voted: dict[str, Findings] = {}
        for path, numbers in stating.items():
            found = vote(self._statements(numbers), self.readers, multi_label=self.multi_label)
            if found.findings is None:
                places = " and ".join(self.rows.place(number, self.columns.labels[0]) for number in numbers[:3])
                raise SourceError(f"{normalized_name(path)} {found.fault} ({places})")
            voted[path] = found.findings
        return voted

    def _statements(self, numbers: Sequence[int]) -> list[Findings]:
        """Return what the rows of an image say, and what the rows of each reader say together if they are one vote."""
        rows_of: dict[str | int, list[Findings]] = {}
        for number in numbers:
            reader = self.rows.rows[number][self.columns.reader or 0] if self._joins_readers else ""
            if found := self.findings[number]:
                rows_of.setdefault(number if is_missing(reader) else reader, []).append(found)
        return [join(findings) for findings in rows_of.values()]

    @property
    def _joins_readers(self) -> bool:
        """Whether all rows of a reader are one vote. Of several rows with one label each, that would be no label."""
        return self.multi_label and self.readers == "majority" and self.columns.reader is not None

    def _one_of_each(
        self, used: Mapping[str, Sequence[int]], position: int | None, what: str, read: Callable[[str], str | None]
    ) -> dict[str, str]:
        """Return the split or group of each image whose rows have one, all the same."""
        found: dict[str, str] = {}
        for path, numbers in used.items():
            if position is None:
                break
            first: dict[str, int] = {}
            for number in numbers:
                try:
                    value = read(self.rows.rows[number][position])
                except ValueError as error:
                    raise SourceError(f"{self.rows.place(number, position)}: {error}") from error
                if value:
                    first.setdefault(value, number)
            if len(first) > 1:
                places = " and ".join(self.rows.place(number, position) for number in list(first.values())[:2])
                raise SourceError(
                    f"{places} give {normalized_name(path)} different values in the column "
                    f"{self.rows.columns[position]!r}, its {what}; correct one of them"
                )
            found |= dict.fromkeys([path] if first else [], next(iter(first), ""))
        return found

    def _kept_columns(
        self, labels: LabelOptions, used: Mapping[str, Sequence[int]]
    ) -> list[tuple[KeptColumn, dict[str, str]]]:
        """Return each column that is kept, with the value of each image."""
        holding = {
            "names of the images": (self.columns.image,),
            "labels": self.columns.labels,
            "groups": () if self.columns.group is None else (self.columns.group,),
            "splits": () if self.columns.split is None else (self.columns.split,),
        }
        positions = kept_positions(self.rows, labels.keep_columns, holding)
        return [(one, kept_values(self.rows, one, positions[one.name], used)) for one in labels.keep_columns]

    def _group_spelling(self) -> Callable[[str], str | None]:
        position = self.columns.group
        numbers = whole_numbers(self.rows.column(position)) if position is not None else {}
        return lambda cell: group_in_cell(cell, numbers)

    def _notes(self, labels: LabelOptions) -> list[str]:
        names, columns = self.rows.columns, self.columns
        notes = [f"images: column {names[columns.image]!r}"]
        notes.append(
            f"labels: column{'s' * (len(columns.labels) > 1)} {listed(repr(names[n]) for n in columns.labels)}"
        )
        if columns.group is not None and self.groups_used:
            notes.append(f"groups: column {names[columns.group]!r}; --group-column none leaves it out")
        if self._joins_readers and columns.reader is not None:
            notes.append(f"readers: column {names[columns.reader]!r}; all rows of a reader are one vote")
        if by_name := self.matched.rows_by_name:
            notes.append(f"{by_name} of {len(self.rows.rows)} rows match by file name alone; their folders differ")
        for table in self.rows.tables:
            if table.encoding != "UTF-8":
                notes.append(f"{table.name} is read as {table.encoding}; save it as UTF-8 if names look wrong")
            if not table.has_header:
                notes.append(f"{table.name} has no header; its columns are named 1 to {len(table.columns)}")
        for name, count in self.rows.without_partner.items():
            if count:
                notes.append(f"{name} has no row for {count} of {len(self.rows.rows)} rows of {self.rows.where}")
        has_blank = columns.is_binary and any(is_missing(row[n]) for row in self.rows.rows for n in columns.labels)
        if has_blank and self.multi_label and labels.blank is None:
            notes.append("blank cells are unknown; --blank negative takes them as 0")
        return notes


def _split_in(cell: str) -> str | None:
    """Return the split that a cell names.

    Raises:
        ValueError: It names none.
    """
    if is_missing(cell):
        return None
    split = split_of(cell)
    if split is None:
        raise ValueError(f"{cell[:40]!r} is no split; write train, valid or test, or use --split-column none")
    return split
