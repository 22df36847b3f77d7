"""The local folder of built and fetched wheels, each with its manifest beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sagewheels import bad, ui, wheel
from sagewheels.bad import Mark
from sagewheels.config import Settings
from sagewheels.errors import SageError
from sagewheels.files import arriving, copy, small
from sagewheels.manifest import WheelManifest, loads
from sagewheels.store.entries import encoded

Made = tuple[Path, WheelManifest]
"""A wheel that is there, and what is known of it."""

MARKS = "known-bad.json"
"""What smoke found bad on this machine, whether or not the store could be told."""


def wheels(settings: Settings) -> list[Made]:
    """Every wheel that has a manifest; a manifest that cannot be read is said and passed over."""
    found = []
    for path in sorted(settings.wheelhouse_dir.glob("*.whl.json")):
        try:
            manifest = loads(small(path), str(path))
        except (SageError, OSError) as error:
            ui.warn("wheelhouse", f"{path.name} is passed over: {error}")
            continue
        if path.name == f"{manifest.wheel_file}.json" and path.with_suffix("").is_file():
            found.append((path.with_suffix(""), manifest))
    return found


def of_build_key(settings: Settings, key: str) -> Made | None:
    """The wheel of this build key, if its bytes are still what its manifest says."""
    for path, manifest in wheels(settings):
        if manifest.build_key == key and wheel.file_hash(path)[0] == manifest.wheel_sha256:
            return path, manifest
    return None


def keep(settings: Settings, path: Path, manifest: WheelManifest) -> Path:
    """Copies a wheel in, the manifest last: a manifest that is seen there has its wheel."""
    place = settings.wheelhouse_dir / manifest.wheel_file
    copy(path, place)
    write_manifest(settings, manifest)
    return place


def write_manifest(settings: Settings, manifest: WheelManifest) -> None:
    """Writes the manifest beside its wheel, whole or not at all."""
    with arriving(settings.wheelhouse_dir / f"{manifest.wheel_file}.json") as stream:
        stream.write(encoded(manifest.to_json()))


def raw_marks(settings: Settings) -> list[Any]:
    """The marks as JSON, none where they are damaged. Raises OSError for a file that is there and cannot be read now.

    Whoever writes the list again must not take that for an empty one.
    """
    try:
        found = json.loads(small(settings.wheelhouse_dir / MARKS).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return []
    listed = found.get(bad.KEY) if isinstance(found, dict) else None
    return listed if isinstance(listed, list) else []


def marks(settings: Settings) -> list[Mark]:
    """What smoke found bad on this machine; none where that cannot be read: marks spare a try, no more."""
    try:
        return bad.readable(raw_marks(settings))
    except OSError as error:
        ui.warn("wheelhouse", f"{settings.wheelhouse_dir / MARKS} cannot be read ({error.strerror})")
        return []


def write_marks(settings: Settings, listed: list[Any]) -> None:
    """Writes the marks, whole or not at all; the file goes with the last of them."""
    place = settings.wheelhouse_dir / MARKS
    if not listed:
        place.unlink(missing_ok=True)
        return
    with arriving(place) as stream:
        stream.write(f"{json.dumps({bad.KEY: listed}, indent=2, sort_keys=True)}\n".encode())
