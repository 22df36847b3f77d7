"""A store whose index is signed: nothing is read that nobody trusted vouches for, and what is written is signed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sagewheels.errors import StoreError, Untrusted
from sagewheels.manifest import ManifestError, load_json
from sagewheels.store import Conflict, Snapshot, Store, serials
from sagewheels.store.entries import INDEX, LATEST, written
from sagewheels.trust import Trust, canonical

_LAG_TRIES, _DAMAGE_TRIES = 4, 3
_HIGHEST = 10**12
_LEAP = 10**6
"""Commits that may have been missed: a stolen key must not use up, with one index, all serials that there are."""
_REMEDY = "Its signers can mend it (init-hf --sign), auto --rebuild does without it"


class GuardedStore:
    """The store protocol around another store; where neither trust nor a key is set, all goes through as it is.

    `memory` is the file of the serials that were seen, `least` the lowest that is believed. `adopting` reads and
    signs an index that nobody vouches for: the caller takes out of it what must not be vouched for.
    """

    def __init__(
        self,
        inner: Store,
        trust: Trust,
        memory: Path,
        *,
        least: int = 0,
        adopting: bool = False,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner, self._trust, self._memory = inner, trust, memory
        self._least, self._adopting, self._pause = least, adopting, pause
        self._last: Snapshot | None = None
        self.standing = ""
        """`index serial 17, signed by NAME`, once an index was verified or signed."""

    @property
    def label(self) -> str:
        """That of the store inside."""
        return self._inner.label

    @property
    def writable(self) -> bool:
        """Whether `commit` can be tried at all."""
        return self._inner.writable

    @property
    def publishable(self) -> bool:
        """Whether an index of ours would be taken, as far as what was read last tells."""
        signed = self._last is not None and bool((_document(self._last) or {}).get("signature"))
        return self.writable and (self._trust.signs or not (self._trust.enforced or signed))

    def adopting(self) -> GuardedStore:
        """The same store, to sign for the first time, or anew after its signer is trusted no longer."""
        return GuardedStore(self._inner, self._trust, self._memory, least=self._least, adopting=True, pause=self._pause)

    def read(self, *paths: str) -> Snapshot:
        """As the store inside; where signatures are enforced, what is not signed or older than before is not read.

        latest.json, which nobody signs, says what a signed index says of the wheel that it names, or is not there.
        Raises StoreError, and Untrusted for an index that cannot be believed.
        """
        snapshot = self._inner.read(*paths)
        if INDEX not in paths:
            return snapshot
        self._last = snapshot
        if self._adopting or not (self._trust.enforced or self._trust.signs):
            return snapshot
        if self._trust.enforced:
            snapshot = self._last = self._settled(snapshot, paths)
        document = _document(snapshot)
        if not self._trust.enforced and not (document or {}).get("signature"):
            return snapshot
        return Snapshot(revision=snapshot.revision, files=_without_strangers(snapshot.files, document))

    def _settled(self, snapshot: Snapshot, paths: tuple[str, ...]) -> Snapshot:
        """What is believed of what came, or comes when it is asked for again. Raises Untrusted.

        Right after a commit a Hub may still answer with the state before it, and bytes may be damaged on their way.
        """
        for attempt in range(1, _LAG_TRIES + 1):
            document = _document(snapshot)
            try:
                self._believe(snapshot, document)
                return snapshot
            except Untrusted:
                is_old = document is not None and _serial(document) < self._floor()
                if attempt == _LAG_TRIES or (attempt == _DAMAGE_TRIES and not is_old):
                    raise
            if is_old:
                self._pause(random.uniform(0.3, 1.0) * 2**attempt)
            snapshot = self._inner.read(*paths)
        raise AssertionError("unreachable")

    def names(self) -> list[str]:
        """The paths of all files."""
        return self._inner.names()

    def download(self, path: str, to: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Writes one file to `to`; the caller checks the hash."""
        self._inner.download(path, to, progress)

    def commit(self, parent: str, files: Mapping[str, bytes | Path], message: str) -> str:
        """As the store inside, with the next serial and our signature on the index.

        Raises StoreError for a signed store without SIGNING_KEY, and for an index that we cannot vouch for: whoever
        signs has first verified what the new one is built on.
        """
        index = files.get(INDEX)
        if not isinstance(index, bytes):
            return self._inner.commit(parent, files, message)
        before = self._at(parent)
        if not self._trust.signs:
            self._demand_unsigned(before)
            return self._inner.commit(parent, files, message)
        serial = self._verified(before) + 1
        document, name = self._trust.sign_index({**json.loads(index), "serial": serial})
        revision = self._inner.commit(parent, {**files, INDEX: written(document)}, message)
        serials.remember(self._memory, self.label, serial)
        self.standing = _standing(serial, name)
        return revision

    def address(self, path: str) -> str:
        """What to give `pip install` for this file."""
        return self._inner.address(path)

    def is_private(self) -> bool:
        """Whether reading needs a token."""
        return self._inner.is_private()

    def initialise(self) -> None:
        """Creates the repository or folder when it is not there."""
        self._inner.initialise()

    def rights(self) -> str:
        """In words, who may do what here. Raises StoreError when writing is not allowed."""
        return self._inner.rights()

    def objection(self, snapshot: Snapshot) -> str:
        """Why what the store holds is not to be believed; empty where it is, or where it holds nothing."""
        try:
            self._believe(snapshot, _document(snapshot))
        except Untrusted as problem:
            return problem.what
        return ""

    def _at(self, parent: str) -> Snapshot:
        """What the store held at `parent`. Raises Conflict when it holds something else by now."""
        if self._last is None or self._last.revision != parent:
            self._last = self._inner.read(INDEX, LATEST)
        if self._last.revision != parent:
            raise Conflict(f"{self.label} was changed by somebody else", "Try again")
        return self._last

    def _demand_unsigned(self, before: Snapshot) -> None:
        if self._trust.enforced or (_document(before) or {}).get("signature"):
            who = "is signed" if INDEX in before.files else "has to be signed (TRUSTED_SIGNERS)"
            remedy = "Set it to the key of a signer, or publish from a machine that has one"
            raise StoreError(f"{self.label} {who}, and SIGNING_KEY is not set", remedy)

    def _verified(self, before: Snapshot) -> int:
        """The serial of the index that ours follows, 0 for an empty store.

        Raises StoreError for an index on which we would build what we cannot vouch for.
        """
        document = _document(before)
        if self._adopting:
            # One that others would not believe is no serial of ours.
            floor, claimed = self._floor(), _serial(document)
            return max(floor, claimed if claimed < floor + _LEAP else 0)
        try:
            self._believe(before, document)
        except Untrusted as problem:
            raise StoreError(f"nothing was published: {problem.what}", "init-hf --sign adopts what is there") from None
        return _serial(document)

    def _believe(self, snapshot: Snapshot, document: dict[str, Any] | None) -> None:
        """Somebody whom we trust signed this index, and none that is newer was seen; or the store is new and empty.

        Raises Untrusted.
        """
        floor = self._floor()
        if not {INDEX, LATEST} & set(snapshot.files):
            if floor:
                raise Untrusted(f"{self.label} holds no {INDEX}, and serial {floor} was seen before", _REMEDY)
            return
        document = document or {}
        answer, serial = self._trust.of_index(document), _serial(document)
        if answer.reason:
            raise Untrusted(f"{INDEX} of {self.label} {answer.reason}", _REMEDY)
        if serial < max(1, floor):
            what = f"{INDEX} of {self.label} has serial {serial}, and {floor} is the least that is believed here"
            raise Untrusted(f"{what}: an older state was put back", _REMEDY)
        if serial > floor + _LEAP:
            what = f"{INDEX} of {self.label} has serial {serial}, more than a million beyond the {floor} known here"
            raise Untrusted(what, f"Set MIN_INDEX_SERIAL={serial} if that is right, else init-hf --sign mends it")
        serials.remember(self._memory, self.label, serial)
        self.standing = _standing(serial, answer.signer)

    def _floor(self) -> int:
        return max(self._least, serials.seen(self._memory, self.label))


