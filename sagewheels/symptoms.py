"""What people see when it goes wrong, by the words of compilers, loader, torch and ComfyUI: cause and remedy. Pure."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from sagewheels.errors import UsageError, shown
from sagewheels.resources import ROOT
from sagewheels.table import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Where = Literal["build", "import", "run", "comfyui", "install"]

FILE = ROOT / "manifests" / "symptoms.toml"
LONGEST = 4000
"""Letters of a line that are looked at: what matters is short, and a compiler's command is not."""
_SHOWN = 300
_FEW = 3
"""Lines that look like errors, from the beginning and from the end, where nothing is known."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]{0,40}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,400}(?:\x07|\x1b\\)?|[ -/]{0,4}[0-Z\\^-~])")
_UNBOUNDED = re.compile(r"(?<!\\)(?:\\\\){0,20}[*+]|\{\d{0,5},\}")
_CLASS = re.compile(r"(?<!\\)\[\^?\]?(?:\\.|[^\]\\])*\]")
_BAD_WORDS = ("rror", "ERROR", "fatal", "FATAL", "FAILED", "Killed", "undefined ", "cannot open")
_LOOKS_BAD = re.compile(
    r"\b(?:\w{0,40}Error|error|ERROR|fatal|FATAL|FAILED|Killed|undefined (?:reference|symbol)|cannot open)\b"
)


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """One row of symptoms.toml, whose head says what each key means."""

    id: str
    symptom: str
    marks: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    together: tuple[str, ...]
    general: bool
    cause: str
    remedy: str
    remedies: Mapping[str, str]
    example: Mapping[str, str]
    patch: str
    check: str
    source: str
    seen_in: tuple[str, ...]


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


@cache
def load(path: Path = FILE) -> tuple[Symptom, ...]:
    """The rows of symptoms.toml. Raises UsageError that names file, row and key of what is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    top = Table(data, path, "")
    rows = tuple(_row(table) for table in top.listed("symptom"))
    top.nothing_left("symptoms")
    twice = {row.id for row in rows if [other.id for other in rows].count(row.id) > 1}
    if twice:
        raise UsageError(f"{path}: symptom {', '.join(sorted(twice))} is there twice")
    return rows


def _row(table: Table) -> Symptom:
    patterns = tuple(_pattern(text, table.where("patterns")) for text in table.texts("patterns", ()))
    row = Symptom(
        id=table.text("id"),
        symptom=table.text("symptom"),
        marks=table.texts("marks", ()),
        patterns=patterns,
        together=table.texts("together", ()),
        general=table.flag("general"),
        cause=table.text("cause"),
        remedy=table.text("remedy"),
        remedies=_texts(table, "remedies"),
        example=_texts(table, "example"),
        patch=table.text("patch", ""),
        check=table.text("check", ""),
        source=table.text("source"),
        seen_in=table.texts("seen_in"),
    )
    table.nothing_left("symptoms")
    _whole(row, table)
    return row


def _texts(table: Table, key: str) -> dict[str, str]:
    inner = table.table(key)
    return {name: inner.text(name) for name in inner.data}


def _whole(row: Symptom, table: Table) -> None:
    """Raises UsageError for what does not fit together in a row."""
    if bool(row.marks) != bool(row.patterns):
        raise UsageError(f"{table.where('marks')}: marks and patterns need each other")
    if not row.patterns and not row.check:
        raise UsageError(f"{table.where('check')}: a row without patterns needs a check")
    if any(len(mark) < 4 for mark in row.marks):
        raise UsageError(f"{table.where('marks')}: a mark needs four letters, to be rare")
    places = [*row.seen_in, *row.remedies]
    if strange := [place for place in places if place not in get_args(Where)]:
        raise UsageError(f"{table.where('seen_in')}: {strange[0]} is none of {', '.join(get_args(Where))}")
    for key, text in (
        ("cause", row.cause),
        ("remedy", row.remedy),
        *(("remedies", one) for one in row.remedies.values()),
    ):
        names = set(re.findall(r"\{(\w+)\}", text))
        if lacking := names - set(row.example):
            raise UsageError(f"{table.where('example')} lacks {min(lacking)}, which {key} wants")
        for pattern in row.patterns:
            groups = {*pattern.groupindex, *(["arch"] if "sm" in pattern.groupindex else [])}
            if missing := names - groups:
                raise UsageError(
                    f"{table.where(key)} wants {{{min(missing)}}}, which {pattern.pattern!r} does not capture"
                )


def _pattern(text: str, where: str) -> re.Pattern[str]:
    """The pattern, in which everything that repeats has a bound: no line can make it work for ever."""
    if _UNBOUNDED.search(_CLASS.sub("[]", text)):
        raise UsageError(f"{where}: {text!r} repeats something without a bound", "Write {0,80} and the like")
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(f"{where}: {text!r} is no regular expression: {error}") from None
    if pattern.search(""):
        raise UsageError(f"{where}: {text!r} fits everything")
    return pattern
