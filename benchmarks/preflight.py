"""Breaks this machine in one way after another, and shows what `build` says about it, and after how many seconds.

    PYTHON_BIN=TARGET/bin/python CUDA_HOME=CUDA SAGE_SOURCE_REPO=SageAttention.git python benchmarks/preflight.py

All are whole paths, and CUDA is a complete toolkit of the target's CUDA. Run it as root (it mounts small disks, in a
namespace of its own), with the Python that sagewheels is installed for. No build is begun: one that passes preflight is
ended there.

As another user:

    sudo PYTHON_BIN=... CUDA_HOME=... SAGE_SOURCE_REPO=... "$(command -v python)" benchmarks/preflight.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

_NEW_GXX = """#!/bin/sh
# A g++ that tells nvcc, and only nvcc, that it is release 99.
case " $* " in *__CUDACC__*) exec g++ -U__GNUC__ -D__GNUC__=99 "$@" ;; esac
exec g++ "$@"
"""
_NEW_GLIBC = """// Names that glibc 2.41 and 2.42 took, and CUDA had before.
#include_next <bits/mathcalls.h>
#ifndef NEW_GLIBC
#define NEW_GLIBC
extern double cospi(double) noexcept(true);
extern double rsqrt(double) noexcept(true);
#endif
"""
_HANGING_NVCC = """#!/bin/sh
case $* in --version) exec {nvcc} --version ;; *) sleep 3600 ;; esac
"""


def run(folder: Path, environ: Mapping[str, str], before: str) -> tuple[float, list[str]]:
    """Seconds until preflight has spoken, and the lines that it said; `before` is a command for the shell."""
    shell = ["unshare", "--mount", "sh", "-ec", f'{before or ":"}; exec "$@"', "sh"]
    argv = [*shell, sys.executable, "-m", "sagewheels", "build"]
    lines: list[str] = []
    started = time.monotonic()
    with subprocess.Popen(
        argv,
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line.strip())
            if "all good" in line:
                os.killpg(process.pid, signal.SIGTERM)
                break
        seconds = time.monotonic() - started
        process.communicate()
    return seconds, [*lines, f"exit {process.returncode}"]


def main() -> None:
    """A heading, a time and the lines for each machine."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.parse_args()
    for name in ("PYTHON_BIN", "CUDA_HOME"):
        if not Path(os.environ.get(name, "")).is_absolute():
            known.error(f"set {name} to a whole path: --help shows how")
    if os.geteuid():
        known.error("it mounts small disks, and needs root for that: --help shows how")
    target, home = Path(os.environ["PYTHON_BIN"]), Path(os.environ["CUDA_HOME"])
    asked = [target, "-c", "import sysconfig; print(sysconfig.get_paths()['include'])"]
    include = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as silent:
        top = Path(name)
        for path, text in (("new/g++", _NEW_GXX), ("hangs/bin/nvcc", _HANGING_NVCC.format(nvcc=home / "bin/nvcc"))):
            (top / path).parent.mkdir(parents=True)
            (top / path).write_text(text, encoding="utf-8")
            (top / path).chmod(0o755)
        (top / "hangs" / "include").symlink_to(home / "include")
        (top / "glibc" / "bits").mkdir(parents=True)
        (top / "glibc" / "bits" / "mathcalls.h").write_text(_NEW_GLIBC, encoding="utf-8")
        shutil.copytree(home, top / "lacking", copy_function=os.symlink)
        (top / "lacking" / "include" / "cusparse.h").unlink()
        (top / "no-git").mkdir()
        for program in Path("/usr/bin").iterdir():
            if program.name != "git":
                (top / "no-git" / program.name).symlink_to(program)
        work = top / "w"
        index_is_dead = {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(top / "empty")}
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/SageAttention.git"
        new_gxx = {"CXX": str(top / "new/g++")}
        cases: dict[str, tuple[dict[str, str], str]] = {
            "nothing wrong, the first time": ({}, ""),
            "nothing wrong": ({}, ""),
            "nothing wrong, five archs": ({"TORCH_CUDA_ARCH_LIST": "8.0;8.6;8.9;10.0;12.0"}, ""),
            "a header of CUDA is missing, the index is dead": (
                {"CUDA_HOME": str(top / "lacking"), **index_is_dead},
                "",
            ),
            "g++ is too new": (new_gxx, ""),
            "glibc is too new": ({"CPATH": str(top / "glibc")}, ""),
            "nvcc hangs, the index is dead": ({"CUDA_HOME": str(top / "hangs"), **index_is_dead}, ""),
            "no C++ compiler": ({"CXX": "g++-99"}, ""),
            "no Python.h": ({}, f"mount -t tmpfs none {include}"),
            "WORK_DIR on a disk of 120 MB": ({}, f"mount -t tmpfs -o size=120m none {work}/.build-sageattention"),
            "WORK_DIR is noexec": ({}, f"mount -t tmpfs -o noexec none {work}/.build-sageattention"),
            "TMPDIR on a disk of 20 MB": ({"TMPDIR": str(top / "t")}, f"mount -t tmpfs -o size=20m none {top}/t"),
            "the repository is silent": ({"SAGE_SOURCE_REPO": address}, ""),
            "the repository has no such ref": ({"SAGE_SOURCE_REF": "v9"}, ""),
            "no git": ({"PATH": str(top / "no-git")}, ""),
            "g++ too new, no Python.h, silent repository, small disk": (
                {**new_gxx, "SAGE_SOURCE_REPO": address},
                f"mount -t tmpfs none {include}; mount -t tmpfs -o size=120m none {work}/.build-sageattention",
            ),
        }
        (top / "t").mkdir()
        (work / ".build-sageattention").mkdir(parents=True)
        environ = {"TORCH_CUDA_ARCH_LIST": "12.0", **os.environ, "SAGE_STORE": str(top / "store")}
        for what, (changed, before) in cases.items():
            seconds, lines = run(work, {**environ, **changed}, before)
            print(f"\n## {what}: {seconds:.1f} s", *(f"    {line}" for line in lines), sep="\n", flush=True)


if __name__ == "__main__":
    main()
