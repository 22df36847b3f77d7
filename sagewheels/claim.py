"""One compile for a fleet: who begins a build claims it in the store, and who wants the same wheel waits for it.

A claim costs a commit before the compile and one every two minutes of it; it goes in the commit that publishes the
wheel. Who waits asks for one small file every 10 to 20 s, which is 80 requests a minute for 20 machines, and for index
and latest wheel each time that the store has changed.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from sagewheels import bad, buildplan, ui
from sagewheels import build as compiling
from sagewheels import fetch as fetching
from sagewheels.buildplan import Plan
from sagewheels.errors import StoreError
from sagewheels.files import arriving
from sagewheels.job import Job
from sagewheels.manifest import when
from sagewheels.store import Conflict, Snapshot, claims, contention
from sagewheels.store.claims import CLAIMS, Claim, Watch
from sagewheels.store.lease import Lease
from sagewheels.wheelhouse import Made

POLL = (10.0, 20.0)
"""Seconds between two looks of a machine that waits."""
LONGEST_WAIT = 2 * 3600.0
"""Seconds for which others are waited for, however alive they are."""


class Turn:
    """Whose turn it is to compile. A claim that was made here is gone when the block ends, unless we are killed.

    Not `shared`: nothing is claimed and nobody is waited for. That is so as well for a source whose commit only a
    checkout tells, since its build key is not known before.
    """

    def __init__(self, job: Job, *, shared: bool) -> None:
        self._job, self._shared, self._watch = job, shared, Watch()
        self._lease: Lease | None = None
        self._mine: Claim | None = None
        """What is in the store, or may be, and must go."""
        self._left = _noted(job)
        """The nonce of a claim that a killed run from here left behind: nobody builds under it."""
        self._waiting: Claim | None = None
        self._judged, self._conflicts = job.revision, 0
        self._refused: dict[str, int] = {}
        """How often our claim was refused on each revision."""
        self.fetched = False
        """Whether the wheel came from another machine, so that there is nothing to publish."""

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._lease:
            self._lease.rest()
        try:
            if self._mine:
                claims.release(self._job.store, self._mine)
            _note(self._job).unlink(missing_ok=True)
        except StoreError as trouble:
            ui.warn("claim", f"it stays in the store until it expires: {trouble}")

    def __call__(self, plan: Plan) -> Made | None:
        """What another machine built, fetched, after a wait if need be; None when it is to be compiled here.

        Trouble with the store is told and costs no compile: the machine is paid for. Raises Refused, as fetch does.
        """
        key, wanted = compiling.known_key(self._job.settings, plan), self._job.wanted()
        # What is known to be bad is refused in a moment, and needs no claim for that.
        if not self._shared or not key or bad.of_build(key, wanted.archs, wanted.known_bad):
            return None
        wheel = f"{plan.recipe.name}-{plan.recipe.version}+{buildplan.label(plan, key)}"
        try:
            self.fetched = self._settle(key, wheel)
            return fetching.fetch(self._job) if self.fetched else None
        except StoreError as error:
            ui.warn("claim", f"building without a claim: {error}")
            self.fetched = False
            return None

    def along(self) -> dict[str, Callable[[bytes | None], bytes | None]]:
        """For the commit that publishes the wheel, which takes the claim away; nothing is renewed from now on."""
        if self._lease:
            self._lease.rest()
            return {CLAIMS: self._lease.removed}
        return {CLAIMS: lambda content: claims.without(content, self._left)} if self._left else {}

    def published(self) -> None:
        """That commit was made."""
        if self._lease and self._lease.is_removed:
            self._mine = None

    def _settle(self, key: str, wheel: str) -> bool:
        """Waits until the wheel is in the store (True), or it is this machine's turn (False). Raises StoreError."""
        mine, deadline = _new(self._job, key, wheel), time.monotonic() + LONGEST_WAIT
        with ui.progress("claim", every=60) as shown:
            while time.monotonic() < deadline:
                snapshot = self._look()
                if self._has_arrived():
                    return True
                there = claims.of(snapshot, key) if snapshot else self._waiting
                left = self._watch.left(there) if there and there.nonce != self._left else 0.0
                if there and left > 0 and there.nonce != mine.nonce:
                    self._wait_for(there, left, shown)
                elif not self._job.store.publishable or (snapshot and self._contend(snapshot, there, mine)):
                    if there and there.nonce not in (mine.nonce, self._left):
                        ui.say("claim", f"no sign of {words(there)}: it is built here")
                    return False
        ui.say("claim", f"nothing came in {ui.duration(LONGEST_WAIT)}, so it is built here")
        return False

    def _look(self) -> Snapshot | None:
        """The claims of now, and the index if the store has changed; None while a store that fails may be waited for.

        No news is no sign of life: after a lease without any, who is waited for counts as dead. Raises StoreError then.
        """
        try:
            snapshot = self._job.store.read(CLAIMS)
            if snapshot.revision != self._job.revision:
                self._job.look_again()
            return snapshot
        except StoreError:
            if self._waiting is None or self._watch.left(self._waiting) <= 0:
                raise
            return None

    def _has_arrived(self) -> bool:
        """Whether the store holds a wheel that fits by now."""
        if self._job.revision == self._judged:
            return False
        self._judged = self._job.revision
        return any(verdict.fits for verdict in self._job.verdicts())

    def _wait_for(self, other: Claim, left: float, shown: ui.Progress) -> None:
        if self._waiting is None or self._waiting.nonce != other.nonce:
            ui.say("claim", f"waiting for {words(other)}; auto --no-wait would build at once")
        self._waiting, self._conflicts = other, 0
        shown.update(f"waiting for {words(other)}, taken for dead in {ui.duration(left)} without a sign")
        time.sleep(random.uniform(*POLL))

    def _contend(self, snapshot: Snapshot, there: Claim | None, mine: Claim) -> bool:
        """Whether the claim is ours now; if not, others were quicker, and some time has passed. Raises StoreError."""
        job = self._job
        if there and there.nonce == mine.nonce:  # the answer to our own commit was lost
            return self._begin(there)
        # Only on the state in which the index was seen without the wheel: one of two reads may lag behind.
        if snapshot.revision == job.revision:
            try:
                self._mine = claims.begun(mine, datetime.now(timezone.utc))
                with arriving(_note(job)) as stream:
                    stream.write(mine.nonce.encode())
                claims.take(job.store, snapshot, self._mine)
            except Conflict:
                self._mine = None
                times = self._refused[snapshot.revision] = self._refused.get(snapshot.revision, 0) + 1
                if times == contention.STILL:
                    raise contention.refusing(job.store, times) from None
            else:
                return self._begin(self._mine)
        self._conflicts += 1
        if self._conflicts == contention.TRIES:
            raise StoreError(f"{job.store.label} kept changing during {contention.TRIES} tries")
        time.sleep(contention.wait_after(self._conflicts))
        return False

    def _begin(self, mine: Claim) -> bool:
        self._mine, self._lease = mine, Lease(self._job.store, mine)
        ui.say("claim", f"this machine, {mine.who}, builds {_short(mine)}; others wait for it")
        return True


