"""Names of decision thresholds. Imports neither torch nor ray."""

import re

DEFAULT = "default"  # names the default decision, the most probable class; no threshold may have this name
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def threshold_name(min_sensitivity: float) -> str:
    """Return the name of a threshold that was chosen for a sensitivity, such as `sensitivity-0.99`."""
    return f"sensitivity-{min_sensitivity:.6g}"


def checked_name(name: str, option: str) -> str:
    """Return the name of a threshold.

    Raises:
        ValueError: It has other characters, is too long, or is reserved.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{option} {name!r} is not a name; use up to 64 letters, digits, dots, dashes and underscores")
    if name == DEFAULT:
        raise ValueError(f"{option} {DEFAULT!r} is the name of the default decision; use another name")
    return name


def requested_threshold(name: str | None) -> str | None:
    """Return the name that `--threshold` gives, None for the default decision.

    Raises:
        ValueError: It cannot be the name of a threshold.
    """
    return None if name in (None, DEFAULT) else checked_name(str(name), "--threshold")
