"""Around every task: settings with the flags on top, the lock, and one line for whatever goes wrong."""

from __future__ import annotations

import datetime
import signal
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from invoke.context import Context
from invoke.exceptions import Exit

from sagewheels import config
from sagewheels.errors import Interrupted, SageError, UsageError
from sagewheels.job import Job

_SWITCHES = frozenset("--dry-run -d --rebuild -r --no-wait -n --force -f --all --full --json -j".split())
"""The flags that take no value."""


@contextmanager
def job(context: Context, *, dry_run: bool | None = False, locked: bool = True, **flags: str | None) -> Iterator[Job]:
    """A Job for one task. Everything that leaves the block is an Exit: one line on stderr and the right exit code.

    Invoke's own `--dry` counts as `dry_run`; None says that the task has no dry run.
    """
    logs = Path("logs")
    signal.signal(signal.SIGTERM, _stop)
    try:
        if context.config.run.dry and dry_run is None:
            raise UsageError("this task has no dry run", "Leave --dry out")
        dry_run = bool(dry_run or context.config.run.dry)
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


def refuse_flags_of_many(words: Sequence[str], tasks: Collection[str]) -> None:
    """Raises UsageError for several tasks with flags between or behind them.

    Invoke gives a flag to the task before it alone: `stack fetch --dry-run` would install a stack.
    """
    # `--manifest demo` names no task: what follows a flag that takes a value is that value.
    values = {
        place + 1
        for place, word in enumerate(words)
        if word.startswith("-") and "=" not in word and word not in _SWITCHES
    }
    named = [place for place, word in enumerate(words) if word in tasks and place not in values]
    if len(named) > 1 and any(word.startswith("-") for word in words[named[0] :]):
        raise UsageError(
            f"{' '.join(words[place] for place in named)}: a flag counts for one task only", "Run them one at a time"
        )


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
