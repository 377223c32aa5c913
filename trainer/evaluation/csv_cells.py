"""Text cells of the CSV files that Nightshift writes, safe to open in a spreadsheet or to print on a terminal."""

import re
import unicodedata

# A spreadsheet evaluates a cell that starts with one of these as a formula (OWASP, "CSV Injection"); the last four are
# their full-width forms.
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# Where the decimal sign is a comma, spreadsheets separate cells by semicolons: the rest of a text is a cell of its own.
NEXT_CELL = re.compile(rf";(?=[\s\"]*[{re.escape(''.join(FORMULA_STARTS))}])")
# Control and format characters, lone surrogates, and separators of lines and paragraphs.
ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def safe_cell(text: str) -> str:
    r"""Return `text` for a cell: control characters escaped as in Python (`\n`, `\x1b`), a formula behind a `'`.

    Spreadsheets take a leading apostrophe as "this is text".
    """
    escaped = NEXT_CELL.sub(";'", escaped_controls(text))
    return f"'{escaped}" if escaped.lstrip().startswith(FORMULA_STARTS) else escaped


def escaped_controls(text: str) -> str:
    """Return `text` with control and format characters, lone surrogates and line separators escaped as in Python."""
    return text if text.isascii() and text.isprintable() else "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in ESCAPED_CATEGORIES:
        return character
    return character.encode("unicode_escape").decode("ascii")
