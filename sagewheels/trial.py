"""One small unit read, compiled and linked with a toolkit, as the build will do it with hundreds of kernels."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import Version

from sagewheels import buildplan, proc, toolkit
from sagewheels.config import Settings
from sagewheels.recipe import ArchRule, Recipe
from sagewheels.target import Target
from sagewheels.toolkit import Toolkit

Argv = Sequence[str | Path]

_CXX20_SINCE = Version("2.13.0.dev0")
"""torch's headers want C++20 from here on (upstream defect 2); torch's own build adds the standard by itself."""

_AT_WORK = 0.3
"""Seconds of processor time that show that a compiler does not hang: one that waits for a licence needs 0.02."""

_KERNEL = """
#include <cmath>
#include <string>
#include <vector>
#include <cuda_fp16.h>
__global__ void probe(float* x, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] = sqrtf(x[i]); }
std::string probe_name(const std::vector<int>& v) { return std::to_string(std::sqrt(double(v.size()))); }
"""
_BINDING = """
#include <Python.h>
#include <cmath>
#include <string>
std::string probe_module(double x) { return std::to_string(std::sqrt(x)) + (Py_IsInitialized() ? "" : "-"); }
"""
_TORCH_LIBRARIES = ("c10", "torch", "torch_cpu", "torch_python")
_CUDA_LIBRARIES = ("cudart", "c10_cuda", "torch_cuda")
"""What torch's CUDAExtension links."""

_LIBRARY_PACKAGES = {
    "cublas": "libcublas-dev",
    "cufft": "libcufft-dev",
    "curand": "libcurand-dev",
    "cusolver": "libcusolver-dev",
    "cusparse": "libcusparse-dev",
    "nvrtc": "cuda-nvrtc-dev",
    "cuda/": "cuda-cccl",
    "thrust/": "cuda-cccl",
    "cub/": "cuda-cccl",
}
"""How the name of a header begins -> the package of the Linux repositories of CUDA that has it, less its version."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried, and until when (by time.monotonic): a compiler that hangs until then has failed.

    The shims are folders of headers that come before all others; `unfinished` receives the compilers that were still
    at work when the time was over.
    """

    settings: Settings
    target: Target
    recipe: Recipe
    rules: Sequence[ArchRule]
    until: float
    nvcc_shims: Sequence[Path] = ()
    cxx_shims: Sequence[Path] = ()
    unfinished: list[str] = field(default_factory=list)

    @property
    def standard(self) -> str:
        """The C++ standard that torch asks for."""
        newer = Version(toolkit.torch_of(self.target).public) >= _CXX20_SINCE
        return f"-std=c++{20 if newer else 17}"

    def flags(self, cuda: str = "0") -> buildplan.Flags:
        """The build's own; only those of nvcc depend on its version."""
        return buildplan.flags(self.settings, self.recipe, cuda)

    def run(self, argv: Argv, env: dict[str, str]) -> str:
        """What a compiler complained about, empty when it ended well, or was still at work when the time was over.

        A machine that is busy, or reads from a slow disk for the first time, can build; one that hangs cannot.
        """
        done = proc.run(argv, env=env, timeout=max(0.1, self.until - time.monotonic()))
        if done.code and done.worked > _AT_WORK:
            self.unfinished.append(Path(argv[0]).name)
        elif done.code:
            told = complaint(done.err + done.out) or re.sub(r"^(did not end) within .*", r"\1 in time", done.last_line)
            return told + _own_flags(self.settings, Path(argv[0]).name, told)
        return ""


def binding(trial: Trial) -> str:
    """Why the host compiler cannot make a module for this Python and torch, empty when it can; needs no toolkit."""
    torch = toolkit.torch_of(trial.target).folder
    with tempfile.TemporaryDirectory(prefix="sagewheels-probe-") as name:
        source, made = Path(name) / "binding.cpp", Path(name) / "binding.o"
        source.write_text(_BINDING, encoding="utf-8")
        include = _includes([*trial.cxx_shims, trial.target.include])
        cxx, flags = toolkit.cxx(trial.settings), trial.flags().cxx.split()
        argv: Argv = [*cxx, trial.standard, *flags, "-fPIC", *include, "-c", source, "-o", made]
        env = dict(trial.settings.environ)
        link = _link(trial, made, [torch / "lib"], _TORCH_LIBRARIES)
        # There is no object where the compiler was still at work.
        return trial.run(argv, env) or (trial.run(link, env) if made.exists() else "")


