"""Which wheel fits this machine: a pure function of facts, with a reason for every rejection."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache

from packaging.version import InvalidVersion, Version

from sagewheels import bad
from sagewheels.arch import Arch, covers, parse_list
from sagewheels.bad import Marks
from sagewheels.errors import UsageError
from sagewheels.manifest import WheelManifest, when

Modules = Mapping[Arch, tuple[str, ...]]
"""The extension modules that a GPU of each arch needs."""

_MANYLINUX = re.compile(r"\bmanylinux_([0-9]{1,6})_([0-9]{1,6})_")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Another source whose wheels will do as well: its pinned commit, and what is expected of a wheel made from it."""

    source: str
    version: str
    patches: frozenset[str]
    modules: Modules = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The facts that decide: the package, the target's tags and stack, the GPUs' archs.

    `version` empty means any; `source` is the pinned commit, or the ref that was asked for instead of it; `patches`
    are the names of the series; `modules` are those that a GPU needs, where that is known; `allow_unknown` accepts a
    manifest that leaves facts out, never one that contradicts; `named`: the user named this very wheel;
    `known_bad` are the marks against wheels; a wheel that was built from one of `also` is held against that one's
    source, version and patches; `distrust` says why a wheel is not trusted, and is asked only of one that fits
    otherwise, since that may run a program.
    """

    name: str
    version: str
    tags: frozenset[str]
    torch: str
    cuda: str
    archs: tuple[Arch, ...]
    glibc: str
    source: str = ""
    patches: frozenset[str] = frozenset()
    modules: Modules = field(default_factory=dict)
    allow_unknown: bool = False
    named: bool = False
    known_bad: Marks = field(default_factory=dict)
    also: tuple[Origin, ...] = ()
    distrust: Callable[[WheelManifest], str] | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One candidate, and why it was rejected; no reasons means that it fits."""

    candidate: WheelManifest
    reasons: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against the candidate."""
        return not self.reasons


def judge(candidate: WheelManifest, wanted: Wanted) -> Verdict:
    """Every reason against one candidate, each naming what the wheel has and what is here."""
    asked, wanted = wanted, _of_its_source(candidate, wanted)
    if candidate.name != wanted.name:
        return Verdict(candidate=candidate, reasons=(f"it is {candidate.name}, not {wanted.name}",))
    unknown: list[str] = []
    reasons = [
        *_package(candidate, wanted),
        *_tags(candidate, wanted),
        *_torch(candidate, wanted, unknown),
        *_cuda(candidate, wanted, unknown),
        *_archs(candidate, wanted, unknown),
        *_glibc(candidate, wanted),
        *_source(candidate, wanted),
        *_patches(candidate, wanted),
        *(_stand_in(candidate, wanted) if wanted is not asked and not wanted.named else ()),
        *bad.against(candidate, wanted.archs, wanted.known_bad),
    ]
    if not candidate.wheel_sha256:
        unknown.append("its manifest has no sha256")
    if not wanted.allow_unknown:
        reasons += unknown
    if not reasons and wanted.distrust and (why := wanted.distrust(candidate)):
        reasons.append(f"it {why}")
    return Verdict(candidate=candidate, reasons=tuple(reasons))


def rank(candidates: Iterable[WheelManifest], wanted: Wanted) -> list[Verdict]:
    """All verdicts: those that fit first, the best of them at the head.

    Better is: proven on an arch that is wanted, proven at all, for the very torch that is here instead of for many,
    exactly the wanted archs, newer.
    """
    return sorted((judge(candidate, wanted) for candidate in candidates), key=lambda v: _merit(v, wanted), reverse=True)


def _merit(verdict: Verdict, wanted: Wanted) -> tuple[bool, bool, bool, bool, bool, datetime, str]:
    candidate = verdict.candidate
    proven_on = {proof.arch for proof in candidate.proofs}
    return (
        verdict.fits,
        any(str(arch) in proven_on for arch in wanted.archs),
        bool(proven_on),
        not candidate.stable_torch,
        {arch.plain for arch in candidate.archs} == set(wanted.archs),
        when(candidate.created_at_utc),
        candidate.wheel_file,
    )


def _of_its_source(candidate: WheelManifest, wanted: Wanted) -> Wanted:
    """What is wanted of this very wheel: of one from another source that will do, what that source has."""
    commit = candidate.data.get("built_from_commit")
    for one in wanted.also:
        if one.source == commit:
            return replace(wanted, source=one.source, version=one.version, patches=one.patches, modules=one.modules)
    return wanted


def _package(candidate: WheelManifest, wanted: Wanted) -> Iterable[str]:
    if wanted.version and candidate.version.partition("+")[0] != wanted.version:
        yield f"it is version {candidate.version.partition('+')[0]}, {wanted.version} is expected"


def _tags(candidate: WheelManifest, wanted: Wanted) -> Iterable[str]:
    if _suits(candidate.tags, wanted.tags):
        return
    # Where nothing but glibc speaks against the tag, that is the reason, and it is given once.
    if not (_too_new(candidate, wanted) and _suits(_anywhere(candidate), wanted.tags)):
        yield f"its wheel tag {'-'.join(candidate.tags)} does not suit the target ({_native(wanted.tags)})"


@lru_cache(maxsize=1024)
def _suits(tags: tuple[str, str, str], wanted: frozenset[str]) -> bool:
    return any("-".join(tag) in wanted for tag in itertools.product(*(part.split(".") for part in tags)))


def _anywhere(candidate: WheelManifest) -> tuple[str, str, str]:
    """Its tags, if it were for any glibc."""
    python, abi, platform = candidate.tags
    return python, abi, _MANYLINUX.sub("linux_", platform)


@lru_cache(maxsize=16)
def _native(tags: frozenset[str]) -> str:
    """The tag that a local build of the target would have."""
    native = [tag for tag in tags if "-cp" in tag and "-linux_" in tag and "abi3" not in tag]
    return max(native, default="unknown")


def _torch(candidate: WheelManifest, wanted: Wanted, unknown: list[str]) -> Iterable[str]:
    if candidate.stable_torch:
        if not _at_least(wanted.torch, candidate.stable_torch):
            yield f"it needs torch {candidate.needs_torch}, the target has {wanted.torch or 'no torch'}"
    elif not candidate.torch:
        unknown.append("its manifest does not say which torch it was built for")
    elif not wanted.torch:
        yield f"it was built for torch {candidate.torch}, the target has no torch"
    elif _version(candidate.torch) != _version(wanted.torch.partition("+")[0]):
        yield f"it was built for torch {candidate.torch}, the target has {wanted.torch}"


def _cuda(candidate: WheelManifest, wanted: Wanted, unknown: list[str]) -> Iterable[str]:
    if not candidate.cuda:
        unknown.append("its manifest does not say which CUDA it was built for")
    elif not wanted.cuda:
        yield f"it was built for CUDA {candidate.cuda}, the target's torch has no CUDA"
    elif candidate.cuda.partition(".")[0] != wanted.cuda.partition(".")[0]:
        yield f"it was built for CUDA {candidate.cuda}, the target's torch has CUDA {wanted.cuda}"


def _archs(candidate: WheelManifest, wanted: Wanted, unknown: list[str]) -> Iterable[str]:
    if not candidate.archs:
        unknown.append("its manifest does not say for which archs it was built")
        return
    missing = _uncovered(candidate.archs, wanted.archs)
    if missing:
        has = ", ".join(map(str, candidate.archs))
        yield f"it holds code for {has}, which does not run on {', '.join(map(str, missing))}"
        return
    listed = candidate.data.get("extensions")
    if not isinstance(listed, dict):
        return
    for gpu in wanted.archs:
        # A cubin of 8.0 runs on 8.9, but a wheel for 8.0 lacks the module with the kernels of 8.9.
        lacking = [name for name in wanted.modules.get(gpu, ()) if not _runs(listed.get(name), gpu)]
        if lacking:
            yield f"its {', '.join(lacking)} {'hold' if len(lacking) > 1 else 'holds'} no code for {gpu}"


def _runs(listed: object, gpu: Arch) -> bool:
    """Whether a module with this list of archs, as the manifest has it, holds a cubin that runs on the GPU."""
    try:
        return covers(parse_list(";".join(listed)), gpu) if isinstance(listed, list) else False
    except (TypeError, UsageError):
        return False


@lru_cache(maxsize=1024)
def _uncovered(have: Sequence[Arch], wanted: Sequence[Arch]) -> tuple[Arch, ...]:
    return tuple(gpu for gpu in wanted if not covers(have, gpu))


def _glibc(candidate: WheelManifest, wanted: Wanted) -> Iterable[str]:
    if needs := _too_new(candidate, wanted):
        yield f"it needs glibc {needs}, this machine has {wanted.glibc}"


def _too_new(candidate: WheelManifest, wanted: Wanted) -> str:
    """The glibc that it needs, by its manifest or by the oldest of its manylinux tags, where the machine's is older."""
    tagged = "" if _suits(candidate.tags, wanted.tags) else tagged_glibc(candidate.tags[2])
    needs = max(candidate.glibc, tagged, key=_release)
    return needs if wanted.glibc and _release(needs) > _release(wanted.glibc) else ""


