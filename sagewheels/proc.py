"""The one way to run another program: an argument list, no shell, no secrets, a remedy when it is missing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sagewheels.config import SECRETS
from sagewheels.errors import SageError, UsageError

_NO_PROGRAM = {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.EISDIR}
_REMEDIES = {
    "git": "Install git (apt-get install git)",
    "c++": "Install a C++ compiler (apt-get install g++)",
    "g++": "Install a C++ compiler (apt-get install g++)",
    "uv": "Install uv (pip install uv)",
    "ssh": "Install it (apt-get install openssh-client)",
    "ssh-keygen": "Install it (apt-get install openssh-client)",
}


_NO_ROOM = os.strerror(errno.ENOSPC)
_running: set[subprocess.Popen[str]] = set()
"""For `end_all`: what a thread waits for, nobody else can end."""


_held: set[int] = set()
"""Descriptors of the locks that this run holds: see `holding`."""


@dataclass(frozen=True)
class Result:
    """What a finished program said; `code` is negative for the signal that ended it.

    `worked`: the seconds of processor time until then of one that was ended because its time was over.
    """

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    worked: float = 0.0

    @property
    def last_line(self) -> str:
        """The line that says why: the first `fatal:`, else the last of stderr if it spoke, else of stdout."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("fatal:")]
        return (fatal or lines[-1:])[0] if lines else f"no output, {ending(self.code)}"


def ending(code: int) -> str:
    """`exit code 2`, or the name of the signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    error: type[SageError] | None = None,
    input: str | None = None,
    writes: Path | None = None,
    heard: Callable[[str], None] | None = None,
) -> Result:
    """Runs `argv` to its end and returns what it printed; `input` is what it reads from stdin, which is else empty.

    `heard` gets each line of stderr at once, from another thread; such a program has no `timeout` and reads nothing.

    `writes`: the folder that it changes, which our locks guard, so it holds them too, and the next run waits should it
    outlive this one.

    Raises UsageError when the program is missing, and `error`, if given, when it fails or outlasts `timeout` seconds;
    UsageError too where it says that the disk is full.
    """
    args = tuple(str(part) for part in argv)
    held = tuple(_held) if writes else ()
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with _session(args, env=env, cwd=cwd, held=held, **pipes) as process:
        try:
            out, err = _listened(process, heard) if heard else process.communicate(input, timeout=timeout)
            result = Result(args, process.returncode, out, err)
        except subprocess.TimeoutExpired:
            worked = _processor_time(process.pid)
            # At once: who has not ended by now may also ignore to be asked.
            _signal(process, signal.SIGKILL)
            result = Result(args, -signal.SIGKILL, "", f"did not end within {timeout:.3g} s", worked)
    if error and result.code and _NO_ROOM in result.err + result.out:
        line = next(line.strip() for line in (result.err + result.out).splitlines() if _NO_ROOM in line)
        # Of several files that uv writes at once, the one that it stops at is not always named.
        where = f" below {writes}" if writes else ""
        raise UsageError(
            f"{Path(args[0]).name} {_verb(args)}failed: the disk is full{where}: {line}",
            "Free some space and try again",
        )
    if error and result.code:
        raise error(f"{Path(args[0]).name} {_verb(args)}failed ({ending(result.code)}): {result.last_line}")
    return result


def _listened(process: subprocess.Popen[str], heard: Callable[[str], None]) -> tuple[str, str]:
    """What the program says until it ends: stdout and stderr, the latter also line by line."""
    assert process.stdout is not None and process.stderr is not None
    errors, lines = process.stderr, list[str]()

    def listen() -> None:
        for line in errors:
            lines.append(line)
            # Whoever read our output may have gone: the main thread finds that out by itself.
            with suppress(OSError, ValueError):
                heard(line.rstrip("\n"))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    out = process.stdout.read()
    thread.join()
    process.wait()
    return out, "".join(lines)


@contextmanager
def stream(
    argv: Sequence[str | Path], *, log: IO[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Runs `argv` in a session of its own with stdout and stderr going to `log`; the whole session ends with the block.

    Raises UsageError when the program is missing.
    """
    args = tuple(str(part) for part in argv)
    with _session(args, env=env, cwd=cwd, stdout=log, stderr=subprocess.STDOUT) as process:
        yield process


def wait(process: subprocess.Popen[str], seconds: float) -> None:
    """Waits for the end of the process, but not longer than that."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pass


@contextmanager
def _session(
    args: tuple[str, ...],
    *,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    stdout: IO[str] | int,
    stderr: int,
    stdin: int = subprocess.DEVNULL,
    held: Collection[int] = (),
) -> Iterator[subprocess.Popen[str]]:
    """A program in a session of its own, of which nothing is left when the block ends: compilers are grandchildren."""
    came: list[signal.Signals] = []
    try:
        with _put_off(came):
            process = subprocess.Popen(
                args,
                env=_clean(env),
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                errors="replace",
                start_new_session=True,
                pass_fds=held,
            )
    except OSError as problem:
        if problem.errno not in _NO_PROGRAM or (cwd and not cwd.is_dir()):
            raise
        raise _missing(args[0], problem) from None
    _running.add(process)
    try:
        for number in came:
            signal.raise_signal(number)
        yield process
    finally:
        _running.discard(process)
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                pass
        _signal(process, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


@contextmanager
def _put_off(came: list[signal.Signals]) -> Iterator[None]:
    """Ctrl-C and SIGTERM within the block are only noted: a program that has begun already would be left to itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What is ignored stays so: the program inherits that.
    ours = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    heeded = {one: handler for one, handler in ours.items() if callable(handler)}
    for one in heeded:
        signal.signal(one, lambda number, _: came.append(signal.Signals(number)))
    try:
        yield
    finally:
        for one, handler in heeded.items():
            signal.signal(one, handler)


@contextmanager
def holding(lock: int) -> Iterator[None]:
    """While the block lasts, programs that write hold this lock's descriptor too.

    Not every program: a compiler cache leaves a server behind, which would hold it for ever.
    """
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)


def end_all() -> None:
    """Ends every program that runs now, whichever thread waits for it: for Ctrl-C, which only the main thread sees."""
    for process in list(_running):
        _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Sends a signal to the whole session, if anything of it is left."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _processor_time(session: int) -> float:
    """Seconds of processor time of a session's processes and of those that they waited for."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _clean(env: Mapping[str, str] | None) -> dict[str, str]:
    """The environment for a child: what was given, else ours, always without the secrets."""
    source = os.environ if env is None else env
    return {key: value for key, value in source.items() if key not in SECRETS}


def _verb(args: tuple[str, ...]) -> str:
    """The subcommand, where there is one, for the error line."""
    return f"{args[1]} " if len(args) > 1 and args[1].isalpha() else ""


def _missing(program: str, problem: OSError) -> UsageError:
    name = Path(program).name
    remedy = _REMEDIES.get(name, f"Install {name}, or correct its path")
    return UsageError(f"{program} cannot be run ({problem.strerror or problem})", remedy)
