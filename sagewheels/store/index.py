"""What a store holds: reading the index, and adding to it without losing what others add at the same time."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sagewheels import bad
from sagewheels.bad import Mark, Marks
from sagewheels.errors import Refused, StoreError
from sagewheels.manifest import ManifestError, WheelManifest, parse, when
from sagewheels.store import Conflict, Snapshot, Store, contention
from sagewheels.store.entries import INDEX, LATEST, MEND, damage, document, encoded, entries, latest, merge, written
from sagewheels.store.hub_repo import CARD, PAGE
from sagewheels.wheel import file_hash

READS = 3
UNVOUCHED_MARKS = f"unvouched_{bad.KEY}"

Along = Mapping[str, Callable[[bytes | None], bytes | None]]
"""Small files that change in the same commit: from what each is to what it becomes, None for no change."""
Vouch = Callable[[WheelManifest | None, WheelManifest], WheelManifest]
"""From the entry that is there, if any, and a manifest to the entry to be published, with its maker's signature."""

_LAG_TRIES = 5
_OURS = "Nobody's wheel is overwritten: remove that one yourself, or use another store"


def load(
    store: Store, *, pause: Callable[[float], None] = time.sleep
) -> tuple[list[WheelManifest], list[str], Snapshot]:
    """All entries of a store, what was wrong with others, and what was read, in one read.

    Raises StoreError, also for an index that stays damaged: what such a store holds, nobody knows.
    """
    found, problems, snapshot = _look(store, pause, INDEX, LATEST)
    if problems and (what := damage(snapshot)):
        raise StoreError(f"the store's {what}", f"Try again later. {MEND}")
    return found, problems, snapshot


