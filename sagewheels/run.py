"""Around every task: settings with the flags on top, the lock, and one line for whatever goes wrong."""

from __future__ import annotations

import datetime
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from invoke.exceptions import Exit

from sagewheels import config
from sagewheels.errors import Interrupted, SageError
from sagewheels.job import Job


@contextmanager
def job(*, dry_run: bool = False, locked: bool = True, **flags: str | None) -> Iterator[Job]:
    """A Job for one task. Everything that leaves the block is an Exit: one line on stderr and the right exit code."""
    logs = Path("logs")
    signal.signal(signal.SIGTERM, _stop)
    try:
        settings = config.load(flags=flags)
        logs = settings.log_dir
        run = Job(settings, dry_run=dry_run)
        if dry_run or not locked:
            yield run
        else:
            with run.alone():
                yield run
    except Exit:
        raise
    except KeyboardInterrupt:
        raise Interrupted("interrupted: run the same command again, it goes on where it can") from None
    except OSError as error:
        # A full disk, a folder that is not ours: a fact of the machine, not a bug.
        where = f"{error.filename}: " if error.filename else ""
        raise SageError(f"{where}{error.strerror or error}", f"Mend that and run it again. {_kept(logs)}") from None
    except Exception as error:
        raise SageError(
            f"unexpected {type(error).__name__}: {error}", f"This is a bug in sagewheels. {_kept(logs)}"
        ) from None


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends like Ctrl-C does, so that children end and temporary files go."""
    raise KeyboardInterrupt


def _kept(logs: Path) -> str:
    """Where the traceback is."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
        path = logs / f"error-{datetime.datetime.now():%Y%m%d-%H%M%S}.log"
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return "The log could not be written"
    return f"Details are in {path}"
