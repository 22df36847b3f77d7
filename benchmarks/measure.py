"""Runs a program and measures all that it starts: wall, CPU, peak memory, and which phase of which unit took the CPU.

Wall is from start to exit. CPU is user and system time as wait4 gives it for the program and all that it waited for;
orphans come to this process (PR_SET_CHILD_SUBREAPER), so that they count too. Every 0.25 s /proc is read: memory is the
highest sum of RSS, times PSS / RSS as it was when the sum had last grown by 5 % (PSS takes milliseconds to read); a
phase (cudafe++, cicc ...) has the CPU time that its process was last seen with: what came after is `not seen`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PHASES = ("cudafe++", "cicc", "ptxas", "fatbinary", "cc1plus", "as", "ld")
_INTERVAL = 0.25
_GROWN = 1.05
_PATIENCE = 120.0
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """A line of /proc/PID/stat; `cpu` in seconds, `rss` in bytes, `born` tells two of the same pid apart."""

    pid: int
    parent: int
    born: int
    name: str
    cpu: float
    rss: int


@dataclass(kw_only=True)
class Measured:
    """`code` as subprocess gives it, seconds, bytes.

    `left_for` is how long something of it still ran after its end.
    `phases` has CPU seconds by unit and phase, `spans` when a unit was first and last seen at work. What compiles no
    unit is under the name ''.
    """

    code: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    memory: int = 0
    left_for: float = 0.0
    phases: dict[str, dict[str, float]] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def by_phase(self) -> dict[str, float]:
        """CPU seconds by phase, the largest first; what is left is `not seen`."""
        total: Counter[str] = Counter()
        for phases in self.phases.values():
            total.update(phases)
        return {**dict(total.most_common()), "not seen": max(0.0, self.cpu - sum(total.values()))}

    @property
    def units(self) -> set[str]:
        """Units of which a compiler was seen at work."""
        return set(self.spans)

    def of_source(self, files: Collection[str]) -> None:
        """Only these files have units: what was compiled to try out a toolkit has none."""
        for unit in [one for one in self.spans if one.split(" ")[0] not in files]:
            del self.spans[unit]
            other = Counter(self.phases.get("", {}))
            other.update(self.phases.pop(unit))
            self.phases[""] = dict(other)


class _Watch:
    """What /proc said so far about the descendants of this process."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.rss = self.read_at = 0
        self.shared = 1.0
        self.spans: dict[str, tuple[float, float]] = {}
        self.seen: dict[tuple[int, int], tuple[str, str, float]] = {}

    def look(self) -> None:
        """Reads /proc once."""
        family = _descendants(os.getpid())
        rss = sum(one.rss for one in family.values())
        self.rss = max(self.rss, rss)
        if rss > self.read_at * _GROWN:
            self.read_at, self.shared = rss, sum(_pss(one) for one in family.values()) / rss
        for one in family.values():
            key = (one.pid, one.born)
            known = self.seen.get(key)
            unit = known[1] if known and known[0] == one.name else _unit(one, family) if one.name in PHASES else ""
            self.seen[key] = one.name, unit, one.cpu
            if unit:
                now = time.monotonic() - self.started
                self.spans[unit] = self.spans.get(unit, (now, now))[0], now

    def phases(self) -> dict[str, dict[str, float]]:
        """CPU seconds by unit and phase; programs that are no phase are under the unit ''."""
        found: dict[str, dict[str, float]] = {}
        for name, unit, cpu in self.seen.values():
            part = found.setdefault(unit, {})
            part[name] = part.get(name, 0.0) + cpu
        return found


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    cores: Sequence[int],
    kill_after: float | None = None,
) -> Measured:
    """Runs `argv` on these cores to its end, and waits up to two minutes for what it left behind, which is then killed.

    After `kill_after` seconds its process group gets SIGKILL.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    with log.open("w", encoding="utf-8") as stream, _affinity(cores):
        watch, result = _Watch(), Measured()
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        due = 0.0
        while _reap(process, result):
            now = time.monotonic() - watch.started
            if process.returncode is None:
                result.wall = now
            elif now > result.wall + _PATIENCE:
                break
            if kill_after is not None and now >= kill_after:
                os.killpg(process.pid, signal.SIGKILL)
                kill_after = None
            if now >= due and process.returncode is None:
                watch.look()
                due = now + _INTERVAL
            time.sleep(0.02)
        result.left_for = time.monotonic() - watch.started - result.wall
    finally:
        # ninja gives each compiler a process group of its own: they outlive the group that they were started by.
        while _reap(process, result):
            for pid in _descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
    result.code, result.memory = process.returncode, int(watch.rss * watch.shared)
    result.phases, result.spans = watch.phases(), watch.spans
    return result


@contextlib.contextmanager
def _affinity(cores: Sequence[int]) -> Iterator[None]:
    """What is started in this block, and all that it starts, runs on these cores; this process does so no longer."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _reap(process: subprocess.Popen[bytes], result: Measured) -> bool:
    """Adds up the CPU time of children that have ended; False when there are no more children."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if not pid:
            return True
        result.cpu += usage.ru_utime + usage.ru_stime
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)


def _descendants(root: int) -> dict[int, Process]:
    """All processes below `root`."""
    children: dict[int, list[Process]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        words = rest.split()
        cpu = (int(words[11]) + int(words[12])) / _TICKS
        one = Process(int(path.name), int(words[1]), int(words[19]), name, cpu, int(words[21]) * _PAGE)
        children.setdefault(one.parent, []).append(one)
    found: dict[int, Process] = {}
    todo = [root]
    while todo:
        for one in children.get(todo.pop(), ()):
            found[one.pid] = one
            todo.append(one.pid)
    return found


def _pss(one: Process) -> int:
    """Bytes of memory, those that are shared divided among the sharers; RSS where the kernel does not say."""
    try:
        text = Path(f"/proc/{one.pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return one.rss
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else one.rss


def _unit(one: Process | None, family: Mapping[int, Process]) -> str:
    """`fused.cu`, `fused.cu 2/4` for a part: what the outermost compiler command above this process compiles."""
    unit = part = ""
    while one:
        try:
            words = Path(f"/proc/{one.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            break
        sources = [Path(word).name for word in words if "-c" in words and re.search(r"\.(cu|cpp|cc|cxx)$", word)]
        unit = next((name for name in sources if not name.startswith("tmpxft_")), unit)
        told = dict(re.findall(r"^-D(SAGE_PARTS?)=(\d+)$", "\n".join(words), re.MULTILINE))
        if "SAGE_PART" in told:
            part = f" {int(told['SAGE_PART']) + 1}/{told.get('SAGE_PARTS', '?')}"
        one = family.get(one.parent)
    return unit + part if unit else ""
