"""The steps of the graph as people see them: a live line while one works, one line with a mark and its time after it.

In a pipe nothing is drawn: there the lines that the step says are all there is. Either way the run's report knows it.
"""

from __future__ import annotations

import functools
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from sagewheels import ui
from sagewheels.errors import NothingCompatible, SageError, shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.spinner import Spinner
    from rich.text import Text

    from sagewheels.job import Job

F = TypeVar("F", bound=Callable[..., Any])
Ended = Literal["done", "missed", "failed", "planned"]
"""How a step ended; `missed`: the store holds nothing that fits, which is no failure where a wheel can be built."""

_MARKS: dict[Ended, tuple[str, str, str]] = {
    "done": ("\N{CHECK MARK}", "ok", "green"),
    "missed": ("-", "-", "yellow"),
    "failed": ("\N{MULTIPLICATION X}", "x", "bold red"),
    "planned": (" ", " ", ""),
}
"""Mark, the same for a terminal that has ASCII alone, style."""

_WHEEL = re.compile(r"\b([\w.]+-[\w.+!]+)(?:-[\w.]+){3}\.whl\b")
"""Name, version with the stack, then Python, ABI and platform."""

_WIDEST = 110
"""Columns: on a wider terminal the time would be too far from what it is of."""

_NAME = 8
_SHOWN = 4
"""Lines of detail below a live line: it must stay smaller than the terminal."""


@contextmanager
def step(job: Job, name: str) -> Iterator[Step]:
    """Within the block, what is said belongs to the step `name`, which is in the job's report when it has ended."""
    one = Step(name, is_live=ui.is_live() and not job.dry_run)
    ended: Ended = "failed"
    try:
        with one.shown():
            yield one
            ended = "planned" if job.dry_run else "done"
    except BaseException as error:
        ended = "missed" if isinstance(error, NothingCompatible) else "failed"
        one.result = error.what if isinstance(error, SageError) else "interrupted"
        raise
    finally:
        one.finish(ended)
        job.report.setdefault("steps", []).append(one.record(ended))


def stepped(name: str) -> Callable[[F], F]:
    """Makes each call of a function the step `name` of the job that is its first argument."""

    def decorate(work: F) -> F:
        @functools.wraps(work)
        def wrapped(job: Job, *args: Any, **kwargs: Any) -> Any:
            with step(job, name):
                return work(job, *args, **kwargs)

        return cast(F, wrapped)

    return decorate


def plan(what: str, how: str) -> None:
    """On a terminal, before the first step: what the run is about, and how it goes about it."""
    from rich.text import Text

    ui.draw(_lines_of((" ", ""), "plan", Text(shown(what)), [shown(how)], ui.width()))


