"""The highest serial of each store's index that was seen on this machine: an older one is not believed again."""

from __future__ import annotations

import json
from pathlib import Path

from sagewheels import ui
from sagewheels.errors import SageError
from sagewheels.files import arriving


def seen(path: Path, label: str) -> int:
    """The highest serial of this store, 0 for one that was never seen; a damaged memory is said, and is none."""
    return _read(path).get(label, 0)


def remember(path: Path, label: str, serial: int) -> None:
    """Remembers this serial unless a higher one is known, whole or not at all; what cannot be written is said."""
    known = _read(path)
    if serial <= known.get(label, 0):
        return
    try:
        with arriving(path) as stream:
            stream.write(f"{json.dumps({**known, label: serial}, indent=2, sort_keys=True)}\n".encode())
    except SageError as error:
        ui.warn("store", f"that serial {serial} was seen is not remembered: {error.what}")


def _read(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(type(value) is int for value in found.values()):
            raise ValueError("not a table of numbers")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        ui.warn("store", f"{path} cannot be read: which states of a store were seen before is not known")
        return {}
    return found
