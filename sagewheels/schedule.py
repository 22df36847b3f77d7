"""Cores and memory, shared out to the compiles of a build: none idles while one waits, the heaviest goes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SETTLE = 0.3
"""Seconds in which the build's compile commands arrive: the heaviest one must be among those that can be chosen."""


@dataclass(frozen=True, kw_only=True)
class Appetite:
    """What a compile takes: `seconds` of one core, `memory` in bytes. Known from experience, only used to order."""

    seconds: float
    memory: int


class Closed(Exception):
    """The build has ended; what still waits is not started."""


class Pool:
    """So many compiles at once as there are cores, and as memory holds; one may always run."""

    def __init__(self, cores: int, memory: int, *, settle: float = _SETTLE) -> None:
        self._cores, self._memory, self._settle = cores, memory, settle
        self._changed = threading.Condition()
        self._opens = 0.0
        self._waiting: list[_Turn] = []
        self._running: list[_Turn] = []
        self._is_closed = False

    @contextmanager
    def turn(self, name: str, appetite: Appetite, *, alone: bool = False) -> Iterator[None]:
        """Waits until the compile may run; `alone` waits until nothing else does. Raises Closed."""
        turn = _Turn(name, appetite, alone)
        with self._changed:
            now = time.monotonic()
            self._opens = self._opens or now + self._settle
            self._waiting.append(turn)
            while not (self._is_closed or self._next() is turn):
                settling = self._opens - time.monotonic()
                self._changed.wait(settling if settling > 0 else 1.0)
            self._waiting.remove(turn)
            if self._is_closed:
                raise Closed
            turn.began = time.monotonic()
            self._running.append(turn)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(turn)
                self._changed.notify_all()

    def close(self) -> None:
        """Starts nothing more: whoever waits gets Closed."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def running(self) -> list[str]:
        """What runs now, the one that began first at the head."""
        with self._changed:
            return [turn.name for turn in self._running]

    def load(self) -> tuple[list[tuple[float, float]], list[float]]:
        """(Known seconds, seconds since it began) of what runs now, and the known seconds of what waits."""
        with self._changed:
            now = time.monotonic()
            running = [(turn.appetite.seconds, now - turn.began) for turn in self._running]
            return running, [turn.appetite.seconds for turn in self._waiting]

    def _is_settling(self) -> bool:
        return time.monotonic() < self._opens

    def _next(self) -> _Turn | None:
        """Who may start now: of those that fit the heaviest, and one that must be alone after all others."""
        if self._is_settling() or any(turn.is_alone for turn in self._running):
            return None
        if len(self._running) >= self._cores:
            return None
        free = self._memory - sum(turn.appetite.memory for turn in self._running)
        together = [turn for turn in self._waiting if not turn.is_alone]
        fits = [turn for turn in together if turn.appetite.memory <= free or not self._running]
        if fits:
            return max(fits, key=lambda turn: turn.appetite.seconds)
        return self._waiting[0] if not together and not self._running and self._waiting else None


@dataclass(eq=False)
class _Turn:
    """One compile that waits or runs."""

    name: str
    appetite: Appetite
    is_alone: bool
    began: float = 0.0
