"""The page of a store: index.html with its wheels, filters and install lines, all in one file. Pure.

What others wrote into a manifest gets in as text through `_text` alone; the only links are to the store's own files.
The policy on top of the page lets no other script run than ours.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from packaging.version import InvalidVersion, Version

from sagewheels import arch, bad, signing, ui
from sagewheels.arch import Arch
from sagewheels.bad import Mark, Marks
from sagewheels.manifest import Proof, WheelManifest, when
from sagewheels.store import Store, lines

OURS = b'<meta name="generator" content="sagewheels">'
"""What no page of somebody else holds."""
_BLANK = b"Welcome to your static Space!"
"""What the Hub puts into a Space that is new."""

_MOST_OPTIONS = 50
"""Of one filter, the newest: a store with more cannot make the page grow with the square of them."""
_MOST_PROOFS = 50
_ANY_PYTHON = "any"
_Filters = Mapping[str, tuple[str, Sequence[str]]]


def page(
    entries: Iterable[WheelManifest], store: Store, known_bad: Marks | None = None, *, private: bool = False
) -> str:
    """index.html: the newest wheel first, those that nobody should install last. The same store gives the same text."""
    known_bad = known_bad or {}
    newest = sorted(entries, key=lambda one: (when(one.created_at_utc), one.wheel_file), reverse=True)
    newest.sort(key=lambda one: not bad.is_offered(one, known_bad))
    filters = _filters(newest)
    template, hashes = _template()
    return template.substitute(
        hashes,
        title=_text(f"Wheels in {store.label}"),
        label=_text(store.label),
        local="yes" if lines.is_local(store) else "",
        summary=_summary(newest, known_bad),
        install=_text(lines.sagewheels(store)),
        private=f"<p>{_text(lines.PRIVATE)}</p>" if private else "",
        filters="\n".join(_select(name, title, options) for name, (title, options) in filters.items()),
        rows="\n".join(_row(one, store, known_bad, filters, private) for one in newest),
    )


def is_ours(old: bytes) -> bool:
    """Whether this page may be replaced: people may have put one of their own there."""
    return not old or OURS in old or _BLANK in old


@lru_cache(maxsize=1)
def _template() -> tuple[Template, dict[str, str]]:
    """The text around the wheels, and the hashes of the one style and the one script that may count."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("style", "script"):
        content = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes[f"{tag}_hash"] = f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
    return Template(text), hashes


def _text(value: object, longest: int = 300) -> str:
    """Anything as text of a page: no markup, no control or direction marks, nothing endless."""
    plain = str(value)[:longest]
    if not plain.isprintable():
        plain = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in plain)
    return html.escape(plain)


def _summary(entries: Sequence[WheelManifest], known_bad: Marks) -> str:
    """How many wheels there are, and the newest that is proven."""
    proven = next((one for one in entries if bad.is_proven(one, known_bad)), None)
    if proven is None:
        return f"{ui.count(len(entries), 'wheel')}, none proven yet."
    what = f"{_text(proven.name)} {_text(proven.version)}"
    return f"{ui.count(len(entries), 'wheel')}. Newest proven: <bdi>{what}</bdi>, {_text(_day(proven.created_at_utc))}."


def _filters(entries: Sequence[WheelManifest]) -> _Filters:
    """What can be chosen, newest first."""
    return {
        "python": ("Python", _newest(_python(one)[0] for one in entries)),
        "torch": ("torch", _newest(one.torch if not one.stable_torch else one.stable_torch for one in entries)),
        "cuda": ("CUDA", _newest(one.cuda for one in entries)),
        "arch": ("arch of the GPU", _newest(str(held.plain) for one in entries for held in one.archs)),
    }


def _newest(found: Iterable[str]) -> tuple[str, ...]:
    """Each version once; those that are none, or hold a space, cannot be chosen."""
    versions = {text: version for text in set(found) if (version := _version(text))}
    return tuple(sorted(versions, key=lambda text: (versions[text], text), reverse=True)[:_MOST_OPTIONS])


@lru_cache(maxsize=4096)
def _version(text: str) -> Version | None:
    try:
        return Version(text) if not re.search(r"\s", text) else None
    except InvalidVersion:
        return None