def _note(job: Job) -> Path:
    """Where the nonce of a claim is kept while it is in the store: the next run here need not wait for a killed one."""
    return job.settings.work_dir / "state" / "claim"


def _noted(job: Job) -> str:
    try:
        return _note(job).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def announce(job: Job, *, shared: bool) -> None:
    """For a dry run: whether the build would be claimed, and for whom it might wait. Raises StoreError."""
    if not shared or job.revision is None:
        ui.say("claim", "would not be claimed in the store, and would wait for nobody")
        return
    alive = [claim for claim in claims.read(job.store.read(CLAIMS)) if Watch().left(claim) > 0]
    for claim in alive:
        ui.say("claim", f"if it is the same build, would wait for {words(claim)}")
    if not alive and job.store.publishable:
        ui.say("claim", f"would claim it in {job.store.label}, so that other machines wait for it")
    elif not alive:
        ui.say("claim", f"would not claim it: nothing can be published in {job.store.label} from here")


def words(claim: Claim) -> str:
    """`a3f9 (NVIDIA GeForce RTX 5090, 16 cores), which builds k057f48aa since 12:03 UTC`."""
    return f"{claim.who}, which builds {_short(claim)} since {when(claim.since_utc):%H:%M} UTC"


def _short(claim: Claim) -> str:
    """The build key as wheel names show it."""
    return f"k{claim.build_key[:8]}"


def _new(job: Job, key: str, wheel: str) -> Claim:
    """A claim of this machine, which says what it is and not whose."""
    gpu = job.host.gpus[0].name if job.host.gpus else "no GPU"
    who = f"{secrets.token_hex(2)} ({gpu}, {ui.count(job.host.cores, 'core')})"
    return claims.new(key, wheel=wheel, who=who, nonce=secrets.token_hex(8))
