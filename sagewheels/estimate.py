"""How long something will still take, and nothing where nobody can know: of bytes that come, and of compiles. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_WINDOW = 10.0
"""Seconds that a rate looks back: a connection that has become slow is not as fast as it was on average."""
_LEAST = 2.0
"""Seconds before which a rate says nothing: the first bytes come out of buffers."""


class Rate:
    """Bytes a second, from how many were there at which time."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """At `now`, in seconds of a clock that only goes on, `done` bytes were there; fewer than before: a new try."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        # The one before the window stays, so that there is always something to compare with.
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """None where it is too early to say."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, done) = self._seen[0], self._seen[-1]
        return (done - first) / (now - began) if now - began >= _LEAST else None

    def left(self, total: int) -> float | None:
        """Seconds until `total` bytes are there; None where it is too early to say, or nobody said how many come."""
        rate = self.per_second
        return (total - self._seen[-1][1]) / rate if rate and total >= self._seen[-1][1] else None


@dataclass(frozen=True, kw_only=True)
class Compiles:
    """The compiles of a build, each by the seconds that it is known to take somewhere (`weight`).

    `weight` and `seconds` are sums over those that have ended here, without those that the cache had; `running` are
    (weight, seconds since it began) of each, `waiting` the weights of the others.
    """

    weight: float
    seconds: float
    running: Sequence[tuple[float, float]]
    waiting: Sequence[float]

    def left(self, lanes: int) -> float | None:
        """Seconds until all have ended, so many at once; None until one has ended here, which tells how fast it goes.

        The heaviest goes first, as in the build. One that takes longer than foreseen may end any moment.
        """
        if not self.weight or not self.seconds:
            return None
        pace = self.seconds / self.weight
        ends = [max(0.0, weight * pace - age) for weight, age in self.running]
        ends += [0.0] * (lanes - len(ends))
        heapq.heapify(ends)
        for weight in sorted(self.waiting, reverse=True):
            heapq.heapreplace(ends, ends[0] + weight * pace)
        return max(ends, default=0.0)
