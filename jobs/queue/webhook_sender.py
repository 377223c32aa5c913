"""Delivers the outbox's webhook messages: one signed POST each, retried until it arrives; redirects are refused."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cluster.errors import StorageError
from cluster.files import is_damage, read_json
from cluster.settings import Settings
from jobs.errors import Refused
from jobs.runs.webhook_outbox import Message, refuse_address

log = logging.getLogger("nightshift.webhook_sender")

ANSWER_SECONDS = 10.0
HELD_SECONDS = 2 * ANSWER_SECONDS  # how long no other process sends a message that is being sent
FIRST_PAUSE_SECONDS = 5.0  # doubled after each attempt
TRIES = 10  # over about 43 minutes: 5 + 10 + 20 + ... + 1280 seconds


def deliver(settings: Settings) -> int:
    """Send the messages that are due and return how many were delivered."""
    folder = settings.storage / "outbox"
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return sum(_try(settings, file) for file in files)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return the value of the header `Nightshift-Signature`: HMAC-SHA256 over timestamp, a dot and the body."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _try(settings: Settings, file: Path) -> bool:
    try:
        message = Message.from_json(read_json(file))
    except (StorageError, TypeError) as error:
        if isinstance(error, StorageError) and not is_damage(error):
            return False  # of another user, whose job workers send it
        if file.exists():  # otherwise another job worker has just sent it
            log.warning("webhook %s is damaged and kept as %s.damaged: %s", file.stem, file.name, error)
            with contextlib.suppress(OSError):
                file.rename(file.with_name(f"{file.name}.damaged"))
        return False
    if message.not_before > time.time():
        return False
    try:
        refuse_address(settings, message.url)
        replace(message, not_before=time.time() + HELD_SECONDS).write(file)
        _post(settings, message)
    except Refused as error:
        log.warning("webhook %s is dropped: %s", file.stem, error)
        file.unlink(missing_ok=True)
        return False
    except (OSError, ValueError, http.client.HTTPException) as error:
        _postpone(file, message, error)
        return False
    file.unlink(missing_ok=True)
    return True


def _postpone(file: Path, message: Message, error: Exception) -> None:
    tries = message.tries + 1
    if tries >= TRIES:
        log.warning("webhook %s is dropped after %d attempts: %s", file.stem, tries, error)
        file.unlink(missing_ok=True)
        return
    pause = FIRST_PAUSE_SECONDS * 2 ** (tries - 1)
    with contextlib.suppress(OSError):
        replace(message, tries=tries, not_before=time.time() + pause).write(file)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: an allowed host must not redirect to one that is not allowed."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return no request, so that the redirect counts as an error."""


def _post(settings: Settings, message: Message) -> None:
    body = json.dumps(message.body, sort_keys=True).encode()
    timestamp = str(int(time.time()))
    headers = {"Content-Type": "application/json", "Nightshift-Timestamp": timestamp}
    if settings.webhook_secret:
        headers["Nightshift-Signature"] = signature(settings.webhook_secret, timestamp, body)
    url, credentials = _without_credentials(message.url)
    if credentials:
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310, checked above
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=ANSWER_SECONDS) as answer:
        answer.read(1)


def _without_credentials(url: str) -> tuple[str, str]:
    """Return a URL without `USER:PASSWORD@`, which urllib takes for a part of the host, and the two decoded."""
    parts = urlsplit(url)
    credentials, _, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=place).geturl(), unquote(credentials)