@dataclass
class Status:
    """A live line: the topic, what is at work, how much of it is done, and the seconds since it began."""

    topic: str
    text: str = ""
    share: float | None = None
    details: Sequence[str] = ()
    is_live: bool = True
    began: float = field(default_factory=time.monotonic)
    _spinner: Spinner = field(init=False)

    def at(self, text: str, share: float | None) -> None:
        """What is at work now."""
        self.text, self.share = text, share

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What rich draws, a few times each second."""
        yield working(self, self._spinner, time.monotonic() - self.began, width=options.max_width)

    @contextmanager
    def shown(self) -> Iterator[Status]:
        """Draws it while the block lasts, and leaves nothing behind."""
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        console = Console(file=ui.out(), highlight=False)
        self._spinner = Spinner("dots" if ui.has_unicode() else "line", style="status.spinner")
        # Not Console.status, which draws nothing at first: of two threads that speak before the first frame, each
        # believes the line to be empty, and the second one's words end up behind the frame that the first one drew.
        # What goes elsewhere than to this terminal must arrive there, and not above the line.
        with Live(
            self,
            console=console,
            refresh_per_second=12.5,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        ):
            yield self


class Step:
    """One step; a Stage for what is said meanwhile. The last thing that was said is its result, unless `result` is."""

    def __init__(self, name: str, *, is_live: bool) -> None:
        self.name, self.is_live, self.result = name, is_live, ""
        self.began, self._ended = time.monotonic(), 0.0
        self._said: list[tuple[str, str]] = []
        self._tables: list[str] = []
        self._status = Status(name)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The step is on stage; on a terminal it has its live line."""
        with ui.staged(self):
            if not self.is_live:
                yield
                return
            with self._status.shown():
                yield

    def say(self, topic: str, text: str) -> None:
        """Printed in a pipe; on a terminal a detail of the step."""
        self._said.append((topic, text))
        if self.is_live:
            self._status.details = self._lines()[-_SHOWN:]
        else:
            ui.write(f"[{topic}] {text}")

    def draw(self, text: str) -> None:
        """Printed in a pipe; on a terminal it comes below the step."""
        if self.is_live:
            self._tables.append(text)
        else:
            ui.write(text)

    def at(self, text: str, share: float | None) -> None:
        """What is at work now."""
        self._status.at(text, share)

    def finish(self, ended: Ended) -> None:
        """On a terminal: the one line, what led to it, and the tables."""
        self._ended = time.monotonic()
        if not self.is_live:
            return
        told, lines = short(self.result or self._last()), self._lines()
        details = lines if self.result else lines[:-1]
        seconds, fancy = self._ended - self.began, ui.has_unicode()
        ui.draw(finished(self.name, ended, told, seconds, details, width=ui.width(), fancy=fancy))
        for text in self._tables:
            ui.write(text)

    def record(self, ended: Ended) -> dict[str, Any]:
        """The step in the report."""
        seconds = round(self._ended - self.began, 3)
        return {"name": self.name, "outcome": ended, "seconds": seconds, "words": self.result or self._last()}

    def _last(self) -> str:
        return self._said[-1][1] if self._said else ""

    def _lines(self) -> list[str]:
        """What was said, with the topic where it is another one than the step."""
        return [short(text if topic == self.name else f"{topic}: {text}") for topic, text in self._said]


def short(text: str) -> str:
    """The text with the names of wheels up to their stack, which is what tells one from another. Pure."""
    return _WHEEL.sub(r"\1", text)


def finished(
    name: str, ended: Ended, told: str, seconds: float, details: Sequence[str] = (), *, width: int, fancy: bool = True
) -> RenderableType:
    """A step that has ended, `width` columns wide; `fancy`: not in ASCII alone. Pure."""
    from rich.text import Text

    mark, plain, style = _MARKS[ended]
    head = Text(mark if fancy else plain, style=style), Text(ui.duration(seconds), style="dim")
    # Of a failure the run's last line says all: it is told once.
    text = Text(told, no_wrap=True, overflow="ellipsis") if ended == "failed" else Text(told)
    return _lines_of(head, name, text, details, width)


def working(status: Status, spinner: Spinner, seconds: float, *, width: int) -> RenderableType:
    """A step that is at work, `width` columns wide. Pure."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    head = spinner, Text(ui.duration(seconds), style="dim")
    lines = _lines_of(head, status.topic, Text(status.text or "..."), status.details, width)
    if status.share is None:
        return lines
    bar = ProgressBar(total=1.0, completed=min(1.0, status.share), width=max(10, min(50, width - _NAME - 4)))
    return Group(lines, Padding(bar, (0, 0, 0, _NAME + 4)))


def _lines_of(
    head: tuple[RenderableType, RenderableType], name: str, text: Text, details: Sequence[str], width: int
) -> RenderableType:
    """Mark, name, text and time in columns, the details dim below the text."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1), expand=True)
    grid.width = min(width, _WIDEST)
    grid.add_column(width=1)
    grid.add_column(width=_NAME)
    grid.add_column(ratio=1, overflow="fold")
    grid.add_column(justify="right", no_wrap=True)
    mark, passed = head
    grid.add_row(mark, Text(name, style="bold"), text, passed)
    for line in details:
        grid.add_row("", "", Text(line, style="dim"), "")
    return grid
