"""The rows of manifests/symptoms.toml, checked: every complaint names the file, the row and the key."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from sagewheels.errors import UsageError
from sagewheels.resources import ROOT
from sagewheels.table import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Where = Literal["build", "import", "run", "comfyui", "install"]

FILE = ROOT / "manifests" / "symptoms.toml"
_UNBOUNDED = re.compile(r"(?<!\\)(?:\\\\){0,20}[*+]|\{\d{0,5},\}")
_CLASS = re.compile(r"(?<!\\)\[\^?\]?(?:\\.|[^\]\\])*\]")


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
