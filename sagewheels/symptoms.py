"""What people see when it goes wrong, by the words of compilers, loader, torch and ComfyUI: cause and remedy. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagewheels.errors import shown
from sagewheels.symptomrows import Symptom, Where, load

LONGEST = 4000
"""Letters of a line that are looked at: what matters is short, and a compiler's command is not."""
_SHOWN = 300
_FEW = 3
"""Lines that look like errors, from the beginning and from the end, where nothing is known."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]{0,40}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,400}(?:\x07|\x1b\\)?|[ -/]{0,4}[0-Z\\^-~])")
_BAD_WORDS = ("rror", "ERROR", "fatal", "FATAL", "FAILED", "Killed", "undefined ", "cannot open")
_LOOKS_BAD = re.compile(
    r"\b(?:\w{0,40}Error|error|ERROR|fatal|FATAL|FAILED|Killed|undefined (?:reference|symbol)|cannot open)\b"
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A symptom that a log shows: the `line` (from 1) with its `text`, and cause and remedy with what was captured."""

    row: Symptom
    line: int
    text: str
    captured: Mapping[str, str]

    @property
    def cause(self) -> str:
        """Why it happened."""
        return filled(self.row.cause, self.captured)

    def remedy(self, where: Where | None = None) -> str:
        """What to do, where it was seen."""
        return filled(self.row.remedies.get(where or "", self.row.remedy), self.captured)

    def facts(self) -> dict[str, Any]:
        """The same in plain JSON types."""
        row = self.row
        told = {"id": row.id, "symptom": row.symptom, "line": self.line, "text": self.text}
        known = {"captured": dict(self.captured), "cause": self.cause, "remedy": self.remedy()}
        return {**told, **known, "source": row.source, "seen_in": list(row.seen_in)}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found in a log of so many `lines`; `errors` are the first and last lines that look bad, by number."""

    findings: tuple[Finding, ...]
    errors: tuple[tuple[int, str], ...]
    lines: int


def diagnose(blocks: Iterable[str], rows: Sequence[Symptom] | None = None) -> Diagnosis:
    """What a log shows, the cause before what follows from it: one finding for each row.

    `blocks` are its text in parts that end with a line. A line speaks for one row, the first that fits it. Rows that
    are not general come first, then what was seen first.
    """
    search, held = _Search(load() if rows is None else rows), ""
    for block in blocks:
        text = held + block
        cut = text.rfind("\n", 0, -1) + 1
        held = text[cut:]
        search.read(text[:cut], held)
    search.read(held, "")
    return search.result()


def remedy(text: str, where: Where, *, lacking: Collection[str] = (), but: str = "") -> str:
    """What to do about the first thing that is known in this text, `but` where nothing is.

    `lacking`: the patches that the wheel in question was built without. A row that names a patch counts for those only.
    """
    rows = [row for row in load() if not row.patch or row.patch in lacking]
    found = diagnose([text], rows).findings
    return found[0].remedy(where) if found else but


@dataclass
class _Search:
    """A log as it is read: what was found so far."""

    rows: Sequence[Symptom]
    found: dict[str, Finding] = field(default_factory=dict)
    company: set[str] = field(default_factory=set)
    first: list[tuple[int, str]] = field(default_factory=list)
    last: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=_FEW))
    lines: int = 0

    def read(self, block: str, after: str) -> None:
        """Takes more of the log in, whole lines; `after` is the line behind them."""
        text, after = _plain(block), _plain(after)
        # A row that was found is still tried: else its lines would speak for the next row.
        wanted = [row for row in self.rows if any(mark in text for mark in row.marks)]
        self._keep_company(text)
        lines = text.removesuffix("\n").split("\n") if text else []
        if wanted:
            self._match(lines, after, wanted)
        self._keep_errors(lines)
        self.lines += len(lines)

    def _keep_company(self, text: str) -> None:
        missing = {one for row in self.rows for one in row.together} - self.company
        folded = text.casefold() if missing else ""
        self.company |= {one for one in missing if one in folded}

    def _match(self, lines: Sequence[str], after: str, wanted: Sequence[Symptom]) -> None:
        marks = {mark for row in wanted for mark in row.marks}
        for place, line in enumerate(lines):
            if not any(mark in line for mark in marks):
                continue
            following = lines[place + 1] if place + 1 < len(lines) else after
            # A progress bar writes over its line, which is one line of many parts.
            for part in line.split("\r"):
                self._try(part[:LONGEST], following[:LONGEST], self.lines + place + 1, wanted)

    def _try(self, part: str, following: str, number: int, wanted: Sequence[Symptom]) -> None:
        for row in wanted:
            if not any(mark in part for mark in row.marks):
                continue
            for pattern in row.patterns:
                hit = pattern.search(f"{part}\n{following}", 0)
                if hit and hit.start() <= len(part):
                    self.found.setdefault(row.id, _finding(row, number, part, hit))
                    return

    def _keep_errors(self, lines: Sequence[str]) -> None:
        if any(not one.row.together for one in self.found.values()):
            return
        for number, line in enumerate(lines, self.lines + 1):
            if any(word in line for word in _BAD_WORDS) and _LOOKS_BAD.search(line, 0, LONGEST):
                told = (number, _short(line))
                (self.first if len(self.first) < _FEW else self.last).append(told)

    def result(self) -> Diagnosis:
        alone = [one for one in self.found.values() if not one.row.together or self.company & set(one.row.together)]
        ordered = sorted(alone, key=lambda one: (one.row.general, one.line))
        return Diagnosis(findings=tuple(ordered), errors=(*self.first, *self.last), lines=self.lines)


def _plain(text: str) -> str:
    return _ESCAPES.sub("", text) if "\x1b" in text else text


def _finding(row: Symptom, number: int, part: str, hit: re.Match[str]) -> Finding:
    captured = {key: shown(value) for key, value in hit.groupdict().items() if value}
    if "sm" in captured:
        captured["arch"] = f"{captured['sm'][:-1]}.{captured['sm'][-1]}"
    return Finding(row=row, line=number, text=_short(part), captured=captured)


def _short(line: str) -> str:
    """The line as people may see it."""
    text = shown(" ".join(line[:LONGEST].split()))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def filled(text: str, captured: Mapping[str, str]) -> str:
    """The words of a row with what was captured, and dots where nothing was."""
    return re.sub(r"\{(\w+)\}", lambda name: captured.get(name[1], "..."), text)
