"""Builds against a range of torch and Python versions, each in an environment of its own, and prints what came of it.

    SAGE_SOURCE_REPO=... python benchmarks/torch_range.py 2.8.0/3.12 2.15.0/3.13 > range.md
    SAGE_SOURCE_REPO=... python benchmarks/torch_range.py --full 2.11.0/3.12

The settings are those of the tasks (`.env`, the environment); the Pythons have to be on PATH, torch comes from the
default package index. Every decision is the tool's own: target, toolkit, source with its patches, flags and compilers.

`--full` runs `sagewheels build`, installs the wheel and imports every extension module. Without it the same build runs
with another ninja in front of the real one, which compiles, with the very commands of the build: the host units (what
binds Python), and `fused.cu` in full. `--front` adds CUDA units whose device code nvcc only parses
(`-fdevice-syntax-only`): the whole host half of them is compiled. Every other unit becomes an empty object, so that the
extensions are linked as in a build, and `_fused`, which is whole, is imported. CUDA objects hold nothing of Python:
further Pythons of the same torch and CUDA are linked with those of the first one (`kept`). Nothing of this is left in
the wheelhouse or the environment of anybody: the folder `--work` is the only one that is written to.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from uv import find_uv_bin

from sagewheels import arch, backend, buildplan, config, host, preflight, source
from sagewheels.buildplan import Plan
from sagewheels.config import Settings
from sagewheels.errors import SageError
from sagewheels.job import Job
from sagewheels.resources import ROOT, probe_source

_WHOLE = "_fused"
"""The extension of which every unit is compiled, because its one CUDA unit is small."""

_COLUMNS = ("torch", "CUDA", "Python", "arch", "toolkit", "mode", "units", "seconds", "imported", "error")
_MIN_DISK = 15 * 10**9

_NINJA = '''#!{python}
"""Compiles the wanted units with the real ninja's own commands, and leaves an empty object for every other."""
import json, os, shutil, subprocess, sys

real, whole, front, kept, done = json.loads(os.environ["TORCH_RANGE"])
if "--version" in sys.argv:
    os.execv(real, [real, "--version"])
wanted = []
for unit in json.loads(subprocess.check_output([real, "-t", "compdb"])):
    name, output = os.path.basename(unit["file"]), unit["output"]
    store = os.path.join(kept, name + (".front.o" if name in front else ".o"))
    os.makedirs(os.path.dirname(output), exist_ok=True)
    how = "left out"
    if name.endswith(".cu") and os.path.exists(store):
        shutil.copyfile(store, output)
        how = "kept"
    elif name in whole or not name.endswith(".cu"):
        wanted.append((name, output, store))
        continue
    elif name in front:
        command = unit["command"] + " -fdevice-syntax-only"
        print(command, flush=True)
        subprocess.run(command, shell=True, cwd=unit["directory"], check=True)
        shutil.copyfile(output, store)
        how = "front"
    else:
        open(output, "w").close()
    print(how, name, file=open(done, "a"))
code = subprocess.call([real, *sys.argv[1:], *[output for _, output, _ in wanted]]) if wanted else 0
for name, output, store in wanted:
    if code == 0:
        print("compiled", name, file=open(done, "a"))
        if name.endswith(".cu"):
            shutil.copyfile(output, store)
