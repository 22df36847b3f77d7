"""The graph: stack, fetch, then verify what there is or build, upload what was built, and smoke."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sagewheels import facts, installed, noting, proofs, proving, stack, steplines, steps, ui
from sagewheels.errors import NothingCompatible, SageError, StoreError, Untrusted, UsageError
from sagewheels.files import arriving
from sagewheels.job import Job
from sagewheels.wheelhouse import Made

if TYPE_CHECKING:
    from sagewheels.claim import Turn


def auto(job: Job, *, rebuild: bool = False, no_wait: bool = False) -> None:
    """A machine that runs proven attention; when it does already, nothing is changed and nobody is asked.

    Another machine that compiles the same wheel already is waited for, but with `rebuild` or `no_wait`.

    Raises what the steps raise; a store that cannot be written is told last, when the machine works.
    """
    if not rebuild and in_place(job):
        return
    job.trust.demand_usable()
    if job.dry_run:
        plan(job, rebuild=rebuild, no_wait=no_wait)
        return
    started = time.monotonic()
    # Before gigabytes of torch are installed for an arch that nothing can be built for.
    job.recipe.cubins_for(job.archs)
    _say_plan(job, _way(job, rebuild))
    if not rebuild:
        _demand_trust(job)
    steps.do_stack(job, believing=not rebuild)
    found = None if rebuild else _of_store(job)
    kept = None if found or rebuild else _in_wheelhouse(job)
    if ready := found or kept:
        trouble, origin = _publish_late(job, kept) if kept else None, facts.WHEELHOUSE if kept else _origin(job)
    else:
        ready, trouble, origin = _build(job, rebuild=rebuild, no_wait=no_wait)
    if not trouble:
        _unpublished(job).unlink(missing_ok=True)
    _put_to_use(job, ready, origin)
    if trouble:
        remedy = f"{trouble.remedy}. Then upload publishes the wheel"
        raise type(trouble)(f"the machine is ready, but {trouble.what}", remedy)
    noting.note(job, "auto", _standing)
    ui.note("auto", f"done in {ui.duration(time.monotonic() - started)}: {ready[0].name} in {job.target.prefix}")


def _put_to_use(job: Job, ready: Made, origin: str) -> None:
    """The wheel is verified, installed and smoked, and what was found is in the job's report."""
    facts.chosen(job, ready, origin)
    steps.do_verify(job, ready)
    job.report["next"] = list(job.recipe.next)
    job.report["changed"] = True
    proving.do_smoke(job)


def _origin(job: Job) -> str:
    return facts.ADDRESS if job.settings.wheel_url else facts.STORE


def _say_plan(job: Job, wheel: str) -> None:
    """On a terminal: which steps come, and why, in a line; elsewhere each step speaks for itself."""
    if not ui.is_live():
        return
    wrong, torch = stack.faults(job.target, job.need, job.settings), job.target.torch
    kept = f"keep torch {torch.version}" if torch and not wrong else f"install a stack ({'; '.join(wrong)})"
    archs, gpus = ", ".join(map(str, job.archs)), ", ".join(gpu.name for gpu in job.host.gpus)
    what = f"{job.recipe.name} {job.recipe.version} for arch {archs} into {job.target.prefix}"
    steplines.plan(what, f"{kept}; {wheel}; verify, install and smoke it on {gpus or 'no GPU: load only'}")


def _way(job: Job, rebuild: bool) -> str:
    """Where the wheel will come from, in words."""
    if rebuild:
        return "compile a wheel, as --rebuild asks, and publish it"
    if job.settings.wheel_url:
        return "fetch the wheel of WHEEL_URL"
    return f"fetch a wheel from {job.store.label}, compile and publish one if none fits"


_REST = "then the wheel is verified, installed and smoked; nothing was changed"


def plan(job: Job, *, rebuild: bool, no_wait: bool = False) -> None:
    """Says what `auto` would do, and why, step by step; asks the store, changes nothing."""
    steps.do_stack(job, believing=not rebuild)
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
        _announce(job, shared=_is_shared(job, rebuild, no_wait))
        ui.say("upload", f"would publish it to {job.store.label}" if job.store.publishable else "would publish nothing")
    ui.say("plan", _REST)


def install(job: Job) -> None:
    """`auto` without the compiler. Raises NothingCompatible when the store has nothing."""
    if in_place(job, "install"):
        return
    job.trust.demand_usable()
    _demand_trust(job)
    if not job.dry_run:
        _say_plan(job, f"fetch a wheel from {'WHEEL_URL' if job.settings.wheel_url else job.store.label}")
    steps.do_stack(job)
    if job.dry_run and stack.faults(job.target, job.need, job.settings):
        ui.say("plan", "then, with that stack, the store is asked; nothing was changed")
        return
    made = steps.do_fetch(job)
    if made is None:
        ui.say("plan", _REST)
        return
    _put_to_use(job, made, _origin(job))
    ui.note("install", f"done: {made[0].name} in {job.target.prefix}")