def _select(name: str, title: str, options: Iterable[str]) -> str:
    listed = "".join(f"<option>{_text(option)}</option>" for option in options)
    return f'<label>{title}<select name="{name}"><option value="">any</option>{listed}</select></label>'


@lru_cache(maxsize=4096)
def _python_of(python: str, abi: str) -> tuple[str, bool]:
    found = re.match(r"cp(\d)(\d+)$", python.partition(".")[0])
    return (f"{found[1]}.{found[2]}", "abi3" in abi.split(".")) if found else (_ANY_PYTHON, True)


def _python(entry: WheelManifest) -> tuple[str, bool]:
    """The Python that a wheel is for, and whether newer ones will do."""
    return _python_of(*entry.tags[:2])


@lru_cache(maxsize=4096)
def _suiting(said: str, newer: bool, options: tuple[str, ...]) -> str:
    """The options for which a wheel will do that says `said`, or that and anything newer."""
    least = _version(said)
    if not newer or least is None:
        return " ".join(one for one in options if one == said or (newer and said == _ANY_PYTHON))
    return " ".join(one for one in options if (version := _version(one)) and version >= least)


@lru_cache(maxsize=4096)
def _running(held: tuple[Arch, ...], options: tuple[str, ...]) -> str:
    """The GPUs' archs on which one of these cubins runs."""
    return " ".join(one for one in options if arch.covers(held, arch.parse(one)))


def _row(entry: WheelManifest, store: Store, known_bad: Marks, filters: _Filters, private: bool) -> str:
    marks = bad.standing(entry, known_bad)
    marked = {mark.arch for mark in marks}
    offered = bad.is_offered(entry, known_bad)
    proven = list(dict.fromkeys(one.arch for one in entry.proofs if not marked & {"", one.arch}))
    options = {name: tuple(values) for name, (_, values) in filters.items()}
    data = {
        "python": _suiting(*_python(entry), options["python"]),
        "torch": _suiting(entry.stable_torch or entry.torch, bool(entry.stable_torch), options["torch"]),
        "cuda": entry.cuda,
        "arch": _running(entry.archs, options["arch"]),
        "proven": " ".join(proven),
    }
    attributes = " ".join(f'data-{key}="{_text(value, 2000)}"' for key, value in data.items())
    inside = _line(entry, marks, offered) + _more(entry, marks, store, offered, offered and not private)
    return f'<li class="w" {attributes}><details>{inside}</details></li>'


def _line(entry: WheelManifest, marks: Sequence[Mark], offered: bool) -> str:
    """The row as it is seen at first."""
    python, newer = _python(entry)
    name = f"<bdi>{_text(entry.name)} {_text(entry.version.partition('+')[0])}</bdi>"
    cells = (
        ("Python", f"{python} or newer" if newer and python != _ANY_PYTHON else python),
        ("torch", entry.needs_torch),
        ("CUDA", entry.cuda),
        ("archs", arch.join(entry.archs).replace(";", ", ")),
    )
    told = "".join(f"<span><i>{title} </i><bdi>{_text(value) or '?'}</bdi></span>" for title, value in cells)
    size = ui.size(entry.size) if entry.size is not None else ""
    ends = f"<span>{size}</span><span>{_text(_day(entry.created_at_utc))}</span>"
    name = name if offered else f"<s>{name}</s>"
    state = f'<span class="state">{_state(entry, marks, offered)}</span>'
    return f"<summary><span>{name}</span>{told}{state}{ends}</summary>"


def _state(entry: WheelManifest, marks: Sequence[Mark], offered: bool) -> str:
    """Known to be bad, proven on these GPUs, or neither."""
    if not offered:
        return '<span class="tag bad">known to be bad</span>'
    archs = sorted({mark.arch for mark in marks})
    told = "".join(f'<span class="tag warn">bad on {_text(one)}</span>' for one in archs)
    told += "<i>proven on </i>"
    gpus = list(dict.fromkeys(proof.gpu for proof in entry.proofs if proof.arch not in archs))
    told += "".join(f'<span class="tag good"><bdi>{_text(_short(gpu), 60)}</bdi></span>' for gpu in gpus[:4])
    told += f'<span class="tag">{len(gpus) - 4} more</span>' if len(gpus) > 4 else ""
    return told + ("" if gpus else '<span class="tag">no GPU yet</span>')


