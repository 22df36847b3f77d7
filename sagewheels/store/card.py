"""The card of a store: README.md with its wheels and how to install them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sagewheels import arch, bad
from sagewheels.bad import Marks
from sagewheels.manifest import WheelManifest, when
from sagewheels.store import Store, lines
from sagewheels.store.hub_repo import PAGE

BEGIN, END = "<!-- sagewheels:begin -->", "<!-- sagewheels:end -->"

_TAGS = "tags:\n- wheels\n- cuda\n- pytorch\n"
_NAMED = "Wheels for CUDA and PyTorch\n"
_OLD_FRONT = f"---\npretty_name: {_NAMED}{_TAGS}---\n"
"""Of earlier cards: without a word on it, the Hub looks for tables in a dataset of wheels."""
_FRONTS = {
    "datasets": f"---\npretty_name: {_NAMED}{_TAGS}viewer: false\n---\n",
    "models": f"---\n{_TAGS}---\n",
    "spaces": f"---\ntitle: {_NAMED}sdk: static\napp_file: {PAGE}\n{_TAGS}---\n",
}
_COLUMNS = ("package", "version", "Python", "torch", "CUDA", "archs", "proven on")


def card(
    entries: Iterable[WheelManifest],
    store: Store,
    old: str = "",
    known_bad: Marks | None = None,
    *,
    private: bool = False,
) -> str:
    """README.md with the table of wheels and their install lines; all that `old` says outside our marks is kept.

    A wheel that is known to be bad is called so, and has no install line when none of its archs is left. None has one
    where a token is needed to read, which pip and uv do not have.
    """
    known_bad = known_bad or {}
    newest = sorted(entries, key=lambda entry: (when(entry.created_at_utc), entry.wheel_file), reverse=True)
    words = [*_start(store, private), *_table(newest, known_bad), *_lines(newest, store, known_bad, private)]
    region = "\n".join([BEGIN, *words, END])
    front = _FRONTS.get(store.label.removeprefix("hf://").partition("/")[0], _FRONTS["datasets"])
    if not old.strip():
        name = store.label.partition("://")[2].partition("@")[0].rpartition("/")[2] or "wheels"
        old = f"# {name}\n\nWheels that were compiled and checked with sagewheels.\n"
    if not old.startswith("---"):
        old = front + "\n" + old
    elif old.startswith(_OLD_FRONT):
        old = front + old.removeprefix(_OLD_FRONT)
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


def _start(store: Store, private: bool) -> list[str]:
    """Where the same is easier to look through, and the line that needs no choice."""
    where = PAGE if lines.is_local(store) else store.address(PAGE)
    download = "" if lines.is_local(store) else "download it and "
    page = f"The same as a page with filters: [{PAGE}]({where}) ({download}open it in a browser)."
    if store.label.startswith("hf://spaces/"):
        page = "The App tab shows the same as a page with filters."
    told = ["", lines.PRIVATE] if private else []
    return ["", page, *told, "", "```sh", lines.sagewheels(store), "```"]


def _lines(entries: Iterable[WheelManifest], store: Store, known_bad: Marks, private: bool) -> list[str]:
    told = list[str]()
    for entry in entries:
        marks = bad.standing(entry, known_bad)
        for mark in marks:
            told += [f"{_cell(entry.wheel_file)} is {_cell(mark.words, 400)}", ""]
        if bad.is_offered(entry, known_bad) and not private:
            told += ["```sh", f'pip install "{lines.address(entry, store)}"', "```", ""]
    return told


def _cell(text: str, longest: int = 120) -> str:
    """Text for a table: what others wrote into a manifest must not become markup."""
    return re.sub(r"[^\w .,:;+()/-]", "", text)[:longest] or "?"