sys.exit(code)
'''

_IMPORT = """
import importlib.machinery, importlib.util, sys, torch
loader = importlib.machinery.ExtensionFileLoader(sys.argv[1], sys.argv[2])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader(sys.argv[1], loader))
loader.exec_module(module)
print(len([name for name in dir(module) if name[:2] != "__"]))
"""


@dataclass(kw_only=True)
class Row:
    """What came of one torch and Python."""

    torch: str
    python: str
    arch: str
    mode: str
    cuda: str = ""
    toolkit: str = ""
    units: str = ""
    seconds: float = 0
    imported: str = ""
    error: str = ""
    notes: list[str] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        seconds = f"{self.seconds:.0f}" if self.seconds else ""
        texts = (self.torch, self.cuda, self.python, self.arch, self.toolkit, self.mode, self.units, seconds)
        return (*texts, self.imported, self.error.replace("|", "/"))


class Range:
    """A work folder with one environment at a time, and the objects that several Pythons share."""

    def __init__(self, work: Path, front: tuple[str, ...]) -> None:
        self.work, self.front = work, front
        self.uv = find_uv_bin()

    def row(self, torch: str, python: str, archs: str, *, full: bool) -> Row:
        """Makes the environment, builds, imports, and removes the environment. Never raises for what a build says."""
        row = Row(torch=torch, python=python, arch=archs, mode="no torch")
        home = self.work / "environment"
        try:
            self._environment(home, python, torch)
            settings = self._settings(home, archs)
            job = Job(settings)
            row.cuda = job.target.torch.cuda if job.target.torch else "none"
            row.python, row.mode = job.target.version, "refused"
            kit = preflight.check(settings, job.recipe, job.archs, job.target, job.host)
            plan = buildplan.prepare(settings, job.recipe, job.archs, job.target, job.host, kit)
            row.toolkit = f"{plan.toolkit.build} from {self.neutral(plan.toolkit.origin)}"
            row.mode = "full" if full else "front"
            (self._full if full else self._front)(row, settings, plan)
        except SageError as error:
            row.error = self.neutral(str(error))
        finally:
            shutil.rmtree(home, ignore_errors=True)
        return row

    def _environment(self, home: Path, python: str, torch: str) -> None:
        """A fresh environment with exactly this torch. Raises SageError with what uv says."""
        if host.free_disk(self.work) < _MIN_DISK:
            self._run([self.uv, "cache", "prune", "-q"])
        if host.free_disk(self.work) < _MIN_DISK:
            raise SageError("less than 15 GB of disk are free")
        self._run(
            [self.uv, "venv", "-q", "--clear", "--no-project", "--no-python-downloads", "--python", python, str(home)]
        )
        self._run([self.uv, "pip", "install", "-q", "--python", f"{home}/bin/python", f"torch=={torch}"])

    def _settings(self, home: Path, archs: str) -> Settings:
        folders = {"WORK_DIR": "build", "WHEELHOUSE_DIR": "wheelhouse", "LOG_DIR": "logs"}
        own = {name: str(self.work / folder) for name, folder in folders.items()}
        target = {"PYTHON_BIN": str(home / "bin" / "python"), "TORCH_CUDA_ARCH_LIST": archs}
        return config.load({**os.environ, **own, **target})

    def _full(self, row: Row, settings: Settings, plan: Plan) -> None:
        """The task itself, as a process of its own; the wheel is installed, and every extension module imported."""
        python, started = str(plan.target.python), time.monotonic()
        own = ("WORK_DIR", "WHEELHOUSE_DIR", "LOG_DIR", "PYTHON_BIN")
        env = {**os.environ, **{key: str(getattr(settings, key.lower())) for key in own}}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        said = self._run([sys.executable, "-m", "sagewheels", "build", "--arch", row.arch], env=env)
        row.seconds = time.monotonic() - started
        row.notes += [line for line in said.splitlines() if line.startswith("[source] ")]
        name = re.findall(r"^\[build\] (\S+\.whl)", said, re.MULTILINE)[-1]
        row.units = f"{plan.units} of {plan.units}"
        row.notes.append(name)
        self._run(
            [self.uv, "pip", "install", "-q", "--no-deps", "--python", python, f"{settings.wheelhouse_dir}/{name}"]
        )
        modules = [f"{plan.recipe.package}.{extension}" for extension in plan.extensions]
        code = f"import importlib; [importlib.import_module(name) for name in {[plan.recipe.package, *modules]!r}]"
        self._run([python, "-I", "-c", code])
        row.imported = ", ".join(plan.extensions)

    def _front(self, row: Row, settings: Settings, plan: Plan) -> None:
        """The build with the other ninja; then the one whole extension is imported from the wheel's files."""
        tree = source.checkout(settings, plan.recipe, self.work / "build" / "source")
        row.notes += [f"[source] applied {patch.file}" for patch in tree.patches]
        patches = [patch.sha256 for patch in tree.patches]
        key = buildplan.build_key(plan, tree.commit, patches)
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        env = backend.environment(settings, plan, tree, key, out)
        env = {**env, **self._ninja(plan, env, out, patches)}
        started, log = time.monotonic(), self.work / "logs" / f"front-{row.torch}-{row.python}-{row.arch}.log"
        log.parent.mkdir(exist_ok=True)
        argv = [str(plan.target.python), "-c", probe_source("build"), str(out.resolve()), str(os.getpid())]
        with log.open("w", encoding="utf-8") as stream:
            # The build ends its whole process group when the one who asked is gone, so it needs one of its own.
            done = subprocess.run(
                argv, env=env, cwd=tree.folder, stdout=stream, stderr=stream, check=False, start_new_session=True
            )
        row.seconds = time.monotonic() - started
        row.units = _units(out / "done")
        if done.returncode:
            raise SageError(backend.matters(log))
        with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
            wheel.extractall(out / "wheel")
        (module,) = (out / "wheel").rglob(f"{_WHOLE}.*.so")
        count = self._run(
            [str(plan.target.python), "-I", "-c", _IMPORT, f"{plan.recipe.package}.{_WHOLE}", str(module)]
        )
        row.imported = f"{_WHOLE} ({count.strip()} functions)"

    def _ninja(self, plan: Plan, env: dict[str, str], out: Path, patches: list[str]) -> dict[str, str]:
        """Variables with which torch finds the other ninja."""
        torch, real = plan.target.torch, shutil.which("ninja", path=env["PATH"])
        assert torch is not None and real is not None
        kept = (
            self.work
            / "objects"
            / "-".join([torch.version, plan.toolkit.build, arch.join(plan.archs), *(patch[:6] for patch in patches)])
        )
        kept.mkdir(parents=True, exist_ok=True)
        (out / "bin").mkdir()
        ninja = out / "bin" / "ninja"
        ninja.write_text(_NINJA.format(python=plan.target.python), encoding="utf-8")
        ninja.chmod(0o755)
        told = [real, ["fused.cu"], list(self.front), str(kept), str(out / "done")]
        return {"PATH": f"{ninja.parent}:{env['PATH']}", "TORCH_RANGE": json.dumps(told)}

    def _run(self, argv: list[str], env: dict[str, str] | None = None) -> str:
        """Output of a program. Raises SageError with the lines in which it says what is wrong."""
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SageError(" ".join(re.sub(r"^[^\w\[]+", "", line) for line in done.stderr.strip().splitlines()[-4:]))
        return done.stdout

    def neutral(self, text: str) -> str:
        """The text without this machine's folders and without addresses."""
        text = re.sub(r"https?://\S+", "...", text.replace(str(self.work), "..."))
        return text.replace(str(Path.home()), "~").replace(os.environ.get("CUDA_HOME") or "\0", "$CUDA_HOME")


def _units(done: Path) -> str:
    """`3 compiled, 1 kept, 8 left out`."""
    lines = done.read_text(encoding="utf-8").splitlines() if done.exists() else []
    counts = {
        how: sum(line.startswith(f"{how} ") for line in lines) for how in ("compiled", "front", "kept", "left out")
    }
    return ", ".join(f"{count} {how}" for how, count in counts.items() if count)


def main() -> None:
    """Prints the table, a row as soon as it is there, and then what was applied and made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="TORCH/PYTHON", help="such as 2.11.0/3.12")
    parser.add_argument("--arch", default="12.0", help="what is compiled for (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="compile everything, as `sagewheels build` does")
    parser.add_argument("--front", action="append", default=[], metavar="UNIT.cu", help="parse this CUDA unit too")
    parser.add_argument("--work", type=Path, help="folder for everything that is made (default: a temporary one)")
    asked = parser.parse_args()
    for key in config.SECRETS:  # what is compiled and imported here needs none
        os.environ.pop(key, None)
    with tempfile.TemporaryDirectory() as name:
        # The tool says on stdout what it does: the table goes there alone.
        table, sys.stdout = sys.stdout, sys.stderr
        made = Range((asked.work or Path(name)).absolute(), tuple(asked.front))
        made.work.mkdir(parents=True, exist_ok=True)
        print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", file=table, flush=True)
        notes: dict[str, None] = {}
        for pair in asked.pairs:
            torch, _, python = pair.partition("/")
            row = made.row(torch, python, asked.arch, full=asked.full)
            print(f"| {' | '.join(row.cells())} |", file=table, flush=True)
            notes.update(dict.fromkeys(row.notes))
        print("", *notes, sep="\n", file=table)


if __name__ == "__main__":
    main()
