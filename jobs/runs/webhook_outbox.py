"""Messages of a run's end that `--notify URL` asks for, as files that stay until they have arrived.

A file is written with the run's last state, so that a worker that dies in between loses no message. Only hosts that
the settings allow are spoken to, and the body holds nothing of the spec.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.files import write_json
from cluster.settings import Settings
from jobs.errors import Refused

BODY_FIELDS = ("id", "name", "kind", "state", "why", "attempt", "metric", "created", "started", "ended")


def refuse_address(settings: Settings, url: str) -> None:
    """Refuse an address that no message may be sent to.

    Raises:
        Refused: Its scheme is not HTTP, or its host is not allowed.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Refused(f"--notify is no address ({error}); write http:// or https://, a host and a path") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"--notify {_masked(url)} is no http:// or https:// address")
    if parts.hostname not in settings.webhook_hosts:
        allowed = ", ".join(settings.webhook_hosts) or "none"
        raise Refused(f"--notify may not send to {parts.hostname}; NIGHTSHIFT_WEBHOOK_HOSTS allows {allowed}")


def put(storage: Path, state: dict[str, Any], url: str) -> None:
    """Keep a message about a run's state until it has arrived."""
    folder = storage / "outbox"
    folder.mkdir(exist_ok=True)
    message = {"url": url, "tries": 0, "not_before": 0.0, "body": {key: state.get(key) for key in BODY_FIELDS}}
    write_json(folder / f"{state['id']}.{state['attempt']}.{state['state']}.json", message)


def _masked(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}"
