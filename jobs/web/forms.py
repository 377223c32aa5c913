"""Forms that change something: read, checked, and taken by the functions behind the commands."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qs

from starlette.requests import Request

from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.errors import InvalidOption
from jobs.queue.promote import promote_model
from jobs.runs import promotions
from jobs.runs.labels import change_labels
from jobs.runs.state import RunState, read_state
from jobs.web.access import Access
from jobs.web.compare_page import metric_in
from trainer.specs.metric import COMPARED

FORM_FIELD = "form_token"
FORM_HEADER = "x-form-token"
FROM_HERE = (None, "same-origin", "none")  # Sec-Fetch-Site of a program, of this page, and of an address that was typed
MOST_FORM_BYTES = 16_384  # a note of a thousand characters has at most twelve thousand bytes in a form
Fields: TypeAlias = Mapping[str, str]
# Submits a run again: its settings, the run, changes such as `epochs=20`, and name, tags and note; returns the new id.
Fork: TypeAlias = Callable[[Settings, RunPaths, Sequence[str], Mapping[str, Any]], str]


class NotAllowed(Exception):
    """A request that the page refuses."""


@dataclass(frozen=True, kw_only=True)
class FormPage:
    """A form that has a page of its own.

    Attributes:
        state: The run that it is about.
        fields: What its fields hold.
        choices: What may be chosen or is known about the run, for the template.
    """

    state: RunState
    fields: Fields
    choices: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the form as JSON."""
        return {"id": self.state.id, "fields": dict(self.fields)}


async def read_form(request: Request, access: Access, *, is_read_only: bool) -> dict[str, str]:
    """Return the fields of a form of this page; of a field that is given twice, the first value.

    Raises:
        NotAllowed: The page is read-only, or the form is not one of this page.
    """
    refuse_read_only(is_read_only=is_read_only)
    if request.headers.get("sec-fetch-site") not in FROM_HERE:
        raise NotAllowed("the form was sent by another site; open the page and use its buttons")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM_BYTES:
            raise NotAllowed(f"the form is longer than {MOST_FORM_BYTES} bytes; shorten it")
    sent = parse_qs(body.decode(errors="replace"))
    fields = {name: values[0].replace("\r\n", "\n") for name, values in sent.items()}
    given = request.headers.get(FORM_HEADER) or fields.pop(FORM_FIELD, None)
    if not access.allows_act(given):
        raise NotAllowed("the form does not have this page's form token; load the page again and use its buttons")
    return fields


def refuse_read_only(*, is_read_only: bool) -> None:
    """Refuse acts on a read-only page.

    Raises:
        NotAllowed: It is read-only.
    """
    if is_read_only:
        raise NotAllowed("this page is read-only; use the command line, or start `nightshift ui` without --read-only")


def fork_page(paths: RunPaths, fields: Fields) -> FormPage:
    """Return the form that submits a run again.

    Raises:
        StorageError: Files of the run are damaged.
        UnknownRun: It does not exist.
    """
    return FormPage(
        state=read_state(paths),
        fields={name: fields.get(name, "") for name in ("set", "name", "tags", "note")},
        choices={
            "spec": {name: _written(value) for name, value in read_json_object(paths.spec).items() if value is not None}
        },
    )


def fork(settings: Settings, paths: RunPaths, fields: Fields, submit_fork: Fork) -> str:
    """Submit a run again, and return the address of the new run."""
    lines = [line.strip().removeprefix("--set ").strip() for line in fields.get("set", "").splitlines() if line.strip()]
    labels = {"name": _given(fields, "name"), "tags": _words(fields, "tags"), "note": _given(fields, "note")}
    return f"/runs/{submit_fork(settings, paths, lines, labels)}"


def edit_page(paths: RunPaths, fields: Fields) -> FormPage:
    """Return the form that changes tags and note.

    Raises:
        StorageError: The state of the run is damaged.
        UnknownRun: It does not exist.
    """
    state = read_state(paths)
    held = {"tags": " ".join(state.tags), "note": state.note or ""}
    before = {f"{name}_before": text for name, text in held.items()}
    return FormPage(state=state, fields={**held, **before, **fields}, choices={})


def edit(paths: RunPaths, fields: Fields) -> str:
    """Change tags and note as the form was changed, and return the address of the run.

    What somebody else has added meanwhile stays: the form tells what it held before.
    """
    tags, before = _words(fields, "tags"), _words(fields, "tags_before")
    note = fields.get("note", "").strip()
    change_labels(
        paths,
        add=[tag for tag in tags if tag not in before],
        remove=[tag for tag in before if tag not in tags and tag in read_state(paths).tags],
        note=None if note == fields.get("note_before", "").strip() else note,
    )
    return f"/runs/{paths.run_id}"


def promote_page(paths: RunPaths, fields: Fields) -> FormPage:
    """Return the form that gives the model of a run a name.

    Raises:
        StorageError: The state of the run is damaged.
        UnknownRun: It does not exist.
    """
    names = ("name", "why", "metric", "positive", "force")
    return FormPage(
        state=read_state(paths),
        fields={name: fields.get(name, "") for name in names},
        choices={"metrics": COMPARED, "names": promotions.promoted_names(paths.storage)},
    )


def promote(settings: Settings, paths: RunPaths, fields: Fields) -> str:
    """Give the model of a run a name, and return the address of the models."""
    metric = metric_in(fields)
    if not _given(fields, "name"):
        raise InvalidOption("the name of the model is missing; write it, such as chest")
    promote_model(
        settings,
        paths.run_id,
        name=fields["name"].strip(),
        why=_given(fields, "why"),
        force=bool(fields.get("force")),
        positive=_given(fields, "positive"),
        metric=metric,
    )
    return "/models"


def _given(fields: Fields, name: str) -> str | None:
    return fields.get(name, "").strip() or None


def _words(fields: Fields, name: str) -> tuple[str, ...]:
    return tuple(fields.get(name, "").replace(",", " ").split())


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
