"""What a check of doctor is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Standing = Literal["ok", "note", "bad"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the screen; `remedy` is empty when nothing has to be done."""

    what: str
    standing: Standing
    found: str
    remedy: str = ""


def judged(what: str, trouble: str, remedy: str, good: str) -> Check:
    """A note where there is trouble that does not stop auto, else what is good."""
    if trouble:
        return Check(what=what, standing="note", found=trouble, remedy=remedy)
    return Check(what=what, standing="ok", found=good)
