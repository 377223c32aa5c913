"""Finds identifiers, such as patient numbers, in the names of files. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

SHORT = 4  # characters; a shorter identifier is not searched inside of numbers and words
ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")  # leading zeros of a number
LAST_NUMBER = re.compile(r"[0-9]+(?=[^0-9]*$)")
LONGEST_NUMBER = 12  # digits up to which zeros are added

Span = tuple[int, int]


class Identifiers:
    """Identifiers to find in names. The time for a name does not grow with their number.

    Upper and lower case and the leading zeros of numbers may differ: p12 is found as P0012. An identifier of fewer
    than `SHORT` characters is not found where it is a part of a number, or of a word if it has no digit: 12 is found in
    `x12`, but not in `112`, and ab not in `cab`.
    """

    def __init__(self, values: Iterable[str]) -> None:
        folded = {_folded(value) for value in values if value}
        self._as_given = _Texts(folded)
        without_zeros = {ZEROS.sub("", value) for value in folded}
        self._without_zeros = _Texts(without_zeros)
        self._has_no_zeros = without_zeros == folded

    def spans(self, name: str) -> Iterator[Span]:
        """Yield where a name contains an identifier, with leading zeros of its number; the spans may overlap."""
        yield from self._as_given.spans(name)
        zeros = {place for match in ZEROS.finditer(name) for place in range(*match.span())}
        if not zeros and self._has_no_zeros:
            return
        kept = [place for place in range(len(name)) if place not in zeros]
        for start, end in self._without_zeros.spans("".join(name[place] for place in kept)):
            yield kept[start - 1] + 1 if start else 0, kept[end - 1] + 1


def loose_identifier(value: str) -> str:
    """Return what two spellings of an identifier have in common: no upper case, and no leading zeros of numbers."""
    return ZEROS.sub("", _folded(value))


def other_spellings(value: str) -> Iterator[str]:
    """Yield how a spreadsheet or another system may write an identifier: in upper or lower case, its last number with
    more or fewer leading zeros.
    """
    for text in dict.fromkeys((value, value.upper(), value.lower())):
        yield text
        if found := LAST_NUMBER.search(text):
            digits = found[0].lstrip("0") or "0"
            for width in range(1, LONGEST_NUMBER + 1):
                yield f"{text[: found.start()]}{digits.zfill(width)}{text[found.end() :]}"


class _Texts:
    """Texts to find in others, by their first characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts)
        lengths: dict[str, set[int]] = defaultdict(set)
        for text in self._texts:
            lengths[text[:SHORT]].add(len(text))
        self._lengths = dict(lengths)
        self._sizes = sorted({len(start) for start in lengths})

    def spans(self, name: str) -> Iterator[Span]:
        folded = _folded(name)
        for start in range(len(name)):
            for size in self._sizes:
                for length in self._lengths.get(folded[start : start + size], ()):
                    end = start + length
                    if end <= len(name) and folded[start:end] in self._texts and _is_whole(name, start, end):
                        yield start, end


def _is_whole(name: str, start: int, end: int) -> bool:
    """Whether an identifier at a place in a name is long, or no part of a longer number or word."""
    if end - start >= SHORT:
        return True
    is_word = not any(character.isdecimal() for character in name[start:end])
    edges = [name[place - 1 : place + 1] for place in (start, end) if 0 < place < len(name)]
    return not any(edge.isdecimal() or (is_word and _is_in_word(*edge)) for edge in edges)


def _is_in_word(before: str, after: str) -> bool:
    """Whether two letters are of one word, as those of `cab` and not the `tA` of `patientAB`.

    Scripts without upper and lower case are taken to have no such words: in them, names of two characters are common.
    """
    return _has_case(before) and _has_case(after) and not (before.islower() and after.isupper())


def _has_case(character: str) -> bool:
    return character.islower() or character.isupper()


def _folded(text: str) -> str:
    """Return a text of the same length in lower case."""
    if text.isascii():
        return text.lower()
    return "".join(lower if len(lower := character.lower()) == 1 else character for character in text)
