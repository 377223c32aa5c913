"""Names that stand for groups, such as patients: keyed hashes. Imports nothing heavy."""

import hashlib
import hmac

DIGITS = 20  # of 64; two patients in a billion share a name with a probability of 1 in 2 million
GROUP = "group"  # keyword of groups from tables and file names; DICOM fields have their own


def own_group(name: str) -> str:
    """Return the group of an image that has none where others have one: the image alone."""
    return f"image {name}"


def pseudonym(value: str, keyword: str, key: str) -> str:
    """Return a name that stands for an identifier and cannot be turned back without the key.

    A plain hash would not do: there are so few patient numbers that all of them can be tried.
    """
    return _keyed(key, f"{keyword}\0{value}")[:DIGITS]


def key_fingerprint(key: str) -> str:
    """Return what tells two keys apart, and nothing about either."""
    return _keyed(key, "fingerprint")[:DIGITS]


def _keyed(key: str, text: str) -> str:
    return hmac.new(key.encode(), text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
