"""Tries the object cache: shared, killed, damaged, touched, and behind ccache or sccache; prints a Markdown table.

    python benchmarks/object_cache.py PYTHON_OF_THE_TARGET [--second PYTHON] [--kills 20] [--only NAME,...]

Builds the demo many times in a temporary folder, with the CUDA toolkit of CUDA_HOME. Ends with 1 where a build fails,
a wheel differs from the first one, or a process is left. ccache is tried where it is installed, with a folder as its
remote storage; sccache where SCCACHE_REDIS_ENDPOINT or another storage of it is set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_WHOLE = {".json": "an entry", ".o": "an object"}


@dataclass
class Bench:
    """A folder in which demos are built, and what came out so far."""

    root: Path
    python: str
    cuda: Path
    first: str = ""
    problems: list[str] = field(default_factory=list)

    def start(self, name: str, cache: str, **also: str) -> subprocess.Popen[str]:
        """A build in the folder of that name, with the object cache of that name."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        shutil.rmtree(folder / "wheels", ignore_errors=True)
        own = {"WORK_DIR": "work", "WHEELHOUSE_DIR": "wheels", "LOG_DIR": "logs"}
        env = {**os.environ, **{key: str(folder / place) for key, place in own.items()}}
        env.update(PYTHON_BIN=self.python, PYTHONPATH=str(_ROOT), CUDA_HOME=str(self.cuda))
        env.update(OBJECT_CACHE_DIR=str(self.root / cache), **{"COMPILER_LAUNCHER": "none", **also})
        argv = [sys.executable, "-m", "sagewheels", "build", "--manifest", "demo", "--arch", "12.0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(argv, cwd=folder, env=env, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def end(self, name: str, process: subprocess.Popen[str], *, same: bool = True) -> str:
        """What it says of the cache, and how long the compile took; the wheel must be the first one again."""
        said, _ = process.communicate()
        wheels = sorted((self.root / name / "wheels").glob("*.whl"))
        if process.returncode or len(wheels) != 1:
            self.problems.append(f"{name}: exit {process.returncode}: {said}")
            return "failed"
        digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        self.first = self.first or digest
        if same and digest != self.first:
            self.problems.append(f"{name}: another wheel, {digest}")
        took = re.search(r" in ([\d.]+ \w+)$", said, re.MULTILINE)
        lines = [line.removeprefix("[build] ") for line in said.splitlines() if "damaged" in line or "cannot" in line]
        reused = re.search(r"(\d+ of \d+) objects were compiled before", said)
        is_same = "same wheel" if digest == self.first else "another wheel"
        return "; ".join(
            [f"{reused[1] if reused else 'no'} objects reused, {took[1] if took else '?'}", is_same, *lines]
        )

    def build(self, name: str, cache: str, *, same: bool = True, **also: str) -> str:
        """One build from its beginning to its end."""
        return self.end(name, self.start(name, cache, **also), same=same)

    def left(self) -> list[str]:
        """Processes of a build here that are still there: the temporary folder is in what started them."""
        mine, found = str(self.root), []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                where = str((path / "cwd").readlink())
            except OSError:
                continue
            if int(path.name) != os.getpid() and "sccache" not in words and (mine in words or where.startswith(mine)):
                found.append(words[:100])
        return found

    def files(self, cache: str, suffix: str) -> list[Path]:
        """The entries or objects of a cache, the largest first."""
        return sorted((self.root / cache).rglob(f"*{suffix}"), key=lambda path: -path.stat().st_size)


Rows = Iterator[tuple[str, str]]


def shared(bench: Bench, second: str) -> Rows:
    """One folder for two work folders, two targets, and two builds at a time."""
    yield "first build, empty cache", bench.build("one", "cache")
    yield "another WORK_DIR, the same cache", bench.build("two", "cache")
    if second:
        yield "another Python, the same cache", bench.build("three", "cache", same=False, PYTHON_BIN=second)
        # Runs for one target wait for each other: these are for two.
        both = bench.start("one", "together"), bench.start("three", "together", PYTHON_BIN=second)
        came = bench.end("one", both[0]), bench.end("three", both[1], same=False)
        yield "both at the same time, empty cache", " / ".join(came)
        yield (
            "both once more",
            f"{bench.build('one', 'together')} / " + bench.build("three", "together", same=False, PYTHON_BIN=second),
        )


def killed(bench: Bench, times: int, seed: int) -> Rows:
    """SIGKILL of sagewheels alone, at any moment from when its compile begins."""
    chance, reused, slow = random.Random(seed), [], 0.0
    for turn in range(times):
        shutil.rmtree(bench.root / "killed", ignore_errors=True)
        shutil.rmtree(bench.root / "seven" / "logs", ignore_errors=True)
        process = bench.start("seven", "killed")
        while process.poll() is None and not list((bench.root / "seven" / "logs").glob("*")):
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 7.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        while (left := bench.left()) and time.monotonic() - began < 5:
            time.sleep(0.05)
        slow = max(slow, time.monotonic() - began)
        bench.problems += [f"turn {turn}: still there after 5 s: {words}" for words in left]
        was_there = len(bench.files("killed", ".json"))
        came = bench.build("seven", "killed")
        reused.append(f"{was_there}:{came.split()[0]}")
        if "damaged" in came or "cannot" in came:
            bench.problems.append(f"turn {turn}: {came}")
    what = f"{times} times SIGKILL within 7 s of the compile, then the build again"
    yield what, f"all processes gone after {slow:.1f} s at most; objects there and reused: {' '.join(reused)}"


def damaged(bench: Bench) -> Rows:
    """A cache whose files are not what they were."""

    def cut(data: bytes) -> bytes:
        return data[: len(data) // 2]

    def flip(data: bytes) -> bytes:
        return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]

    bench.build("one", "cache")
    harms: list[tuple[str, str, Callable[[bytes], bytes]]] = [
        ("cut in half", ".o", cut),
        ("with one bit flipped", ".o", flip),
        ("emptied", ".o", lambda _: b""),
        ("cut in half", ".json", cut),
        ("with another sha256 of its object", ".json", lambda data: data.replace(b'"object": "', b'"object": "f', 1)),
    ]
    for words, suffix, harm in harms:
        path = bench.files("cache", suffix)[0]
        path.write_bytes(harm(path.read_bytes()))
        yield f"{_WHOLE[suffix]} {words}", bench.build("one", "cache")
        yield "the next build", bench.build("one", "cache")
    bench.files("cache", ".o")[0].unlink()
    yield "an object removed", bench.build("one", "cache")


def touched(bench: Bench) -> Rows:
    """Times that change, contents that do not; then the other way round."""
    bench.build("one", "cache")
    copy = bench.root / "toolkit"
    shutil.copytree(bench.cuda, copy, symlinks=True)
    header = copy / "include" / "crt" / "common_functions.h"  # of the two CUDA units alone
    text, was = header.read_bytes(), bench.cuda
    header.unlink()
    header.write_bytes(text)
    bench.cuda = copy
    for words, moment in (("1980", 315532800), ("2037", 2114380800)):
        for path in (header, *bench.files("cache", ".json"), *bench.files("cache", ".o")):
            os.utime(path, (moment, moment))
        yield f"a copy of the toolkit; header, entries and objects from {words}", bench.build("one", "cache")
    then = header.stat()
    header.write_bytes(text[:-1] + b" ")
    os.utime(header, ns=(then.st_atime_ns, then.st_mtime_ns))
    yield "that header changed, of the same size and mtime", bench.build("one", "cache")
    header.write_bytes(text)
    yield "that header as it was", bench.build("one", "cache")
    bench.cuda = was


def ccache(bench: Bench) -> Rows:
    """ccache with a folder as its remote storage: its local cache and ours are new each time."""
    program = shutil.which("ccache")
    if not program:
        return
    remote = f"file:{bench.root / 'remote'}"

    def through(number: int, **also: str) -> str:
        local = str(bench.root / f"ccache{number}")
        also = {"COMPILER_LAUNCHER": "", "CCACHE_DIR": local, "CCACHE_REMOTE_STORAGE": remote, **also}
        came = bench.build(f"remote{number}", f"new{number}", same="NVCC_APPEND_FLAGS" not in also, **also)
        env = {**os.environ, "CCACHE_DIR": local}
        said = subprocess.run([program, "--print-stats"], env=env, capture_output=True, text=True, check=True).stdout
        stats = dict(line.split("\t") for line in said.splitlines() if "\t" in line)
        wanted = ("direct_cache_hit", "preprocessed_cache_hit", "cache_miss", "remote_storage_hit")
        return f"{came}; " + ", ".join(f"{key} {stats[key]}" for key in wanted if stats.get(key, "0") != "0")

    yield "ccache, empty remote storage", through(1)
    yield "ccache elsewhere, the same remote storage", through(2)
    yield "the same with NVCC_APPEND_FLAGS=-DOTHER", through(3, NVCC_APPEND_FLAGS="-DOTHER")
    for path in (bench.root / "remote").rglob("*"):
        if path.is_file() and path.name != "CACHEDIR.TAG":
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    yield "a bit flipped in every file of the remote storage", through(4)


def sccache(bench: Bench) -> Rows:
    """sccache, where one of its storages is set: its server is started here, and stopped."""
    program = shutil.which("sccache")
    if not program or not any(key.startswith("SCCACHE_") for key in os.environ):
        return
    for number, words in enumerate(("sccache, empty storage", "sccache elsewhere, the same storage")):
        subprocess.run([program, "--stop-server"], capture_output=True, check=False)
        came = bench.build(f"s{number}", f"snew{number}", COMPILER_LAUNCHER="sccache")
        asked = [program, "--show-stats", "--stats-format=json"]
        stats = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)["stats"]
        hits, misses = (stats[key]["counts"] for key in ("cache_hits", "cache_misses"))
        yield words, f"{came}; requests {stats['compile_requests']}, hits {hits}, misses {misses}"
    subprocess.run([program, "--stop-server"], capture_output=True, check=False)


def main() -> int:
    """Tries what is asked for, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("--second", default="", help="another target, with the same torch and another Python")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="shared,killed,damaged,touched,ccache,sccache")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="object-cache-") as folder:
        bench = Bench(Path(folder), asked.python, Path(os.environ["CUDA_HOME"]))
        tries: dict[str, Callable[[], Rows]] = {
            "shared": lambda: shared(bench, asked.second),
            "killed": lambda: killed(bench, asked.kills, asked.seed),
            "damaged": lambda: damaged(bench),
            "touched": lambda: touched(bench),
            "ccache": lambda: ccache(bench),
            "sccache": lambda: sccache(bench),
        }
        print("| what was done | what came out |\n|---|---|", flush=True)
        for name in asked.only.split(","):
            for what, came in tries[name]():
                print(f"| {what} | {came} |", flush=True)
        bench.problems += [f"left: {words}" for words in bench.left()]
    print(f"\nwheel {bench.first}", *bench.problems, sep="\n")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
