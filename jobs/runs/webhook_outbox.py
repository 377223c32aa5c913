"""The webhook messages that `--notify URL` asks for when a run ends, one file each until it is delivered.

A file is written together with the run's last state, so a worker that dies in between loses no message. Messages go
only to hosts that the settings allow, and their body contains nothing of the spec. A URL can contain credentials: every
file that has one is readable by its owner alone.
"""

import contextlib
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.access import user_name
from cluster.errors import StorageError
from cluster.files import is_damage, read_json_object, write_json
from cluster.settings import Settings
from jobs.errors import InvalidOption, Refused

log = logging.getLogger("nightshift.webhook_outbox")

OWNER_ONLY = 0o600
_warned: set[Path] = set()  # the files that a warning was logged about

LATEST_TIME = 1e11  # the year 5138; NaN fails the comparison too
BODY_FIELDS = ("id", "name", "kind", "state", "why", "attempt", "metric", "created", "started", "ended")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of the outbox.

    Attributes:
        url: Where it goes.
        body: The JSON object that is sent.
        tries: How many attempts to send it have failed.
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

    def write(self, file: Path) -> None:
        """Write its file, which only its owner can read."""
        write_json(file, self.to_json(), mode=OWNER_ONLY)


def refuse_address(settings: Settings, url: str) -> None:
    """Refuse a URL that no message may be sent to.

    Raises:
        InvalidOption: It can never be delivered. The text has no part of the URL but the host.
        Refused: Its host is not allowed.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidOption(
            "--notify has a character that no URL has; write spaces and letters outside ASCII as %20, %C3%A9"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # its text can contain credentials
        raise InvalidOption("--notify is not a valid URL; write http:// or https://, a host and a path") from error
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidOption(
            f"--notify {parts.scheme}://{host or ''} is not an http:// or https:// URL; write https://HOST/PATH"
        )
    if port == 0 or not _is_host(host):
        raise InvalidOption(f"--notify cannot be sent to host {host!r}, port {port}; correct the URL")
    if host not in settings.webhook_hosts:
        allowed = ", ".join(settings.webhook_hosts) or "none"
        raise Refused(f"--notify may not send to {host}; NIGHTSHIFT_WEBHOOK_HOSTS allows {allowed}, add the host there")


def store_url(file: Path, url: str) -> None:
    """Write the file with the webhook's URL of a run or of a schedule."""
    write_json(file, {"url": url}, mode=OWNER_ONLY)


def stored_url(file: Path) -> str | None:
    """Return the URL that `store_url` wrote; None if there is none, or if its file is damaged or of another user.

    Raises:
        StorageError: The storage cannot be read now.
    """
    try:
        url = read_json_object(file).get("url")
    except StorageError as error:
        is_denied = isinstance(error.__cause__, PermissionError)
        if not is_denied and not is_damage(error):
            raise
        if not isinstance(error.__cause__, FileNotFoundError) and file not in _warned:
            _warned.add(file)
            log.warning("no webhook is sent: %s%s", error, f"; its owner is {_owner(file)}" if is_denied else "")
        return None
    return url if isinstance(url, str) else None


def put(storage: Path, state: dict[str, Any], url: str) -> None:
    """Store a message about a run's state until it is delivered."""
    folder = storage / "outbox"
    folder.mkdir(exist_ok=True)
    message = Message(url=url, body={key: state.get(key) for key in BODY_FIELDS})
    message.write(folder / f"{state['id']}.{state['attempt']}.{state['state']}.json")


def _is_host(host: str) -> bool:
    """Whether a host can be resolved or connected to at all; `a..b` and labels of 64 letters cannot."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _owner(file: Path) -> str:
    with contextlib.suppress(OSError):
        return user_name(file.stat().st_uid)
    return "unknown"