def kernel(trial: Trial, kit: Toolkit) -> list[str]:
    """What is in the way of building with this toolkit, each thing once; nothing when a module could be made."""
    with tempfile.TemporaryDirectory(prefix="sagewheels-probe-") as name, ThreadPoolExecutor(3) as pool:
        works = [pool.submit(work, trial, kit, Path(name)) for work in (_compiled, _read, _parsed)]
        return list(dict.fromkeys(filter(None, [work.result() for work in works])))


def _compiled(trial: Trial, kit: Toolkit, folder: Path) -> str:
    """One kernel compiled for every arch, and linked as torch links an extension."""
    torch = toolkit.torch_of(trial.target).folder
    source, made = folder / "kernel.cu", folder / "kernel.o"
    source.write_text(_KERNEL, encoding="utf-8")
    argv: Argv = [*_nvcc(trial, kit, trial.rules), *_options(trial, kit), "-c", source, "-o", made]
    # lib, where there is no lib64, as torch does.
    own = kit.home / "lib64" if (kit.home / "lib64").is_dir() else kit.home / "lib"
    link = _link(trial, made, [torch / "lib", own], [*_TORCH_LIBRARIES, *_CUDA_LIBRARIES])
    env = _environment(trial, kit)
    return trial.run(argv, env) or (trial.run(link, env) if made.exists() else "")


def _read(trial: Trial, kit: Toolkit, folder: Path) -> str:
    """Every header that the source includes, and all that they include, is there: read by the preprocessor."""
    source = _including(folder / "headers.cu", trial.recipe.headers)
    # Without an arch, nvcc of CUDA 12 takes 5.2, for which <cuda/pipeline> is an error.
    argv: Argv = [*_nvcc(trial, kit, trial.rules), "-E", source, "-o", folder / "headers.ii"]
    return trial.run(argv, _environment(trial, kit))


def _parsed(trial: Trial, kit: Toolkit, folder: Path) -> str:
    """CUDA's own of those headers compiled, for one arch: torch's take up to half a minute, and are only read."""
    torch = toolkit.torch_of(trial.target).folder
    places = [torch / "include", torch / "include/torch/csrc/api/include"]
    own = [name for name in trial.recipe.headers if not any((place / name).exists() for place in places)]
    source = _including(folder / "own.cu", own)
    argv: Argv = [*_nvcc(trial, kit, trial.rules[-1:]), *_options(trial, kit), "-c", source, "-o", folder / "own.o"]
    return trial.run(argv, _environment(trial, kit))


def _including(path: Path, headers: Iterable[str]) -> Path:
    path.write_text("".join(f"#include <{name}>\n" for name in headers), encoding="utf-8")
    return path


def _nvcc(trial: Trial, kit: Toolkit, rules: Sequence[ArchRule]) -> list[str | Path]:
    """nvcc with what the build tells it: host compiler, standard, where headers are, and archs."""
    torch = toolkit.torch_of(trial.target).folder
    host = toolkit.host_word(trial.settings)
    places = [torch / "include", torch / "include/torch/csrc/api/include", kit.home / "include", trial.target.include]
    archs = [f"-gencode=arch=compute_{rule.cubin.number},code=sm_{rule.cubin.number}" for rule in rules]
    include = _includes([*trial.nvcc_shims, *places])
    return [kit.home / "bin" / "nvcc", *(["-ccbin", host] if host else []), trial.standard, *archs, *include]


def _options(trial: Trial, kit: Toolkit) -> list[str]:
    return [*trial.flags(kit.version).nvcc.split(), "--compiler-options", "-fPIC"]


def _environment(trial: Trial, kit: Toolkit) -> dict[str, str]:
    """The build's, less the flags that nvcc would read from there a second time."""
    env = toolkit.environment(trial.settings, kit.home)
    return {key: value for key, value in env.items() if key != "NVCC_APPEND_FLAGS"}


def _includes(places: Iterable[Path]) -> list[str]:
    return [part for path in places for part in ("-I", str(path))]


