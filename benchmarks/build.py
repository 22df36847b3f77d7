"""Builds the same source with sagewheels and by upstream's documented command, in turns, on the same cores.

    CUDA_HOME=/usr/local/cuda-13.0 SAGE_SOURCE_REPO=~/SageAttention.git \\
        python benchmarks/build.py --python ~/venv/bin/python --arch 12.0 --cores 16 --rounds 2 --json build.json

Prints wall, CPU, peak memory and wheel size of each build, the ratios, what the wheels hold, where the CPU time went.
Runs in the interpreter of sagewheels; `--python` is the target, which has torch and into which nothing is installed.
The source is that of the build manifest (SAGE_MANIFEST) at its pinned commit, from SAGE_SOURCE_REPO where that is set.

ours           `python -m sagewheels build`, everything cold: work folder, wheelhouse and object cache are empty
upstream       EXT_PARALLEL=4 MAX_JOBS=CORES NVCC_APPEND_FLAGS="--threads 8" pip wheel . --no-build-isolation --no-deps,
               in a checkout without patches, with build tools that are installed before its clock starts
second-python  ours for the interpreter --second-python, with the object cache of the first of ours
unchanged      the first of ours once more, with all that it left
resume         ours from nothing, killed by SIGKILL after half of the time of the first of ours, and then built again
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare_wheels
import measure
from measure import Measured
from uv import find_uv_bin

from sagewheels import config, proc, source
from sagewheels.backend import matters
from sagewheels.errors import SageError
from sagewheels.job import Job
from sagewheels.resources import ROOT

ROUNDS, EXTRAS = ("ours", "upstream"), ("second-python", "unchanged", "resume")
_OWN_CHOICE = frozenset("EXT_PARALLEL MAX_JOBS NVCC_APPEND_FLAGS CXX_APPEND_FLAGS LDFLAGS CUDAARCHS".split())
"""Variables that would change how one of the two builds: both start without them."""
_HEAD = (
    "| build | wall s | CPU s | cores busy | memory GB | wheel MB | units | before the first s | after the last s |",
    f"|{'---|' * 9}",
)


@dataclass(kw_only=True)
class Row:
    """One build: how it was made, what it cost and the wheel that came of it; `note` in words."""

    name: str
    made: Measured
    wheel: Path | None = None
    size: int = 0
    note: str = ""


class Bench:
    """A folder for everything that is made, the two ways to build, and the rows so far."""

    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.asked, self.work = asked, work
        self.cores = sorted(os.sched_getaffinity(0))[: asked.cores]
        if len(self.cores) < asked.cores:
            raise SageError(f"there are {len(self.cores)} cores here, not {asked.cores}", "Give another --cores")
        drop = _OWN_CHOICE | config.SECRETS
        base = {key: value for key, value in os.environ.items() if key not in drop and not key.startswith("PYTHON")}
        home = asked.cuda_home.absolute()
        # A compiler cache that hides behind the compiler's name would make every later build quick.
        self.env = {
            **base,
            "CUDA_HOME": str(home),
            "PATH": f"{home / 'bin'}:{base['PATH']}",
            "LIBRARY_PATH": ":".join(filter(None, [f"{home}/lib64/stubs", base.get("LIBRARY_PATH", "")])),
            "CCACHE_DISABLE": "1",
            "PYTHON_BIN": str(asked.python.absolute()),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        if asked.tools:
            own = self.work / "uv.toml"
            own.write_text(
                f"no-index = true\nfind-links = [{json.dumps(str(asked.tools.absolute()))}]\n", encoding="utf-8"
            )
            self.env["UV_CONFIG_FILE"] = str(own)
        self.job = Job(config.load(self.env, cwd=work))
        self.rows: list[Row] = []

    def first(self, name: str) -> Row | None:
        """The first build of this name that gave a wheel."""
        return next((row for row in self.rows if row.name == name and row.wheel), None)

    def ours(
        self,
        name: str,
        folder: Path,
        *,
        python: Path | None = None,
        objects: Path | None = None,
        kill: float | None = None,
    ) -> Row:
        """The task, as a process with everything of its own in `folder`. Raises SageError when it fails unasked."""
        folder.mkdir(exist_ok=True)
        env = {
            **self.env,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
            "WORK_DIR": str(folder / "work"),
            "WHEELHOUSE_DIR": str(folder / "wheels"),
            "LOG_DIR": str(folder / "logs"),
            "OBJECT_CACHE_DIR": str(objects or folder / "objects"),
        }
        if python:
            env["PYTHON_BIN"] = str(python.absolute())
        argv = [sys.executable, "-m", "sagewheels", "build", "--arch", self.asked.arch]
        row = self._run(name, argv, env, folder, folder, kill)
        said = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        if other := re.search(r"^\[toolkit\] not .*", said, re.MULTILINE):
            raise SageError(f"ours was compiled with another toolkit: {other[0]}", "Set CUDA_HOME to one that is whole")
        if tools := re.search(r"^\[build\] (using the target's own build tools).*", said, re.MULTILINE):
            row.note = tools[1]
        return row

    def upstream(self, name: str, folder: Path) -> Row:
        """Upstream's command in a fresh checkout, its tools installed before. Raises SageError when it fails."""
        folder.mkdir()
        tools, recipe = self.work / "tools", self.job.recipe
        if not tools.is_dir():
            put = [find_uv_bin(), "pip", "install", "-q", "--python", self.asked.python, "--target", tools]
            proc.run([*put, "pip", *recipe.requires], env=self.env, error=SageError)
        patches = recipe.patches if self.asked.patched else ()
        with contextlib.redirect_stdout(sys.stderr):
            tree = source.checkout(self.job.settings, replace(recipe, patches=patches), folder / "source")
        env = {
            **self.env,
            "PATH": f"{tools / 'bin'}:{self.env['PATH']}",
            "PYTHONPATH": str(tools),
            "TORCH_CUDA_ARCH_LIST": self.asked.arch,
            "EXT_PARALLEL": "4",
            "MAX_JOBS": str(len(self.cores)),
            "NVCC_APPEND_FLAGS": "--threads 8",
        }
        command = "-m pip wheel . --no-build-isolation --no-deps --wheel-dir"
        argv = [str(self.asked.python.absolute()), *command.split(), str((folder / "wheels").absolute())]
        return self._run(name, argv, env, tree.folder, folder, None)

    def _run(
        self, name: str, argv: Sequence[str], env: dict[str, str], cwd: Path, folder: Path, kill: float | None
    ) -> Row:
        log = folder / f"{name}.log"
        made = measure.run(argv, env=env, cwd=cwd, log=log, cores=self.cores, kill_after=kill)
        if made.code and not (kill is not None and made.code == -signal.SIGKILL):
            raise SageError(f"{name} failed with {made.code}: {matters(log)}", f"See {log}, which --work keeps")
        made.of_source({path.name for path in folder.rglob("source/**/*.c*")})
        row = Row(name=name, made=made)
        if made.left_for > 1:
            row.note = f"something of it ran for {made.left_for:.0f} s after its end"
        if not made.code:
            row.wheel = next((folder / "wheels").glob("*.whl"))
            row.size = row.wheel.stat().st_size
        self.rows.append(row)
        self._show(row)
        return row

    def _show(self, row: Row) -> None:
        """A line for the build that has just ended; --json is written after each, in case the next takes too long."""
        made = row.made
        cells = [row.name, f"{made.wall:.1f}", f"{made.cpu:.1f}", f"{made.cpu / made.wall / len(self.cores):.0%}"]
        cells += [f"{made.memory / 1e9:.2f}", f"{row.size / 1e6:.3f}" if row.size else "", str(len(made.units))]
        last = max((last for _, last in made.spans.values()), default=made.wall)
        first = min((first for first, _ in made.spans.values()), default=0)
        cells += [f"{first:.1f}", f"{made.wall - last:.1f}"] if made.spans else ["", ""]
        print(f"| {' | '.join(cells)} |", flush=True)
        self.write()

    def write(self, summary: Sequence[str] = ()) -> None:
        """All numbers as JSON, where that is wanted."""
        if self.asked.json:
            told = [{**asdict(one), "wheel": one.wheel.name if one.wheel else None} for one in self.rows]
            text = json.dumps({"facts": list(self.facts()), "builds": told, "summary": summary}, indent=1)
            self.asked.json.write_text(text + "\n", encoding="utf-8")

    def facts(self) -> Iterator[str]:
        """What the numbers hold for."""
        target, recipe, home = self.job.target, self.job.recipe, self.env["CUDA_HOME"]
        torch = f"torch {target.torch.version}" if target.torch else "no torch"
        nvcc = re.search(r"V[\d.]+", _said([f"{home}/bin/nvcc", "--version"]))
        compiler = _said([*(self.env.get("CXX") or "c++").split(), "--version"]).splitlines()[0]
        model = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield f"{recipe.name} {recipe.version} for {self.asked.arch}, {torch}, Python {target.version}"
        yield f"nvcc {nvcc[0] if nvcc else '?'}, {compiler}, {' '.join(platform.libc_ver())}"
        cores = f"{len(self.cores)} of {os.cpu_count()} cores, {memory / 1e9:.0f} GB"
        yield f"{model[1] if model else platform.machine()}, {cores}"
        yield time.strftime("%Y-%m-%d %H:%M")

    def extra(self, name: str) -> None:
        """One of the scenarios that begin where the first of ours ended."""
        first = self.first("ours")
        assert first is not None and first.wheel is not None
        folder = first.wheel.parent.parent
        if name == "second-python":
            self.ours(name, self.work / name, python=self.asked.second_python, objects=folder / "objects")
        elif name == "unchanged":
            self.ours(name, folder)
        else:
            killed = self.ours("killed", self.work / name, kill=first.made.wall / 2)
            again = self.ours("resumed", self.work / name)
            kept = first.made.units - again.made.units
            again.note = f"{len(kept)} of {len(first.made.units)} units were not compiled again, both together are "
            again.note += f"{(killed.made.wall + again.made.wall) / first.made.wall:.2f}x"

    def summary(self) -> Iterator[str]:
        """Ratios, then what the two wheels hold, then where the CPU time went."""
        ours, theirs = self.first("ours"), self.first("upstream")
        if ours and theirs:
            for what in ("wall", "cpu", "memory"):
                ratio = self._median("ours", what) / self._median("upstream", what)
                yield f"ours / upstream, {what}: {ratio:.2f}x"
            yield f"ours / upstream, wheel size: {ours.size / theirs.size:.2f}x"
        for row in self.rows:
            if ours and row.name not in (*ROUNDS, "killed"):
                yield f"{row.name} / first of ours, wall: {row.made.wall / ours.made.wall:.2f}x"
            if row.note:
                yield f"{row.name}: {row.note}"
        if ours and theirs and ours.wheel and theirs.wheel:
            yield "\nWhat the wheels hold, upstream's first:"
            yield from compare_wheels.compare(theirs.wheel, ours.wheel, self.job.recipe.package, self.asked.python)
        for one in filter(None, (ours, theirs)):
            yield f"\nCPU seconds of {one.name}, by phase:"
            yield from (f"{cpu:8.1f}  {phase}" for phase, cpu in one.made.by_phase.items() if cpu >= 0.05)
            yield f"\nCPU seconds of {one.name}, by unit:"
            units = sorted((-sum(one.made.phases[unit].values()), unit) for unit in one.made.units)
            yield from (f"{-cpu:8.1f}  {unit} ({_largest(one.made.phases[unit])})" for cpu, unit in units)

    def _median(self, name: str, what: str) -> float:
        return statistics.median(float(getattr(row.made, what)) for row in self.rows if row.name == name)