def in_place(job: Job, topic: str = "auto") -> bool:
    """Whether what is installed is the wheel that passed smoke here, under the very same circumstances."""
    words = _standing(job)
    if words:
        noting.note(job, topic, _standing)
        facts.in_place(job, installed.read_state(job.settings, job.target, job.recipe))
        ui.say(topic, words)
    return bool(words)


def _standing(job: Job) -> str:
    """What is said where there is nothing to do; empty where there is something."""
    state = installed.read_state(job.settings, job.target, job.recipe)
    if job.settings.wheel_url and not _is_of_url(state, job.settings.wheel_url):
        return ""
    if not state.get("passed") or state["passed"] != proofs.circumstances(job):
        return ""
    if installed.is_cut_off(job.target, job.recipe, state) or stack.pending_path(job.settings, job.target).exists():
        return ""
    untouched = installed.is_in_place(job.target, job.recipe, state, str(state.get("sha256")))
    if not untouched or stack.faults(job.target, job.need, job.settings):
        return ""
    if stack.missing(job.target, job.recipe.needs):
        return ""
    return f"nothing to do: {state['wheel']} is in {job.target.prefix}, {state.get('words')}"


def _is_of_url(state: dict[str, Any], url: str) -> bool:
    """Whether what is remembered is the wheel of this address, of these bytes if the address says so."""
    try:
        parts = urlsplit(url)
    except ValueError:  # fetch says what is wrong with it
        return False
    promised = parts.fragment.removeprefix("sha256=").lower()
    return unquote(parts.path).rpartition("/")[2] == state.get("wheel") and promised in ("", state.get("sha256"))


def _demand_trust(job: Job) -> None:
    """The store's index is one to be believed, or the store does not answer, before anything is installed by it.

    Raises Untrusted.
    """
    if not job.settings.trusted_signers or job.settings.wheel_url:
        return
    try:
        _ = job.published
    except StoreError:  # whoever needs it says so
        pass


def _of_store(job: Job) -> Made | None:
    """The wheel of the store; None when it has none, or does not answer."""
    try:
        return steps.do_fetch(job)
    except NothingCompatible as error:
        ui.note("auto", error.what)
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


def _is_shared(job: Job, rebuild: bool, no_wait: bool) -> bool:
    """Whether a build is claimed in the store. One that did not answer to fetch is not asked again."""
    return not rebuild and not no_wait and job.revision is not None and not job.settings.wheel_url


def _announce(job: Job, *, shared: bool) -> None:
    from sagewheels import claim

    try:
        claim.announce(job, shared=shared)
    except StoreError as error:
        ui.warn("auto", f"the store was not reached: {error}")


def _build(job: Job, *, rebuild: bool, no_wait: bool) -> tuple[Made, SageError | None, str]:
    """A wheel that was compiled and published here, or fetched from who compiled it; what kept it here; its origin."""
    from sagewheels import claim

    with arriving(_unpublished(job)):
        pass
    try:
        with claim.Turn(job, shared=_is_shared(job, rebuild, no_wait)) as turn:
            built = steps.do_build(job, force=rebuild, turn=turn)
            assert built is not None
            if turn.fetched:
                return built, None, facts.STORE
            return built, _publish(job, built, turn), facts.BUILT
    except SageError:
        _unpublished(job).unlink(missing_ok=True)
        raise


def _publish_late(job: Job, kept: Made) -> SageError | None:
    """What a run built here that was killed before it could publish it, or take its claim back."""
    from sagewheels import claim

    if not _unpublished(job).exists():
        return None
    with claim.Turn(job, shared=False) as turn:
        return _publish(job, kept, turn)


def _publish(job: Job, built: Made, turn: Turn) -> SageError | None:
    """Uploads before anything else can go wrong; what goes wrong here must not cost the compile."""
    try:
        job.report["published"] = None
        if steps.do_upload(job, built, along=turn.along()):
            job.report["published"] = job.store.label
        turn.published()
    except (StoreError, Untrusted, UsageError) as error:
        ui.warn("auto", str(error))
        job.not_taken = built[0].name
        if isinstance(error, Untrusted):  # no wheel was refused: this one was made here
            return StoreError(error.what, "One of its signers mends it with init-hf --sign")
        return error
    return None
