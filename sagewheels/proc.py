"""The one way to run another program: an argument list, no shell, no secrets, a remedy when it is missing."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sagewheels.config import SECRETS
from sagewheels.errors import SageError, UsageError

_REMEDIES = {
    "git": "Install git (apt-get install git)",
    "c++": "Install a C++ compiler (apt-get install g++)",
    "g++": "Install a C++ compiler (apt-get install g++)",
    "uv": "Install uv (pip install uv)",
}


@dataclass(frozen=True)
class Result:
    """What a finished program said; `code` is negative for the signal that ended it."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

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
) -> Result:
    """Runs `argv` to its end and returns what it printed.

    Raises UsageError when the program is missing, and `error`, if given, when it fails or outlasts `timeout` seconds.
    """
    args = tuple(str(part) for part in argv)
    try:
        done = subprocess.run(
            args,
            env=_clean(env),
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
            text=True,
            errors="replace",
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as problem:
        raise _missing(args[0], problem) from None
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(args, -signal.SIGKILL, "", f"did not end within {timeout:g} s")
    result = Result(args, done.returncode, done.stdout, done.stderr)
    if error and result.code:
        raise error(f"{Path(args[0]).name} {_verb(args)}failed ({ending(result.code)}): {result.last_line}")
    return result


@contextmanager
def stream(
    argv: Sequence[str | Path], *, log: IO[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Runs `argv` in a session of its own with stdout and stderr going to `log`; the whole session ends with the block.

    Raises UsageError when the program is missing.
    """
    args = [str(part) for part in argv]
    try:
        process = subprocess.Popen(
            args,
            env=_clean(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as problem:
        raise _missing(args[0], problem) from None
    try:
        yield process
    finally:
        # Compilers are grandchildren: Ctrl-C must end them too, and they have a process group of their own.
        try:
            os.killpg(process.pid, signal.SIGTERM if process.poll() is None else signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
