"""PyTorch and Triton for the target: keep what is good, else say what to install and from where."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from sagewheels import installer, match, proc, symptoms, target, ui
from sagewheels.arch import Arch
from sagewheels.config import Settings
from sagewheels.errors import SageError, StoreError, UsageError
from sagewheels.manifest import WheelManifest
from sagewheels.match import Wanted
from sagewheels.target import Target

_CUDA_SINCE = {(12, 0): "12.8", (12, 1): "12.9", (10, 0): "12.8", (10, 3): "12.9", (9, 0): "12.0", (8, 9): "11.8"}
"""Arch -> first CUDA whose compiler and libraries know it. Source: CUDA Toolkit release notes."""

_VARIANTS = ("cu118", "cu124", "cu126", "cu128", "cu129", "cu130", "cu132")
_CU12_LAST = "torch<2.11"
"""On the default package index torch 2.8 to 2.10 come with CUDA 12.8, 2.11 and newer with CUDA 13."""

_INDEX = "https://download.pytorch.org/whl"
_NIGHTLY = "nightly"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way to get a stack: requirements, the index to ask (empty: the default one), and why."""

    requirements: tuple[str, ...]
    index_url: str
    prerelease: bool
    why: str

    def __str__(self) -> str:
        index = re.sub(r"//[^/]*@", "//", self.index_url) or "the default package index"
        return f"{' '.join(self.requirements)} from {index} ({self.why})"


@dataclass(frozen=True, kw_only=True)
class Need:
    """What the stack must support; `driver_cuda` is empty on a machine without a driver."""

    archs: tuple[Arch, ...]
    driver_cuda: str
    min_torch: str


def faults(found: Target, need: Need, settings: Settings) -> list[str]:
    """What is wrong with the stack that is there, nothing when it is good. Pure."""
    torch = found.torch
    if torch is None:
        return ["there is no torch"]
    if not torch.cuda:
        return [f"torch {torch.version} is built without CUDA"]
    return [
        *(
            f"torch {torch.version} has CUDA {torch.cuda}, arch {arch} needs {cuda_for(arch, settings)}"
            for arch in need.archs
            if _older(torch.cuda, cuda_for(arch, settings))
        ),
        *_driver_faults(torch.cuda, need),
        *_pin_faults(found, settings),
        *([f"torch {torch.version} is older than {need.min_torch}"] if _older(torch.public, need.min_torch) else []),
        *_triton_faults(found, need, settings),
    ]


def names(needs: Iterable[str]) -> list[str]:
    """The distributions that these requirements name."""
    return [Requirement(need).name for need in needs]


def missing(found: Target, needs: Iterable[str]) -> list[str]:
    """Those of a package's needs besides the stack that the target does not meet. Pure."""
    asked = [(need, Requirement(need)) for need in needs]
    return [
        need
        for need, one in asked
        if one.name not in found.versions or not one.specifier.contains(found.versions[one.name], prereleases=True)
    ]


def add(settings: Settings, found: Target, needs: Sequence[str]) -> None:
    """Installs exactly these, without what they in turn require: torch is not theirs to change. Raises StoreError."""
    installer.pip(settings, found, "install", ["--no-deps", *needs], error=StoreError)


def _driver_faults(cuda: str, need: Need) -> Iterable[str]:
    """Within one CUDA major any driver of that major runs; a newer major does not run on an older driver."""
    if need.driver_cuda and int(cuda.split(".", maxsplit=1)[0]) > int(need.driver_cuda.split(".")[0]):
        yield f"its CUDA {cuda} needs a newer driver: this one runs CUDA up to {need.driver_cuda}"


def _pin_faults(found: Target, settings: Settings) -> Iterable[str]:
    for name in target.STACK:
        pin = getattr(settings, f"{name}_version")
        have = found.torch.version if name == "torch" and found.torch else found.versions.get(name, "nothing")
        if pin and have != pin and not _same(have, pin):
            yield f"{name} is {have}, {name.upper()}_VERSION pins {pin}"


def _triton_faults(found: Target, need: Need, settings: Settings) -> Iterable[str]:
    have = found.versions.get("triton", "")
    if not have:
        yield "there is no triton"
    elif not triton_range(settings).contains(have, prereleases=True) and not settings.triton_version:
        yield f"triton is {have}, TRITON_SPEC asks for {settings.triton_spec}"
    elif any(arch.major == 12 for arch in need.archs) and _older(have, settings.min_triton_for_50xx):
        yield f"triton {have} is older than {settings.min_triton_for_50xx}, which RTX 50xx needs"


def triton_range(settings: Settings) -> SpecifierSet:
    """The versions that TRITON_SPEC allows. Raises UsageError when it is no requirement on triton."""
    try:
        asked = Requirement(settings.triton_spec)
    except (InvalidRequirement, InvalidSpecifier):
        asked = None
    if asked is None or asked.name != "triton":
        raise UsageError(f"TRITON_SPEC={settings.triton_spec!r} is no requirement", "Write it like triton>=3.3,<4.0")
    return asked.specifier


