"""A CUDA toolkit whose nvcc answers as the real one does, a target with a torch, and a build manifest."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from sagewheels.target import Target, Torch

NVCC = r"""#!/bin/sh
# Answers as nvcc does; --dryrun says where its files are, and what is preprocessed goes through a real compiler.
version={version}
printf '%s\n' "$*" >>{log}
case " $* " in
*" --version "*)
  echo 'nvcc: NVIDIA (R) Cuda compiler driver'
  echo "Cuda compilation tools, release $version, V$version.88"
  echo "Build cuda_$version.r$version/compiler.1_0"
  exit ;;
*" --dryrun "*)
  echo '#$ _SPACE_= ' >&2
  {top}
  echo '#$ "cicc" --gnu_version=120300' >&2
  exit ;;
*" -E "*)
  for word; do
    shift
    case $before$word in -gencode=* | *-ccbin*) ;; *) set -- "$@" "$word" ;; esac
    case $word in -ccbin) before=-ccbin ;; *) before= ;; esac
  done
  exec c++ -x c++ "$@" ;;
*" -c "*) {compile} ;;
*) echo "nvcc fatal   : what is $*" >&2; exit 1 ;;
esac
# What is compiled is an object that links.
while [ "$1" != -o ]; do shift; done
exec c++ -x c++ -c /dev/null -o "$2"
"""


def make_toolkit(home: Path, *, version: str = "13.0", top: str = "", compile_: str = ":") -> Path:
    """A CUDA_HOME whose nvcc is a script; every call goes into `nvcc.log`."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    says = f"echo '#$ TOP={top}' >&2" if top else ":"
    log = shlex.quote(str(home / "nvcc.log"))
    nvcc.write_text(NVCC.format(version=version, log=log, top=says, compile=compile_), encoding="utf-8")
    nvcc.chmod(0o755)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").write_text("// the runtime\n", encoding="utf-8")
    (home / "lib64").mkdir()
    empty_libraries(home / "lib64", "cudart")
    return home


def calls(home: Path) -> list[str]:
    return (home / "nvcc.log").read_text(encoding="utf-8").splitlines()


def empty_libraries(folder: Path, *names: str) -> None:
    """Shared libraries that a linker finds, with nothing in them."""
    first = folder / f"lib{names[0]}.so"
    subprocess.run(["c++", "-shared", "-nostdlib", "-x", "c++", "/dev/null", "-o", first], check=True)
    for name in names[1:]:
        (folder / f"lib{name}.so").symlink_to(first)


def make_target(prefix: Path) -> Target:
    """A target with a CUDA 13.0 torch, which has one header and libraries without content."""
    torch = prefix / "torch"
    (torch / "include" / "torch").mkdir(parents=True)
    (torch / "include" / "torch" / "extension.h").write_text("#include <cstddef>\n", encoding="utf-8")
    (torch / "lib").mkdir()
    empty_libraries(torch / "lib", "c10", "torch", "torch_cpu", "torch_python", "c10_cuda", "torch_cuda")
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python").symlink_to(sys.executable)
    (prefix / "include").mkdir()
    (prefix / "include" / "Python.h").write_text(
        'extern "C" inline int Py_IsInitialized() { return 1; }\n', encoding="utf-8"
    )
    return Target(
        python=prefix / "bin/python",
        prefix=prefix,
        version="3.12.3",
        soabi="cpython-312-x86_64-linux-gnu",
        machine="x86_64",
        site=prefix,
        include=prefix / "include",
        has_python_h=True,
        externally_managed=False,
        writable=True,
        torch=Torch(folder=torch, version="2.11.0+cu130", cuda="13.0"),
        versions={},
        dist_info={},
        tags=("cp312-cp312-linux_x86_64",),
    )


THING: dict[str, Any] = {
    "schema": 1,
    "name": "thing",
    "version": "1",
    "package": "thing",
    "source": {"path": "thing"},
    "build": {
        "requires": [],
        "headers": ["cuda_runtime.h", "torch/extension.h"],
        "nvcc_flags_since": {"12.8": ["--compress-mode=size"], "13.1": ["--newer"]},
    },
    "extension": {"_a": {"units": 1}},
    "arch": {
        "9.0": {"cubin": "9.0a", "min_cuda": "12.3", "extensions": ["_a"], "kernel": "k"},
        "12.0": {"cubin": "12.0", "min_cuda": "12.8", "extensions": ["_a"], "kernel": "k"},
    },
    "smoke": {
        "call": "thing:attn",
        "min_cosine": 0.9,
        "max_relative_l2": 0.1,
        "head_dims": [64],
        "lengths": [17],
        "dtypes": ["float16"],
        "layouts": ["HND"],
        "heads": [[8, 2]],
    },
}
