"""Replaces the identifiers of groups in names of files by keyed hashes. Pure."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from data_shards.pack.pseudonyms import pseudonym

SHORT = 4  # characters; a shorter identifier is no part of a longer word
EDGE = re.compile(r"(?<![^\W_])|(?![^\W_])")  # where a word starts or ends, and between other characters
DIGITS = re.compile(r"[0-9]+")
SUCH_AS = ", such as "  # before the example in a note

Span = tuple[int, int]


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
    def _lengths(self) -> list[int]:
        return sorted({len(value) for value in self.values if value})

    def group(self, value: str) -> str:
        """Return the name of a group."""
        return pseudonym(value, self.keyword, self.key)

    def of_image(self, name: str, group: str) -> str:
        """Return the name of an image of a group without the group's identifier. Different names stay different."""
        return self._replaced(name, [*self._by_expression(name), *_occurrences(name, group)])

    def of_file(self, name: str) -> str:
        """Return the name of another file without the identifier of any group."""
        return self._replaced(name, [*self._by_expression(name), *self._known(name)])

    def of_row(self, line: str) -> str:
        """Return a line about a row of a table, `table line N: cell`, without the identifier of any group."""
        place, colon, cell = line.partition(": ")
        return place + colon + self.of_file(cell)

    def of_note(self, note: str) -> str:
        """Return a note without the identifier of any group in its example; the counts in it are not identifiers."""
        text, such_as, example = note.partition(SUCH_AS)
        return text + such_as + self.of_file(example)

    def _by_expression(self, name: str) -> Iterator[Span]:
        if self.expression and (match := self.expression.search(name)):
            yield match.span(1 if self.expression.groups else 0)

    def _known(self, name: str) -> Iterator[Span]:
        for start in (match.start() for match in EDGE.finditer(name)):
            ends = (start + length for length in self._lengths if name[start : start + length] in self.values)
            yield from ((start, end) for end in ends if _is_edge(name, end))

    def _replaced(self, name: str, spans: Iterable[Span]) -> str:
        """Return a name with each span replaced by the hash of its text; of two that overlap the first counts."""
        parts, done = [], 0
        for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            if done <= start < end:
                parts += [name[done:start], self.group(name[start:end])]
                done = end
        return "".join([*parts, name[done:]])


def _occurrences(name: str, group: str) -> Iterator[Span]:
    """Yield where a name contains the identifier of its group, in upper or lower case, a number also with zeros."""
    lower, value = name.lower(), group.lower()
    if len(lower) != len(name):  # a character that has two in lower case
        lower, value = name, group
    start = lower.find(value) if value else -1
    while start >= 0:
        end = start + len(value)
        if len(value) >= SHORT or (_is_edge(name, start) and _is_edge(name, end)):
            yield start, end
        start = lower.find(value, start + 1)
    if DIGITS.fullmatch(group):
        for match in DIGITS.finditer(name):
            if len(match[0]) >= SHORT and match[0].lstrip("0") == group.lstrip("0"):
                yield match.span()


def _is_edge(name: str, place: int) -> bool:
    """Whether a word starts or ends at a place in a name."""
    return not (0 < place < len(name) and name[place - 1].isalnum() and name[place].isalnum())
