"""What people see of a run over a fleet: a table that changes in place, else each line with its host in front."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagewheels import ui
from sagewheels.fleetrecord import Outcome

if TYPE_CHECKING:
    from rich.table import Table

Line = Callable[[str], None]
"""Takes one line."""

_TOPIC = re.compile(r"\[([a-z-]+)\] ")
_STYLES = {"done": "green", "failed": "bold red", "waiting": "dim"}


@dataclass
class _Row:
    """What the table shows of a host."""

    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    code: str = ""
    last: str = ""


class View:
    """Told by the threads what happens where; without a terminal it says each line at once."""

    def __init__(self, names: Sequence[str], *, live: bool) -> None:
        self._rows = {name: _Row() for name in names}
        self._live, self._lock = live, threading.Lock()

    def state(self, name: str, state: str) -> None:
        """A new state: `connecting`, or a word of our own about another try."""
        with self._lock:
            row = self._rows[name]
            row.state, row.started = state, row.started or time.monotonic()

    def line(self, name: str, text: str) -> None:
        """A line of the task there, which may begin a step; it is fit to be shown."""
        if not self._live:
            ui.say(name, text)
            return
        with self._lock:
            row, topic = self._rows[name], _TOPIC.match(text)
            row.state, row.last = topic[1] if topic else row.state, text

    def end(self, name: str, outcome: Outcome) -> None:
        """How it ended there."""
        done = outcome.exit_code == 0
        if not self._live:
            how = "done" if done else f"failed (exit {outcome.exit_code})"
            ui.say(
                "fleet", f"{name}: {how} in {ui.duration(outcome.seconds)}{f': {outcome.error}' * bool(outcome.error)}"
            )
            return
        with self._lock:
            row = self._rows[name]
            row.state, row.code = "done" if done else "failed", str(outcome.exit_code)
            row.seconds, row.last = outcome.seconds, outcome.why

    def table(self) -> Table:
        """The state of now."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, expand=True)
        for column in ("host", "state", "time", "exit"):
            grid.add_column(column, no_wrap=True)
        grid.add_column("last line", no_wrap=True, overflow="ellipsis", ratio=1)
        with self._lock:
            for name, row in self._rows.items():
                passed = row.seconds or (time.monotonic() - row.started if row.started else 0.0)
                cells = (name, row.state, ui.duration(passed) if passed else "", row.code, row.last)
                grid.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
        return grid


@contextmanager
def showing(names: Sequence[str]) -> Iterator[View]:
    """A View while the block lasts; on a terminal its table goes with the block."""
    live = ui.out().isatty()
    view = View(names, live=live)
    if not live:
        yield view
        return
    from rich.console import Console
    from rich.live import Live

    with Live(get_renderable=view.table, console=Console(file=ui.out()), refresh_per_second=4, transient=True):
        yield view


def final(outcomes: Mapping[str, Outcome]) -> None:
    """The table that stays: every host, how it ended, and where it failed, why."""
    rows = [
        (
            one.host,
            "ok" if one.exit_code == 0 else "bad",
            "" if one.exit_code is None else str(one.exit_code),
            ui.duration(one.seconds),
            str(one.tries),
            one.why,
        )
        for one in outcomes.values()
    ]
    ui.table("", ("host", "", "exit", "time", "tries", "last line"), rows)
