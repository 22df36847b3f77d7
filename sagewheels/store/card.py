"""The card of a store: README.md with its wheels and how to install them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sagewheels import arch, bad
from sagewheels.bad import Marks
from sagewheels.manifest import WheelManifest, when
from sagewheels.store import Store

CARD = "README.md"
BEGIN, END = "<!-- sagewheels:begin -->", "<!-- sagewheels:end -->"

_FRONT = "---\npretty_name: Wheels for CUDA and PyTorch\ntags:\n- wheels\n- cuda\n- pytorch\n---\n"
_COLUMNS = ("package", "version", "Python", "torch", "CUDA", "archs", "proven on")


def card(entries: Iterable[WheelManifest], store: Store, old: str = "", known_bad: Marks | None = None) -> str:
    """README.md with the table of wheels and their install lines; all that `old` says outside our marks is kept.

    A wheel that is known to be bad is called so, and has no install line when none of its archs is left.
    """
    known_bad = known_bad or {}
    newest = sorted(entries, key=lambda entry: (when(entry.created_at_utc), entry.wheel_file), reverse=True)
    region = "\n".join([BEGIN, *_table(newest, known_bad), *_lines(newest, store, known_bad), END])
    if not old.strip():
        name = store.label.partition("://")[2].partition("@")[0].rpartition("/")[2] or "wheels"
        old = f"# {name}\n\nWheels that were compiled and checked with sagewheels.\n"
    if not old.startswith("---"):
        old = _FRONT + "\n" + old
    before, begin, rest = old.partition(BEGIN)
    after = rest.partition(END)[2] if END in rest else rest
    if not begin:
        before, after = before.rstrip("\n") + "\n\n", "\n"
    return before + region + after


def _table(entries: Iterable[WheelManifest], known_bad: Marks) -> list[str]:
    rows = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    for entry in entries:
        proven = ", ".join(dict.fromkeys(proof.gpu for proof in entry.proofs)) or "not yet"
        marks = bad.standing(entry, known_bad)
        if marks:
            proven = f"known to be bad ({', '.join(sorted({mark.arch or 'everywhere' for mark in marks}))}); {proven}"
        what, stack = (entry.name, entry.version, entry.tags[0]), (entry.needs_torch, entry.cuda)
        cells = (*what, *stack, arch.join(entry.archs), proven)
        rows.append(" | ".join(_cell(cell) for cell in cells))
    return ["", *(f"| {row} |" for row in rows), ""]


def _lines(entries: Iterable[WheelManifest], store: Store, known_bad: Marks) -> list[str]:
    lines = list[str]()
    for entry in entries:
        marks = bad.standing(entry, known_bad)
        for mark in marks:
            lines += [f"{_cell(entry.wheel_file)} is {_cell(mark.words, 400)}", ""]
        left = {str(one.plain) for one in entry.archs} - {mark.arch for mark in marks}
        if marks and (not left or any(not mark.arch for mark in marks)):
            continue
        address = store.address(entry.wheel_file)
        address = address if "://" in address else Path(address).as_uri()
        check = f"#sha256={entry.wheel_sha256}" if entry.wheel_sha256 else ""
        lines += ["```sh", f'pip install "{address}{check}"', "```", ""]
    return lines


def _cell(text: str, longest: int = 120) -> str:
    """Text for a table: what others wrote into a manifest must not become markup."""
    return re.sub(r"[^\w .,:;+()/-]", "", text)[:longest] or "?"
