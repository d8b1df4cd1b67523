"""A proxy before a Kafka broker that loses acknowledgements: the broker has the message, its sender does not know."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

PRODUCE = 0
"""Number of the produce request in Kafka's protocol."""


class LossyProxy:
    """Passes connections on to ``target``; closes one instead of passing the answer to a produce request on."""

    def __init__(self, target: tuple[str, int], port: int) -> None:
        self._target = target
        self.address = f"127.0.0.1:{port}"
        self._listener = socket.create_server(("127.0.0.1", port))
        self._lock = threading.Lock()
        self._to_lose = 0
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, answers: int) -> None:
        """Lose the answers to the next produce requests."""
        with self._lock:
            self._to_lose = answers

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(self._target)
                doomed = threading.Event()
                threading.Thread(target=self._requests, args=(client, broker, doomed), daemon=True).start()
                threading.Thread(target=self._answers, args=(client, broker, doomed), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError), client, broker, client.makefile("rb") as stream:
            while size := stream.read(4):
                request = stream.read(*struct.unpack(">i", size))
                if struct.unpack(">h", request[:2])[0] == PRODUCE and self._takes_one():
                    doomed.set()
                broker.sendall(size + request)
            broker.shutdown(socket.SHUT_RDWR)

    def _answers(self, client: socket.socket, broker: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError):
            while answer := broker.recv(65_536):
                if doomed.is_set():
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def _takes_one(self) -> bool:
        with self._lock:
            takes = self._to_lose > 0
            self._to_lose -= takes
            return takes
