"""What people state about a data set: where its images come from, who labelled them, and what they are meant for.

The index keeps it outside of its digest: the same images are the same data set, whatever is said about them.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from data_shards.columns import NOT_STATED
from data_shards.errors import OptionError

MOST_CHARACTERS = 2000  # of a statement
SPELLINGS = {"licence": "license", "labeled_by": "labelled_by"}
EXAMPLE = "source: university hospital, chest films"


class About(BaseModel):
    """The statements of a `dataset.yaml`. None means that nobody stated it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = Field(None, title="Source of the images")
    dates: str | None = Field(None, title="Dates of the images")
    sites: str | None = Field(None, title="Sites")
    population: str | None = Field(None, title="Included patients or objects")
    labelled_by: str | None = Field(None, title="Labelled by")
    reference_standard: str | None = Field(None, title="Reference standard of the labels")
    intended_use: str | None = Field(None, title="Intended use")
    ethics: str | None = Field(None, title="Ethics approval and consent")
    license: str | None = Field(None, title="License")
    contact: str | None = Field(None, title="Contact")


def about_of(content: Mapping[str, Any], where: str) -> About:
    """Return the statements that the keys and values of a file make; `where` names the file in errors.

    Raises:
        OptionError: A key is unknown, a value is no text or list of texts, or nothing is stated.
    """
    stated: dict[str, str] = {}
    for key, value in content.items():
        name = key.strip().casefold().replace("-", "_").replace(" ", "_")
        name = SPELLINGS.get(name, name)
        if name not in About.model_fields:
            raise OptionError(_unknown_key(key, name, where))
        if name in stated:
            raise OptionError(f"{where}: {key!r} and another key state the same; remove one of them")
        text = _text(value, key, where)
        if text:
            stated[name] = text
    if not stated:
        raise OptionError(f"{where} states nothing; write lines such as {EXAMPLE!r}")
    return About(**stated)


def about_rows(about: About | None) -> list[tuple[str, str]]:
    """Return title and text of each statement, `not stated` where there is none."""
    return [(str(field.title), getattr(about, name, None) or NOT_STATED) for name, field in About.model_fields.items()]


def _unknown_key(key: str, name: str, where: str) -> str:
    close = difflib.get_close_matches(name, (*About.model_fields, *SPELLINGS), n=1)
    cure = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(About.model_fields)}"
    return f"{where}: {key!r} is not known of a data set; {cure}"


def _text(value: Any, key: str, where: str) -> str:
    """Return the text of a value on one line; that of a list has "; " between its items."""
    items = value if isinstance(value, list) else [value]
    if not all(item is None or isinstance(item, str) for item in items):
        raise OptionError(f"{where}: the value of {key!r} is neither a text nor a list of texts; write a text")
    text = "; ".join(one for item in items if item and (one := " ".join(item.split())))
    if len(text) > MOST_CHARACTERS:
        raise OptionError(f"{where}: the value of {key!r} has more than {MOST_CHARACTERS} characters; shorten it")
    return text
