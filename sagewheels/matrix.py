"""Wheels for many Pythons, torches and archs: what is there is shown, the rest is built, a failure costs one cell."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sagewheels import cells, environments, stack, steps, target, ui, wheel, wheelhouse
from sagewheels.cells import Cell, Step
from sagewheels.errors import SageError, StoreError
from sagewheels.job import DEFAULT_ARCH, Job
from sagewheels.match import Wanted
from sagewheels.stack import Need
from sagewheels.wheelhouse import Made

_SHORT = 60
_PUBLISHED = "published"


@dataclass(kw_only=True)
class Results:
    """What became of each cell so far: a word for the table, the errors in order, and the wheels of this run."""

    words: dict[Cell, str]
    errors: dict[Cell, SageError] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    lost: dict[tuple[str, str], SageError] = field(default_factory=dict)
    """Python and torch for which there is no environment: a second try would fail in the same way."""

    def fail(self, cell: Cell, error: SageError, word: str = "") -> None:
        """Notes it and says it, the same reason once; the other cells go on."""
        is_new = str(error) not in map(str, self.errors.values())
        self.words[cell] = word or f"failed: {_short(error.what)}"
        self.errors[cell] = error
        if is_new:
            ui.warn("matrix", f"{cell}: {error}")


def matrix(job: Job, pythons: str, torches: str, *, as_json: bool = False) -> None:
    """A wheel for every cell, in the store where that can be written; ends with a table of what is covered.

    Raises UsageError and StoreError before anything is made; then goes on after whatever fails, and raises an error
    with the exit code of the first failure. `as_json` and a dry run only plan.
    """
    job.trust.demand_usable()
    asked = cells.parse(pythons, torches, job.settings.torch_cuda_arch_list or _default(job))
    # Other machines will read the document, and they have the store only.
    stored, kept = job.published, {} if as_json else _intact(job)
    facts = {cell: _wanted(job, cell) for cell in asked}
    plan = cells.plan(facts, job.recipe, stored, [manifest for _, manifest in kept.values()])
    if as_json:
        if job.is_store_missing:
            ui.warn("matrix", f"{job.store.label} does not exist yet")
        print(cells.document(plan))
        return
    _show(job, plan)
    here = ("store", "wheelhouse")
    results = Results(words={step.cell: step.state if step.state in here else "planned" for step in plan})
    try:
        if not job.dry_run:
            _work(job, plan, kept, results)
    finally:
        ui.table(job.recipe.file.stem, *cells.rows(asked, results.words))
    _end(results)


def _default(job: Job) -> str:
    """The archs of the GPUs that are here, each in a wheel of its own."""
    return ",".join(map(str, job.host.archs)) or DEFAULT_ARCH


def _wanted(job: Job, cell: Cell) -> Wanted:
    """What is known of a cell's environment: all but CUDA without it, and that too from what was made before."""
    known = environments.facts(job.settings, cell)
    need = Need(archs=tuple(one.plain for one in cell.archs), driver_cuda="", min_torch=job.recipe.min_torch)
    cuda = known["cuda"] if known else stack.cuda_expected(cell.torch, need, job.settings)
    tags = target.tags_of(cell.version, free_threaded=cell.python.endswith("t"))
    return job.wanted_of(tags, torch=cell.torch, cuda=cuda, archs=need.archs)


def _intact(job: Job) -> dict[str, Made]:
    """The wheels of the wheelhouse by name, less those whose bytes are not what was promised: they are built again."""
    found = wheelhouse.wheels(job.settings)
    return {path.name: (path, one) for path, one in found if wheel.file_hash(path)[0] == one.wheel_sha256}


