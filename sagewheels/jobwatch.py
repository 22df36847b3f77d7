"""A job is watched until it is over: its log is shown as it comes and resumed where it broke off; waits are bounded."""

from __future__ import annotations

import re
import time
from collections import deque
from dataclasses import dataclass, field

from sagewheels import ui
from sagewheels.errors import StoreError
from sagewheels.store.hub_jobs import HubJobs, Seen
from sagewheels.store.tries import Trouble

PACE = (2.0, 20.0)
"""Seconds between two looks at a job: the first pause, and the longest."""

LONGEST_QUEUE = 3600.0
"""Seconds for which a machine is waited for."""

_TURN = 30.0
"""Seconds of log without a look at the job: a job that has ended may leave its log open."""

_GRACE = 900.0
"""Seconds that a job may be shown as running after the time that it was given."""

_MOST_LOST = 10
"""Looks in a row that may fail: minutes without a network cost no compile."""

_LAST_TRIES = 3
"""How often the log of a job that is over is asked for while it breaks off."""

_ENDING = re.compile(r"\[job\] exit code ([0-9]{1,3})")


class NeverStarted(StoreError):
    """No machine was free for a job within LONGEST_QUEUE."""


@dataclass
class Log:
    """What was heard so far: `count` events, the last words, and the exit code if it was said."""

    count: int = 0
    code: int | None = None
    last: deque[str] = field(default_factory=lambda: deque(maxlen=1))

    def hear(self, text: str) -> None:
        """Shows one event, but for its last line of all, which is for us."""
        self.count += 1
        for line in text.splitlines():
            if found := _ENDING.fullmatch(line.strip()):
                self.code = int(found[1])
            elif line.strip() and not line.startswith("===== Job started"):
                self.last.append(line.strip())
                ui.say("job", line.rstrip())


def follow(jobs: HubJobs, seen: Seen, log: Log, seconds: int) -> Seen | None:
    """The job once it is over, None when it was deleted; its log is shown meanwhile.

    Raises NeverStarted, and StoreError for one that does not end, or cannot be seen any longer.
    """
    begun, started, lost, wait = time.monotonic(), 0.0, 0, PACE[0]
    with ui.progress("job", every=60) as shown:
        while True:
            heard = log.count
            _listen(jobs, seen, log, shown)
            try:
                now, lost = jobs.look(seen.id), 0
            except StoreError as error:
                lost += 1
                if lost == _MOST_LOST:
                    raise StoreError(f"job {seen.id} cannot be seen any longer: {error.what}", _again(seen)) from None
                now = seen
            if now is None or now.is_over:
                _hear_out(jobs, seen, log, shown)
                return now
            seen = now
            started = started or (time.monotonic() if seen.stage == "RUNNING" else 0.0)
            _demand_patience(seen, time.monotonic() - (started or begun), seconds)
            shown.update(f"{seen.id} {doing(seen)}")
            wait = PACE[0] if log.count > heard else min(PACE[1], wait * 1.5)
            jobs.pause(wait)


def _hear_out(jobs: HubJobs, seen: Seen, log: Log, shown: ui.Progress) -> None:
    """Shows the rest of the log of a job that is over, as far as the Hub gives it."""
    for _ in range(_LAST_TRIES):
        if log.code is not None or _listen(jobs, seen, log, shown):
            return
        jobs.pause(PACE[0])


def _listen(jobs: HubJobs, seen: Seen, log: Log, shown: ui.Progress) -> bool:
    """Shows what comes until its last line was said, or for _TURN seconds; False when the log broke off before."""
    until = time.monotonic() + _TURN
    try:
        for line in jobs.lines(seen.id, log.count):
            if line is not None:
                log.hear(line)
            shown.update(f"{seen.id} {doing(seen)}")
            if log.code is not None or time.monotonic() > until:
                break
    except Trouble:  # what was missed comes next time
        return False
    return True


def _demand_patience(seen: Seen, passed: float, seconds: int) -> None:
    """Nothing while there is hope. Raises NeverStarted, and StoreError for a job that does not end."""
    if seen.stage == "SCHEDULING" and passed > LONGEST_QUEUE:
        what = f"no {seen.flavor} was free for job {seen.id} in {ui.duration(LONGEST_QUEUE)}"
        raise NeverStarted(what, "Try another --flavor, or later")
    if seen.stage == "RUNNING" and passed > seconds + _GRACE:
        raise StoreError(f"job {seen.id} still runs, long after its --timeout", f"End it at {seen.url}")


def doing(seen: Seen) -> str:
    """What a job is at that is not over."""
    return "waits for a machine" if seen.stage == "SCHEDULING" else "runs"


def _again(seen: Seen) -> str:
    return f"It may go on, at {seen.url}: run the same command again to follow it"
