"""Known-bad wheels: marks by people in a build manifest, and by smoke in wheelhouse and store. Pure.

A mark for one arch speaks of that arch alone, as a proof does. The newer of the two counts where they are of the same
arch; a mark without a date is by people, and no proof overrules it. What `smoke --full` found, it alone overrules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sagewheels import arch
from sagewheels.arch import Arch
from sagewheels.errors import UsageError
from sagewheels.manifest import NEVER, SHA256, WheelManifest, when

KEY = "known_bad"
_TEXTS = ("wheel_sha256", "build_key", "wheel_file", "arch", "gpu", "at_utc", "reason")
_LONGEST = 300


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Why a wheel, or where there is no sha256 each of that build key, is bad: on one arch, or if empty on all.

    `raw` is the JSON object as it was read, unknown keys included: it is what is written back.
    """

    reason: str
    wheel_sha256: str = ""
    build_key: str = ""
    wheel_file: str = ""
    arch: str = ""
    gpu: str = ""
    at_utc: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def words(self) -> str:
        """`known to be bad on arch 12.0: 3 of 128 cases are wrong (NVIDIA GeForce RTX 5090, 2026-11-22)`."""
        place = f" on arch {self.arch}" if self.arch else ""
        seen = ", ".join(filter(None, (self.gpu, self.at_utc[:10])))
        return f"known to be bad{place}: {self.reason}{f' ({seen})' if seen else ''}"

    @property
    def _identity(self) -> tuple[str, str, bool]:
        """What there is one mark of: a wheel, an arch, and whether people or smoke speak."""
        return self.wheel_sha256 or self.build_key, self.arch, bool(self.at_utc)


Marks = Mapping[str, Sequence[Mark]]
"""Marks by what they name: sha256, file name (for manifests without a sha256) and build key."""


def read(data: object) -> Mark | None:
    """A mark from a JSON object; None for what is none, which must not keep anybody from the wheels beside it."""
    if not isinstance(data, dict):
        return None
    text = {key: "" if data.get(key) is None else data[key] for key in _TEXTS}
    # These end up in lines on a terminal.
    if not all(isinstance(value, str) and value.isprintable() for value in text.values()):
        return None
    text = {key: value.strip()[:_LONGEST] for key, value in text.items()}
    names = [text[key].lower() for key in ("wheel_sha256", "build_key")]
    if not any(names) or not all(SHA256.fullmatch(name) for name in names if name):
        return None
    try:
        place = str(arch.parse(text["arch"]).plain) if text["arch"] else ""
    except UsageError:
        return None
    text |= {"wheel_sha256": names[0], "build_key": names[1], "arch": place}
    text["reason"] = text["reason"] or "no reason is given"
    return Mark(**text, raw=data)


def readable(listed: object) -> list[Mark]:
    """The marks of a JSON list; what is none is passed over."""
    return [mark for item in (listed if isinstance(listed, list) else ()) if (mark := read(item))]


def by_name(marks: Iterable[Mark]) -> Marks:
    """The marks to be looked up; of those that say the same of the same wheel, the newest."""
    newest: dict[tuple[str, str, bool], Mark] = {}
    for mark in marks:
        known = newest.get(mark._identity)
        if known is None or when(mark.at_utc) > when(known.at_utc):
            newest[mark._identity] = mark
    found: dict[str, list[Mark]] = {}
    for mark in newest.values():
        for name in (mark.wheel_sha256, mark.wheel_file) if mark.wheel_sha256 else (mark.build_key,):
            found.setdefault(name, []).append(mark)
    return found


def standing(candidate: WheelManifest, marks: Marks) -> list[Mark]:
    """The marks against this wheel that no proof of it overrules."""
    names = (candidate.wheel_sha256 or candidate.wheel_file, candidate.build_key)
    return [mark for name in names if name for mark in marks.get(name, ()) if not _is_overruled(mark, candidate)]


def against(candidate: WheelManifest, archs: Iterable[Arch], marks: Marks) -> list[str]:
    """Every mark that speaks against this wheel on these archs, in words."""
    wanted = {"", *map(str, archs)}
    return [f"it is {mark.words}" for mark in standing(candidate, marks) if mark.arch in wanted] if marks else []


def of_build(key: str, archs: Iterable[Arch], marks: Marks) -> Mark | None:
    """The mark that says that a build with this key comes to no good on one of these archs."""
    wanted = {"", *map(str, archs)}
    found = (mark for listed in marks.values() for mark in listed if mark.build_key == key and mark.arch in wanted)
    return next(found, None)


def is_proven(candidate: WheelManifest, marks: Marks) -> bool:
    """Whether it has a proof on an arch on which nothing stands against it."""
    marked = {mark.arch for mark in standing(candidate, marks)}
    return "" not in marked and any(proof.arch not in marked for proof in candidate.proofs)


def is_offered(candidate: WheelManifest, marks: Marks) -> bool:
    """Whether an arch is left on which nothing stands against it."""
    marked = {mark.arch for mark in standing(candidate, marks)}
    return not marked or ("" not in marked and not {str(one.plain) for one in candidate.archs} <= marked)


def added(listed: Sequence[Any], mark: Mark) -> list[Any]:
    """The list of JSON objects with this mark, once for each wheel and arch; what cannot be read stays as it is."""
    kept, raw = list[Any](), dict(mark.raw)
    for item in listed:
        old = read(item)
        if old is None or old._identity != mark._identity:
            kept.append(item)
        elif when(old.at_utc) >= when(mark.at_utc):
            return list(listed)
        else:
            raw = {**old.raw, **raw}
    return [*kept, raw]


def without_overruled(listed: Sequence[Any], proven: WheelManifest) -> list[Any]:
    """The list of JSON objects less the marks that a newer proof of this wheel overrules."""
    names = {proven.wheel_sha256 or proven.wheel_file, proven.build_key} - {""}

    def stays(item: Any) -> bool:
        mark = read(item)
        its_own = mark is not None and not names.isdisjoint(by_name([mark]))
        return mark is None or not its_own or not _is_overruled(mark, proven)

    return [item for item in listed if stays(item)]


def reaches(proof: Mapping[str, Any], mark: Mark) -> bool:
    """Whether a proof speaks of what the mark is about: the short checks say nothing of what the long ones found."""
    return bool(proof.get("full")) or not mark.raw.get("full")


def later(now: datetime, than: Iterable[str]) -> str:
    """`now` as text, moved behind these moments: a machine whose clock is slow still has the last word."""
    newest = max((when(text) for text in than), default=NEVER)
    moment = max(now, newest + timedelta(seconds=1))
    return moment.astimezone(now.tzinfo).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_overruled(mark: Mark, candidate: WheelManifest) -> bool:
    """Whether a proof on the very arch came later. A mark without a readable date stays."""
    marked = when(mark.at_utc)
    if not mark.arch or marked == NEVER:
        return False
    reaching = (proof for proof in candidate.proofs if proof.arch == mark.arch and reaches(proof.raw, mark))
    return any(when(proof.at_utc) >= marked for proof in reaching)
