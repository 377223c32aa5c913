"""A real Chromium, driven by the DevTools protocol over a pipe."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
RENDERED = "document.readyState === 'complete'"


@dataclass
class Browser:
    """One tab.

    Attributes:
        errors: What the page's console reported as errors, violations of its content security policy among them.
    """

    requests: BinaryIO
    answers: BufferedReader
    session: str = ""
    count: int = 0
    errors: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        self.requests.write(
            json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        self.requests.flush()
        while True:
            answer = json.loads(self._next())
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, address: str) -> None:
        """Show a page."""
        self.call("Page.navigate", url=address)

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def size(self, width: int, height: int) -> None:
        """Set the size of the page, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """Write a picture of the page, or of the part in view, as PNG. The whole of a sandboxed page never comes."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def _next(self) -> bytes:
        found = bytearray()  # a picture of a long page has several MB
        while not found.endswith(b"\0"):
            ready = self.answers.peek()
            assert ready, "the browser ended"
            found += self.answers.read(ready.find(b"\0") + 1 or len(ready))
        return bytes(found[:-1])


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Run a browser with its profile in a folder; Chromium reads requests from descriptor 3 and answers on 4."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    theirs = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (theirs_in, theirs_out)]  # so that none is 3 or 4
    process = subprocess.Popen(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,  # it would close what the next line opens
        preexec_fn=lambda: [os.dup2(one, number) for number, one in enumerate(theirs, 3)],  # noqa: PLW1509
    )  # fmt: skip
    for one in (theirs_in, theirs_out, *theirs):
        os.close(one)
    try:
        with os.fdopen(ours_out, "wb") as requests, os.fdopen(ours_in, "rb") as answers:
            browser = Browser(requests, answers)
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            browser.session = session
            for domain in ("Page", "Log", "Runtime"):
                browser.call(f"{domain}.enable")
            yield browser
    finally:
        process.terminate()
        process.wait()
