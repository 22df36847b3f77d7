"""What people see: one line per fact, tables, a live status line where there is a terminal.

Much of it comes from files that others wrote: no escape sequence of theirs reaches the terminal, and no credential.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from sagewheels.errors import shown

if TYPE_CHECKING:
    from rich.spinner import Spinner

_PIPE_WIDTH = 1000
_STYLES = {"ok": "green", "note": "yellow", "bad": "bold red", "fits": "green", "WRONG": "bold red"}


_for_people: list[TextIO] = []
"""Where the words go while stdout belongs to a program (`--json`); empty: stdout."""


def out() -> TextIO:
    """Where people read: stdout, or stderr while stdout is kept for one JSON document."""
    return _for_people[-1] if _for_people else sys.stdout


@contextmanager
def aside() -> Iterator[None]:
    """Within the block, all that is said goes to stderr: stdout holds nothing but what the block prints itself."""
    _for_people.append(sys.stderr)
    try:
        yield
    finally:
        _for_people.pop()


def say(topic: str, text: str) -> None:
    """One greppable line: `[fetch] ...`, written at once, since threads of a build say something too."""
    print(f"[{topic}] {shown(text)}\n", end="", file=out(), flush=True)


def warn(topic: str, text: str) -> None:
    """One line on stderr for what the user should know, though the work goes on."""
    print(f"[{topic}] warning: {shown(text)}\n", end="", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that fits a terminal; in logs and pipes a Markdown one, as wide as its text, so that nothing is cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    live = out().isatty()
    frame = box.SIMPLE_HEAD if live else box.MARKDOWN
    grid = Table(title=Text(shown(title)), title_justify="left", title_style="bold", box=frame, show_edge=not live)
    for column in columns:
        grid.add_column(Text(shown(column)), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(shown(cell), style=_STYLES.get(cell, "")) for cell in row))
    console = Console(width=None if live else _PIPE_WIDTH, highlight=False)
    with console.capture() as drawn:
        console.print(grid)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()), file=out(), flush=True)


def count(number: int, noun: str) -> str:
    """`1 wheel`, `2 wheels`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(count: int) -> str:
    """Bytes in the unit that people read: `16.4 MB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit / 10:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"


class Progress:
    """A line that changes in place on a terminal, and one plain line every `every` seconds elsewhere."""

    def __init__(self, topic: str, every: float, live: Spinner | None) -> None:
        self._topic, self._every, self._live = topic, every, live
        self._start = self._last = time.monotonic()

    def update(self, text: str) -> None:
        """Shows `text` with the time that has passed; in a log says nothing when the last line is too fresh."""
        now = time.monotonic()
        line = f"[{self._topic}] {shown(text)}, {duration(now - self._start)}"
        if self._live:
            from rich.text import Text

            self._live.update(text=Text(line))
        elif now - self._last >= self._every:
            self._last = now
            print(f"{line}\n", end="", file=out(), flush=True)


@contextmanager
def progress(topic: str, every: float = 15.0) -> Iterator[Progress]:
    """A Progress that leaves a clean line behind, also when the work fails."""
    if not out().isatty():
        yield Progress(topic, every, None)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    spinner = Spinner("dots", style="status.spinner")
    # Not Console.status, which draws nothing at first: of two threads that speak before the first frame, each believes
    # the line to be empty, and the second one's words end up behind the frame that the first one drew.
    with Live(spinner, console=Console(file=out()), refresh_per_second=12.5, transient=True):
        yield Progress(topic, every, spinner)
