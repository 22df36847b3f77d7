"""Kills `auto` with SIGKILL at points spread over its life, lets the next `auto` run, and compares where both end.

    python benchmarks/kill.py TARGET_PYTHON --work DIR [--points 200] [--jobs 4] [--seconds 540] [--objects]

TARGET_PYTHON has a CUDA torch; nothing is installed there. Each worker gets an environment that sees its packages, and
runs the demo package with folders and a directory store of its own, from the checkout that this script is part of.
First `auto` runs undisturbed, twice, which says how long it takes and where it ends; the two must agree. Then, for each
point, everything starts from nothing, only the process of `auto` is killed (as the OOM killer does: what it started
goes on as it likes), and `auto` runs again. Where it ends is held against the undisturbed run: site-packages,
wheelhouse, store and memory; no unfinished file and no process may be left.

A point that was done is in DIR/results.jsonl and is not done again: call it anew until all are done (`--seconds` ends a
slice in time). The table says what was going on when the kill came: the last line that `auto` had printed. What failed
keeps its folder. With --objects the workers share compiled objects, so that a recovery compiles only what no run had
compiled yet. Ends with 1 when a point failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uv import find_uv_bin

_ROOT = Path(__file__).resolve().parent.parent
_LIMIT = 900
_GRACE = 5.0
_HALF = re.compile(r"\.part\b|\.part-|\.sagewheels$")
_MOMENTS = re.compile(
    r'"(?:at_utc|created_at_utc)": "[^"]*"|"(?:record|worst_\w+|\d+(?:x\d+)+)": (?:"[^"]*"|[\d.]+)|\d+\.\d\dx'
)
"""What differs between two undisturbed runs: when, and by how much a GPU was faster this time."""


@dataclass(frozen=True)
class Worker:
    """A folder in which `auto` runs, with an environment that sees the packages of the target."""

    folder: Path
    env: dict[str, str]

    def reset(self) -> None:
        """Everything is as before the first `auto`."""
        for name in ("case", "env"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "case").mkdir()
        shutil.copytree(self.folder / "env.new", self.folder / "env", symlinks=True)

    def auto(self, log: str, kill_after: float | None = None) -> tuple[int, float, list[str]]:
        """Exit code, seconds, and the lines that `auto` printed; it alone is killed after so many seconds."""
        out = self.folder / log
        started = time.monotonic()
        with out.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "sagewheels", "auto"],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            try:
                process.wait(timeout=_LIMIT if kill_after is None else kill_after)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        return process.returncode, time.monotonic() - started, out.read_text(errors="replace").splitlines()

    def unfinished(self) -> list[str]:
        """What is half written, and programs that do not end: the compilers of a killed build have a moment to."""
        found = [path for name in ("case", "env") for path in (self.folder / name).rglob("*")]
        parts = [str(path.relative_to(self.folder)) for path in found if _HALF.search(path.name)]
        end = time.monotonic() + _GRACE
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.1)
        return [f"{path} is left" for path in parts] + [f"process {one} is left" for one in left]

    def _left(self) -> list[str]:
        """Processes that still run for this worker, told by the WORK_DIR in their environment."""
        mark = f"WORK_DIR={self.env['WORK_DIR']}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes():
                    found.append(f"{path.name} {(path / 'comm').read_text().strip()}")
            except OSError:
                continue
        return found

    def state(self) -> dict[str, str]:
        """Where a run ended: each file that counts, by its hash, or its text less what is of the moment."""
        site, case = next((self.folder / "env" / "lib").glob("python*/site-packages")), self.folder / "case"
        found = {}
        for root in (site, case / "wheelhouse", case / "store", case / "work" / "state", case / "work" / "previous"):
            for path in sorted(root.rglob("*")):
                if (
                    path.is_file()
                    and path.suffix != ".pyc"
                    and path.name not in ("uv_cache.json", ".lock", ".revision")
                    and not path.name.startswith("quick-")
                ):
                    # A proof made here is noted under its hash, which differs as the proof does: how many counts.
                    name = f"proof or wheel {len(found)}" if path.parent.name == "made-here" else path.name
                    found[str(path.relative_to(self.folder).with_name(name))] = _told(path)
        return found


def _told(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "RECORD":
        content = b"".join(line for line in content.splitlines(True) if b"uv_cache.json" not in line)
    elif path.suffix in (".json", ".md"):
        content = _MOMENTS.sub("", content.decode()).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def worker(number: int, given: argparse.Namespace) -> Worker:
    """A worker, whose fresh environment is kept beside the one that is used."""
    folder = given.work / f"worker{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    argv = [find_uv_bin(), "venv", "-q", "--no-project", "--python", given.python, folder / "env"]
    subprocess.run(argv, check=True)
    ask = "import sysconfig; print(*dict.fromkeys(map(sysconfig.get_path, ('purelib', 'platlib'))), sep='\\n')"
    lent = subprocess.run([given.python, "-c", ask], capture_output=True, text=True, check=True).stdout
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "lent.pth").write_text(lent)
    (folder / "env").rename(folder / "env.new")
    case = folder / "case"
    own = {
        "PYTHON_BIN": folder / "env" / "bin" / "python",
        "WORK_DIR": case / "work",
        "WHEELHOUSE_DIR": case / "wheelhouse",
        "LOG_DIR": case / "logs",
        "SAGE_STORE": case / "store",
        **({"OBJECT_CACHE_DIR": given.work / "objects"} if given.objects else {}),
    }
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, **{key: str(value) for key, value in own.items()}, "SAGE_MANIFEST": "demo", "PYTHONPATH": path}
    return Worker(folder, {"MAX_JOBS": str(max(1, (os.cpu_count() or 1) // given.jobs)), **env})


def undisturbed(one: Worker, runs: int) -> tuple[float, dict[str, str]]:
    """How long `auto` takes, and where it ends. Ends the program when that is not the same each time."""
    seen = []
    for number in range(runs):
        one.reset()
        code, seconds, lines = one.auto(f"undisturbed{number}.log")
        if code or one.unfinished():
            sys.exit(f"auto ended with {code} in {one.folder}: {lines[-1:]} {one.unfinished()}")
        seen.append((seconds, one.state()))
    for _, state in seen[1:]:
        if differ := difference(seen[0][1], state):
            sys.exit(f"two undisturbed runs end differently: {differ}")
    return sum(seconds for seconds, _ in seen) / runs, seen[-1][1]


def difference(one: dict[str, str], two: dict[str, str]) -> list[str]:
    """The files in which two end states differ."""
    return [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]


def try_point(one: Worker, point: int, share: float, life: float, state: dict[str, str]) -> dict[str, Any]:
    """Kills at this share of a life and recovers; what came of it."""
    for _ in range(3):
        one.reset()
        at = life * share
        code, life, lines = one.auto("killed.log", kill_after=at)
        if code == -signal.SIGKILL:
            break
    # Otherwise it was quicker than its life was said to be: once more, by how long it really took.
    again, seconds, after = one.auto("again.log")
    problems = one.unfinished()
    if code != -signal.SIGKILL:
        problems.append(f"it could not be killed, it ended with {code}")
    if again:
        problems.append(f"the next run ended with {again}: {' '.join(after[-1:])}")
    problems += [f"{name} differs" for name in difference(state, one.state())]
    line = lines[-1] if lines else ""
    return {"point": point, "at": round(at, 2), "line": line, "again": round(seconds, 1), "problems": problems}


def work_off(one: Worker, points: queue.SimpleQueue[int], given: argparse.Namespace, end: float) -> int:
    """Takes points until there are none, or no time; how many were tried."""
    results = given.work / "results.jsonl"
    life, state = undisturbed(one, 1 if results.exists() else 2)
    print(f"{one.folder.name}: undisturbed, auto takes {life:.1f} s and leaves {len(state)} files", flush=True)
    done = 0
    while time.monotonic() < end:
        try:
            point = points.get_nowait()
        except queue.Empty:
            break
        found = try_point(one, point, (point - 0.5) / given.points, life, state)
        with results.open("a") as stream:
            stream.write(json.dumps(found) + "\n")
        if found["problems"]:
            shutil.copytree(one.folder, given.work / f"failed{point}", symlinks=True, dirs_exist_ok=True)
        done += 1
    return done


def report(results: list[dict[str, Any]], points: int) -> int:
    """Prints the table and the failures; how many there are."""
    kills, good = Counter[str](), Counter[str]()
    for one in results:
        topic = re.match(r"\[([\w-]+)\]", one["line"])
        phase = topic[1] if topic else "before its first line" if not one["line"] else "output of a program"
        kills[phase] += 1
        good[phase] += not one["problems"]
    print("\n| the last line was of | kills | recovered, with the end state of an undisturbed run |\n|---|---|---|")
    for phase, count in kills.most_common():
        print(f"| {phase} | {count} | {good[phase]} |")
    print(f"| all {points} points | {len(results)} | {sum(good.values())} |")
    bad = [one for one in results if one["problems"]]
    for one in bad:
        print(f"point {one['point']}, killed after {one['at']} s, `{one['line']}`: {'; '.join(one['problems'])}")
    return len(bad)


def main() -> int:
    """0 when every point that was tried was recovered from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="an interpreter with a CUDA torch")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the workers and the results")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=4, help="workers, each with its share of the cores")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no point after so many")
    parser.add_argument("--objects", action="store_true", help="share compiled objects among all runs")
    given = parser.parse_args()
    given.work = given.work.resolve()
    started, results = time.monotonic(), given.work / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    left = sorted({*range(1, given.points + 1)} - {one["point"] for one in known})
    points: queue.SimpleQueue[int] = queue.SimpleQueue()
    for point in left:
        points.put(point)
    if left:
        workers = [worker(number, given) for number in range(min(given.jobs, len(left)))]
        with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
            list(pool.map(lambda one: work_off(one, points, given, started + given.seconds), workers))
        known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    print(f"{len(known)} of {given.points} points are done, {time.monotonic() - started:.0f} s in this call")
    return 1 if report(known, given.points) else 0


if __name__ == "__main__":
    sys.exit(main())
