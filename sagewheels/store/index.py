"""What a store holds: reading the index, and adding to it without losing what others add at the same time."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewheels import arch
from sagewheels.errors import Refused, StoreError
from sagewheels.manifest import ManifestError, WheelManifest, load_json, parse
from sagewheels.store import Conflict, Snapshot, Store

INDEX, LATEST, CARD = "index.json", "latest.json", "README.md"
SCHEMA = 1
TRIES = 12
BEGIN, END = "<!-- sagewheels:begin -->", "<!-- sagewheels:end -->"

_MEND = "Mend it by hand or bring back its last good version from the store's history, then publish again"
_LAG_TRIES = 5
_FRONT = "---\npretty_name: Wheels for CUDA and PyTorch\ntags:\n- wheels\n- cuda\n- pytorch\n---\n"
_COLUMNS = ("version", "Python", "torch", "CUDA", "archs", "proven on")
_NEVER = datetime.min.replace(tzinfo=timezone.utc)


def load(store: Store) -> tuple[list[WheelManifest], list[str], Snapshot]:
    """All entries of a store, what was wrong with others, and what was read, in one read. Raises StoreError."""
    snapshot = store.read(INDEX, LATEST)
    return *entries(snapshot), snapshot


def entries(snapshot: Snapshot) -> tuple[list[WheelManifest], list[str]]:
    """The wheels that index.json and latest.json list, and one line for each entry that cannot be used."""
    found, problems = dict[str, WheelManifest](), list[str]()
    for where, data in _listed(snapshot, problems):
        try:
            entry = parse(data, where)
            known = found.get(entry.wheel_file)
            found[entry.wheel_file] = merge(entry, known) if known else entry
        except ManifestError as problem:
            problems.append(str(problem))
    return list(found.values()), problems


def merge(old: WheelManifest, new: WheelManifest) -> WheelManifest:
    """Both manifests of one wheel in one: what `new` says wins, no key and no proof of `old` is lost.

    Raises ManifestError when they are of two different files.
    """
    if old.wheel_sha256 and new.wheel_sha256 and old.wheel_sha256 != new.wheel_sha256:
        raise ManifestError(f"{new.wheel_file} is listed with two different sha256")
    said = {key: value for key, value in new.data.items() if value is not None}
    proofs = {(proof.gpu, proof.at_utc): dict(proof.raw) for proof in (*old.proofs, *new.proofs)}
    if proofs:
        said["proofs"] = [proofs[key] for key in sorted(proofs, key=lambda key: (_when(key[1]), key))]
    return parse({**old.data, **said}, new.wheel_file)


def publish(store: Store, wheel: Path, manifest: WheelManifest, *, pause: Callable[[float], None] = time.sleep) -> bool:
    """Wheel, manifest, index and card are in the store afterwards, in one commit; False when they already were.

    Raises Refused when the file is not what the manifest says; StoreError when another file of that name is there,
    when the index cannot be read, or when the store does not take it.
    """
    if wheel.name != manifest.wheel_file or _sha256(wheel) != manifest.wheel_sha256:
        raise Refused(f"{wheel} is not the file that its manifest describes", "Build it again")
    return _commit(store, manifest, wheel, f"Publish {manifest.wheel_file}", pause)


def add_proof(store: Store, manifest: WheelManifest, *, pause: Callable[[float], None] = time.sleep) -> bool:
    """The proofs of this manifest are in the store afterwards, in one commit; False when they already were.

    Raises StoreError when the wheel is not in the store, and as `publish` does.
    """
    return _commit(store, manifest, None, f"Prove {manifest.wheel_file}", pause)


def initialise(store: Store, *, pause: Callable[[float], None] = time.sleep) -> bool:
    """Index and card are in the store afterwards, whatever else is; False when they already were. Raises StoreError."""

    def changes(snapshot: Snapshot) -> dict[str, bytes | Path]:
        if INDEX in snapshot.files and CARD in snapshot.files:
            return {}
        return _pages(store, snapshot, _document(snapshot), entries(snapshot)[0])

    return _insist(store, changes, "Prepare the store", pause)


def _commit(
    store: Store, manifest: WheelManifest, wheel: Path | None, message: str, pause: Callable[[float], None]
) -> bool:
    """One commit that adds this manifest, and the wheel if given, to whatever the store holds by then."""
    looks = 0

    def changes(snapshot: Snapshot) -> dict[str, bytes | Path]:
        nonlocal looks
        looks += 1
        document, known = _document(snapshot), entries(snapshot)[0]
        there = next((entry for entry in known if entry.wheel_file == manifest.wheel_file), None)
        if there is None and any(_names(old, manifest.wheel_file) for old in document["wheels"]):
            raise StoreError(f"the entry for {manifest.wheel_file} in {INDEX} of {store.label} cannot be read", _MEND)
        if there is None and wheel is None:
            if looks < _LAG_TRIES:
                # Right after a publish, a Hub may still answer with the state before it.
                raise Conflict(f"{manifest.wheel_file} is not in {store.label} yet")
            raise StoreError(f"{manifest.wheel_file} is not in {store.label}", "Upload it first")
        if there and there.wheel_sha256 != manifest.wheel_sha256:
            text = f"{store.label} already holds another {manifest.wheel_file}, of sha256 {there.wheel_sha256 or '?'}"
            raise StoreError(text, "Nobody's wheel is overwritten: remove that one yourself, or use another store")
        if there and _keys(manifest) <= _keys(there):
            return {}
        entry = _complete(store, there, manifest)
        return _additions(store, snapshot, document, known=known, entry=entry, wheel=wheel)

    return _insist(store, changes, message, pause)


def _insist(
    store: Store,
    changes: Callable[[Snapshot], Mapping[str, bytes | Path]],
    message: str,
    pause: Callable[[float], None],
) -> bool:
    """Reads, merges and commits until nobody came between; False when there was nothing to change from the start."""
    for attempt in range(TRIES):
        if attempt:
            pause(random.uniform(0.3, 1.0) * min(8.0, 0.25 * 2**attempt))
        snapshot = store.read(INDEX, LATEST, CARD)
        try:
            files = changes(snapshot)
            if files:
                store.commit(snapshot.revision, files, message)
        except Conflict:
            continue
        else:
            return bool(files) or attempt > 0
    raise StoreError(f"{store.label} kept changing during {TRIES} tries", "Try again when others have finished")


def _complete(store: Store, there: WheelManifest | None, manifest: WheelManifest) -> WheelManifest:
    """The manifest as it is to be published: with what the store knows of the wheel, and with its address."""
    address = store.address(manifest.wheel_file)
    if "://" in address and not manifest.data.get("hf_wheel_url"):
        manifest = manifest.updated(hf_wheel_url=address)
    return merge(there, manifest) if there else manifest


def _additions(
    store: Store,
    snapshot: Snapshot,
    document: dict[str, Any],
    *,
    known: Iterable[WheelManifest],
    entry: WheelManifest,
    wheel: Path | None,
) -> dict[str, bytes | Path]:
    """The files of one commit: wheel, manifest, index, card, and latest.json if this is the newest proven wheel."""
    everything = [other for other in known if other.wheel_file != entry.wheel_file] + [entry]
    files: dict[str, bytes | Path] = {wheel.name: wheel} if wheel else {}
    files[f"{entry.wheel_file}.json"] = _text(entry.to_json())
    files.update(_pages(store, snapshot, document, everything))
    newest = max((_when(other.created_at_utc) for other in everything if other.proofs), default=_NEVER)
    if entry.proofs and _when(entry.created_at_utc) >= newest:
        files[LATEST] = files[f"{entry.wheel_file}.json"]
    return files


def _pages(
    store: Store, snapshot: Snapshot, document: dict[str, Any], everything: list[WheelManifest]
) -> dict[str, bytes | Path]:
    """index.json with these entries, in their old places, and the card."""
    waiting = {entry.wheel_file: dict(entry.data) for entry in everything}
    wheels = list[Any]()
    for old in document["wheels"]:
        name = old.get("wheel_file") if isinstance(old, dict) else None
        wheels.append(waiting.pop(name, old) if isinstance(name, str) else old)
    index = {**document, "wheels": wheels + list(waiting.values())}
    old_card = snapshot.files.get(CARD, b"").decode("utf-8", "replace")
    return {
        INDEX: _text(json.dumps(index, indent=1, sort_keys=True) + "\n"),
        CARD: _text(card(everything, store, old_card)),
    }


def _document(snapshot: Snapshot) -> dict[str, Any]:
    """index.json to be added to, a new one where there is none. Raises StoreError for one that cannot be understood."""
    if INDEX not in snapshot.files:
        return {"schema": SCHEMA, "wheels": []}
    try:
        found = load_json(snapshot.files[INDEX], INDEX)
    except ManifestError as problem:
        raise StoreError(f"the store's {problem.what}, so nothing was published", _MEND) from None
    if not isinstance(found, dict) or not isinstance(found.get("wheels", []), list):
        raise StoreError(f"the store's {INDEX} is not a list of wheels, so nothing was published", _MEND)
    if isinstance(found.get("schema"), int) and found["schema"] > SCHEMA:
        raise StoreError(f"the store's {INDEX} was written by a newer sagewheels", "Update sagewheels")
    return {"schema": SCHEMA, "wheels": [], **found}


def _listed(snapshot: Snapshot, problems: list[str]) -> Iterable[tuple[str, object]]:
    """Where each entry stands, and its JSON."""
    for name in (INDEX, LATEST):
        if name not in snapshot.files:
            continue
        try:
            found = load_json(snapshot.files[name], name)
        except ManifestError as problem:
            problems.append(str(problem))
            continue
        if name == LATEST:
            yield name, found
        elif isinstance(found, dict) and isinstance(found.get("wheels", []), list):
            yield from ((f"{name} entry {at}", data) for at, data in enumerate(found.get("wheels", []), 1))
        else:
            problems.append(f"{name} is not a list of wheels.")


def card(entries: Iterable[WheelManifest], store: Store, old: str = "") -> str:
    """README.md with the table of wheels and their install lines; all that `old` says outside our marks is kept."""
    newest = sorted(entries, key=lambda entry: (_when(entry.created_at_utc), entry.wheel_file), reverse=True)
    region = "\n".join([BEGIN, *_table(newest), *_lines(newest, store), END])
    if not old.strip():
        name = store.label.partition("://")[2].partition("@")[0].rpartition("/")[2] or "wheels"
        old = f"# {name}\n\nWheels that were compiled and checked with sagewheels.\n"
    if not old.startswith("---"):
        old = _FRONT + "\n" + old
    before, begin, rest = old.partition(BEGIN)
    after = rest.partition(END)[2] if END in rest else rest
    if not begin:
        before, after = before.rstrip("\n") + "\n\n", "\n"
    return before + region + after


def _table(entries: Iterable[WheelManifest]) -> list[str]:
    rows = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    for entry in entries:
        proven = ", ".join(dict.fromkeys(proof.gpu for proof in entry.proofs)) or "not yet"
        cells = (entry.version, entry.tags[0], entry.torch, entry.cuda, arch.join(entry.archs), proven)
        rows.append(" | ".join(_cell(cell) for cell in cells))
    return ["", *(f"| {row} |" for row in rows), ""]


def _lines(entries: Iterable[WheelManifest], store: Store) -> list[str]:
    lines = list[str]()
    for entry in entries:
        address = store.address(entry.wheel_file)
        address = address if "://" in address else Path(address).as_uri()
        check = f"#sha256={entry.wheel_sha256}" if entry.wheel_sha256 else ""
        lines += ["```sh", f'pip install "{address}{check}"', "```", ""]
    return lines


def _cell(text: str) -> str:
    """Text for a table: what others wrote into a manifest must not become markup."""
    return re.sub(r"[^\w .,:;+()/-]", "", text)[:120] or "?"


def _names(entry: object, wheel_file: str) -> bool:
    """Whether an entry, be it usable or not, is about this wheel."""
    return isinstance(entry, dict) and entry.get("wheel_file") == wheel_file


def _keys(manifest: WheelManifest) -> set[tuple[str, str]]:
    return {(proof.gpu, proof.at_utc) for proof in manifest.proofs}


def _when(text: str) -> datetime:
    """A moment, long ago when the text is not one."""
    try:
        found = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
    except ValueError:
        return _NEVER
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _text(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON allows and UTF-8 does not, stays the escape that it was."""
    return text.encode("utf-8", "backslashreplace")


def _sha256(path: Path) -> str:
    """Raises Refused when there is no such file."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror})", "Build it again") from None
    return digest.hexdigest()
