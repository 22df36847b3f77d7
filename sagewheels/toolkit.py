"""A CUDA toolkit that compiles for this torch and these archs: found and tried, or made from the package index."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from sagewheels import installer, proc, ui
from sagewheels.config import Settings
from sagewheels.errors import SageError, UsageError
from sagewheels.recipe import ArchRule, Recipe
from sagewheels.target import Target, Torch

_PARTS = "nvcc,cccl,cudart,crt,nvvm"
_FIRST_MAJOR_ON_INDEX = 13
_CXX20_SINCE = Version("2.13.0.dev0")
"""torch's headers want C++20 from here on (upstream defect 2); torch's own build adds the standard by itself."""

_LAUNCHERS = {"ccache", "sccache", "distcc"}
_KERNEL = """
#include <cmath>
#include <string>
#include <vector>
#include <cuda_fp16.h>
__global__ void probe(float* x, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] = sqrtf(x[i]); }
std::string probe_name(const std::vector<int>& v) { return std::to_string(std::sqrt(double(v.size()))); }
"""


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """A CUDA_HOME that passed the probe; `compiler` is the host compiler's own version line."""

    home: Path
    version: str
    build: str
    origin: str
    compiler: str


def find(
    settings: Settings, found: Target, recipe: Recipe, rules: Sequence[ArchRule], *, may_make: bool = True
) -> Toolkit:
    """The first toolkit that compiles for the target; made under WORK_DIR where none does and torch is CUDA 13+.

    Raises UsageError with every toolkit that was tried, what was wrong with it, and the remedy.
    """
    torch = _torch(found)
    compiler = _host_compiler(settings)
    tried: list[str] = []
    for home, origin in _homes(settings, torch):
        problem = try_out(settings, home, found, recipe, rules)
        if not problem:
            version, build = _nvcc(settings, home)
            return Toolkit(home=home, version=version, build=build, origin=origin, compiler=compiler)
        tried.append(f"{home} ({origin}): {problem}")
        ui.say("toolkit", f"not {tried[-1]}")
    if int(torch.cuda.split(".")[0]) < _FIRST_MAJOR_ON_INDEX:
        raise UsageError(_none(torch, tried), f"Install the CUDA {torch.cuda} toolkit, or set CUDA_HOME")
    if not may_make:
        raise UsageError(_none(torch, tried), "A build makes one from the package index first")
    home = make(settings, found, torch)
    problem = try_out(settings, home, found, recipe, rules)
    if problem:
        raise UsageError(_none(torch, [*tried, f"the one from the package index: {problem}"]), _remedy(problem))
    version, build = _nvcc(settings, home)
    return Toolkit(home=home, version=version, build=build, origin="the package index", compiler=compiler)


def _torch(found: Target) -> Torch:
    if found.torch is None or not found.torch.cuda:
        raise UsageError("the target has no CUDA torch to compile against", "Run the stack task first")
    if not found.has_python_h:
        remedy = "Install the headers (apt-get install python3-dev)"
        raise UsageError(f"{found.python} has no Python.h in {found.include}", remedy)
    return found.torch


def _none(torch: Torch, tried: Sequence[str]) -> str:
    return f"no CUDA toolkit here compiles for torch {torch.version}: {'; '.join(tried) or 'none was found'}"


def _remedy(problem: str) -> str:
    """What to do about a probe that failed with a toolkit that is whole."""
    if "unsupported GNU version" in problem:
        return "Install an older g++ and set CXX and CC to it"
    if "exception specification" in problem:
        return "This glibc is too new for this CUDA: use torch with a newer CUDA, or an older distribution"
    return "See the line of the compiler above"


def _homes(settings: Settings, torch: Torch) -> Iterator[tuple[Path, str]]:
    """Places where a toolkit may be, each once, in the order of how much the user meant it."""
    seen: set[Path] = set()
    program = shutil.which("nvcc", path=settings.variable("PATH") or None)
    places = [(Path(settings.variable(name)), name) for name in ("CUDA_HOME", "CUDA_PATH") if settings.variable(name)]
    if program:
        places.append((_home_of(settings, Path(program)), "nvcc on PATH"))
    root = Path("/usr/local")
    places += [
        (path, "/usr/local") for path in [root / f"cuda-{torch.cuda}", *sorted(root.glob("cuda-*"), reverse=True)]
    ]
    for home, origin in [*places, (root / "cuda", "/usr/local")]:
        real = home.resolve()
        if real not in seen and (home / "bin" / "nvcc").exists():
            seen.add(real)
            yield home, origin


