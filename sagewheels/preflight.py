"""What a build needs, looked at in seconds before minutes are spent; all that is wrong is said at once."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from sagewheels import buildplan, host, proc, source, toolkit, trial, ui
from sagewheels.arch import Arch
from sagewheels.config import Settings
from sagewheels.errors import SageError, StoreError, UsageError
from sagewheels.host import Host
from sagewheels.recipe import Recipe
from sagewheels.target import Target
from sagewheels.toolkit import Toolkit
from sagewheels.trial import Trial

_SECONDS = 13.0
"""For all of it, of the 15 that are promised: the rest is for what came before, and for ending what hangs."""
_SOURCE_SECONDS = 10.0
"""For a list of one ref: 0.5 s over the Atlantic. A repository that needs longer is refused, as one that is dead."""

_BUILD_DISK = 300_000_000
"""Source, objects, build tools and wheel for 12.0 take 25 MB; other archs and the objects of other builds add."""
_TOOLKIT_DISK = 700_000_000
"""The toolkit takes 280 MB, and as much again in the cache of uv or pip."""
_TEMPORARY_DISK = 100_000_000
"""For each compiler at once: 70 MB were seen."""
_WHEEL_DISK = 10_000_000
"""For a wheel of 1 to 6 MB, or a log."""

_NOT_IN_PATHS = "$:'\"\\;&|()<>`\n"
"""What the build files of torch's build, or the shells that they start, take for something else; a blank they take."""
_NAMES = {"\n": "a newline", " ": "a blank, as TMPDIR does"}


Tried = list[tuple[Toolkit, list[str]]]
"""Toolkits, each with what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at; `remedy` is what to do where it is `bad`."""

    what: str
    found: str
    bad: bool = False
    remedy: str = ""
    kind: type[SageError] = UsageError


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Everything that was looked at, and the toolkit that will do, None where none here does.

    `may_make`: one from the package index has a chance.
    """

    findings: tuple[Finding, ...]
    kit: Toolkit | None
    may_make: bool


def check(
    settings: Settings,
    recipe: Recipe,
    archs: tuple[Arch, ...],
    target: Target,
    here: Host,
) -> Toolkit:
    """The toolkit to build with, after everything that a build needs was found to be here, in 15 s at most.

    Only a toolkit that has to be made from the package index takes longer, after all else was found good. Raises
    UsageError with everything that is wrong, StoreError where it is only that the source's repository does not answer.
    """
    started = time.monotonic()
    archs = recipe.cubins_for(archs)
    looked = look(settings, recipe, archs, target)
    making = not looked.kit and looked.may_make
    _cache(settings)
    findings = [*room(settings, recipe, here, work=_BUILD_DISK + making * _TOOLKIT_DISK), *looked.findings]
    _raise([item for item in findings if item.bad and not (making and item.what == "toolkit")])
    seconds = time.monotonic() - started
    kit = looked.kit
    if not kit:
        try:
            kit = toolkit.make(settings, target)
        except SageError as error:
            (lacking,) = (item for item in findings if item.what == "toolkit")
            remedy = f"{lacking.remedy}, or let the package index be reached"
            raise UsageError(f"{lacking.found}; and {error.what}", remedy) from None
        started = time.monotonic()
        problems = trial.kernel(_trial(settings, recipe, archs, target), kit)
        _raise([_no_toolkit(target, [(kit, problems)])] if problems else [])
        seconds += time.monotonic() - started
    ui.say("preflight", f"{', '.join(item.what for item in findings)}: all good, in {ui.duration(seconds)}")
    return kit


def _raise(bad: Sequence[Finding]) -> None:
    """One error for all that is bad; each with its remedy on a line of its own, where there are several."""
    if not bad:
        return
    if len(bad) == 1:
        raise bad[0].kind(bad[0].found, bad[0].remedy)
    for item in bad:
        ui.say("preflight", f"FAILED: {SageError(item.found, item.remedy)}")
    what = f"a build cannot succeed here: {', '.join(item.what for item in bad)}"
    kind = StoreError if all(item.kind is StoreError for item in bad) else UsageError
    raise kind(what, "See the remedies above")


def room(settings: Settings, recipe: Recipe, here: Host, *, work: int = _BUILD_DISK) -> Iterator[Finding]:
    """Memory for a compiler, and disk: `work` bytes where WORK_DIR is, and what compilers write in between."""
    need = recipe.memory_per_unit
    free = here.memory + host.swap()
    yield Finding(
        what="memory",
        found=f"{here.cores} cores, {ui.size(here.memory)} of memory free for this process",
        bad=free < need,
        remedy=f"A compiler needs {ui.size(need)}: free some memory, or add swap",
    )
    yield _disk(settings, work)
    units = sum(recipe.units.values())
    yield _folder("TMPDIR", Path(tempfile.gettempdir()), _TEMPORARY_DISK * min(here.cores, units))
    for key, folder in (("WHEELHOUSE_DIR", settings.wheelhouse_dir), ("LOG_DIR", settings.log_dir)):
        finding = _folder(key, folder, _WHEEL_DISK)
        if finding.bad:  # in most cases they are beside WORK_DIR, of which the same was said
            yield finding


def _disk(settings: Settings, need: int) -> Finding:
    # What is called at each compile lies in the temporary folder where WORK_DIR holds a blank.
    refused = _NOT_IN_PATHS + " " * (" " in tempfile.gettempdir())
    for folder in (settings.work_dir.absolute(), settings.work_dir.resolve()):
        if held := [_NAMES.get(char, char) for char in refused if char in str(folder)]:
            found = f"WORK_DIR {folder} holds {' and '.join(held)}, which torch's build cannot take"
            return Finding(what="disk", found=found, bad=True, remedy="Set WORK_DIR to a folder of another name")
    return replace(_folder("WORK_DIR", settings.work_dir, need, runs_programs=True), what="disk")


def _cache(settings: Settings) -> None:
    """A warning where the user's own OBJECT_CACHE_DIR cannot be written: a build only takes longer without it."""
    finding = _folder("OBJECT_CACHE_DIR", settings.objects, 0)
    if settings.object_cache_dir and finding.bad:
        ui.warn("preflight", f"OBJECT_CACHE_DIR: {finding.found}: no object is kept for the next build")


