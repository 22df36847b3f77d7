"""What people see: one line per fact, tables, a live status line where there is a terminal.

What is said while a step is at work goes to that step (`staged`), which says or draws it: see steplines.py.

Much of it comes from files that others wrote: no escape sequence of theirs reaches the terminal, and no credential.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from sagewheels.errors import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPE_WIDTH = 1000
_NARROW = 60
"""Columns below which a table would break each of its words: there each row is a paragraph."""

_STYLES = {"ok": "green", "note": "yellow", "bad": "bold red", "fits": "green", "WRONG": "bold red"}


class Line(Protocol):
    """A line about what is at work; its text can be shown as it is."""

    @property
    def is_live(self) -> bool:
        """Whether the line is drawn in place."""

    def at(self, text: str, share: float | None) -> None:
        """What is at work now, and how much of it is done, of 1."""


class Stage(Line, Protocol):
    """Who shows what is said and drawn while it is on stage; the texts can be shown as they are."""

    def say(self, topic: str, text: str) -> None:
        """One fact."""

    def draw(self, text: str) -> None:
        """A table, in lines."""


_for_people = ["stdout"]
"""Where the words go, the last one counts: stderr while stdout belongs to a program (`--json`)."""

_stages: list[Stage] = []
"""Who shows the words, the last one counts; empty: they are printed."""


def out() -> TextIO:
    """Where people read: stdout, or stderr while stdout is kept for one JSON document."""
    # By its name, each time: a live line puts itself in the place of both while it is drawn.
    stream: TextIO = getattr(sys, _for_people[-1])
    return stream


@contextmanager
def aside() -> Iterator[None]:
    """Within the block, all that is said goes to stderr: stdout holds nothing but what the block prints itself."""
    _for_people.append("stderr")
    try:
        yield
    finally:
        _for_people.pop()


@contextmanager
def staged(stage: Stage) -> Iterator[None]:
    """Within the block, `stage` shows what is said."""
    _stages.append(stage)
    try:
        yield
    finally:
        _stages.pop()


def is_live() -> bool:
    """Whether people read on a terminal on which a line can be drawn again; a log of CI is none, even with a tty."""
    from sagewheels import config  # which warns through this module

    return out().isatty() and not config.is_plain_terminal()


def has_unicode() -> bool:
    """Whether marks and frames beyond ASCII can be shown."""
    return (out().encoding or "").lower().startswith("utf")


def width() -> int:
    """Columns of the terminal."""
    from rich.console import Console

    return Console(file=out()).width


def say(topic: str, text: str) -> None:
    """One greppable line: `[fetch] ...`, written at once, since threads of a build say something too."""
    if _stages:
        _stages[-1].say(topic, shown(text))
    else:
        write(f"[{topic}] {shown(text)}")


def note(topic: str, text: str) -> None:
    """A line like those of `say` for logs and pipes; on a terminal the steps and the last panel tell it."""
    if not is_live():
        say(topic, text)


def write(line: str) -> None:
    """One line, or several, as they are."""
    print(f"{line}\n", end="", file=out(), flush=True)


def warn(topic: str, text: str) -> None:
    """One line on stderr for what the user should know, though the work goes on."""
    print(f"[{topic}] warning: {shown(text)}\n", end="", file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that fits a terminal; in logs and pipes a Markdown one, as wide as its text, so that nothing is cut."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    live = out().isatty()
    if live and width() < _NARROW:
        _paragraphs(title, columns, rows)
        return
    frame = box.SIMPLE_HEAD if live else box.MARKDOWN
    grid = Table(box=frame, show_edge=not live)
    for column in columns:
        grid.add_column(Text(shown(column)), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(shown(cell), style=_STYLES.get(cell, "")) for cell in row))
    # Not as the table's own title, which is broken where the table is narrower than it.
    draw(Group(*([Text(shown(title), style="bold")] if title else []), grid))


def _paragraphs(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table for a narrow terminal: each row as `column value, column value`."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    told = []
    for row in rows:
        text = Text(", ").join(
            Text.assemble((f"{shown(column)} " if column else "", "dim"), (shown(cell), _STYLES.get(cell, "")))
            for column, cell in zip(columns, row, strict=True)
            if cell
        )
        told.append(Padding(text, (0, 0, 0, 2)))
    draw(Group(Text(shown(title), style="bold"), *told))


def draw(thing: RenderableType) -> None:
    """Draws something as wide as the terminal; in logs and pipes as wide as it is, without colours."""
    from rich.console import Console

    console = Console(file=out(), width=None if out().isatty() else _PIPE_WIDTH, highlight=False)
    with console.capture() as drawn:
        console.print(thing)
    text = "\n".join(line.rstrip() for line in drawn.get().splitlines())
    if _stages:
        _stages[-1].draw(text)
    else:
        write(text)


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


def left(seconds: float | None) -> str:
    """`8 s left`, `3 min left`: no finer than anybody can know it; empty where nobody can."""
    if seconds is None:
        return ""
    return f"{max(1, round(seconds))} s left" if seconds < 90 else f"{round(seconds / 60)} min left"


class Progress:
    """A line that changes in place on a terminal, and one plain line every `every` seconds elsewhere."""

    def __init__(self, topic: str, every: float, line: Line | None) -> None:
        self._topic, self._every, self._line = topic, every, line
        self._start = self._last = time.monotonic()

    def update(self, text: str, *, share: float | None = None, seconds_left: float | None = None) -> None:
        """Shows `text` with the time that has passed; in a log says nothing when the last line is too fresh.

        `share` is how much is done, of 1; `seconds_left` is for what still has to be done, where that is known.
        """
        now = time.monotonic()
        passed, later = duration(now - self._start), left(seconds_left)
        if self._line and self._line.is_live:
            self._line.at(", ".join(filter(None, (shown(text), later))), share)
        elif now - self._last >= self._every:
            self._last = now
            write(", ".join(filter(None, (f"[{self._topic}] {shown(text)}", passed, later))))


@contextmanager
def progress(topic: str, every: float = 15.0) -> Iterator[Progress]:
    """A Progress that leaves a clean line behind, also when the work fails."""
    if _stages or not is_live():
        yield Progress(topic, every, _stages[-1] if _stages else None)
        return
    from sagewheels.steplines import Status

    with Status(topic).shown() as status:
        yield Progress(topic, every, status)
