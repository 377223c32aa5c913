"""The webhook messages that `--notify URL` asks for when a run ends, one file each until it is delivered.

A file is written together with the run's last state, so a worker that dies in between loses no message. Messages go
only to hosts that the settings allow, and their body contains nothing of the spec.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.files import write_json
from cluster.settings import Settings
from jobs.errors import Refused

BODY_FIELDS = ("id", "name", "kind", "state", "why", "attempt", "metric", "created", "started", "ended")


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
    message = {"url": url, "tries": 0, "not_before": 0.0, "body": {key: state.get(key) for key in BODY_FIELDS}}
    write_json(folder / f"{state['id']}.{state['attempt']}.{state['state']}.json", message)


def _masked(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}"
