"""The cells of a matrix: reading what was asked for, what covers it, and in which order the rest is built. Pure.

A cell is one Python, one torch release and the archs of one wheel. `--arch 8.9,12.0` asks for a wheel for each, the
smaller download for everybody; `--arch "8.9;12.0"`, as TORCH_CUDA_ARCH_LIST has it, for one that serves both. CUDA is
no part of a cell: it is whatever the torch of that release brings from the channel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from sagewheels import arch
from sagewheels.arch import Arch
from sagewheels.errors import UsageError
from sagewheels.manifest import WheelManifest
from sagewheels.match import Wanted, judge
from sagewheels.recipe import Recipe

_PYTHON = re.compile(r"3\.(9|[1-9]\d)t?")
_TORCH = re.compile(r"\d+\.\d+(\.\d+((a|b|rc|\.dev)\d+)?)?")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One Python (`3.12`, or free-threaded `3.13t`), one torch (`2.11` is the newest 2.11.x), and some archs."""

    python: str
    torch: str
    archs: tuple[Arch, ...]

    def __str__(self) -> str:
        return f"Python {self.python}, torch {self.torch}, arch {self.arch}"

    @property
    def arch(self) -> str:
        """The archs as --arch takes them."""
        return arch.join(self.archs)

    @property
    def version(self) -> tuple[int, int]:
        """`(3, 12)`."""
        return 3, int(self.python.removeprefix("3.").rstrip("t"))

    @property
    def pin(self) -> str:
        """What TORCH_VERSION must be for it: `2.11.*` for 2.11; a whole version is its own pin."""
        return self.torch if self.torch.count(".") > 1 else f"{self.torch}.*"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is to be done about a cell: `state` is where its wheel is, or how it comes to be.

    `store`: nothing; `wheelhouse`: publish; `build`; `shared`: the wheel that is built for the cell `of` serves it too.
    `why` says what speaks against a `wheel` that would serve, if it were not for its source or its record.
    """

    cell: Cell
    state: str
    wheel: str = ""
    why: str = ""
    of: Cell | None = None


def parse(pythons: str, torches: str, archs: str) -> list[Cell]:
    """Every combination, ordered by torch, then archs, then Python. Raises UsageError for what cannot be meant."""
    groups = [_group(word) for word in _words(archs, "--arch", "8.9,12.0")]
    _once("--arch", [arch.join(group) for group in groups])
    named = _words(pythons, "--python", "3.10,3.12"), _words(torches, "--torch", "2.11,2.15")
    for flag, words, form, what, example in (
        ("--python", named[0], _PYTHON, "a Python from 3.9 on", "3.12, several as 3.10,3.12"),
        ("--torch", named[1], _TORCH, "a torch release", "2.11 or 2.11.0, several as 2.11,2.15"),
    ):
        wrong = [word for word in words if not form.fullmatch(word)]
        if wrong:
            raise UsageError(f"{flag} {wrong[0]!r} is not {what}", f"Write it like {example}")
        _once(flag, words)
    return [
        Cell(python=python, torch=torch, archs=group) for torch in named[1] for group in groups for python in named[0]
    ]


def _words(text: str, flag: str, example: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        problem = "is missing" if not text.strip() else f"{text!r} has an empty place"
        raise UsageError(f"{flag} {problem}", f"Write it like {flag} {example}")
    return words


def _group(word: str) -> tuple[Arch, ...]:
    """The archs of one wheel. Which cubin each needs is for the build manifest to say, so suffixes go."""
    return tuple(sorted({replace(one, suffix="") for one in arch.parse_list(word)}))


def _once(flag: str, words: Sequence[str]) -> None:
    twice = [word for place, word in enumerate(words) if word in words[:place]]
    if twice:
        raise UsageError(f"{flag} names {twice[0]} twice", "Name each once")


def covers(candidate: WheelManifest, cell: Cell, wanted: Wanted) -> bool:
    """Whether a wheel fits an environment of this cell, as far as is known before there is one.

    `wanted` holds what is known. Any torch of the release counts; an empty CUDA means that any will do.
    """
    return not _reasons(candidate, cell, wanted)


def _reasons(candidate: WheelManifest, cell: Cell, wanted: Wanted) -> tuple[str, ...]:
    torch = candidate.torch if not candidate.stable_torch and _is_of(cell, candidate.torch) else cell.torch
    return judge(candidate, replace(wanted, torch=torch, cuda=wanted.cuda or candidate.cuda)).reasons


def _is_of(cell: Cell, torch: str) -> bool:
    try:
        return SpecifierSet(f"=={cell.pin}").contains(torch, prereleases=True)
    except InvalidVersion:
        return False


def plan(
    wanted: Mapping[Cell, Wanted],
    recipe: Recipe,
    stored: Sequence[WheelManifest],
    kept: Sequence[WheelManifest],
) -> list[Step]:
    """The steps in the cheapest order, for the cells with what is known of each.

    Raises UsageError for archs and releases of torch that the source does not build for.

    First what costs nothing, since it is there; then what must be built, torch by torch and arch by arch with the
    Pythons of each in a row: the first compiles the CUDA objects, which the others take from the object cache, so that
    a run that is stopped leaves the most wheels for its time. Within that, what was named first comes first.
    """
    there: list[Step] = []
    later: list[Step] = []
    for cell, facts in wanted.items():
        cubins = recipe.cubins_for(cell.archs)
        _new_enough(cell, recipe)
        found = _found(cell, facts, stored, "store") or _found(cell, facts, kept, "wheelhouse")
        if found:
            there.append(found)
            continue
        same = (
            step.cell
            for step in later
            if step.state == "build"
            and recipe.cubins_for(step.cell.archs) == cubins
            and _alike(step.cell, cell, recipe)
            and _major(wanted[step.cell]) == _major(facts)
        )
        first = next(same, None)
        near, why = _near(cell, facts, [*stored, *kept])
        later.append(Step(cell=cell, state="shared" if first else "build", wheel=near, why=why, of=first))
    return sorted(there, key=lambda step: step.state) + later


def _new_enough(cell: Cell, recipe: Recipe) -> None:
    if recipe.min_torch and not SpecifierSet(f">={recipe.min_torch}.dev0").contains(cell.torch, prereleases=True):
        what = f"torch {cell.torch} is older than {recipe.min_torch}, the oldest for {recipe.file.stem}"
        raise UsageError(what, "Leave it out of --torch")


def _found(cell: Cell, wanted: Wanted, candidates: Iterable[WheelManifest], state: str) -> Step | None:
    fits = [one for one in candidates if covers(one, cell, wanted)]
    # A wheel that is proven, or else the newest, is the one to show.
    best = max(fits, key=lambda one: (bool(one.proofs), one.created_at_utc), default=None)
    return Step(cell=cell, state=state, wheel=best.wheel_file) if best else None


def _near(cell: Cell, wanted: Wanted, candidates: Iterable[WheelManifest]) -> tuple[str, str]:
    """The newest wheel of this Python, stack and arch that is there and does not do, and why; empty without one."""
    loose = replace(
        wanted, version="", glibc="", source="", patches=frozenset(), also=(), allow_unknown=True, known_bad={}
    )
    near = [one for one in candidates if covers(one, cell, loose)]
    best = max(near, key=lambda one: one.created_at_utc, default=None)
    return (best.wheel_file, "; ".join(_reasons(best, cell, wanted))) if best else ("", "")


def _alike(built: Cell, cell: Cell, recipe: Recipe) -> bool:
    """Whether a wheel for the one is expected to serve the other, their archs and CUDA apart.

    On the stable ABIs it does, but for free-threaded Pythons; else Python and torch must be the same.
    """
    if not recipe.stable_torch:
        return (built.python, built.torch) == (cell.python, cell.torch)
    return "t" not in built.python + cell.python


def _major(wanted: Wanted) -> str:
    return wanted.cuda.partition(".")[0]


def document(steps: Iterable[Step]) -> str:
    """The wheels to build, on one line, as GitHub's `strategy.matrix` takes it through fromJSON.

    Nothing but `include`: any other key would be a dimension of the matrix. Every value is text: as a number, 3.10
    would be 3.1.
    """
    cells = [step.cell for step in steps if step.state == "build"]
    return json.dumps({"include": [{"python": one.python, "torch": one.torch, "arch": one.arch} for one in cells]})


def rows(cells: Sequence[Cell], words: Mapping[Cell, str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the coverage table: Python and torch against archs."""
    archs = list(dict.fromkeys(cell.archs for cell in cells))
    pairs = sorted({(cell.torch, cell.python) for cell in cells}, key=lambda pair: [_numbers(part) for part in pair])
    body = [
        [python, torch, *(words[Cell(python=python, torch=torch, archs=group)] for group in archs)]
        for torch, python in pairs
    ]
    return ["Python", "torch", *map(arch.join, archs)], body


def _numbers(text: str) -> list[int]:
    """3.9 before 3.10."""
    return [int(part) for part in re.findall(r"\d+", text)]
