"""A directory as a store: an NFS share, a USB disk, the data disk of a cluster without a network."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sagewheels.errors import SageError, StoreError
from sagewheels.files import checked, copy, settle, small, sweep, sync, unfinished
from sagewheels.files import explained as put_in_words
from sagewheels.store import Conflict, Snapshot

_LOCK, _REVISION = ".lock", ".revision"
_POINTERS = ("index.json", "latest.json")


class DirectoryStore:
    """The store protocol on a folder; writers take turns, readers of a read-only mount need no lock."""

    writable = True

    def __init__(self, root: Path, *, wait: float = 30.0) -> None:
        self._root, self._wait = root.resolve(), wait

    @property
    def label(self) -> str:
        """The folder."""
        return str(self._root)

    def read(self, *paths: str) -> Snapshot:
        """The contents of small files at one revision. Raises StoreError when the folder cannot be read."""
        names = [checked(path) for path in paths]
        try:
            with self._lock(fcntl.LOCK_SH):
                found = {name: self._bytes(name) for name in dict.fromkeys((*names, _REVISION, *_POINTERS))}
        except OSError as error:
            raise explained(error, self._root) from None
        files = {name: content for name in names if (content := found[name]) is not None}
        return Snapshot(revision=_digest(found), files=files)

    def names(self) -> list[str]:
        """The paths of all files, sorted. Raises StoreError when the folder cannot be read."""
        try:
            return sorted(self._walk(self._root))
        except OSError as error:
            raise explained(error, self._root) from None

    def download(self, path: str, to: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Copies one file to `to`. Raises StoreError when it is not there or cannot be copied."""
        try:
            copy(self._root / checked(path), to, progress)
        except FileNotFoundError:
            raise StoreError(f"{path} is not in {self.label}", "Publish it again") from None
        except OSError as error:
            raise explained(error, self._root) from None

    def commit(self, parent: str, files: Mapping[str, bytes | Path], message: str) -> str:
        """Writes all files on top of `parent` and returns the new revision.

        Raises Conflict, with nothing written, when the folder is no longer at `parent`; StoreError when it cannot
        be written, or when another writer does not finish.
        """
        names = sorted((checked(name) for name in files), key=lambda name: (name in _POINTERS, name))
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with self._lock(fcntl.LOCK_EX):
                if self._revision() != parent:
                    raise Conflict(f"{self.label} was changed by somebody else", "Try again")
                sweep(self._root)
                self._write({name: files[name] for name in names}, message)
                return self._revision()
        except OSError as error:
            raise explained(error, self._root) from None

    def address(self, path: str) -> str:
        """The path of this file."""
        return str(self._root / checked(path))

    def is_private(self) -> bool:
        """No: who may read it is up to the file system."""
        return False

    def initialise(self) -> None:
        """The folder exists afterwards. Raises StoreError when it cannot be made."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, self._root) from None

    def rights(self) -> str:
        """Who may do what here, in one line. Raises StoreError when this user cannot write."""
        place = next(path for path in (self._root, *self._root.parents) if path.exists())
        if not place.is_dir():
            raise StoreError(f"{place} is not a folder", "Name another with SAGE_STORE")
        if not os.access(place, os.W_OK | os.X_OK):
            raise explained(PermissionError(errno.EACCES, ""), place)
        made = "" if self._root.is_dir() else ", which the first upload makes"
        return f"this user may write to {self.label}{made}"

    def _write(self, files: Mapping[str, bytes | Path], message: str) -> None:
        """Everything is on the disk before the first rename, so that a full disk changes nothing.

        The pointers come last: who is killed before them has published nothing, and the next commit clears up.
        """
        revision = f"{secrets.token_hex(16)} {message}\n".encode()
        with ExitStack() as parts:
            written = []
            for name, content in {_REVISION: revision, **files}.items():
                target = self._root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                part = parts.enter_context(unfinished(self._root))
                _put(part, content)
                written.append((Path(part.name), target))
            for path, target in written:
                path.replace(target)
            sync(self._root)

    def _revision(self) -> str:
        return _digest({name: self._bytes(name) for name in (_REVISION, *_POINTERS)})

    def _bytes(self, name: str) -> bytes | None:
        try:
            return small(self._root / name)
        except FileNotFoundError:
            return None

    def _walk(self, folder: Path) -> Iterator[str]:
        if not folder.exists():
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(Path(entry.path))
                else:
                    yield str(PurePosixPath(Path(entry.path).relative_to(self._root)))

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """The lock for writing (LOCK_EX, or StoreError), or for reading if it can be had."""
        descriptor = self._lock_file(writing=kind == fcntl.LOCK_EX)
        try:
            if descriptor is not None:
                self._acquire(descriptor, kind, kind == fcntl.LOCK_EX)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _lock_file(self, writing: bool) -> int | None:
        """A store that nobody wrote to through us has no lock file, and a reader does not make one."""
        try:
            return os.open(
                self._root / _LOCK, (os.O_RDWR | os.O_CREAT if writing else os.O_RDONLY) | os.O_NONBLOCK, 0o666
            )
        except OSError:
            if writing:
                raise
            return None

    def _acquire(self, descriptor: int, kind: int, writing: bool) -> None:
        """Takes the lock, waiting at most `wait` seconds; a reader then goes on without it."""
        deadline = time.monotonic() + self._wait
        while True:
            try:
                return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                elif writing:
                    text = f"{self.label} is in use: its lock was not free within {self._wait:g} s"
                    raise StoreError(text, "Wait for the other writer to end, or end it, and try again") from None
                else:
                    return None
            except OSError:
                if writing:
                    raise
                return None


def _digest(found: Mapping[str, bytes | None]) -> str:
    """The id of a state, empty for an empty store.

    The index is part of it, so that a commit that was killed between two renames, or an edit by hand, is a new state.
    """
    parts = [found[name] for name in (_REVISION, *_POINTERS)]
    if not any(part is not None for part in parts):
        return ""
    return hashlib.sha256(b"".join(hashlib.sha256(part or b"").digest() for part in parts)).hexdigest()[:40]


def _put(part: BinaryIO, content: bytes | Path) -> None:
    if isinstance(content, Path):
        with content.open("rb") as source:
            shutil.copyfileobj(source, part, 1 << 20)
    else:
        part.write(content)
    settle(part)


def explained(error: OSError, where: Path) -> SageError:
    """What the system says about a store."""
    return put_in_words(error, where, StoreError)
