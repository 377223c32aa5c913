r"""Text from outside on a terminal: names, logs and errors may hold escape sequences that a terminal would obey.

Such a sequence can hide lines, change the window's title, or make other commands look as if they had been typed.
"""

import sys

from trainer.evaluation.csv_cells import escaped_controls


def terminal_text(text: str) -> str:
    r"""Return `text` with every control character but newline and tab escaped as in Python (`\x1b`).

    A carriage return, with which progress bars overwrite their line, becomes a newline.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join("\t".join(map(escaped_controls, line.split("\t"))) for line in lines)


def accept_every_character() -> None:
    r"""Let stdout and stderr write characters that their encoding lacks as `\u2026`, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