def _standing(serial: int, signer: str) -> str:
    return f"index serial {serial}, signed {'with' if signer == 'SIGNING_KEY' else 'by'} {signer}"


def _document(snapshot: Snapshot) -> dict[str, Any] | None:
    """The index as JSON, None where there is none; one that cannot be read is as one that is not signed."""
    if INDEX not in snapshot.files:
        return None
    try:
        found = load_json(snapshot.files[INDEX], INDEX)
    except ManifestError:
        return {}
    return found if isinstance(found, dict) else {}


def _serial(document: Mapping[str, Any] | None) -> int:
    """The serial that an index claims, 0 for one that cannot be."""
    claimed = (document or {}).get("serial")
    return claimed if type(claimed) is int and 0 < claimed < _HIGHEST else 0


def _without_strangers(files: Mapping[str, bytes], document: Mapping[str, Any] | None) -> dict[str, bytes]:
    """The files, latest.json replaced by the index's own entry of that wheel, or left out."""
    kept = {name: content for name, content in files.items() if name != LATEST}
    try:
        named = load_json(files[LATEST], LATEST) if LATEST in files else None
    except ManifestError:
        named = None
    name = named.get("wheel_file") if isinstance(named, dict) else None
    listed = (document or {}).get("wheels")
    for entry in listed if isinstance(listed, list) and name else ():
        if isinstance(entry, dict) and entry.get("wheel_file") == name:
            kept[LATEST] = canonical(entry).encode()
    return kept