def cuda_for(arch: Arch, settings: Settings) -> str:
    """The oldest CUDA that knows an arch."""
    if (arch.major, arch.minor) == (12, 0):
        return settings.min_cuda_for_sm120
    return _CUDA_SINCE.get((arch.major, arch.minor), "11.8")


def variant(need: Need, settings: Settings) -> tuple[str, str]:
    """The CUDA index variant that archs and driver allow, and why it is this one.

    Raises UsageError when the driver is too old for the GPU.
    """
    oldest = max((cuda_for(arch, settings) for arch in need.archs), key=_key)
    known = [name for name in _VARIANTS if not _older(_dotted(name), oldest)]
    fits = [name for name in known if _runs(_dotted(name), need.driver_cuda)]
    asked, archs = settings.cuda_index_variant, ", ".join(map(str, need.archs))
    if not known:
        raise UsageError(
            f"no CUDA is as new as {oldest}, which arch {archs} is said to need", "Correct MIN_CUDA_FOR_SM120"
        )
    if not fits:
        what = f"the driver runs CUDA up to {need.driver_cuda}, arch {archs} needs {oldest}"
        raise UsageError(what, "Update the driver")
    if not _older(_dotted(asked), oldest) and _runs(_dotted(asked), need.driver_cuda):
        return asked, "CUDA_INDEX_VARIANT"
    if _older(_dotted(asked), oldest):
        return fits[0], f"not {asked}: arch needs CUDA {oldest}"
    # Newer than the driver would run within the same major, but rather what the driver was made for.
    made_for = [name for name in fits if not _older(need.driver_cuda, _dotted(name))]
    return (made_for or fits[:1])[-1], f"not {asked}: the driver runs CUDA up to {need.driver_cuda}"


def cuda_expected(torch: str, need: Need, settings: Settings) -> str:
    """The CUDA, at least its major, that a torch of this release will come with; empty where nobody can say. Pure."""
    if settings.torch_index_url:
        named = re.search(r"/(cu\d{3})/?$", settings.torch_index_url)
        return _dotted(named[1]) if named else ""
    if settings.torch_channel == "pypi":
        return "13" if SpecifierSet(">=2.11.dev0").contains(torch, prereleases=True) else "12"
    return _dotted(variant(need, settings)[0])


def attempts(found: Target, need: Need, settings: Settings, proven: Sequence[WheelManifest] = ()) -> Iterator[Attempt]:
    """The ways to a good stack, best first: pins, the stack of a proven wheel, the channel and its fallbacks."""
    wrong = faults(found, need, settings)
    if wrong and all("triton" in fault for fault in wrong):
        pin = f"triton=={settings.triton_version}" if settings.triton_version else settings.triton_spec.replace(" ", "")
        yield Attempt(requirements=(pin,), index_url="", prerelease=False, why="torch is good and is kept")
        return
    if not settings.torch_version:
        for wheel in proven:
            yield from _as_proven(found, wheel)
    kind, reason = variant(need, settings)
    channels = {"nightly": ("nightly", "stable", "pypi"), "stable": ("stable", "pypi"), "pypi": ("pypi",)}
    for channel in channels[settings.torch_channel]:
        why = f"channel {channel}" if channel == "pypi" else f"channel {channel}, {kind} by {reason}"
        url = "" if channel == "pypi" else index_url(kind, nightly=channel == _NIGHTLY)
        if channel == settings.torch_channel and settings.torch_index_url:
            url, why = settings.torch_index_url, "TORCH_INDEX_URL"
        yield Attempt(
            requirements=_requirements(found, need, settings, channel),
            index_url=url,
            prerelease=channel == _NIGHTLY,
            why=why,
        )


def index_url(kind: str, *, nightly: bool) -> str:
    """PyTorch's own index for a CUDA variant such as cu128."""
    return f"{_INDEX}/nightly/{kind}" if nightly else f"{_INDEX}/{kind}"


def _as_proven(found: Target, wheel: WheelManifest) -> Iterator[Attempt]:
    """Exactly the stack that a proven wheel was built with: from its own index, then from the default one."""
    wanted = [f"torch=={wheel.torch}"]
    for name in ("torchvision", "torchaudio"):
        version = wheel.data.get(f"{name}_version")
        if version and name in found.versions:
            wanted.append(f"{name}=={version.partition('+')[0]}")
    why = f"the store holds {wheel.wheel_file}, proven with it"
    for index in dict.fromkeys((wheel.data.get("torch_index_url") or "", "")):
        yield Attempt(requirements=tuple(wanted), index_url=index, prerelease="dev" in wheel.torch, why=why)