@lru_cache(maxsize=1024)
def tagged_glibc(platform: str) -> str:
    """`2.34` for `manylinux_2_34_x86_64`, the oldest of many; empty for another tag."""
    return min((f"{major}.{minor}" for major, minor in _MANYLINUX.findall(platform)), key=_release, default="")


def _source(candidate: WheelManifest, wanted: Wanted) -> Iterable[str]:
    """The version is no identity: upstream's main and the forks report the same one. The commit is."""
    commit, ref = (str(candidate.data.get(f"built_from_{key}") or "") for key in ("commit", "ref"))
    # The first installer may have written a short commit id.
    if wanted.source and commit and not wanted.source.startswith(commit) and wanted.source != ref:
        named = ref if ref and not commit.startswith(ref) else "commit"
        yield f"it was built from {named} {commit[:12]}, {wanted.source[:12]} is asked for"


def _patches(candidate: WheelManifest, wanted: Wanted) -> Iterable[str]:
    """A proven wheel computes what it should, whatever it was built with; an unproven one must have every mend."""
    listed = candidate.data.get("patches")
    if candidate.proofs or not isinstance(listed, list):
        return
    names = [item.get("name") for item in listed if isinstance(item, dict)]
    missing = wanted.patches - {name for name in names if isinstance(name, str)}
    if missing:
        few, more = sorted(missing)[:2], len(missing) - 2
        without = f"{', '.join(few)} and {more} more patches" if more > 0 else ", ".join(few)
        yield f"it was built without {without}, and nothing has proven it"