def _show(job: Job, plan: Sequence[Step]) -> None:
    """The plan in its order, with what is there already first."""
    states = [step.state for step in plan]
    stacks = len({(step.cell.python, step.cell.torch) for step in plan if step.state == "build"})
    missing = ", which does not exist yet" if job.is_store_missing else ""
    there = f"{states.count('store')} in {job.store.label}{missing}, {states.count('wheelhouse')} in the wheelhouse"
    builds = f"{ui.count(states.count('build'), 'wheel')} to build in {ui.count(stacks, 'environment')}"
    ui.say("matrix", f"{ui.count(len(plan), 'cell')}: {there}, {builds}")
    for step in plan:
        if step.state == "shared":
            ui.say("matrix", f"{step.cell}: the wheel of {step.of} serves it")
        elif step.state == "build":
            ui.say("matrix", f"{step.cell}: to be built{f', {step.wheel} will not do: {step.why}' if step.why else ''}")
        else:
            ui.say("matrix", f"{step.cell}: {step.wheel} is in the {step.state}")


def _work(job: Job, plan: Sequence[Step], kept: Mapping[str, Made], results: Results) -> None:
    """Does every step; an error is noted for its cell, Ctrl-C and bugs end it."""
    for step in plan:
        cell = step.cell
        try:
            if step.state == "wheelhouse":
                _publish(job, cell, kept[step.wheel], _PUBLISHED, results)
            elif step.state != "store":
                _make(job, cell, results)
        except SageError as error:
            results.fail(cell, error)
        except OSError as error:  # a full disk may have room for the next, smaller thing
            where = f"{error.filename}: " if error.filename else ""
            results.fail(cell, SageError(f"{where}{error.strerror or error}", "Mend that and run it again"))


def _make(job: Job, cell: Cell, results: Results) -> None:
    """The wheel of one cell: one of this run if it serves, else compiled in the cell's environment."""
    if _served(job, cell, results):
        return
    there = _environment(job, cell, results)
    # The environment knows which CUDA it has, where the plan could only expect one.
    facts, started = _wanted(job, cell), time.monotonic()
    if any(cells.covers(one, cell, facts) for one in job.published):
        ui.say("matrix", f"{cell}: with CUDA {facts.cuda}, {job.store.label} has its wheel")
        results.words[cell] = "store"
        return
    made = steps.do_build(there)
    assert made is not None, "a dry run ends before"
    results.made.append(made)
    _publish(job, cell, made, f"built {_clock(time.monotonic() - started)}", results)


def _environment(job: Job, cell: Cell, results: Results) -> Job:
    pair = cell.python, cell.torch
    if pair in results.lost:
        raise results.lost[pair]
    ui.say("matrix", f"{cell}: building")
    try:
        return environments.ready(job, cell)
    except SageError as error:
        results.lost[pair] = error
        raise


def _served(job: Job, cell: Cell, results: Results) -> bool:
    """Whether a wheel of this run fits the cell too, as those on the stable ABI do."""
    facts = _wanted(job, cell)
    by = next((made for made in results.made if cells.covers(made[1], cell, facts)), None)
    if by:
        ui.say("matrix", f"{cell}: {by[0].name} serves it")
        results.words[cell] = "shared"
    return by is not None


def _publish(job: Job, cell: Cell, made: Made, word: str, results: Results) -> None:
    """The wheel is in the store too, if that can be written; a store that fails does not make it unbuilt."""
    try:
        published = steps.do_upload(job, made)
    except StoreError as error:
        results.fail(cell, error, f"{word}, not published" if word != _PUBLISHED else "wheelhouse, not published")
        return
    results.words[cell] = word if published or word != _PUBLISHED else "wheelhouse"


def _end(results: Results) -> None:
    """Says each reason whole, below the table, where there are several. Raises with the exit code of the first."""
    if not results.errors:
        return
    alike: dict[str, list[Cell]] = {}
    for cell, error in results.errors.items():
        alike.setdefault(str(error), []).append(cell)
    for text, failing in alike.items() if len(alike) > 1 else ():
        more = f" and {len(failing) - 1} more" if len(failing) > 1 else ""
        ui.say("matrix", f"{failing[0]}{more}: {text}")
    first = next(iter(results.errors.values()))
    failed = f"{len(results.errors)} of {ui.count(len(results.words), 'cell')} failed"
    raise type(first)(f"{failed}, the first: {first.what}", "Correct it, then run it again")


def _short(text: str) -> str:
    return textwrap.shorten(text, _SHORT, placeholder=" ...")


def _clock(seconds: float) -> str:
    """`1:23`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
