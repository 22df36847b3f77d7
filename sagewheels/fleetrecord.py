"""What is kept of a run over a fleet: a log for each host, and a result that the next run can begin with."""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import TextIO

from sagewheels import files
from sagewheels.config import Settings
from sagewheels.errors import UsageError, shown
from sagewheels.redact import redacted

FILE = "result.json"


@dataclass(kw_only=True)
class Outcome:
    """What became of one host so far; no exit code yet, or never one: it counts as failed."""

    host: str
    exit_code: int | None = None
    seconds: float = 0.0
    tries: int = 0
    error: str = ""
    """Our line, where it was not the task there that failed."""
    last_line: str = ""
    log: str = ""

    @property
    def why(self) -> str:
        """What people are told of it."""
        return self.error or self.last_line


class Record:
    """The folder of one run, LOG_DIR/fleet/<time>, which only this user can read. The token is in none of its files."""

    def __init__(self, settings: Settings, task: str, names: Sequence[str]) -> None:
        self.folder = _made(settings.log_dir / "fleet")
        self._task, self._token, self._lock = task, settings.hf_token, threading.Lock()
        logs = _unique([re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) for name in names])
        self.outcomes = {
            name: Outcome(host=name, log=str(self.folder / f"{log}.log")) for name, log in zip(names, logs, strict=True)
        }
        self.write()

    def log(self, name: str) -> TextIO:
        """The log of a host, at its end."""
        return open(self.outcomes[name].log, "a", encoding="utf-8", opener=_private)

    def plain(self, line: str) -> str:
        """The line as it may be written and shown."""
        return shown(redacted(line, self._token))

    def report(self) -> dict[str, object]:
        """All of it in plain types, as FILE has it."""
        hosts = [asdict(one) for one in self.outcomes.values()]
        return {"task": self._task, "folder": str(self.folder), "hosts": hosts}

    def write(self) -> None:
        """What is known by now is in FILE: after a kill, those that had not ended count as failed."""
        with self._lock, files.arriving(self.folder / FILE) as stream:
            stream.write(json.dumps(self.report(), indent=1).encode())


def failed_last(settings: Settings) -> list[str]:
    """The hosts that had failed, or not ended, when the last run did. Raises UsageError where there was none."""
    known = sorted((settings.log_dir / "fleet").glob(f"*/{FILE}"))
    if not known:
        raise UsageError(f"no run of fleet is recorded in {settings.log_dir / 'fleet'}", "Leave --failed out")
    try:
        hosts: list[Mapping[str, object]] = json.loads(files.small(known[-1]))["hosts"]
        return [str(one["host"]) for one in hosts if one["exit_code"] != 0]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{known[-1]} cannot be read", "Leave --failed out") from None


def _made(above: Path) -> Path:
    """A new folder, named by the time so that they sort."""
    above.mkdir(parents=True, exist_ok=True)
    while True:
        folder = above / f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}"
        try:
            folder.mkdir(mode=0o700)
            return folder
        except FileExistsError:
            continue


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        free = (one for one in chain([name], (f"{name}-{number}" for number in count(1))) if one not in found)
        found.append(next(free))
    return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
