"""The object cache: what was compiled once, found again by content, and checked whenever it is used."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sagewheels import ui
from sagewheels.files import sweep, unfinished
from sagewheels.manifest import SHA256
from sagewheels.wheel import file_hash

_SCHEMA = 2
"""2: an object is named by its hash."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A compiled unit: its object and its hash, the hashes of all that it was compiled from, and what it cost.

    `seconds` of wall time, `memory` in bytes for the largest process.
    """

    unit: str
    object: str
    dependencies: Mapping[str, str]
    seconds: float
    memory: int


class Objects:
    """A folder of entries, which may be shared: an entry is complete when it can be seen, and never changed."""

    def __init__(self, folder: Path, resolve: Callable[[str], Path]) -> None:
        """`resolve` says which file of this machine a dependency's name means."""
        self._folder, self._resolve = folder, resolve
        self._hashes: dict[str, str] = {}
        self._is_told = threading.Event()

    def find(self, key: str, output: Path) -> Entry | None:
        """The entry whose files are all as they were, with its object put at `output`; None when there is none."""
        for path, entry in self._entries(key):
            # What cannot be read, here or where it was compiled, is never the same.
            if not all(digest and self.hash_of(name) == digest for name, digest in entry.dependencies.items()):
                continue
            try:
                part = output.with_name(f".{output.name}.{threading.get_ident()}")
                shutil.copyfile(_regular(path.with_name(f"{entry.object}.o")), part)
                if _digest(part) == entry.object:
                    part.replace(output)
                    return entry
                part.unlink()
            except OSError:
                pass
            ui.say("build", f"the cached object of {entry.unit} is damaged: compiling it again")
        return None

    def keep(self, key: str, unit: str, made: Path, names: Iterable[str], *, seconds: float, memory: int) -> None:
        """Keeps a compiled object; a folder that cannot be written is said once, and the build goes on."""
        found = {name: self.hash_of(name) for name in names}
        entry = Entry(unit=unit, object=_digest(made), dependencies=found, seconds=round(seconds, 1), memory=memory)
        text = json.dumps({"schema": _SCHEMA, **asdict(entry)}, indent=1, sort_keys=True)
        name = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
        place = self._folder / key[:2] / key / name
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            sweep(place.parent)
            with unfinished(place.parent) as part:
                shutil.copyfile(made, part.name)
                # By its content: who compiles the same at the same time may get another one.
                Path(part.name).replace(place.with_name(f"{entry.object}.o"))
            with unfinished(place.parent) as part:
                Path(part.name).write_text(text, encoding="utf-8")
                # Last: whoever sees the entry sees its object too.
                Path(part.name).replace(place.with_suffix(".json"))
        except OSError as error:
            if not self._is_told.is_set():
                self._is_told.set()
                ui.warn(
                    "build",
                    f"objects cannot be kept in {self._folder} ({error.strerror}): they are compiled again. "
                    "Set OBJECT_CACHE_DIR to a folder that can be written",
                )

    def hash_of(self, name: str) -> str:
        """sha256 of a file by the name that entries give it, empty when it is not there; read once in a build."""
        if name not in self._hashes:
            try:
                self._hashes[name] = _digest(self._resolve(name))
            except (OSError, ValueError):
                self._hashes[name] = ""
        return self._hashes[name]

    def _entries(self, key: str) -> Iterator[tuple[Path, Entry]]:
        """The readable entries under a key; what cannot be read is passed over, and said."""
        for path in sorted((self._folder / key[:2] / key).glob("*.json")):
            try:
                data = json.loads(_regular(path).read_text(encoding="utf-8"))
                # Who shares the folder may be of another version: its entries are no fault.
                if not _is_of_others(data["schema"]):
                    yield path, _entry(data)
            except (OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
                ui.say("build", f"the cache entry {path.name} cannot be read: compiling again")


def _is_of_others(schema: Any) -> bool:
    return type(schema) is int and schema != _SCHEMA


def _entry(data: Any) -> Entry:
    """An Entry from JSON. Raises one of the usual errors for anything else."""
    if data["schema"] != _SCHEMA or not data["dependencies"] or not SHA256.fullmatch(data["object"]):
        raise ValueError("another schema")
    return Entry(
        unit=str(data["unit"]),
        object=str(data["object"]),
        dependencies={str(name): str(digest) for name, digest in data["dependencies"].items()},
        seconds=float(data["seconds"]),
        memory=int(data["memory"]),
    )


def _regular(path: Path) -> Path:
    """The path. Raises OSError where it leads to no file: to read a pipe or a device may never end."""
    if not path.is_file():
        raise OSError(errno.EINVAL, "Not a file", str(path))
    return path


def _digest(path: Path) -> str:
    return file_hash(_regular(path))[0]
