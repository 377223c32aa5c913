"""A server that accepts connections and never answers, as one whose process is stopped."""

import contextlib
import socket
from collections.abc import Iterator


class SilentServer:
    """A listener on loopback.

    Attributes:
        url: Its address, as that of a Redis.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"

    def new_connections(self) -> int:
        """Return how many connections were made since the last call."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
                count += 1
        return count


@contextlib.contextmanager
def silent_server() -> Iterator[SilentServer]:
    """Listen while the block runs; the kernel accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.setblocking(False)
        yield SilentServer(listener)
