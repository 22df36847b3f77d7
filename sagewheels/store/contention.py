"""One of many writers: read, merge, commit, and again when somebody was quicker."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from sagewheels import ui
from sagewheels.errors import StoreError
from sagewheels.store import Conflict, Snapshot, Store

TRIES, STILL = 32, 8
"""Tries in all, and those that may fail in a row while nobody else changes anything: then it is not others."""
_FIRST_WINDOW, _LONGEST_WINDOW = 2.0, 60.0

Changes = Callable[[Snapshot], Mapping[str, bytes | Path]]


def wait_after(conflicts: int) -> float:
    """Seconds before the next try, drawn from a window that doubles with each conflict in a row, up to a minute.

    A window, and not a pause: writers that collided once must not come back together. Where a commit takes 1 to 2 s
    and reads lag as long, 32 writers need 7 tries each and 100 need 11, all within TRIES (benchmarks/contention.py).
    """
    window = min(_LONGEST_WINDOW, _FIRST_WINDOW * 2 ** (conflicts - 1))
    return random.uniform(window / 10, window)


def insist(
    store: Store,
    read: Callable[[], Snapshot],
    changes: Changes,
    message: str,
    pause: Callable[[float], None],
    *,
    tries: int = TRIES,
) -> bool:
    """Reads, merges and commits until nobody came between; False when nothing was to be changed from the start.

    At most 32 tries, with pauses that take 15 min on average and 27 min at most, all together, and 3 min where nobody
    else changes anything; who waits long is told why, four times a minute. Raises StoreError after the last one, and
    what `changes` raises but Conflict.
    """
    shown, seen, still = ui.Progress("store", 15.0, None), set[str](), 0
    for attempt in range(tries):
        if attempt:
            others = ui.count(max(1, len(seen) - 1), "commit")
            shown.update(f"waiting for a turn at {store.label}: {others} by others meanwhile, {attempt} tries")
            pause(wait_after(attempt))
        snapshot = read()
        still = still + 1 if snapshot.revision in seen else 0
        if still == STILL:
            raise refusing(store, attempt)
        seen.add(snapshot.revision)
        try:
            files = changes(snapshot)
            if files:
                store.commit(snapshot.revision, files, message)
        except Conflict:
            continue
        else:
            return bool(files) or attempt > 0
    raise StoreError(f"{store.label} kept changing during {tries} tries", "Try again when others have finished")


def refusing(store: Store, tries: int) -> StoreError:
    """The error for a store that says that somebody was quicker when nobody was."""
    return StoreError(f"{store.label} refused {tries} commits, though nothing changed there", "Try again later")
