"""A job from its order to its wheel: submitted once, its log shown, its end explained; Ctrl-C ends what was begun."""

from __future__ import annotations

from sagewheels import elsewhere, fetch, locks, match, ui
from sagewheels.elsewhere import Wish
from sagewheels.errors import (
    BuildFailed,
    Interrupted,
    NothingCompatible,
    Refused,
    SageError,
    SmokeFailed,
    StoreError,
    UsageError,
)
from sagewheels.job import Job
from sagewheels.jobwatch import Log, NeverStarted, doing, follow
from sagewheels.manifest import WheelManifest
from sagewheels.store.hub import HubStore
from sagewheels.store.hub_jobs import HubJobs, Order, Seen
from sagewheels.store.opening import open_store
from sagewheels.wheelhouse import Made

_LAG = (0.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses before the store is read: a read may lag behind the commit of a moment ago."""

_KINDS: dict[int, type[SageError]] = {
    error.exit_code: error for error in (UsageError, NothingCompatible, Refused, SmokeFailed, StoreError)
}


def build(job: Job, wish: Wish) -> Made | None:
    """The wheel of a build on a rented machine, in the store and in the wheelhouse; None in a dry run or detached.

    A job of the same build that runs already is followed instead. Raises UsageError, StoreError, and for a job that
    failed the error that its exit code means.
    """
    jobs, planned = _prepared(job, wish)
    if job.dry_run:
        elsewhere.explain(job, planned, wish)
        return None
    if (fits := _fitting(job)) and not wish.force:
        ui.say("job", f"{job.store.label} has it already, so nothing is built (--force would)")
        return _bring(job, fits[0])
    if not job.store.publishable:
        raise StoreError(f"{job.closed}, and a job has no key", "Build on a machine that has it, without --on")
    # Before a compile is paid for whose wheel nobody takes.
    ui.say("job", job.store.rights())
    seen, is_ours = _begin(jobs, planned)
    job.report["job"] = {"id": seen.id, "url": seen.url, "flavor": seen.flavor, "build": planned.build}
    if wish.detach:
        ui.say(
            "job",
            f"it goes on without us: the same command without --detach follows it, hf jobs cancel {seen.id} ends it",
        )
        return None
    log = Log()
    try:
        ended = follow(jobs, seen, log, wish.seconds)
    except (KeyboardInterrupt, NeverStarted):
        _leave(jobs, seen, is_ours=is_ours)
        raise
    _demand_success(ended, seen, log, wish)
    return _arrived(job, jobs, seen)


def _prepared(job: Job, wish: Wish) -> tuple[HubJobs, Order]:
    """Whom to ask, and for what. Raises UsageError, Refused and StoreError for what a job cannot do."""
    if job.settings.sage_offline:
        raise UsageError("a job runs elsewhere, and this run is offline", "Leave --offline (SAGE_OFFLINE) or --on out")
    store = open_store(job.settings)
    if not isinstance(store, HubStore):
        what = f"a job cannot reach {store.label}, which is a folder of this machine"
        raise UsageError(what, "Name a repository with SAGE_STORE=hf://datasets/owner/name")
    if job.trust.enforced or job.trust.signs:
        what = "a job cannot sign its wheel: SIGNING_KEY stays on this machine, and yours are signed"
        raise UsageError(what, "Build on a machine of yours, without --on")
    if not store.writable:
        raise store.repo.unwritable()
    job.recipe.cubins_for(job.archs)
    return HubJobs(store.repo, wish.namespace), elsewhere.order(job, store.repo, wish)


def _fitting(job: Job) -> list[WheelManifest]:
    """The wheels of the store that fit this target, best first. Raises StoreError."""
    return [one.candidate for one in match.rank(job.published, elsewhere.wanted(job)) if one.fits]


def _bring(job: Job, candidate: WheelManifest) -> Made:
    with locks.alone(job.settings):
        return fetch.bring(job, candidate), candidate


def _begin(jobs: HubJobs, planned: Order) -> tuple[Seen, bool]:
    """The job of this build, and whether it was begun here."""
    if there := jobs.running(planned.build):
        ui.say("job", f"{there.id} of the same build {doing(there)} already on {there.flavor}: {there.url}")
        return there, False
    try:
        made = jobs.submit(planned)
    except KeyboardInterrupt:
        # It may have been begun all the same.
        if there := jobs.running(planned.build):
            _leave(jobs, there, is_ours=True)
        raise
    ui.say("job", f"{made.id} {doing(made)} on {made.flavor}, which is billed by the minute: {made.url}")
    return made, True


def _leave(jobs: HubJobs, seen: Seen, *, is_ours: bool) -> None:
    """A job that was begun here is canceled, since its machine is paid for; one that was found goes on."""
    if not is_ours:
        ui.warn("job", f"{seen.id} goes on, since it was not begun here: hf jobs cancel {seen.id} ends it")
        return
    try:
        jobs.cancel(seen.id)
        ui.warn("job", f"{seen.id} was canceled: it costs nothing more")
    except SageError as error:
        ui.warn("job", f"{seen.id} could not be canceled and may still be billed, end it at {seen.url}: {error}")


def _demand_success(ended: Seen | None, seen: Seen, log: Log, wish: Wish) -> None:
    """Nothing for a job that did all. Raises the error that its exit code means, else BuildFailed or StoreError."""
    where, said = f"Its log is at {seen.url}", log.last[0] if log.last else "it said nothing"
    if ended is None or ended.stage == "DELETED":
        raise StoreError(f"job {seen.id} was deleted before it ended", "Run the same command again to begin anew")
    if ended.stage == "COMPLETED":
        return
    if ended.stage == "CANCELED":
        raise BuildFailed(f"job {seen.id} was canceled", "Run the same command again to begin anew")
    if log.code:
        kind = BuildFailed if log.code == Interrupted.exit_code else _KINDS.get(log.code, BuildFailed)
        raise kind(f"job {seen.id} failed (exit code {log.code}): {said}", where)
    if "timeout" in ended.message.lower() or "timed out" in ended.message.lower():
        remedy = "Give it more time, or a larger --flavor"
        raise BuildFailed(f"job {seen.id} did not end within --timeout {wish.timeout}: {said}", remedy)
    raise BuildFailed(f"job {seen.id} broke off ({ended.message or 'the Hub does not say why'}): {said}", where)


def _arrived(job: Job, jobs: HubJobs, seen: Seen) -> Made:
    """The wheel that a job has published, in the wheelhouse and checked. Raises NothingCompatible without one."""
    for pause in _LAG:
        jobs.pause(pause)
        job.look_again()
        if fits := _fitting(job):
            return _bring(job, fits[0])
    verdicts = match.rank(job.published, elsewhere.wanted(job))
    why = f"{verdicts[0].candidate.wheel_file}: {'; '.join(verdicts[0].reasons)}" if verdicts else "it holds none"
    what = f"job {seen.id} ended well, but {job.store.label} has no wheel for this machine: {why}"
    raise NothingCompatible(what, "Check SAGEWHEELS_REPO and SAGEWHEELS_REF, by which the job was built")