def _home_of(settings: Settings, nvcc: Path) -> Path:
    """The CUDA_HOME of an nvcc, which may be a wrapper or a link from elsewhere: nvcc itself says it as TOP."""
    done = proc.run([nvcc, "--dryrun", "-E", "-x", "cu", "/dev/null"], env=settings.environ, timeout=30)
    top = re.search(r"^#\$ TOP=(.+)$", done.err + done.out, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else nvcc.resolve().parent.parent


def _nvcc(settings: Settings, home: Path) -> tuple[str, str]:
    """`13.0` and `V13.0.88` of a toolkit. Raises UsageError when nvcc does not say."""
    done = proc.run([home / "bin" / "nvcc", "--version"], env=settings.environ, timeout=30)
    version = re.search(r"release (\d+\.\d+), (V[\d.]+)", done.out)
    if not version:
        raise UsageError(f"{home}/bin/nvcc does not say its version ({done.last_line})")
    return version[1], version[2]


def _host_compiler(settings: Settings) -> str:
    """First line of the host compiler's --version. Raises UsageError when there is none."""
    name = settings.variable("CXX") or "c++"
    done = proc.run([*name.split(), "--version"], env=settings.environ, timeout=30, error=UsageError)
    return done.out.splitlines()[0] if done.out else name


def try_out(settings: Settings, home: Path, found: Target, recipe: Recipe, rules: Sequence[ArchRule]) -> str:
    """Why this toolkit cannot build, empty when it can: nvcc's version, then a probe compile of a few seconds.

    The probe compiles one kernel for the wanted archs, and preprocesses every header that the source includes.
    """
    torch = _torch(found)
    try:
        version, _ = _nvcc(settings, home)
    except SageError as error:
        return error.what
    if version.split(".")[0] != torch.cuda.split(".")[0]:
        return f"its nvcc is CUDA {version}, torch has CUDA {torch.cuda}"
    if not (home / "include" / "cuda_runtime.h").exists():
        return f"{home}/include has no cuda_runtime.h"
    for rule in rules:
        if Version(version) < Version(rule.min_cuda):
            return f"its nvcc is CUDA {version}, arch {rule.arch} needs {rule.min_cuda}"
    with tempfile.TemporaryDirectory(prefix="sagewheels-probe-") as name:
        return _compile(settings, home, found, recipe, rules, Path(name))


def _compile(
    settings: Settings, home: Path, found: Target, recipe: Recipe, rules: Sequence[ArchRule], folder: Path
) -> str:
    """First line of the compiler's complaint, empty when it has none."""
    standard = f"-std=c++{20 if Version(_torch(found).public) >= _CXX20_SINCE else 17}"
    torch = _torch(found).folder
    kernel, headers = folder / "kernel.cu", folder / "headers.cu"
    kernel.write_text(_KERNEL, encoding="utf-8")
    headers.write_text("".join(f"#include <{name}>\n" for name in recipe.headers), encoding="utf-8")
    include = [torch / "include", torch / "include/torch/csrc/api/include", home / "include", found.include]
    places = [part for path in include for part in ("-isystem", str(path))]
    archs = [f"-gencode=arch=compute_{rule.cubin.number},code=sm_{rule.cubin.number}" for rule in rules]
    nvcc = [str(home / "bin" / "nvcc"), *_host(settings), standard]
    version, _ = _nvcc(settings, home)
    for argv in (
        # Without an arch, nvcc of CUDA 12 takes 5.2, for which <cuda/pipeline> is an error.
        [*nvcc, *archs, "-E", *places, str(headers), "-o", str(folder / "headers.ii")],
        [*nvcc, *recipe.nvcc(version), *archs, "-c", str(kernel), "-o", str(folder / "kernel.o")],
    ):
        done = proc.run(argv, env=environment(settings, home), timeout=120)
        if done.code:
            return complaint(done.err + done.out) or done.last_line
    return ""


def _host(settings: Settings) -> list[str]:
    """nvcc takes the host compiler by option; CXX is what torch's build uses for the other half."""
    words = [word for word in settings.variable("CXX").split() if Path(word).name not in _LAUNCHERS]
    return ["-ccbin", words[0]] if words else []


def complaint(text: str) -> str:
    """The first line of compiler output that names an error, without the folders in it."""
    for line in text.splitlines():
        if re.search(r"\b(fatal|error|Error)\b", line):
            # A folder may hold blanks at the beginning of the line, where the place of the error stands.
            told = re.sub(r"^/[^:]*/(?=[^/:]+[:(])", "", line.strip())
            return re.sub(r"(/[^\s:/]+)+/", "", told)[:200]
    return ""


def environment(settings: Settings, home: Path) -> dict[str, str]:
    """The environment in which this toolkit's compiler runs."""
    path = f"{home / 'bin'}:{settings.variable('PATH')}"
    return {**settings.environ, "CUDA_HOME": str(home), "CUDA_PATH": str(home), "PATH": path}


def make(settings: Settings, found: Target, torch: Torch) -> Path:
    """A CUDA_HOME under WORK_DIR: compiler from the package index, library headers from torch's own packages.

    Raises SageError when the index does not give the compiler, UsageError when torch brought no headers.
    """
    own = torch.folder.parent / "nvidia" / f"cu{torch.cuda.split('.')[0]}"
    if not (own / "include").is_dir():
        raise UsageError(f"{own} has no CUDA headers: torch did not come from wheels", "Install a CUDA toolkit")
    release = found.versions.get("cuda-toolkit") or f"{torch.cuda}.*"
    home = settings.work_dir / "toolkit" / f"cuda-{release.replace('.*', '')}-{found.python_tag}"
    if (home / "complete").exists() and (home / "complete").read_text(encoding="utf-8") == str(own):
        return home
    ui.say("toolkit", f"making CUDA {torch.cuda} from the package index in {home}")
    shutil.rmtree(home, ignore_errors=True)
    packages = home / "packages"
    try:
        installer.into_folder(settings, found, packages, [f"cuda-toolkit[{_PARTS}]=={release}"])
    except SageError as error:
        raise SageError(f"the CUDA compiler could not be installed: {error.what}", "Check the package index") from None
    _link(home, packages / "nvidia" / own.name, own)
    # Written last: a half-made toolkit is made again.
    (home / "complete").write_text(str(own), encoding="utf-8")
    return home


def _link(home: Path, made: Path, own: Path) -> None:
    """`home` becomes a CUDA_HOME of links: the compiler's files, and the headers that only torch's packages have."""
    for source, place in ((made, home), (own / "include", home / "include")):
        for path in sorted(source.rglob("*")):
            link = place / path.relative_to(source)
            if path.is_file() and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
    (home / "lib64").symlink_to("lib")
    for library in (home / "lib").glob("lib*.so.*"):
        plain = home / "lib" / f"{library.name.split('.so')[0]}.so"
        if not plain.exists():
            plain.symlink_to(library.name)
