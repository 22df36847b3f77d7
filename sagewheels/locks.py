"""Runs in one place take turns: the locks of WORK_DIR and of the target."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sagewheels import files, proc, target, ui
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.resources import ROOT

_OWN = "Name a folder of its own, such as .build-sageattention"


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Holds the locks of WORK_DIR and of the target, so that two runs do not mix; says for whom it waits.

    Raises UsageError when WORK_DIR cannot be used.
    """
    folder = settings.work_dir
    if folder.resolve() in (Path.cwd(), Path.home(), ROOT, Path("/")) or (folder / ".git").exists():
        raise UsageError(f"WORK_DIR {folder} is a folder of yours, in which sagewheels would remove things", _OWN)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock", str(folder)), _target_alone(settings):
            yield
    except OSError as error:
        if Path(error.filename or "") in (folder, folder / "lock") and error.errno not in files.FULL:
            raise UsageError(f"WORK_DIR {folder} cannot be used ({error.strerror})", "Name another folder") from None
        raise


@contextmanager
def _target_alone(settings: Settings) -> Iterator[None]:
    """Two folders may name one target: its lock lies where every run of this user finds it."""
    try:
        prefix = str(target.locate(settings)[0].parent.parent.resolve())
    except UsageError:  # a task that needs a target will say so itself
        yield
        return
    digest = hashlib.sha256(prefix.encode()).hexdigest()[:16]
    with _locked(Path(tempfile.gettempdir()) / f"sagewheels-{os.getuid()}-{digest}.lock", prefix):
        yield


@contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file, which says who works there. A link in its place is not followed.

    What a killed run left running, and still writes, holds the lock as well.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            ui.say("lock", f"waiting for process {_holder(lock)}, which works in {what}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, _ourselves().encode(), 0)
        except OSError:  # a full disk must not keep `clean` from emptying it; the lock itself is held
            pass
        with proc.holding(lock):
            yield
    finally:
        os.close(lock)


def _holder(lock: int) -> str:
    """What the holder says of itself, as far as it can be shown."""
    text = os.pread(lock, 100, 0).decode("utf-8", "replace").strip()
    return text if text and text.isascii() and text.isprintable() else "unknown"


def _ourselves() -> str:
    """`4711 (auto, since 12:03)`."""
    words = itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:])
    return f"{os.getpid()} ({' '.join(words)[:50] or 'sagewheels'}, since {datetime.datetime.now():%H:%M})"
