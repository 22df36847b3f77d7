"""Claims: which machine compiles what right now, in claims.json, so that the others of a fleet can wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from sagewheels import ui
from sagewheels.errors import StoreError
from sagewheels.manifest import ManifestError, load_json, when
from sagewheels.store import Conflict, Snapshot, Store, contention
from sagewheels.store.entries import written

CLAIMS = "claims.json"

LEASE = 360.0
"""Seconds that a claim lives without a sign of its machine."""
RENEW = 120.0
"""Seconds between two signs: two of them may fail."""
GRACE = 120.0
"""Seconds by which the clocks of two machines may differ on top of what is left of a lease."""

_LARGEST = 1_000_000
_LAG_TRIES, _RELEASE_TRIES = 4, 6
_FORGOTTEN = timedelta(days=1)
_SCHEMA = 1
_FORM = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One machine's word that it compiles `build_key`; `who` names no host, and `nonce` is of this one claim."""

    build_key: str
    wheel: str
    who: str
    since_utc: str
    until_utc: str
    renewals: int
    nonce: str

    def renewed(self, now: datetime) -> Claim:
        """The same, one sign later."""
        return replace(self, until_utc=stamp(now + timedelta(seconds=LEASE)), renewals=self.renewals + 1)


class TakenOver(StoreError):
    """The claim is in the store no more: this machine was taken for dead."""


class Watch:
    """Which claims are alive, as seen from this machine. Clocks that differ by more than GRACE may cost a second build.

    A claim is dead when its time is over by more than GRACE, or when it was seen here for a whole LEASE without a
    renewal, by a clock that nobody sets: a time far ahead counts for no more than that.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._clock, self._now = clock, now
        self._seen: dict[tuple[str, int], float] = {}

    def left(self, claim: Claim) -> float:
        """Seconds until it is taken for dead unless it is renewed; 0 or less: it is dead."""
        first = self._seen.setdefault((claim.nonce, claim.renewals), self._clock())
        try:
            until = datetime.strptime(claim.until_utc, _FORM).replace(tzinfo=timezone.utc)
        except ValueError:
            return 0.0
        return min(first + LEASE - self._clock(), (until - self._now()).total_seconds() + GRACE)


def stamp(moment: datetime) -> str:
    """`2026-01-02T03:04:05Z`."""
    return moment.astimezone(timezone.utc).strftime(_FORM)


def new(build_key: str, *, wheel: str, who: str, nonce: str) -> Claim:
    """A claim that has not begun."""
    return Claim(build_key=build_key, wheel=wheel, who=who, since_utc="", until_utc="", renewals=0, nonce=nonce)


def begun(claim: Claim, now: datetime) -> Claim:
    """The same, which begins now."""
    return replace(claim, since_utc=stamp(now), until_utc=stamp(now + timedelta(seconds=LEASE)))


def read(snapshot: Snapshot) -> list[Claim]:
    """The claims that can be read; a file that cannot holds none, and that is said."""
    found, problem = _document(snapshot.files.get(CLAIMS))
    if problem:
        ui.warn("claim", f"{problem}, so no claim counts; the next one begins it anew")
    return [claim for item in found["claims"] if (claim := _claim(item))]


def of(snapshot: Snapshot, build_key: str) -> Claim | None:
    """The claim to this build, if there is one."""
    return next((claim for claim in read(snapshot) if claim.build_key == build_key), None)


def placed(content: bytes | None, claim: Claim, now: datetime) -> bytes:
    """The file with this claim instead of any other to the same build, less what died a day ago."""

    def stays(item: Any) -> bool:
        other = _claim(item)
        return other is None or (other.build_key != claim.build_key and when(other.until_utc) > now - _FORGOTTEN)

    found = _document(content)[0]
    return written({**found, "claims": [*filter(stays, found["claims"]), asdict(claim)]})


def without(content: bytes | None, nonce: str) -> bytes | None:
    """The file without this claim; None when it is not there."""
    found = _document(content)[0]
    left = [item for item in found["claims"] if not (isinstance(item, dict) and item.get("nonce") == nonce)]
    return None if left == found["claims"] else written({**found, "claims": left})


def take(store: Store, snapshot: Snapshot, claim: Claim) -> None:
    """The claim is in the store, in place of a dead one of the same build.

    It is a commit on what was read, so that of many machines that find a build free only one comes here without a
    Conflict. Raises StoreError, too.
    """
    content = placed(snapshot.files.get(CLAIMS), claim, when(claim.since_utc))
    store.commit(snapshot.revision, {CLAIMS: content}, f"Claim {claim.wheel}")


def renew(store: Store, claim: Claim, *, pause: Callable[[float], None] = time.sleep) -> Claim:
    """The claim with a new sign, which is in the store. Raises TakenOver when it is there no more, and StoreError."""
    now, looks = datetime.now(timezone.utc), 0

    def changes(snapshot: Snapshot) -> Mapping[str, bytes | Path]:
        nonlocal looks
        looks += 1
        there = of(snapshot, claim.build_key)
        if there and there.nonce == claim.nonce:
            return {CLAIMS: placed(snapshot.files.get(CLAIMS), claim.renewed(now), now)}
        # A read may lag behind the very commit that made the claim.
        error = Conflict if looks < _LAG_TRIES else TakenOver
        raise error(f"{there.who} builds it too" if there else f"the claim to it is gone from {CLAIMS}")

    contention.insist(store, lambda: store.read(CLAIMS), changes, f"Renew the claim to {claim.wheel}", pause)
    return claim.renewed(now)


def release(store: Store, claim: Claim, *, pause: Callable[[float], None] = time.sleep) -> None:
    """The claim is not in the store afterwards. Raises StoreError after a few tries: it expires anyway."""

    def changes(snapshot: Snapshot) -> Mapping[str, bytes | Path]:
        content = without(snapshot.files.get(CLAIMS), claim.nonce)
        return {} if content is None else {CLAIMS: content}

    contention.insist(
        store, lambda: store.read(CLAIMS), changes, f"Release the claim to {claim.wheel}", pause, tries=_RELEASE_TRIES
    )


def _document(content: bytes | None) -> tuple[dict[str, Any], str]:
    """claims.json as it is, with all that we do not know; an empty one, and why, for what cannot be understood."""
    empty: dict[str, Any] = {"schema": _SCHEMA, "claims": []}
    if content is None:
        return empty, ""
    if len(content) > _LARGEST:
        return empty, f"{CLAIMS} is larger than {ui.size(_LARGEST)}"
    try:
        found = load_json(content, CLAIMS)
    except ManifestError as problem:
        return empty, problem.what
    if not isinstance(found, dict) or not isinstance(found.get("claims", []), list):
        return empty, f"{CLAIMS} is not a list of claims"
    return {**empty, **found}, ""


def _claim(item: object) -> Claim | None:
    """A claim, None for what is none. Its words are of others: they end up in lines on a terminal."""
    if not isinstance(item, dict):
        return None
    values = {field.name: item.get(field.name) for field in fields(Claim)}
    texts = [value for name, value in values.items() if name != "renewals"]
    if not all(isinstance(text, str) and text.isprintable() and len(text) <= 200 for text in texts):
        return None
    renewals = values["renewals"]
    if not isinstance(renewals, int) or not values["build_key"] or not values["nonce"]:
        return None
    return Claim(**values)  # type: ignore[arg-type]