def _folder(key: str, folder: Path, need: int, *, runs_programs: bool = False) -> Finding:
    """Room for files in a folder, which may not be there yet, and that they can be written, and run."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        return Finding(what=key, found=f"{there} is not a folder", bad=True, remedy=f"Set {key} to a folder")
    free = host.free_disk(there)
    elsewhere = f"set {key} to a folder on another disk"
    if not os.access(there, os.W_OK):
        return Finding(what=key, found=f"{there} cannot be written to", bad=True, remedy=f"S{elsewhere[1:]}")
    if runs_programs and os.statvfs(there).f_flag & os.ST_NOEXEC:
        found = f"{there} is mounted noexec: the build tools that go there could not run"
        return Finding(what=key, found=found, bad=True, remedy=f"S{elsewhere[1:]}")
    found = f"{ui.size(free)} free in {there}"
    remedy = f"Free {ui.size(need)}, or {elsewhere}"
    return Finding(what=key, found=found, bad=free < need, remedy=remedy if free < need else "")


def look(
    settings: Settings,
    recipe: Recipe,
    archs: tuple[Arch, ...],
    target: Target,
    *,
    installs: bool = True,
) -> Looked:
    """Source, Python, compilers, toolkit and build tools, all tried at once; nothing is installed unless `installs`.

    Raises UsageError for a target without a CUDA torch.
    """
    toolkit.torch_of(target)
    tried = _trial(settings, recipe, archs, target)
    kits: Tried = []
    works: list[Callable[[], Finding]] = [
        lambda: _source(settings, recipe),
        lambda: _host_compiler(tried),
        lambda: _toolkit(tried, kits),
        lambda: _tools(tried, installs=installs),
    ]
    with ThreadPoolExecutor(len(works)) as pool:
        try:
            findings = tuple(pool.map(_guarded, works))
        except BaseException:
            proc.end_all()
            raise
    if tried.unfinished:
        ui.warn("preflight", f"{', '.join(tried.unfinished)} still at work after {_SECONDS:g} s: not waited for")
    kit = next((kit for kit, problems in kits if not problems), None)
    return Looked(findings=findings, kit=kit, may_make=not kit and _worth_making(target, kits))


def _guarded(work: Callable[[], Finding]) -> Finding:
    try:
        return work()
    except OSError as error:
        # A full or read-only TMPDIR; `room` says so too, unless it filled up since.
        found = f"the probe could not be written: {error.strerror or error}"
        return Finding(what="probe", found=found, bad=True, remedy="Look at TMPDIR")


def _trial(settings: Settings, recipe: Recipe, archs: tuple[Arch, ...], target: Target) -> Trial:
    """A trial that begins now."""
    folders = [recipe.shims] if recipe.shims else []
    return Trial(
        settings=settings,
        target=target,
        recipe=recipe,
        rules=tuple(recipe.rules(archs)),
        until=time.monotonic() + _SECONDS,
        nvcc_shims=[folder / "nvcc" for folder in folders],
        cxx_shims=[folder / "cxx" for folder in folders],
    )


def _source(settings: Settings, recipe: Recipe) -> Finding:
    try:
        return Finding(what="source", found=f"{source.answers(settings, recipe, _SOURCE_SECONDS)} is there")
    except SageError as error:
        return Finding(what="source", found=error.what, bad=True, remedy=error.remedy, kind=type(error))


def without_torch(
    settings: Settings, recipe: Recipe, archs: tuple[Arch, ...], target: Target
) -> tuple[Finding, Finding, Finding]:
    """What can be told before there is a CUDA torch: source, host compiler and build tools; nothing is installed."""
    tried = _trial(settings, recipe, archs, target)
    return _source(settings, recipe), _headers(settings, target), _tools(tried, installs=False)


def _headers(settings: Settings, target: Target) -> Finding:
    """The host compiler, and Python.h."""
    try:
        compiler = toolkit.host_compiler(settings)
    except SageError as error:
        return Finding(what="host compiler", found=error.what, bad=True, remedy=error.remedy)
    if not target.has_python_h:
        found = f"{target.python} has no Python.h in {target.include}"
        remedy = "Install the headers (apt-get install python3-dev)"
        return Finding(what="host compiler", found=found, bad=True, remedy=remedy)
    return Finding(what="host compiler", found=compiler)


def _host_compiler(tried: Trial) -> Finding:
    """Python.h, and a module that the host compiler makes with it."""
    there = _headers(tried.settings, tried.target)
    if there.bad:
        return there
    problem = trial.binding(tried)
    if problem:
        found = f"{there.found} makes no module for {tried.target.python}: {problem}"
        return Finding(what="host compiler", found=found, bad=True, remedy=trial.remedy(problem))
    return Finding(what="host compiler", found=f"{there.found}: a module was compiled and linked")


def _toolkit(tried: Trial, kits: Tried) -> Finding:
    """The first toolkit with which a kernel compiles; `kits` receives each with what is wrong with it."""
    for kit, problem in toolkit.survey(tried.settings, tried.target, tried.rules):
        problems = [problem] if problem else _problems(tried, kit, kits)
        kits.append((kit, problems))
        if not problems:
            return Finding(
                what="toolkit", found=f"CUDA {kit.version} from {kit.origin}: a kernel was compiled and linked"
            )
        ui.say("toolkit", f"not {kit}: {'; '.join(problems)}")
    return _no_toolkit(tried.target, kits)


def _problems(tried: Trial, kit: Toolkit, before: Tried) -> list[str]:
    """What is in the way of building with this toolkit, which is not tried where the answer is known."""
    if not kit.compiler:
        return ["it needs a host compiler"]
    if known := [text for other, told in before if other.build == kit.build for text in told if trial.of_machine(text)]:
        return known[:1]
    if time.monotonic() > tried.until:
        return ["it was not tried: no time was left"]
    return trial.kernel(tried, kit)


def _no_toolkit(target: Target, kits: Tried) -> Finding:
    torch = toolkit.torch_of(target)
    # Many toolkits often fail for one reason.
    told = {"; ".join(problems): [kit for kit, other in kits if other == problems] for _, problems in kits}
    words = "; ".join(f"{', '.join(map(str, same))}: {text}" for text, same in told.items()) or "none was found"
    found = f"no CUDA toolkit here compiles for torch {torch.version}: {words}"
    known = [words for kit, problems in kits for text in problems if (words := trial.remedy(text, kit.version))]
    remedy = known[0] if known else f"Install the CUDA {torch.cuda} toolkit, or set CUDA_HOME"
    return Finding(what="toolkit", found=found, bad=True, remedy=remedy)


def _worth_making(target: Target, kits: Tried) -> bool:
    """A toolkit from the package index can do what these could not: of their release, it has the same limits.

    Flags of the user's own are given to every toolkit.
    """
    torch = toolkit.torch_of(target)
    same = [text for kit, problems in kits if kit.version == torch.cuda for text in problems]
    flags = [text for _, problems in kits for text in problems if trial.of_flags(text)]
    return toolkit.on_index(torch) and not flags and not any(map(trial.of_machine, same))


def _tools(tried: Trial, *, installs: bool) -> Finding:
    """setuptools and ninja run in the target as the build will run them."""
    settings, target, recipe = tried.settings, tried.target, tried.recipe
    folder = buildplan.tools_folder(settings, target, recipe)
    if not installs and not (folder / "complete").exists():
        return Finding(what="build tools", found="a build gets them from the package index first")
    names = buildplan.tools(settings, target, recipe)
    env = {key: value for key, value in settings.environ.items() if not key.startswith("PYTHON")}
    env |= {"PATH": f"{folder / 'bin'}:{settings.variable('PATH')}", "PYTHONPATH": str(folder)}
    left = max(1.0, tried.until - time.monotonic())
    try:
        proc.run([target.python, "-c", "import setuptools.build_meta"], env=env, timeout=left, error=UsageError)
        proc.run(["ninja", "--version"], env=env, timeout=left, error=UsageError)
    except UsageError as error:
        remedy = f"Check the package index, or install setuptools and ninja into {target.prefix}"
        return Finding(what="build tools", found=f"{names}: {error.what}", bad=True, remedy=remedy)
    return Finding(what="build tools", found=names)
