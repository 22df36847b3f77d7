"""Files that are there whole or not at all, and what to say when a folder cannot be used."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sagewheels.errors import StoreError

PART = ".part-"
"""What the names of unfinished files begin with: no name in a store does."""

_STALE = 6 * 3600.0
_REASONS = {
    errno.EACCES: ("permission denied", "Ask for the right to use it, or choose another folder"),
    errno.EPERM: ("permission denied", "Ask for the right to use it, or choose another folder"),
    errno.EROFS: ("it is mounted read-only", "Mount it for writing, or choose another folder"),
    errno.ENOSPC: ("the disk is full", "Free some space and try again"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space and try again"),
    errno.ENOTDIR: ("it is not a folder", "Name a folder with SAGE_STORE"),
    errno.ENOLCK: ("the file system has no locks", "Mount it with locking, or publish to another store"),
    errno.ENOTSUP: ("the file system has no locks", "Mount it with locking, or publish to another store"),
}


def checked(path: str) -> str:
    """`path` itself. Raises StoreError for one that is absolute, hidden or leads out of the store."""
    parts = path.split("/")
    if "\\" in path or not path.isprintable() or any(not part or part.startswith(".") for part in parts):
        raise StoreError(f"{path[:120]!r} is not the name of a file in a store", "Use a plain relative name")
    return path


@contextmanager
def arriving(to: Path) -> Iterator[BinaryIO]:
    """A file that becomes `to` when the block ends well, and disappears when it does not.

    Raises StoreError when the folder cannot be written.
    """
    part = to.parent / f"{PART}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        sweep(to.parent, _STALE)
        with part.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(to)
    except OSError as error:
        raise explained(error, to) from None
    finally:
        forget(part)


def copy(source: Path, to: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Copies a file, whole or not at all.

    Raises OSError when `source` cannot be read, and StoreError when `to` cannot be written.
    """
    with source.open("rb") as stream, arriving(to) as target:
        total, done = os.fstat(stream.fileno()).st_size, 0
        while chunk := stream.read(1 << 20):
            done += target.write(chunk)
            if progress:
                progress(done, total)


def sync(folder: Path) -> None:
    """Makes renames durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def sweep(folder: Path, age: float) -> None:
    """Removes what killed transfers left behind, if it is `age` seconds old."""
    for part in folder.glob(f"{PART}*"):
        try:
            if time.time() - part.stat().st_mtime >= age:
                part.unlink()
        except OSError:
            pass


def forget(part: Path) -> None:
    """Removes a file if it is there and can be removed."""
    try:
        part.unlink(missing_ok=True)
    except OSError:
        pass


def explained(error: OSError, where: Path) -> StoreError:
    """What the system says about `where`, in words and with a remedy."""
    # A folder in the way of a file, or a file in the way of a folder, has several codes.
    code = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno
    reason, remedy = _REASONS.get(code or 0, (error.strerror or str(error), "Check the folder and try again"))
    return StoreError(f"{where} cannot be used: {reason}", remedy)
