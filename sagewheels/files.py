"""Files that are there whole or not at all, and what to say when a folder cannot be used."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sagewheels.errors import SageError, StoreError, UsageError

PART = ".part-"
"""What the names of unfinished files begin with: no name in a store does."""

FULL = (errno.ENOSPC, errno.EDQUOT)

_LARGEST = 64 << 20
_STALE = 6 * 3600.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
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

    Where `to` is itself the unfinished file of a block around this one, that one is filled anew, and is its to name.
    Raises UsageError when the folder cannot be written.
    """
    try:
        if to.name.startswith(PART):
            with to.open("r+b") as stream:
                stream.truncate()
                yield stream
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        sweep(to.parent)
        with unfinished(to.parent) as stream:
            yield stream
            settle(stream)
            Path(stream.name).replace(to)
        sync(to.parent)
    except OSError as error:
        raise explained(error, to) from None


@contextmanager
def unfinished(folder: Path) -> Iterator[BinaryIO]:
    """A file under a name of its own, which is gone after the block unless it was given another.

    Its writer holds its lock: whoever can take that knows that the writer is dead.
    """
    stream = _created(folder)
    try:
        yield stream
    finally:
        forget(Path(stream.name))
        try:
            stream.close()
        except OSError:  # bytes that a full disk did not take, of a file that is gone
            pass


def _created(folder: Path) -> BinaryIO:
    while True:
        stream = (folder / f"{PART}{os.getpid()}-{secrets.token_hex(4)}").open("xb")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:  # no locks here: only the age of a part says that it was left behind
            pass
        if os.fstat(stream.fileno()).st_nlink:
            return stream
        stream.close()  # somebody swept it up before the lock was ours


def settle(stream: BinaryIO) -> None:
    """All that was written is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def opened(path: Path) -> BinaryIO:
    """A plain file to be read. Raises OSError, also for a pipe or a device: who opens a pipe may wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if code == errno.EISDIR else "it is no plain file", str(path))
    return os.fdopen(descriptor, "rb")


def small(path: Path) -> bytes:
    """What a small file holds. Raises OSError, also for one that would fill the memory."""
    with opened(path) as stream:
        found = stream.read(_LARGEST + 1)
    if len(found) > _LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {_LARGEST >> 20} MiB", str(path))
    return found


def copy(source: Path, to: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Copies a file, whole or not at all.

    Raises OSError when `source` cannot be opened, and UsageError when `to` cannot be written.
    """
    with opened(source) as stream, arriving(to) as target:
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


def sweep(folder: Path) -> None:
    """Removes what killed writers left behind, on whichever machine, and nothing that somebody still writes."""
    for part in folder.glob(f"{PART}*"):
        try:
            # For writing: over NFS, only such a lock keeps others out.
            descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if _is_left(descriptor):
                part.unlink()
        except OSError:
            pass
        finally:
            os.close(descriptor)


def _is_left(descriptor: int) -> bool:
    """Whether nobody writes this part any more; where there are no locks, whether nobody did for hours."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return error.errno in _NO_LOCKS and time.time() - os.fstat(descriptor).st_mtime >= _STALE


def forget(part: Path) -> None:
    """Removes a file if it is there and can be removed."""
    try:
        part.unlink(missing_ok=True)
    except OSError:
        pass


def explained(error: OSError, where: Path, kind: type[SageError] = UsageError) -> SageError:
    """What the system says about `where`, in words and with a remedy."""
    # A folder in the way of a file, or a file in the way of a folder, has several codes.
    code = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno
    reason, remedy = _REASONS.get(code or 0, (error.strerror or str(error), "Check the folder and try again"))
    if code == errno.ENOTDIR and kind is not StoreError:
        remedy = "Name another folder"
    return kind(f"{where} cannot be used: {reason}", remedy)
