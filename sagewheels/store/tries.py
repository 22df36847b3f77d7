"""Trying again: what may pass, how often and how long it is waited for, and what to call it when it does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import responses
from typing import TypeVar

from sagewheels.errors import StoreError

TRIES = 3
LONGEST_WAIT = 60.0
"""Seconds: a `Retry-After` beyond this is not waited for in full."""

_T = TypeVar("_T")


class Trouble(Exception):
    """Why one try failed; another may do better, after `wait` seconds if the server said so, unless it is `final`."""

    def __init__(self, reason: str, wait: float = 0.0, *, final: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.final = wait, final


def insist(failed: str, once: Callable[[], _T], pause: Callable[[float], None]) -> _T:
    """What `once` returns, tried TRIES times with growing pauses. Raises StoreError, beginning with `failed`."""
    for attempt in range(1, TRIES + 1):
        try:
            return once()
        except Trouble as trouble:
            reason, final = str(trouble), trouble.final
            wait = min(trouble.wait, LONGEST_WAIT) or random.uniform(0.5, 1.5) * 2 ** (attempt - 1)
        if final:
            raise StoreError(f"{failed}: {reason}", "Check the address and the settings of your network")
        if attempt < TRIES:
            pause(wait)
    raise StoreError(f"{failed}: {reason} ({TRIES} tries)", "Check the network, or try again later")


def busy(status: int, retry_after: str | None) -> Trouble | None:
    """What an answer means that another try may improve, which no 4xx is but 408 and 429; None for any other."""
    return Trouble(status_text(status), _seconds(retry_after)) if status in {408, 429} or status >= 500 else None


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
