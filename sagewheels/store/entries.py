"""The entries of an index: pure functions from the small files of a store to wheel manifests, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sagewheels import bad, ui
from sagewheels.bad import Mark
from sagewheels.errors import StoreError
from sagewheels.manifest import LATER, ManifestError, WheelManifest, load_json, parse, when
from sagewheels.store import Snapshot

INDEX, LATEST = "index.json", "latest.json"
SCHEMA = 1
MEND = "Mend it by hand or bring back its last good version from the store's history, then publish again"


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

    Of two of which one is signed, that one's keys stay as they were signed.

    Raises ManifestError when they are of two different files.
    """
    if old.wheel_sha256 and new.wheel_sha256 and old.wheel_sha256 != new.wheel_sha256:
        raise ManifestError(f"{new.wheel_file} is listed with two different sha256")
    said = {key: value for key, value in new.data.items() if value is not None}
    proofs = {(proof.gpu, proof.at_utc): dict(proof.raw) for proof in (*old.proofs, *new.proofs)}
    if proofs:
        said["proofs"] = [proofs[key] for key in sorted(proofs, key=lambda key: (when(key[1]), key))]
    both = {**old.data, **said}
    signed = next((one for one in (new, old) if one.data.get("signature")), None)
    if signed:
        later = {key: value for key, value in both.items() if key in LATER}
        both = {**later, **signed.signed_part, "signature": signed.data["signature"]}
    return parse(both, new.wheel_file)


def document(snapshot: Snapshot) -> dict[str, Any]:
    """index.json to be added to, a new one where there is none. Raises StoreError for one that cannot be understood."""
    if INDEX not in snapshot.files:
        return {"schema": SCHEMA, "wheels": []}
    if what := damage(snapshot):
        raise StoreError(f"the store's {what}, so nothing was published", MEND)
    found: Any = load_json(snapshot.files[INDEX], INDEX)
    if isinstance(found.get("schema"), int) and found["schema"] > SCHEMA:
        raise StoreError(f"the store's {INDEX} was written by a newer sagewheels", "Update sagewheels")
    return {"schema": SCHEMA, "wheels": [], **found}


def damage(snapshot: Snapshot) -> str:
    """What is wrong with index.json as a whole, which then says nothing of what the store holds; empty for nothing."""
    if INDEX not in snapshot.files:
        return ""
    try:
        found = load_json(snapshot.files[INDEX], INDEX)
    except ManifestError as problem:
        return problem.what
    is_list = isinstance(found, dict) and isinstance(found.get("wheels", []), list)
    return "" if is_list else f"{INDEX} is not a list of wheels"


def marks(snapshot: Snapshot) -> tuple[list[Mark], list[str]]:
    """The wheels that index.json says are bad, and one line when some of that cannot be used."""
    content = snapshot.files.get(INDEX, b"")
    try:
        # An index of ten thousand wheels is not read twice for nothing.
        found = load_json(content, INDEX) if bad.KEY.encode() in content else {}
    except ManifestError:  # `entries` has said so
        found = {}
    listed = found.get(bad.KEY) if isinstance(found, dict) else None
    if not isinstance(listed, (list, type(None))):
        return [], [f"{INDEX}: {bad.KEY} is not a list and is passed over"]
    read = [bad.read(item) for item in listed or ()]
    unread = read.count(None)
    problems = [f"{INDEX}: {ui.count(unread, 'mark')} in {bad.KEY} cannot be read"] if unread else []
    return [mark for mark in read if mark], problems


def latest(snapshot: Snapshot) -> WheelManifest | None:
    """The wheel that latest.json names; None when there is none or it cannot be read."""
    try:
        return parse(load_json(snapshot.files.get(LATEST, b""), LATEST), LATEST)
    except ManifestError:
        return None


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
        if name == LATEST and found != {}:
            yield name, found
        elif name == LATEST:  # the wheel that it named turned out to be bad, and there is no other
            continue
        elif isinstance(found, dict) and isinstance(found.get("wheels", []), list):
            yield from ((f"{name} entry {at}", data) for at, data in enumerate(found.get("wheels", []), 1))
        else:
            problems.append(f"{name} is not a list of wheels.")


def written(document: Mapping[str, Any]) -> bytes:
    """index.json or claims.json as it is published. Raises RecursionError for one that is nested too deep."""
    return encoded(json.dumps(document, indent=1, sort_keys=True) + "\n")


def encoded(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON allows and UTF-8 does not, stays the escape that it was."""
    return text.encode("utf-8", "backslashreplace")