def _stand_in(candidate: WheelManifest, wanted: Wanted) -> Iterable[str]:
    """Nobody asked for this source: the short checks, which call one function, are not enough to take it unasked."""
    proven = {proof.arch for proof in candidate.proofs if proof.raw.get("full")}
    lacking = [str(one) for one in wanted.archs if str(one) not in proven]
    if lacking:
        yield f"it is from another source, and smoke --full has not proven it on arch {', '.join(lacking)}"


@lru_cache(maxsize=4096)
def _version(text: str) -> Version | str:
    """A Version, or the text itself where it is none: equal to nothing but itself."""
    try:
        return Version(text)
    except (InvalidVersion, ValueError):  # Python refuses numbers of thousands of digits
        return text


@lru_cache(maxsize=1024)
def _at_least(have: str, oldest: str) -> bool:
    """Whether this torch has the stable ABI of that release: 2.15.0.dev1 has that of 2.14, and not yet that of 2.15."""
    version = _version(have.partition("+")[0])
    return isinstance(version, Version) and version >= Version(oldest)


@lru_cache(maxsize=1024)
def _release(text: str) -> tuple[int, ...]:
    """`2.36` as (2, 36); what is no number counts as not known, which is never too new."""
    parts = text.split(".")
    return tuple(int(part) for part in parts) if all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts) else ()
