"""What is said between a build and its launchers: each has a connection of its own, with a JSON object a line."""

from __future__ import annotations

import json
import queue
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sagewheels.schedule import Closed

_POLL = 0.2


class Inbox:
    """The results of one launcher's compiles, by their id. Raises Closed when they cannot come any more."""

    def __init__(self, results: Iterator[dict[str, Any]], is_failed: threading.Event) -> None:
        self._boxes: dict[str, queue.Queue[dict[str, Any]]] = {}
        self._lock, self._is_failed = threading.Lock(), is_failed
        self._is_gone = threading.Event()
        threading.Thread(target=self._sort, args=(results,), daemon=True).start()

    def _sort(self, results: Iterator[dict[str, Any]]) -> None:
        for result in results:
            self._box(str(result["id"])).put(result)
        # The launcher was killed: its cores and memory are not kept from the others, who would wait for ever.
        self._is_gone.set()

    def _box(self, name: str) -> queue.Queue[dict[str, Any]]:
        with self._lock:
            return self._boxes.setdefault(name, queue.Queue())

    def wait(self, name: str) -> dict[str, Any]:
        """The result of that compile."""
        while not self._is_failed.is_set():
            is_gone = self._is_gone.is_set()
            try:
                return self._box(name).get(timeout=_POLL)
            except queue.Empty:
                if is_gone:
                    break
        raise Closed


class Server(socketserver.ThreadingUnixStreamServer):
    """Hands each launcher's first line to `answer`, with a way to tell it something and to hear its results."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: str, answer: Callable[..., None]) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                lock = threading.Lock()

                def tell(**words: Any) -> None:
                    with lock:
                        try:
                            self.wfile.write(json.dumps(words).encode() + b"\n")
                        except OSError:  # the launcher was ended with its build
                            pass

                lines = _lines(self.rfile)
                first = next(lines, None)
                if first is not None:
                    answer(first, tell, lines)

        super().__init__(address, Handler)


def _lines(stream: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """What a launcher says, until it ends or is ended."""
    try:
        yield from map(json.loads, stream)
    except (OSError, ValueError):
        return
