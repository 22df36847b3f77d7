"""What people see: one line per fact, tables, a live status line where there is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


def say(topic: str, text: str) -> None:
    """One greppable line: `[fetch] ...`."""
    print(f"[{topic}] {text}", flush=True)


def warn(topic: str, text: str) -> None:
    """One line on stderr for what the user should know, though the work goes on."""
    print(f"[{topic}] warning: {text}", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that is as wide as its text, so that logs and pipes keep every character."""
    grid = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in grid) for place in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]
    lines.insert(1, "  ".join("-" * width for width in widths))
    print("\n".join([title, *("  " + line for line in lines)]), flush=True)


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(count: int) -> str:
    """Bytes in the unit that people read: `16.4 MB`."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


class Progress:
    """A line that is rewritten on a terminal, and one plain line every `every` seconds elsewhere."""

    def __init__(self, topic: str, every: float = 15.0) -> None:
        self._topic, self._every = topic, every
        self._start = self._last = time.monotonic()
        self._live = sys.stdout.isatty()

    def update(self, text: str) -> None:
        """Shows `text` with the time that has passed; says nothing when the last line is too fresh."""
        now = time.monotonic()
        line = f"[{self._topic}] {text}, {duration(now - self._start)}"
        if self._live:
            print(f"\r\x1b[K{line[:118]}", end="", flush=True)
        elif now - self._last >= self._every:
            self._last = now
            print(line, flush=True)

    def close(self) -> None:
        """Clears the live line."""
        if self._live:
            print("\r\x1b[K", end="", flush=True)


@contextmanager
def progress(topic: str, every: float = 15.0) -> Iterator[Progress]:
    """A Progress that leaves a clean line behind, also when the work fails."""
    shown = Progress(topic, every)
    try:
        yield shown
    finally:
        shown.close()