def _link(trial: Trial, made: Path, places: Iterable[Path], libraries: Iterable[str]) -> Argv:
    """The host compiler's call that makes a module of one object."""
    where = [*(f"-L{path}" for path in places), *(f"-l{name}" for name in libraries)]
    return [
        *toolkit.cxx(trial.settings),
        "-shared",
        made,
        *where,
        *trial.flags().link.split(),
        "-o",
        made.with_suffix(".so"),
    ]


def _own_flags(settings: Settings, program: str, told: str) -> str:
    """` (with NVCC_APPEND_FLAGS)` after a complaint about an option, where the user gave some; else empty.

    The standard and the archs are ours.
    """
    about_options = re.search(r"^\w+ fatal|unrecognized (command.line )?option|invalid option", told)
    if not about_options or re.search(r"-std=|Unsupported gpu architecture", told):
        return ""
    given = {**settings.environ, "NVCC_APPEND_FLAGS": settings.nvcc_append_flags}
    names = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS") if program == "nvcc" else ("CXX_APPEND_FLAGS", "LDFLAGS")
    mine = " and ".join(name for name in names if given.get(name, "").strip())
    return f" (with {mine})" if mine else ""


def complaint(text: str) -> str:
    """The first line of compiler output that names an error, without the folders in it."""
    for line in text.splitlines():
        if re.search(r"\b(fatal|error|Error)\b|cannot find |undefined reference|unrecognized option", line):
            # A folder may hold blanks at the beginning of the line, where the place of the error stands.
            told = re.sub(r"^/[^:]*/(?=[^/:]+[:(])", "", line.strip()).partition(" The nvcc flag '-allow-unsup")[0]
            return re.sub(r"(/[^\s:/]+)+/", "", told)[:200]
    return ""


_WITH_FLAGS = r" \(with ([A-Z_]+FLAGS(?: and [A-Z_]+FLAGS)?)\)$"


def of_machine(problem: str) -> bool:
    """Whether every toolkit of the same release would complain of this: the host compiler, its libc, or own flags."""
    return "unsupported" in problem or "exception specification" in problem or of_flags(problem)


def of_flags(problem: str) -> bool:
    """Whether the user's own flags are to blame, which every toolkit gets."""
    return re.search(_WITH_FLAGS, problem) is not None


def remedy(problem: str, cuda: str = "") -> str:
    """What to do about what a compiler complained of, empty where its line has to speak for itself."""
    if own := re.search(_WITH_FLAGS, problem):
        return f"Look at {own[1]}"
    newest = re.search(r"unsupported GNU version.*versions later than (\d+)", problem)
    if newest:
        return f"Install g++ {newest[1]} or older (apt-get install g++-{newest[1]}) and set CXX and CC to it"
    header = re.search(r"fatal error: (\S+): No such file", problem)
    if header and cuda:
        package = next((name for start, name in _LIBRARY_PACKAGES.items() if header[1].startswith(start)), "")
        if package:
            return f"Install the whole CUDA {cuda} toolkit (apt-get install {package}-{cuda.replace('.', '-')})"
    return next((words for pattern, words in _REMEDIES if re.search(pattern, problem)), "")


_REMEDIES = (
    (r"unsupported (GNU|\w*\s*clang|.*) version", "Install an older g++ and set CXX and CC to it"),
    (
        r"exception specification",
        "This glibc is too new for this CUDA: use torch with a newer CUDA, or an older distribution",
    ),
    (r"Unsupported gpu architecture", "Install a newer CUDA toolkit, or set CUDA_HOME to one"),
    (r"Python\.h", "Install the headers (apt-get install python3-dev)"),
    (r"cannot find -l(c10|torch)", "torch is not whole: install it again"),
    (r"cannot find -lcudart", "Install the whole CUDA toolkit, or set CUDA_HOME to one"),
    (r"cannot find -lstdc\+\+|fatal error: (cmath|string|vector):", "Install g++ (apt-get install g++)"),
    (r"unrecognized command.line option .-std=c\+\+20", "Install g++ 11 or newer and set CXX and CC to it"),
    (r"No space left", "Free space where TMPDIR points, or set it to another folder"),
    (r"Killed|out of memory|Cannot allocate", "Free some memory"),
    (r"did not end in time", "Something hangs, or the machine is too busy: look with ps, then run it again"),
)