def _requirements(found: Target, need: Need, settings: Settings, channel: str) -> tuple[str, ...]:
    """torch and triton; torchvision and torchaudio follow torch only where they are installed or pinned."""
    pins = {name: getattr(settings, f"{name}_version") for name in target.STACK}
    torch = f"torch=={pins['torch']}" if pins["torch"] else "torch"
    if channel == "pypi" and not pins["torch"] and need.driver_cuda and not _runs("13.0", need.driver_cuda):
        torch = _CU12_LAST
    wanted = [torch]
    for name in ("torchvision", "torchaudio"):
        if pins[name]:
            wanted.append(f"{name}=={pins[name]}")
        elif name in found.versions:
            wanted.append(name)
    if pins["triton"]:
        wanted.append(f"triton=={pins['triton']}")
    return tuple(wanted)


def proven_stacks(candidates: Iterable[WheelManifest], wanted: Wanted, driver_cuda: str) -> list[WheelManifest]:
    """Proven wheels that would fit if only the target had their torch, and whose CUDA the driver runs; best first."""
    good = []
    for candidate in candidates:
        if candidate.proofs and candidate.torch and candidate.cuda and _runs(candidate.cuda, driver_cuda):
            as_if = replace(wanted, torch=candidate.torch, cuda=candidate.cuda)
            good += [verdict.candidate for verdict in [match.judge(candidate, as_if)] if verdict.fits]
    return sorted(good, key=lambda candidate: (_key(candidate.torch), candidate.created_at_utc), reverse=True)


def pending_path(settings: Settings, found: Target) -> Path:
    """The mark that an install of the stack into this target has begun and not ended."""
    digest = hashlib.sha256(str(found.prefix).encode()).hexdigest()[:16]
    return settings.work_dir / "state" / f"stack-{digest}.pending"


def install(settings: Settings, need: Need, found: Target, plan: Iterable[Attempt], *, again: bool = False) -> Target:
    """Works through the attempts, printing each, until the target's stack is good; returns the facts after it.

    `again` lays every package anew, also those that seem to be there.

    Raises StoreError when no index had anything, UsageError when what could be installed is not good.
    """
    problems: list[str] = []
    error: type[SageError] = StoreError
    for attempt in plan:
        ui.say("stack", f"trying {attempt}")
        try:
            anew = ["--reinstall" if installer.uv_program(settings) else "--force-reinstall"] if again else []
            installer.pip(settings, found, "install", [*anew, *_arguments(attempt)], error=StoreError)
        except StoreError as problem:
            ui.say("stack", f"that failed: {_short(problem.what)}")
            problems.append(_short(problem.what))
            continue
        found = target.ask(found.python, "the target", settings.environ)
        wrong = faults(found, need, settings)
        if not wrong:
            wrong = import_faults(settings, found)
            if not wrong:
                return found
        error = UsageError
        problems.append("; ".join(wrong))
        ui.say("stack", f"that is not good: {problems[-1]}")
    last = problems[-1] if problems else "nothing to try"
    usual = "Check the network, TORCH_CHANNEL and the pins"
    raise error(f"no stack could be installed ({last})", symptoms.remedy(last, "install", but=usual))


def _short(text: str) -> str:
    """Enough of what an installer says to know the package, cut between words."""
    return textwrap.shorten(text, 300, placeholder=" ...")


def import_faults(settings: Settings, found: Target) -> list[str]:
    """What `import torch` says. Asked once after an install: metadata is there before the last library is."""
    tried = proc.run([found.python, "-I", "-c", "import torch"], env=settings.environ, timeout=300)
    return [f"import torch failed: {tried.last_line}"] if tried.code else []


def _arguments(attempt: Attempt) -> list[str]:
    index = ["--index-url", attempt.index_url] if attempt.index_url else []
    return [*index, *(["--pre"] if attempt.prerelease else []), *attempt.requirements]


def _runs(cuda: str, driver_cuda: str) -> bool:
    """Whether a driver runs builds for `cuda`: same or older major; every driver is assumed where there is none."""
    if not driver_cuda:
        return True
    return int(cuda.split(".", maxsplit=1)[0]) <= int(driver_cuda.split(".", maxsplit=1)[0])


def _dotted(name: str) -> str:
    """`12.8` for cu128."""
    return f"{name[2:-1]}.{name[-1]}"


def _same(have: str, pin: str) -> bool:
    """Whether a version satisfies `==pin`: 2.11 means 2.11.0, and no local label means any."""
    try:
        return SpecifierSet(f"=={pin}").contains(have, prereleases=True)
    except InvalidSpecifier:
        return False


def _older(have: str, need: str) -> bool:
    return bool(need) and _key(have) < _key(need)


def _key(text: str) -> Version:
    """A Version to compare by; what is none counts as the oldest."""
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")
