"""The webhook messages that `--notify URL` asks for when a run ends, one file each until it is delivered.

A file is written together with the run's last state, so a worker that dies in between loses no message. Messages go
only to hosts that the settings allow, and their body contains nothing of the spec.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.files import write_json
from cluster.settings import Settings
from jobs.errors import Refused

LATEST_TIME = 1e11  # the year 5138; NaN fails the comparison too
BODY_FIELDS = ("id", "name", "kind", "state", "why", "attempt", "metric", "created", "started", "ended")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of the outbox.

    Attributes:
        url: Where it goes.
        body: The JSON object that is sent.
        tries: How often it was sent in vain.
        not_before: Unix time of the next attempt.
    """

    url: str
    body: dict[str, Any]
    tries: int = 0
    not_before: float = 0.0

    @classmethod
    def from_json(cls, value: Any) -> "Message":
        """Return the message of an outbox file.

        Raises:
            TypeError: The value has another shape.
        """
        if not isinstance(value, dict):
            raise TypeError("it is not a JSON object")
        url, body, tries, not_before = (value.get(name) for name in ("url", "body", "tries", "not_before"))
        if not isinstance(url, str) or not isinstance(body, dict):
            raise TypeError("its url is not a string or its body is not an object")
        if isinstance(tries, bool) or not isinstance(tries, int):
            raise TypeError(f"its number of tries, {tries!r}, is not a number")
        if isinstance(not_before, bool) or not isinstance(not_before, int | float) or not abs(not_before) < LATEST_TIME:
            raise TypeError(f"its time, {not_before!r}, is not a number")
        return cls(url=url, body=body, tries=tries, not_before=not_before)

    def to_json(self) -> dict[str, Any]:
        """Return the content of its file."""
        return dataclasses.asdict(self)


def refuse_address(settings: Settings, url: str) -> None:
    """Refuse a URL that no message may be sent to.

    Raises:
        Refused: Its scheme is not HTTP, or its host is not allowed.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Refused(f"--notify is not a valid URL ({error}); write http:// or https://, a host and a path") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"--notify {_masked(url)} is not an http:// or https:// URL; write https://HOST/PATH")
    if parts.hostname not in settings.webhook_hosts:
        allowed = ", ".join(settings.webhook_hosts) or "none"
        raise Refused(
            f"--notify may not send to {parts.hostname}; NIGHTSHIFT_WEBHOOK_HOSTS allows {allowed}, add the host there"
        )


def put(storage: Path, state: dict[str, Any], url: str) -> None:
    """Store a message about a run's state until it is delivered."""
    folder = storage / "outbox"
    folder.mkdir(exist_ok=True)
    message = Message(url=url, body={key: state.get(key) for key in BODY_FIELDS})
    write_json(folder / f"{state['id']}.{state['attempt']}.{state['state']}.json", message.to_json())


def _masked(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}"
