"""One task on many machines over SSH: each host for itself, a log for each, and one exit code."""

from __future__ import annotations

import queue
import shlex
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagewheels import extras, files, fleetview, hosts, leash, proc, travel, ui
from sagewheels.errors import HostsFailed, Interrupted, SageError, Unreachable, UsageError
from sagewheels.fleetrecord import Outcome, Record, failed_last
from sagewheels.hosts import Host
from sagewheels.job import Job
from sagewheels.remote import Reach

_MOST = 8
"""Hosts at once, where nothing else is asked for: more lines than that nobody reads."""

_AGAIN = {7, 255}
"""Exit codes that another try may change: the store or the network, and what ssh itself gives."""

_INTERRUPTED = 130

_NOT_THERE = {"fleet", "generate", "test", "lint"}
"""Tasks that make no sense on another machine."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags of a run. Raises UsageError for those that cannot be meant."""

    words: tuple[str, ...]
    parallel: int
    retries: int
    minutes: float
    pause: float = 5.0
    """Seconds before another try."""

    @classmethod
    def read(cls, task: str, parallel: str, retry: str, timeout: str, *, count: int, tasks: Collection[str]) -> Asked:
        """From the text of the flags, for that many hosts; `tasks` are those that there are."""
        known = sorted(set(tasks) - _NOT_THERE)
        try:
            words = shlex.split(task)
        except ValueError:
            words = []
        if not words or words[0] not in known:
            raise UsageError(f"--task {task!r} is no task for other machines", f"Use one of {', '.join(known)}")
        return cls(
            words=tuple(words),
            parallel=_whole("--parallel", parallel, least=1) if parallel else min(_MOST, count),
            retries=_whole("--retry", retry, least=0),
            minutes=_whole("--timeout", timeout, least=1),
        )


def fleet(
    job: Job,
    where: str,
    *,
    task: str,
    tasks: Collection[str],
    parallel: str = "",
    retry: str = "1",
    timeout: str = "120",
    failed: bool = False,
    accept_new: bool = False,
    ssh_config: str = "",
) -> None:
    """The task has ended with 0 on every host of the file; a dry run only says what would run where.

    Raises UsageError before anything is connected to, HostsFailed with the code of the first host that failed (in the
    order of the file; 7 for one that was not reached or took too long), Interrupted after telling all to stop.
    """
    found = _hosts(job, where, only_failed=failed)
    asked = Asked.read(task, parallel, retry, timeout, count=len(found), tasks=tasks)
    scripts = {host.name: _script(job, asked, host) for host in found}
    if not found:
        ui.say("fleet", "the last run failed on no host of this file: there is nothing to do")
    elif job.dry_run:
        _plan(job, asked, found)
    else:
        extras.demand(job.settings, "fleet", "fabric")
        import fabric  # noqa: F401  here, and not in several threads at once

        reach = Reach(job.settings.environ, config=ssh_config, accept_new=accept_new)
        _run(job, asked, found, scripts, reach)


def _hosts(job: Job, where: str, *, only_failed: bool) -> list[Host]:
    """The hosts of the file, or those of them on which the last run failed."""
    if not where:
        raise UsageError("--hosts is missing", "Name a file with a host on each line, or - for stdin")
    try:
        text = sys.stdin.read() if where == "-" else files.small(Path(where)).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"{where} cannot be read ({why})", "Name a file with a host on each line") from None
    found = hosts.parse(text, "stdin" if where == "-" else where)
    if not only_failed:
        return found
    again = failed_last(job.settings)
    return [host for host in found if host.name in again]


def _script(job: Job, asked: Asked, host: Host) -> str:
    variables = travel.variables(job.settings, own=host.settings) | dict(host.settings)
    contents = travel.contents(job.settings, own=host.settings)
    return leash.text(asked.words, variables, contents, {"HF_TOKEN": job.settings.hf_token})


def _plan(job: Job, asked: Asked, found: Sequence[Host]) -> None:
    """What would run where, and what would go along; nothing of it is a secret."""
    token = " and HF_TOKEN" if job.settings.hf_token else ""
    rows = []
    for host in found:
        going = travel.variables(job.settings, own=host.settings) | dict(host.settings)
        sent = [f"{key} (the file)" for key in travel.contents(job.settings, own=host.settings)]
        rows.append((host.name, shlex.join(asked.words), " ".join([f"{k}={v}" for k, v in going.items()] + sent)))
    ui.table("", ("host", "task", "settings"), rows)
    several = f"{ui.count(len(found), 'host')}, {min(asked.parallel, len(found))} at once"
    ui.say("fleet", f"{several}; the settings above{token} go through stdin; nothing was connected to")
    job.report["fleet"] = {"task": shlex.join(asked.words), "hosts": [{"host": host.name} for host in found]}


