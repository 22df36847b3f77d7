"""The graph: stack, fetch, then verify what there is or build, upload what was built, and smoke."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sagewheels import installed, stack, steps, ui
from sagewheels.errors import NothingCompatible, SageError, StoreError
from sagewheels.files import arriving
from sagewheels.job import Job
from sagewheels.steps import Made


def auto(job: Job, *, rebuild: bool = False) -> None:
    """A machine that runs proven attention; when it does already, nothing is changed and nobody is asked.

    Raises what the steps raise; a store that cannot be written is told last, when the machine works.
    """
    if not rebuild and in_place(job):
        return
    if job.dry_run:
        plan(job, rebuild=rebuild)
        return
    started = time.monotonic()
    # Before gigabytes of torch are installed for an arch that nothing can be built for.
    job.recipe.cubins_for(job.archs)
    steps.do_stack(job)
    made = None if rebuild else _of_store(job)
    kept = None if made or rebuild else _in_wheelhouse(job)
    built = None if made or kept else _built(job, rebuild=rebuild)
    unpublished = built or (kept if _unpublished(job).exists() else None)
    trouble = _publish(job, unpublished) if unpublished else None
    if not trouble:
        _unpublished(job).unlink(missing_ok=True)
    ready = made or kept or built
    assert ready is not None
    steps.do_verify(job, ready)
    steps.do_smoke(job)
    if trouble:
        raise StoreError(f"the machine is ready, but {trouble.what}", trouble.remedy)
    ui.say("auto", f"done in {ui.duration(time.monotonic() - started)}: {ready[0].name} in {job.target.prefix}")


_REST = "then the wheel is verified, installed and smoked; nothing was changed"


def plan(job: Job, *, rebuild: bool) -> None:
    """Says what `auto` would do, and why, step by step; asks the store, changes nothing."""
    steps.do_stack(job)
    if stack.faults(job.target, job.need, job.settings):
        ui.say("plan", "then, with that stack, the store is asked; what it lacks is built; nothing was changed")
        return
    try:
        found = not rebuild and (steps.plan_fetch(job) or _in_wheelhouse(job) is not None)
    except StoreError as error:
        ui.warn("auto", f"the store was not reached: {error}")
        found = _in_wheelhouse(job) is not None
    if not found:
        steps.do_build(job)
        ui.say("upload", f"would publish it to {job.store.label}" if job.store.writable else "would publish nothing")
    ui.say("plan", _REST)


def install(job: Job) -> None:
    """`auto` without the compiler. Raises NothingCompatible when the store has nothing."""
    if in_place(job, "install"):
        return
    steps.do_stack(job)
    if job.dry_run and stack.faults(job.target, job.need, job.settings):
        ui.say("plan", "then, with that stack, the store is asked; nothing was changed")
        return
    made = steps.do_fetch(job)
    if made is None:
        ui.say("plan", _REST)
        return
    steps.do_verify(job, made)
    steps.do_smoke(job)
    ui.say("install", f"done: {made[0].name} in {job.target.prefix}")


def in_place(job: Job, topic: str = "auto") -> bool:
    """Whether what is installed is the wheel that passed smoke here, under the very same circumstances."""
    state = installed.read_state(job.settings, job.target, job.recipe)
    if job.settings.wheel_url and not _is_of_url(state, job.settings.wheel_url):
        return False
    if not state.get("passed") or state["passed"] != steps.circumstances(job):
        return False
    if installed.is_cut_off(job.target, job.recipe, state):
        return False
    untouched = installed.is_in_place(job.target, job.recipe, state, str(state.get("sha256")))
    if not untouched or stack.faults(job.target, job.need, job.settings):
        return False
    if stack.missing(job.target, job.recipe.needs):
        return False
    ui.say(topic, f"nothing to do: {state['wheel']} is in {job.target.prefix}, {state.get('words')}")
    return True


def _is_of_url(state: dict[str, Any], url: str) -> bool:
    """Whether what is remembered is the wheel of this address, of these bytes if the address says so."""
    try:
        parts = urlsplit(url)
    except ValueError:  # fetch says what is wrong with it
        return False
    promised = parts.fragment.removeprefix("sha256=").lower()
    return unquote(parts.path).rpartition("/")[2] == state.get("wheel") and promised in ("", state.get("sha256"))


def _of_store(job: Job) -> Made | None:
    """The wheel of the store; None when it has none, or does not answer."""
    try:
        return steps.do_fetch(job)
    except NothingCompatible as error:
        ui.say("auto", error.what)
    except StoreError as error:
        ui.warn("auto", f"the store was not reached: {error}")
    return None


def _in_wheelhouse(job: Job) -> Made | None:
    fits = job.in_wheelhouse()
    if fits:
        ui.say("auto", f"{fits[0][0].name} is in the wheelhouse")
        return fits[0]
    return None


def _unpublished(job: Job) -> Path:
    """The mark that something is built here that was not published yet: a run may be killed between the two."""
    return job.settings.work_dir / "state" / f"{job.recipe.name}.unpublished"


def _built(job: Job, *, rebuild: bool) -> Made | None:
    with arriving(_unpublished(job)):
        pass
    try:
        return steps.do_build(job, force=rebuild)
    except SageError:
        _unpublished(job).unlink(missing_ok=True)
        raise


def _publish(job: Job, built: Made) -> StoreError | None:
    """Uploads before anything else can go wrong; what goes wrong here must not cost the compile."""
    try:
        steps.do_upload(job, built)
    except StoreError as error:
        ui.warn("auto", str(error))
        return error
    return None