def _largest(phases: dict[str, float]) -> str:
    """`cicc 12.0, ptxas 3.1`."""
    return ", ".join(f"{name} {cpu:.1f}" for name, cpu in sorted(phases.items(), key=lambda item: -item[1])[:4])


def _said(argv: Sequence[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """The rounds, the scenarios, the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = os.environ.get("CUDA_HOME")
    parser.add_argument("--python", type=Path, required=True, metavar="TARGET", help="interpreter with torch")
    parser.add_argument("--arch", default="12.0", help="(default: %(default)s)")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="(default: all, %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of ours and upstream, in turns (default: %(default)s)")
    parser.add_argument("--what", default="ours,upstream", help="in this order (default: %(default)s); see above")
    parser.add_argument("--second-python", type=Path, metavar="PYTHON", help="has the same torch release as TARGET")
    parser.add_argument("--patched", action="store_true", help="upstream's command compiles the patched source too")
    parser.add_argument("--cuda-home", type=Path, default=home, help="toolkit of both (default: CUDA_HOME)")
    parser.add_argument("--tools", type=Path, metavar="FOLDER", help="wheels of the build tools, for want of a network")
    parser.add_argument("--work", type=Path, help="empty folder for everything that is made (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers, also of each phase of each unit")
    asked = parser.parse_args()
    what = asked.what.split(",")
    if unknown := set(what) - {*ROUNDS, *EXTRAS}:
        parser.error(f"--what does not know {', '.join(sorted(unknown))}")
    if not asked.cuda_home:
        parser.error("name a toolkit that suits the torch with --cuda-home or CUDA_HOME")
    if ("second-python" in what) != bool(asked.second_python):
        parser.error("--what second-python and --second-python go together")
    if set(what) & set(EXTRAS) and "ours" not in what:
        parser.error(f"{', '.join(EXTRAS)} are measured against ours: it must be in --what")
    with tempfile.TemporaryDirectory(prefix="build-benchmark-") as name:
        work = (asked.work or Path(name)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            parser.error(f"{work} is not empty")
        try:
            bench = Bench(asked, work)
            print(*bench.facts(), "", *_HEAD, sep="\n", flush=True)
            for number in range(asked.rounds):
                for each in (name for name in what if name in ROUNDS):
                    folder = work / f"{each}-{number + 1}"
                    bench.ours(each, folder) if each == "ours" else bench.upstream(each, folder)
            for each in (name for name in what if name in EXTRAS):
                bench.extra(each)
            summary = list(bench.summary())
            bench.write(summary)
            print("", *summary, sep="\n")
        except SageError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