def publish(
    store: Store,
    wheel: Path,
    manifest: WheelManifest,
    *,
    vouch: Vouch | None = None,
    along: Along | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Wheel, manifest, index, card and page are in the store afterwards, in one commit; False when they already were.

    Without `vouch` nothing is signed. What `along` changes is in that commit too, if there is one.

    Raises Refused when the file is not what the manifest says; StoreError when another file of that name is there,
    listed or not, when the index cannot be read, or when the store does not take it.
    """
    if wheel.name != manifest.wheel_file or _sha256(wheel) != manifest.wheel_sha256:
        raise Refused(f"{wheel} is not the file that its manifest describes", "Build it again")
    return _commit(store, manifest, wheel, f"Publish {manifest.wheel_file}", pause, vouch, along)


def add_proof(store: Store, manifest: WheelManifest, *, pause: Callable[[float], None] = time.sleep) -> bool:
    """The proofs of this manifest are in the store afterwards, in one commit; False when they already were.

    Raises StoreError when the wheel is not in the store, and as `publish` does.
    """
    return _commit(store, manifest, None, f"Prove {manifest.wheel_file}", pause)


def add_mark(store: Store, mark: Mark, *, pause: Callable[[float], None] = time.sleep) -> bool:
    """The store says that this wheel is bad afterwards, in one commit; False when it already did.

    latest.json does not name it any more. Raises StoreError when the wheel is not in the store, and as `publish` does.
    """
    looks = 0

    def changes(snapshot: Snapshot) -> dict[str, bytes | Path]:
        nonlocal looks
        looks += 1
        index, known = document(snapshot), entries(snapshot)[0]
        if not any(one.wheel_file == mark.wheel_file and one.wheel_sha256 in ("", mark.wheel_sha256) for one in known):
            error = Conflict if looks < _LAG_TRIES else StoreError
            raise error(f"{mark.wheel_file} is not in {store.label}")
        listed = index.get(bad.KEY) or []
        if not isinstance(listed, list):
            raise StoreError(f"{bad.KEY} in {INDEX} of {store.label} is not a list", MEND)
        index[bad.KEY] = bad.added(listed, mark)
        if index[bad.KEY] == listed:
            return {}
        return {**_pages(store, snapshot, index, known), **_pointer(snapshot, known, _marks(index))}

    return _insist(store, changes, f"Mark {mark.wheel_file} as bad", pause)


def initialise(store: Store, *, pause: Callable[[float], None] = time.sleep) -> bool:
    """Index, card and page are in the store afterwards; False when they already were. Raises StoreError."""

    def changes(snapshot: Snapshot) -> dict[str, bytes | Path]:
        if {INDEX, CARD, PAGE} <= snapshot.files.keys():
            return {}
        return _pages(store, snapshot, document(snapshot), entries(snapshot)[0])

    return _insist(store, changes, "Prepare the store", pause)


def adopt(store: Store, objection: Callable[[Snapshot], str], *, pause: Callable[[float], None] = time.sleep) -> bool:
    """The store has an index that whoever signs commits can vouch for; False when there is one without `objection`.

    Of an index that nobody vouches for the wheels stay, each with its maker's signature; proofs and marks become
    `unvouched_proofs` and `unvouched_known_bad`, which count for nothing. Raises StoreError.
    """

    def changes(snapshot: Snapshot) -> dict[str, bytes | Path]:
        if INDEX in snapshot.files and not objection(snapshot):
            return {}
        index = document(snapshot)
        index["wheels"] = [_without_proofs(item) if isinstance(item, dict) else item for item in index["wheels"]]
        if marks := index.pop(bad.KEY, None):
            kept = index.get(UNVOUCHED_MARKS)
            listed = [kept if isinstance(kept, list) else [], marks if isinstance(marks, list) else [marks]]
            index[UNVOUCHED_MARKS] = [*listed[0], *listed[1]]
        known = [one.updated(**_without_proofs(one.data)) for one in entries(snapshot)[0]]
        return _pages(store, snapshot, index, known)

    return _insist(store, changes, "Sign the index", pause)


def _without_proofs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with its proofs moved to where they are kept and not counted."""
    proofs, kept = entry.get("proofs"), entry.get("unvouched_proofs")
    if not proofs:
        return dict(entry)
    return {**entry, "proofs": [], "unvouched_proofs": [*(kept if isinstance(kept, list) else []), *proofs]}


def _commit(
    store: Store,
    manifest: WheelManifest,
    wheel: Path | None,
    message: str,
    pause: Callable[[float], None],
    vouch: Vouch | None = None,
    along: Along | None = None,
) -> bool:
    """One commit that adds this manifest, and the wheel if given, to whatever the store holds by then."""
    looks, found = 0, dict[str, str]()

    def changes(snapshot: Snapshot) -> dict[str, bytes | Path]:
        nonlocal looks
        looks += 1
        index, known = document(snapshot), entries(snapshot)[0]
        there = next((entry for entry in known if entry.wheel_file == manifest.wheel_file), None)
        if there is None:
            _demand_room(store, index, manifest, wheel, found, patient=looks < _LAG_TRIES)
        elif there.wheel_sha256 != manifest.wheel_sha256:
            text = f"{store.label} already holds another {manifest.wheel_file}, of sha256 {there.wheel_sha256 or '?'}"
            raise StoreError(text, _OURS)
        elif _keys(manifest) <= _keys(there) and not vouch:
            return {}
        entry = _complete(store, there, manifest, vouch)
        if there and _keys(entry) == _keys(there) and entry.data.get("signature") == there.data.get("signature"):
            return {}
        files = _additions(store, snapshot, index, known=known, entry=entry, wheel=wheel)
        for path, change in (along or {}).items():
            if (content := change(snapshot.files.get(path))) is not None:
                files[path] = content
        return files

    return _insist(store, changes, message, pause, along)


def _demand_room(
    store: Store,
    index: Mapping[str, Any],
    manifest: WheelManifest,
    wheel: Path | None,
    found: dict[str, str],
    *,
    patient: bool,
) -> None:
    """Nothing when this manifest may become a new entry. `found` keeps the hash of what was downloaded to find out.

    Raises StoreError, or Conflict while `patient`, when there is no wheel for it; StoreError when an entry that cannot
    be read has its name, and when a file that no entry lists has its name and is another.
    """
    name = manifest.wheel_file
    if any(isinstance(old, dict) and old.get("wheel_file") == name for old in index["wheels"]):
        raise StoreError(f"the entry for {name} in {INDEX} of {store.label} cannot be read", MEND)
    if wheel is None and patient:
        # Right after a publish, a Hub may still answer with the state before it.
        raise Conflict(f"{name} is not in {store.label} yet")
    if wheel is None:
        raise StoreError(f"{name} is not in {store.label}", "Upload it first")
    if name not in found and name in store.names():
        # What an upload left behind that was killed, or what somebody put there by hand.
        with tempfile.TemporaryDirectory(prefix="sagewheels-") as folder:
            store.download(name, Path(folder) / name)
            found[name] = _sha256(Path(folder) / name)
        if found[name] != manifest.wheel_sha256:
            raise StoreError(f"{store.label} already holds another {name}, which {INDEX} does not list", _OURS)


def _insist(
    store: Store,
    changes: contention.Changes,
    message: str,
    pause: Callable[[float], None],
    along: Along | None = None,
) -> bool:
    """`contention.insist` on the files that say what the store holds, and those that change with them."""
    paths = (INDEX, LATEST, CARD, PAGE, *(along or ()))
    return contention.insist(store, lambda: _look(store, pause, *paths)[2], changes, message, pause)


def _look(store: Store, pause: Callable[[float], None], *paths: str) -> tuple[list[WheelManifest], list[str], Snapshot]:
    """Entries, problems and these files; asked for again where the index was damaged, on its way perhaps."""
    for attempt in range(READS):
        if attempt:
            pause(random.uniform(0.3, 1.0))
        snapshot = store.read(*paths)
        found, problems = entries(snapshot)
        # An index of ten thousand wheels is not read twice for nothing.
        if not problems or not damage(snapshot):
            break
    return found, problems, snapshot


def _complete(store: Store, there: WheelManifest | None, manifest: WheelManifest, vouch: Vouch | None) -> WheelManifest:
    """The manifest as it is to be published: with what the store knows of the wheel, and with its address.

    Who only adds a proof to a signed wheel leaves it as its maker signed it.
    """
    address = store.address(manifest.wheel_file)
    if "://" in address and not manifest.data.get("hf_wheel_url"):
        manifest = manifest.updated(hf_wheel_url=address)
    if vouch:
        return vouch(there, manifest)
    if there and there.data.get("signature"):
        return merge(manifest, there)
    return merge(there, manifest) if there else manifest


def _additions(
    store: Store,
    snapshot: Snapshot,
    index: Mapping[str, Any],
    *,
    known: Iterable[WheelManifest],
    entry: WheelManifest,
    wheel: Path | None,
) -> dict[str, bytes | Path]:
    """The files of one commit: wheel, manifest, index, card, page, and latest.json if this is the newest proven wheel.

    latest.json stays with the package that it names.
    """
    everything = [other for other in known if other.wheel_file != entry.wheel_file] + [entry]
    files: dict[str, bytes | Path] = {wheel.name: wheel} if wheel else {}
    files[f"{entry.wheel_file}.json"] = encoded(entry.to_json())
    if isinstance(index.get(bad.KEY), list):
        index = {**index, bad.KEY: bad.without_overruled(index[bad.KEY], entry)}
    files.update(_pages(store, snapshot, index, everything))
    return {**files, **_pointer(snapshot, everything, _marks(index), entry)}


def _pointer(
    snapshot: Snapshot, everything: Iterable[WheelManifest], marks: Marks, entry: WheelManifest | None = None
) -> dict[str, bytes | Path]:
    """latest.json, if it must change: to `entry` when that is the newest proven wheel, and away from a bad one.

    It stays with the package that it names; away from a bad one means to the newest proven wheel of it, or to none.
    """
    now = latest(snapshot)
    # Whoever reads latest.json installs what it names, without asking whether that is another package by now.
    name = now.name if now else entry.name if entry else ""
    good = [one for one in everything if one.name == name and bad.is_proven(one, marks)]
    if entry in good and when(entry.created_at_utc) >= max(when(one.created_at_utc) for one in good):
        return {LATEST: encoded(entry.to_json())}
    named = next((one for one in everything if now and one.wheel_file == now.wheel_file), None)
    if named is None or named in good or not bad.standing(named, marks):
        return {}
    newest = max(good, key=lambda one: when(one.created_at_utc), default=None)
    return {LATEST: encoded(newest.to_json() if newest else "{}\n")}


def _marks(index: Mapping[str, Any]) -> Marks:
    return bad.by_name(bad.readable(index.get(bad.KEY)))


def _pages(
    store: Store, snapshot: Snapshot, index: Mapping[str, Any], everything: list[WheelManifest]
) -> dict[str, bytes | Path]:
    """index.json with these entries, in their old places, the card and the page. What cannot be read stays as it is."""
    waiting = {entry.wheel_file: dict(entry.data) for entry in everything}
    wheels = list[Any]()
    for old in index["wheels"]:
        # One that cannot be read may be of a newer sagewheels: what latest.json says of its wheel must not replace it.
        wheels.append(waiting.pop(old["wheel_file"], old) if _is_readable(old) else old)
    try:
        after = written({**index, "wheels": wheels + list(waiting.values())})
    except RecursionError:
        raise StoreError(f"{INDEX} of {store.label} is nested too deep to be written again", MEND) from None
    from sagewheels.store.card import card
    from sagewheels.store.page import is_ours, page

    old_card = snapshot.files.get(CARD, b"").decode("utf-8", "replace")
    marks, private = _marks(index), store.is_private()
    files: dict[str, bytes | Path] = {
        INDEX: after,
        CARD: encoded(card(everything, store, old_card, marks, private=private)),
    }
    if is_ours(snapshot.files.get(PAGE, b"")):
        files[PAGE] = encoded(page(everything, store, marks, private=private))
    return files


def _keys(manifest: WheelManifest) -> set[tuple[str, str]]:
    return {(proof.gpu, proof.at_utc) for proof in manifest.proofs}


def _is_readable(entry: object) -> bool:
    try:
        parse(entry, INDEX)
    except ManifestError:
        return False
    return True


def _sha256(path: Path) -> str:
    """Raises Refused when there is no such file."""
    try:
        return file_hash(path)[0]
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror})", "Build it again") from None