def _run(job: Job, asked: Asked, found: Sequence[Host], scripts: Mapping[str, str], reach: Reach) -> None:
    record = Record(job.settings, shlex.join(asked.words), [host.name for host in found])
    several = f"{ui.count(len(found), 'host')}, {min(asked.parallel, len(found))} at once"
    ui.say("fleet", f"{shlex.join(asked.words)} on {several}; logs in {record.folder}")
    stop = threading.Event()
    try:
        with fleetview.showing(list(record.outcomes)) as view:
            crew = _Crew(asked, scripts, reach, record, view, stop)
            try:
                crew.work(found)
            except KeyboardInterrupt:
                stop.set()
                crew.wait(leash.GRACE + 5)
                raise
    except KeyboardInterrupt:
        unended = [one for one in record.outcomes.values() if one.exit_code in {None, _INTERRUPTED}]
        for one in unended:
            one.exit_code = _INTERRUPTED
        raise Interrupted(
            f"interrupted: {len(unended)} of {ui.count(len(found), 'host')} had not ended, and were told to stop",
            "Run it again with --failed: it goes on where it can",
        ) from None
    finally:
        stop.set()
        record.write()
        job.report["fleet"] = record.report()
        fleetview.final(record.outcomes)
    _judge(record)


def _judge(record: Record) -> None:
    """Raises HostsFailed where a host failed."""
    failed = [one for one in record.outcomes.values() if one.exit_code != 0]
    if not failed:
        ui.say("fleet", f"done on {ui.count(len(record.outcomes), 'host')}")
        return
    first = failed[0]
    raise HostsFailed(
        f"{len(failed)} of {ui.count(len(record.outcomes), 'host')} failed, the first: {first.host}: {first.why}",
        f"Its log is {first.log}; --failed runs what failed again",
        code=first.exit_code or 1,
    )


class _Crew:
    """Threads that take one host after the other; what they do is in the record, whatever happens."""

    def __init__(
        self,
        asked: Asked,
        scripts: Mapping[str, str],
        reach: Reach,
        record: Record,
        view: fleetview.View,
        stop: threading.Event,
    ) -> None:
        self._asked, self._scripts, self._reach = asked, scripts, reach
        self._record, self._view, self._stop = record, view, stop
        self._left: queue.SimpleQueue[Host] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._bugs: list[BaseException] = []

    def work(self, found: Sequence[Host]) -> None:
        """Every host has ended. Raises what a thread did not expect."""
        for host in found:
            self._left.put(host)
        for _ in range(min(self._asked.parallel, len(found))):
            # A connection that hangs must not keep the interpreter from ending after Ctrl-C.
            self._threads.append(threading.Thread(target=self._one_by_one, daemon=True))
            self._threads[-1].start()
        self.wait(float("inf"))
        if self._bugs:
            raise self._bugs[0]

    def wait(self, seconds: float) -> None:
        """Waits for the threads, but not longer than that."""
        end = time.monotonic() + seconds
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < end:
            time.sleep(0.05)

    def _one_by_one(self) -> None:
        while not self._stop.is_set():
            try:
                host = self._left.get_nowait()
            except queue.Empty:
                return
            try:
                self._host(host)
            except BaseException as error:  # a full disk, or a bug: for the main thread, which says it
                self._bugs.append(error)
                return

    def _host(self, host: Host) -> None:
        """One host to its end, with another try where that may help."""
        outcome, started = self._record.outcomes[host.name], time.monotonic()
        with self._record.log(host.name) as log:

            def line(text: str) -> None:
                outcome.last_line = self._record.plain(text)
                log.write(f"{outcome.last_line}\n")
                log.flush()
                self._view.line(host.name, outcome.last_line)

            for _ in range(1 + self._asked.retries):
                outcome.tries += 1
                self._view.state(host.name, "connecting")
                code, again = self._try(host, outcome, line)
                outcome.seconds = round(time.monotonic() - started, 1)
                if outcome.error:
                    log.write(f"[fleet] {outcome.error}\n")
                if not again or self._stop.is_set() or outcome.tries > self._asked.retries:
                    break
                self._view.state(host.name, "waiting to try again")
                self._stop.wait(self._asked.pause)
        outcome.exit_code = code
        self._view.end(host.name, outcome)
        self._record.write()

    def _try(self, host: Host, outcome: Outcome, line: fleetview.Line) -> tuple[int, bool]:
        """The exit code of one try, and whether another may end otherwise."""
        end = time.monotonic() + self._asked.minutes * 60
        outcome.error = outcome.last_line = ""

        def is_over() -> bool:
            return self._stop.is_set() or time.monotonic() > end

        try:
            code = self._reach.run(host, self._scripts[host.name], line, is_over)
        except Unreachable as error:
            outcome.error = self._record.plain(str(error))
            return (_INTERRUPTED, False) if self._stop.is_set() else (error.exit_code, error.passing)
        except SageError as error:
            outcome.error = self._record.plain(str(error))
            return error.exit_code, False
        if self._stop.is_set():
            return code and _INTERRUPTED, False
        if time.monotonic() > end:
            outcome.error = f"it did not end within {self._asked.minutes:g} min, and was told to stop"
            return 7, False
        if code > 128:
            outcome.error = f"sagewheels was {proc.ending(128 - code)} there"
        return code, code in _AGAIN


def _whole(flag: str, text: str, *, least: int) -> int:
    if not text.isascii() or not text.isdecimal() or not least <= int(text) <= 9999:
        raise UsageError(
            f"{flag} {text!r} is no whole number from {least} to 9999", f"Write it like {flag} {least + 1}"
        )
    return int(text)
