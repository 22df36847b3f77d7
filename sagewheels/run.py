"""Around every task: settings with the flags on top, the lock, and one line for whatever goes wrong."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.exceptions import Exit

from sagewheels import config, files, guard, ui
from sagewheels.errors import Interrupted, SageError, UsageError
from sagewheels.redact import redacted

if TYPE_CHECKING:
    from sagewheels.job import Job

_INTERRUPTED = "interrupted: run the same command again, it goes on where it can"

_SWITCHES = frozenset(
    "--dry-run -d --rebuild -r --no-wait -n --offline -o --force -f --all --full --json -j --sign -i --failed "
    "--accept-new --detach --quick --check".split()
)
"""The flags that take no value."""


@contextmanager
def job(
    context: Context,
    *,
    dry_run: bool | None = False,
    locked: bool = True,
    as_json: bool = False,
    **flags: str | bool | None,
) -> Iterator[Job]:
    """A Job for one task. Everything that leaves the block is an Exit: one line on stderr and the right exit code.

    Invoke's own `--dry` counts as `dry_run`; None says that the task has no dry run. With `as_json` stdout is one JSON
    object, also when the task fails: `exit_code`, `error` (null, or `what` and `remedy`), `seconds`, the job's report.
    """
    if not as_json:
        with _job(context, dry_run, locked, flags) as made:
            yield made
        return
    started, report, error = time.monotonic(), dict[str, Any](), None
    try:
        with ui.aside(), _job(context, dry_run, locked, flags) as made:
            report = made.report
            yield made
    except SageError as raised:
        error = raised
        raise
    except KeyboardInterrupt:  # a second one, while the first was being dealt with
        error = Interrupted(_INTERRUPTED)
        raise error from None
    except BaseException as raised:
        error = SageError(f"unexpected {type(raised).__name__}", "This is a bug in sagewheels")
        raise
    finally:
        known = {"what": error.what, "remedy": error.remedy} if error else None
        head = {"exit_code": error.exit_code if error else 0, "error": known}
        told = {**head, "seconds": round(time.monotonic() - started, 3), **report}
        if (why := _printed(json.dumps(told, ensure_ascii=True))) and not error:
            raise SageError(f"the JSON could not be written: {why}", "It is done, but nobody could read how")


def _printed(text: str) -> str:
    """The text is on stdout; else why it is not, and nobody tries that again."""
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer would be tried once more, and told by Python, when it ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return error.strerror or str(error)
    return ""


@contextmanager
def _job(context: Context, dry_run: bool | None, locked: bool, flags: dict[str, str | bool | None]) -> Iterator[Job]:
    logs, token, places = Path("logs"), "", list[Path]()
    signal.signal(signal.SIGTERM, _stop)
    try:
        if context.config.run.dry and dry_run is None:
            raise UsageError("this task has no dry run", "Leave --dry out")
        dry_run = bool(dry_run or context.config.run.dry)
        settings = config.load(flags=flags)
        logs, token = settings.log_dir, settings.hf_token
        places = [settings.work_dir, settings.wheelhouse_dir, settings.log_dir]
        if token or config.exports_secrets():
            guard.close(config.SECRETS)
        # Not before: what only asks for help needs none of it.
        from sagewheels import locks
        from sagewheels.job import Job

        run = Job(settings, dry_run=dry_run)
        if dry_run or not locked:
            yield run
        else:
            with locks.alone(settings):
                yield run
    except Exit:
        raise
    except KeyboardInterrupt:
        raise Interrupted(_INTERRUPTED) from None
    except OSError as error:
        if error.errno in files.FULL:
            raise _full(error, places) from None
        if "temporary directory" in (error.strerror or ""):  # what Python says of full disks, among others
            what = f"no temporary file can be written: {error.strerror}"
            raise UsageError(what, "Free some space, or set TMPDIR") from None
        # A folder that is not ours: a fact of the machine, not a bug.
        where = f"{error.filename}: " if error.filename else ""
        what = redacted(f"{where}{error.strerror or error}", token)
        raise SageError(what, f"Mend that and run it again. {_kept(logs, token)}") from None
    except Exception as error:
        what = redacted(f"unexpected {type(error).__name__}: {error}", token)
        raise SageError(what, f"This is a bug in sagewheels. {_kept(logs, token)}") from None


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


def _full(error: OSError, places: Sequence[Path]) -> SageError:
    """Which disk is full. A write names no file: then it is where no room is left, if that can be seen."""
    if error.filename:
        return files.explained(error, Path(os.fsdecode(error.filename)))
    used_up = [place for place in places if place.is_dir() and not shutil.disk_usage(place).free]
    where = ", ".join(map(str, used_up)) or f"the output, a temporary file, or one below {', '.join(map(str, places))}"
    return UsageError(f"{where} cannot be written: the disk is full", "Free some space and try again")


def _kept(logs: Path, token: str) -> str:
    """Where the traceback is, in which no text shows the token or credentials of an address."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
        path = logs / f"error-{datetime.datetime.now():%Y%m%d-%H%M%S}.log"
        path.write_text(redacted(traceback.format_exc(), token), encoding="utf-8")
    except OSError:
        return "The log could not be written"
    return f"Details are in {path}"