def _more(entry: WheelManifest, marks: Sequence[Mark], store: Store, offered: bool, installable: bool) -> str:
    """What opens below the row: reasons, install lines, facts and proofs."""
    reasons = "".join(f'<p class="reason">It is <bdi>{_text(mark.words, 600)}</bdi>.</p>' for mark in marks)
    where = _text(lines.address(entry, store), 2000)
    # uv takes no nameless file:// address with a hash.
    starts = (_text(start) for start in ('pip install "', f'uv pip install "{entry.name} @ ')) if installable else ()
    install = "".join(f'<p class="l"><code data-start="{start}">{start}{where}&quot;</code></p>' for start in starts)
    # A wheel that nobody should install has no link: `pip --find-links` would take it for an offer.
    file = _link(entry, store) if offered else _text(entry.wheel_file)
    facts = "".join(f"<dt>{title}</dt><dd>{value}</dd>" for title, value in _facts(entry, file) if value)
    return f'<div class="more">{reasons}{install}<dl class="facts">{facts}</dl>{_proofs(entry)}</div>'


def _link(entry: WheelManifest, store: Store) -> str:
    """To the wheel: in a folder, from wherever the page is read."""
    where = quote(entry.wheel_file) if lines.is_local(store) else store.address(entry.wheel_file)
    where = _text(lines.with_hash(where, entry), 2000)
    return f'<a class="file" href="{where}">{_text(entry.wheel_file)}</a>'


def _facts(entry: WheelManifest, file: str) -> Iterable[tuple[str, str]]:
    data = entry.data
    patches = data.get("patches")
    yield "file", file
    yield "version", f"<bdi>{_text(entry.version)}</bdi>"
    sha256 = entry.wheel_sha256
    yield "sha256", f'<code class="sha" tabindex="0">{sha256}</code>' if sha256 else "not known, so nothing is checked"
    yield "size", f"{entry.size:,} bytes" if entry.size is not None else ""
    yield "glibc", f"{_text(entry.glibc)} or newer" if entry.glibc else ""
    yield "patches", str(len(patches)) if isinstance(patches, list) else ""
    yield "signature", _signer(data.get("signature"))


def _signer(signature: object) -> str:
    """Whose key the signature names; nobody has checked it here."""
    if not signature:
        return "none"
    return f"{_text(signing.fingerprint(signature) or 'unreadable')}, not checked by this page"


def _proofs(entry: WheelManifest) -> str:
    if not entry.proofs:
        return ""
    titles = ("GPU", "arch", "worst cosine", "relative L2", "times as fast as SDPA", "checks", "on")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    shown = sorted(entry.proofs, key=lambda one: when(one.at_utc), reverse=True)[:_MOST_PROOFS]
    rows = "".join(f"<tr>{''.join(f'<td><bdi>{_text(cell)}</bdi></td>' for cell in _proof(one))}</tr>" for one in shown)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Proofs"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _proof(proof: Proof) -> tuple[str, ...]:
    raw = proof.raw
    cosine, error = _number(raw.get("worst_cosine"), 4), _number(raw.get("worst_relative_l2"), 3)
    checks = "long" if raw.get("full") else "short"
    return proof.gpu, proof.arch, cosine, error, _speed(raw.get("speedup")), checks, _day(proof.at_utc)


def _speed(speedup: object) -> str:
    """`0.77x (1x32x4096x128), 1.60x (...)`: for each batch x heads x length x head_dim that was timed."""
    if not isinstance(speedup, dict):
        return ""
    timed = ((shape, _number(value, 2)) for shape, value in list(speedup.items())[:6])
    return ", ".join(f"{value}x ({shape})" for shape, value in timed if value)


def _number(value: Any, digits: int) -> str:
    """A number as text, nothing for what is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
    return f"{value:.{digits}f}" if is_number and math.isfinite(value) else ""


def _short(gpu: str) -> str:
    return gpu.removeprefix("NVIDIA ").removeprefix("GeForce ") or "an unnamed GPU"


def _day(moment: str) -> str:
    """`2026-01-02`, nothing for what is no date."""
    found = re.match(r"\d{4}-\d\d-\d\d", moment)
    return found[0] if found else ""
