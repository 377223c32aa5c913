"""Replaces the identifiers of groups in names of files by keyed hashes. Pure."""

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from data_shards.pack.identifiers import Identifiers, Span
from data_shards.pack.names import ARCHIVE_ENDINGS
from data_shards.pack.other_files import CONTAINER_ENDINGS, UNREAD_ENDINGS
from data_shards.pack.pseudonyms import own_group, pseudonym
from data_shards.pixels import IMAGE_SUFFIXES

SUCH_AS = ", such as "  # before the example in a note
EXAMPLE = re.compile(r"(['\"]?)(.*?)\1(?: \(nearest: (.*)\))?", re.DOTALL)  # a cell, and the nearest name of an image

KNOWN_ENDINGS = (*IMAGE_SUFFIXES, *UNREAD_ENDINGS, *CONTAINER_ENDINGS, *ARCHIVE_ENDINGS, ".mp4")
# What follows the last dot of a name and says its format: no patient, but 001 may be one.
FORMATS = frozenset(ending.rpartition(".")[2] for ending in KNOWN_ENDINGS) - {"001"}


@dataclass(frozen=True)
class HiddenNames:
    """What names of files may contain that says whose images they are.

    Attributes:
        key: Secret of the hashes.
        keyword: What the identifiers are, as for `pseudonym`.
        expression: The expression of `--group-by` that finds them in names, if there is one.
        values: All identifiers of the source, those of images that are left out too.
    """

    key: str
    keyword: str
    expression: re.Pattern[str] | None
    values: Collection[str]

    @cached_property
    def _all(self) -> Identifiers:
        return Identifiers(self.values)

    def group(self, value: str) -> str:
        """Return the name of a group."""
        return pseudonym(value, self.keyword, self.key)

    def of_image(self, name: str, *groups: str) -> str:
        """Return the name of an image of some groups without their identifiers. Different names stay different.

        Nobody knows whose an image without a group is: its name loses the identifiers of all groups.
        """
        return self._hidden(name, self._all if own_group(name) in groups else Identifiers(groups))

    def of_file(self, name: str) -> str:
        """Return the name of another file without the identifier of any group."""
        return self._hidden(name, self._all)

    def of_row(self, line: str) -> str:
        """Return a line about a row of a table, `table line N: cell`, without the identifier of any group."""
        place, colon, cell = line.partition(": ")
        return place + colon + self._of_example(cell)

    def of_note(self, note: str) -> str:
        """Return a note without the identifier of any group in its example; the counts in it are not identifiers."""
        text, such_as, example = note.partition(SUCH_AS)
        return text + such_as + self._of_example(example)

    def _of_example(self, example: str) -> str:
        """Return a cell, which may be quoted, and the nearest name without identifiers: each is a name of its own."""
        match = EXAMPLE.fullmatch(example)
        if match is None:
            return self.of_file(example)
        quote, cell, nearest = match.groups()
        found = "" if nearest is None else f" (nearest: {self.of_file(nearest)})"
        return f"{quote}{self.of_file(cell)}{quote}{found}"

    def _hidden(self, name: str, identifiers: Identifiers) -> str:
        """Return a name without some identifiers, and without those that the expression finds in it, wherever they are.

        The cells of tables may be in decomposed Unicode.
        """
        name = unicodedata.normalize("NFC", name)
        spans = [*identifiers.spans(name), *(matched := self._by_expression(name))]
        if matched:
            spans += Identifiers({name[start:end] for start, end in matched}).spans(name)
        return self._replaced(name, [span for span in spans if span[0] < _end_of_stem(name)])

    def _by_expression(self, name: str) -> list[Span]:
        if self.expression is None:
            return []
        number = 1 if self.expression.groups else 0
        return [match.span(number) for match in self.expression.finditer(name) if match[number]]

    def _replaced(self, name: str, spans: Iterable[Span]) -> str:
        """Return a name with each span replaced by the hash of its text; those that overlap are one."""
        joined: list[Span] = []
        for start, end in sorted(spans):
            if joined and start < joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        parts, done = [], 0
        for start, end in joined:
            parts += [name[done:start], self.group(name[start:end])]
            done = end
        return "".join([*parts, name[done:]])


def _end_of_stem(name: str) -> int:
    """Return where the ending of a name starts, such as 7z, if it says a format; else the end of the name."""
    stem, dot, ending = name.rpartition(".")
    return len(stem) if dot and ending.lower() in FORMATS else len(name)
