"""Runs a command that is killed, or finds the disk full, at the nth thing that it or its children change in a folder.

`trap.c` counts; the commands are real ones on a real small machine, but for what needs CUDA: the compile, whose wheel
is made before, and cuobjdump.
"""

from __future__ import annotations

import functools
import mmap
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sagewheels.resources import ROOT
from tests import wheels
from tests.wheels import Machine

COUNT, FULL, KILL_FIRST, KILL_ALL = range(4)
"""KILL_FIRST: the command alone, as the OOM killer does; KILL_ALL: whoever writes too, as when power is lost."""

_LAYOUT = "5i400s"
_DRIVER = """
import os, sys
from pathlib import Path
from sagewheels import cli, installer, steps, wheel, wheelhouse
from tests import wheels

def build(job, *, force=False, turn=None):
    path = Path(os.environ["BUILT"])
    manifest = wheels.describe(path, created_at_utc="2026-05-05T00:00:00Z", build_key="ab" * 32)
    return wheelhouse.keep(job.settings, path, manifest), manifest

steps.do_build, wheel.cubins = build, wheels.marked_archs
if os.environ.get("INSTALLER"):
    installer.uv_program = lambda settings: Path(os.environ["INSTALLER"])
cli.main()
"""

_THEIRS = "mark = 'theirs'\n\ndef main():\n    print(mark)\n"
_SCRIPT = b"[console_scripts]\ntiny = tinyattn:main\n"


@functools.cache
def library() -> Path:
    """trap.c, compiled; the test is skipped where there is no compiler."""
    made = wheels.workshop() / "trap.so"
    argv = [
        wheels.compiler(),
        "-shared",
        "-fPIC",
        "-O1",
        str(Path(__file__).with_suffix(".c")),
        "-o",
        str(made),
        "-ldl",
    ]
    subprocess.run(argv, check=True)
    return made


@dataclass(frozen=True)
class Ended:
    """How a command ended; `where` is empty when the trap did not spring."""

    code: int
    out: str
    err: str
    count: int
    where: str


class Stage:
    """A machine with a directory store that can be set back to how it was, and commands to run on it."""

    def __init__(self, folder: Path, *, short_lived: bool = False) -> None:
        """`short_lived`: what is in TMPDIR counts as well."""
        self.folder = folder / "here"
        self.machine: Machine = wheels.machine(self.folder)
        self.built = wheels.make(folder / "built", python="mark = 'built'\n")
        self.theirs = wheels.make(folder / "theirs", version="0.9", python=_THEIRS, info={"entry_points.txt": _SCRIPT})
        self._saved = folder / "saved"
        self._env = {
            **self.machine.settings.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHON_BIN": str(self.machine.python),
            "SAGE_MANIFEST": self.machine.settings.sage_manifest,
            "SAGE_STORE": str(self.folder / "store"),
            "TORCH_CUDA_ARCH_LIST": "12.0",
            "WORK_DIR": str(self.folder / "work"),
            "WHEELHOUSE_DIR": str(self.folder / "wheelhouse"),
            "LOG_DIR": str(self.folder / "logs"),
            "BUILT": str(self.built),
            "TMPDIR": str((self.folder if short_lived else folder) / "tmp"),
        }
        Path(self._env["TMPDIR"]).mkdir()

    def save(self) -> None:
        """From now on `reset` leads here."""
        shutil.copytree(self.folder, self._saved, symlinks=True)

    def reset(self) -> None:
        """Everything is as it was saved."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._saved, self.folder, symlinks=True)

    def run(self, *words: str, mode: int = COUNT, at: int = 0) -> Ended:
        """Runs a task with the trap set."""
        with tempfile.NamedTemporaryFile(dir=wheels.workshop()) as counter:
            counter.write(struct.pack(_LAYOUT, 0, at, mode, 0, 0, b""))
            counter.flush()
            trap = {"LD_PRELOAD": str(library()), "TRAP": counter.name, "TRAP_BELOW": str(self.folder)}
            done = subprocess.run(
                [sys.executable, "-c", _DRIVER, *words],
                cwd=self.folder,
                env={**self._env, **trap},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            with mmap.mmap(counter.fileno(), struct.calcsize(_LAYOUT)) as seen:
                count, *_, where = struct.unpack(_LAYOUT, seen[:])
        return Ended(done.returncode, done.stdout, done.stderr, count, where.rstrip(b"\0").decode())

    def start(self, *words: str, out: IO[str] | int = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
        """A task that runs on its own; INSTALLER names what stands in for uv."""
        return subprocess.Popen(
            [sys.executable, "-c", _DRIVER, *words],
            cwd=self.folder,
            env={**self._env, **env},
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )

    def state(self) -> dict[str, str]:
        """All that a run leaves, less what is of the moment: logs, locks, ids, and when uv saw a wheel."""
        found = {name: told for name, told in wheels.tree(self.folder).items() if not _is_of_the_moment(name)}
        for name in found:
            path = self.folder / name
            if path.name == "RECORD":
                found[name] = re.sub(r".*uv_cache.json.*\n", "", path.read_text(encoding="utf-8"))
            elif path.parent.name == "state":
                found[name] = re.sub(r'"record": "\w+"', "", path.read_text(encoding="utf-8"))
        return found

    def parts(self) -> list[str]:
        """What is half written."""
        left = [path for path in self.folder.rglob("*") if ".part" in path.name or path.name.endswith(".sagewheels")]
        return sorted(str(path.relative_to(self.folder)) for path in left)


def _is_of_the_moment(name: str) -> bool:
    path = Path(name)
    # A note for the next `auto` names inodes and times: test_quick.py says when it counts.
    if path.parts[0] in ("logs", "tmp") or path.name.startswith("quick-"):
        return True
    return path.suffix == ".pyc" or path.name in ("__pycache__", "lock", ".lock", ".revision", "uv_cache.json")


def sample(count: int, wanted: int, everything: bool) -> list[int]:
    """The points of a run at which it is caught: all of them, or a spread over its length."""
    if everything or count <= wanted:
        return list(range(1, count + 1))
    return sorted({round((place + 0.5) * count / wanted) for place in range(wanted)})
