"""Trying again: what may pass, how often and how long it is waited for, and what to call it when it does not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import responses
from typing import TypeVar

from sagewheels.errors import StoreError

TRIES = 3
LONGEST_WAIT = 60.0
"""Seconds: a `Retry-After` beyond this is not waited for in full."""

GRACE = 60.0
SLOWEST = 10_000
"""A body must bring this many bytes a second once GRACE seconds have passed: a byte now and then is no progress."""

_T = TypeVar("_T")


class Trouble(Exception):
    """Why one try failed; another may do better, after `wait` seconds if the server said so, unless it is `final`."""

    def __init__(self, reason: str, wait: float = 0.0, *, final: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.final = wait, final


class Pace:
    """Bounds the time that a body takes, however long it is."""

    def __init__(self) -> None:
        self._started, self._done = time.monotonic(), 0

    def arrived(self, count: int) -> None:
        """Takes note of so many more bytes. Raises Trouble when they come too slowly."""
        self._done += count
        if time.monotonic() - self._started > GRACE + self._done / SLOWEST:
            raise Trouble(f"it sends less than {SLOWEST // 1000} kB a second")


def insist(failed: str, once: Callable[[], _T], pause: Callable[[float], None]) -> _T:
    """What `once` returns, tried TRIES times with growing pauses. Raises StoreError, beginning with `failed`.

    The pauses are of 4.5 s together at most; where the server asks for longer ones, of LONGEST_WAIT each.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return once()
        except Trouble as trouble:
            reason, final, asked = str(trouble), trouble.final, trouble.wait
            wait = min(asked, LONGEST_WAIT) or random.uniform(0.5, 1.5) * 2 ** (attempt - 1)
        if final:
            raise StoreError(f"{failed}: {reason}", "Check the address and the settings of your network")
        if attempt < TRIES:
            pause(wait)
    remedy = f"It asks to be left alone for {asked:.0f} s: try again after that"
    remedy = remedy if asked > LONGEST_WAIT else "Check the network, or try again later"
    raise StoreError(f"{failed}: {reason} ({TRIES} tries)", remedy)


def busy(status: int, retry_after: str | None) -> Trouble | None:
    """What an answer means that another try may improve, which no 4xx is but 408 and 429; None for any other."""
    return Trouble(status_text(status), _seconds(retry_after)) if status in {408, 429} or status >= 500 else None


def page_instead(status: int, kind: str | None) -> Trouble | None:
    """What an answer means that is a web page where none was asked for: somebody in between, such as a login page."""
    is_page = status < 300 and (kind or "").strip().lower().startswith("text/html")
    return Trouble("a web page came instead, as from a proxy or a login page") if is_page else None


def status_text(code: int) -> str:
    """`429 Too Many Requests`."""
    return f"{code} {responses.get(code, '')}".strip()


def meaning(error: Exception) -> str:
    """What a network error means; the text of the HTTP libraries is three nested reprs."""
    text = f"{type(error).__name__} {error}".lower()
    for mark, told in (
        ("timed out", "no answer in time"),
        ("timeout", "no answer in time"),
        ("certificate", "its certificate is not accepted"),
        ("failed to resolve", "the name is not known"),
        ("name or service not known", "the name is not known"),
        ("name resolution", "the name is not known"),
        ("refused", "the connection was refused"),
        ("unreachable", "the network is unreachable"),
    ):
        if mark in text:
            return told
    return "the connection broke off"


def _seconds(text: str | None) -> float:
    """A Retry-After, which is a number or a date; 0 for none."""
    text = (text or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0
