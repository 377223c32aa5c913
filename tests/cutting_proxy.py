"""A proxy in front of Redis that sometimes forwards a command, drops the reply and closes the connection."""

import contextlib
import socket
import threading


class CuttingProxy:
    """Listens on loopback; `cuts` counts the dropped replies."""

    def __init__(self, upstream: str, every: int) -> None:
        self.upstream, self.every = upstream, every
        self.replies = self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.upstream)
        threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
        with contextlib.suppress(OSError):
            while reply := server.recv(65_536):
                self.replies += 1
                if self.every and self.replies % self.every == 0:
                    self.cuts += 1
                    break
                client.sendall(reply)
        for one in (client, server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    @staticmethod
    def _forward(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                server.sendall(data)
