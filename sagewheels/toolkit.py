"""CUDA toolkits: found and identified without compiling anything, or made from the package index."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from sagewheels import installer, proc, ui
from sagewheels.config import Settings
from sagewheels.errors import SageError, UsageError
from sagewheels.recipe import ArchRule
from sagewheels.target import Target, Torch

_PARTS = "nvcc,cccl,cudart,crt,nvvm"
FIRST_MAJOR_ON_INDEX = 13
_ON_INDEX = "the package index"
_LAUNCHERS = {"ccache", "sccache", "distcc"}
_SECONDS = 3.0
"""For a program that only says its version: 0.02 s."""


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """A CUDA_HOME as its nvcc names itself; `compiler` is the host compiler's own version line."""

    home: Path
    version: str
    build: str
    origin: str
    compiler: str

    def __str__(self) -> str:
        return f"{self.home} ({self.origin})"


def candidates(settings: Settings, found: Target) -> list[Toolkit]:
    """The toolkits here whose nvcc has the CUDA major of torch, the most meant one first; nothing is compiled.

    The one that was made from the package index is the last. Raises UsageError for a target without a CUDA torch.
    """
    return [kit for kit, problem in survey(settings, found) if not problem]


def survey(settings: Settings, found: Target, rules: Sequence[ArchRule] = ()) -> list[tuple[Toolkit, str]]:
    """Every toolkit here, and why its version alone rules it out for the target and these archs.

    Raises UsageError as `candidates` does.
    """
    torch = torch_of(found)
    try:
        compiler = host_compiler(settings)
    except UsageError:
        compiler = ""
    places = list(_homes(settings, torch))
    own = made(settings, found, torch)
    kits = []
    for home, origin in [*places, *([(own, _ON_INDEX)] if own else [])]:
        try:
            version, build = _nvcc(settings, home)
            problem = ""
        except SageError as error:
            version, build, problem = "", "", error.what
        kit = Toolkit(home=home, version=version, build=build, origin=origin, compiler=compiler)
        kits.append((kit, problem or unsuited(kit, torch, rules)))
    return kits


def unsuited(kit: Toolkit, torch: Torch, rules: Sequence[ArchRule]) -> str:
    """Why this nvcc cannot compile for this torch and these archs, empty when it may."""
    if kit.version.split(".")[0] != torch.cuda.split(".")[0]:
        return f"its nvcc is CUDA {kit.version}, torch has CUDA {torch.cuda}"
    if not (kit.home / "include" / "cuda_runtime.h").exists():
        return f"{kit.home}/include has no cuda_runtime.h"
    for rule in rules:
        if Version(kit.version) < Version(rule.min_cuda):
            return f"its nvcc is CUDA {kit.version}, arch {rule.arch} needs {rule.min_cuda}"
    return ""


def torch_of(found: Target) -> Torch:
    """The torch to compile against. Raises UsageError where there is none with CUDA."""
    if found.torch is None or not found.torch.cuda:
        remedy = "Run stack, or name another Python with --python"
        raise UsageError(f"{found.python} has no CUDA torch to compile against", remedy)
    return found.torch


def _homes(settings: Settings, torch: Torch) -> Iterator[tuple[Path, str]]:
    """Places where a toolkit may be, each once, in the order of how much the user meant it."""
    seen: set[Path] = set()
    program = shutil.which("nvcc", path=settings.variable("PATH") or None)
    named = [(settings.variable(name), name) for name in ("CUDA_HOME", "CUDA_PATH")]
    # The build stands in another folder than the user.
    places = [(Path(home).absolute(), name) for home, name in named if home]
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
    done = proc.run([nvcc, "--dryrun", "-E", "-x", "cu", "/dev/null"], env=settings.environ, timeout=_SECONDS)
    top = re.search(r"^#\$ TOP=(.+)$", done.err + done.out, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else nvcc.resolve().parent.parent


def _nvcc(settings: Settings, home: Path) -> tuple[str, str]:
    """`13.0` and `V13.0.88` of a toolkit. Raises UsageError when nvcc does not say."""
    done = proc.run([home / "bin" / "nvcc", "--version"], env=settings.environ, timeout=_SECONDS)
    version = release(done.out)
    if not version:
        raise UsageError(f"{home}/bin/nvcc does not say its version ({done.last_line[:120]})")
    return version


def release(text: str) -> tuple[str, str] | None:
    """`13.0` and `V13.0.88` in what nvcc says of itself."""
    found = re.search(r"release ([0-9]{1,4}\.[0-9]{1,4}), (V[0-9.]{1,40})", text)
    return (found[1], found[2]) if found else None


def cxx(settings: Settings) -> list[str]:
    """The words that call the host compiler, such as `ccache g++`: CXX, else c++."""
    return (settings.variable("CXX") or "c++").split()


def host_compiler(settings: Settings) -> str:
    """First line of the host compiler's --version. Raises UsageError when there is none."""
    words = cxx(settings)
    done = proc.run([*words, "--version"], env=settings.environ, timeout=_SECONDS, error=UsageError)
    return done.out.splitlines()[0] if done.out else " ".join(words)


def environment(settings: Settings, home: Path) -> dict[str, str]:
    """The environment in which this toolkit's compiler runs.

    torch hands CC to nvcc as its host compiler: where the user set CXX alone, nvcc would take another one than that.
    """
    path = f"{home / 'bin'}:{settings.variable('PATH')}"
    host = host_word(settings)
    return {
        **settings.environ,
        **({"CC": host} if host else {}),
        "CUDA_HOME": str(home),
        "CUDA_PATH": str(home),
        "PATH": path,
    }


def host_word(settings: Settings) -> str:
    """The host compiler that nvcc has to be told, as the user set it in CC or CXX; empty for nvcc's own choice."""
    for name in ("CC", "CXX"):
        words = [word for word in settings.variable(name).split() if Path(word).name not in _LAUNCHERS]
        if words:
            return words[0]
    return ""


def on_index(torch: Torch) -> bool:
    """Whether the package index has a compiler of this torch's CUDA major."""
    return int(torch.cuda.split(".")[0]) >= FIRST_MAJOR_ON_INDEX


def made(settings: Settings, found: Target, torch: Torch) -> Path | None:
    """The CUDA_HOME that `make` made earlier for this torch, None where there is none or it is not whole."""
    home, own = _made_at(settings, found, torch)
    whole = (home / "complete").exists() and (home / "complete").read_text(encoding="utf-8") == str(own)
    return home if whole else None


def make(settings: Settings, found: Target) -> Toolkit:
    """A CUDA_HOME under WORK_DIR: compiler from the package index, library headers from torch's own packages.

    Raises SageError when the index does not give the compiler, UsageError when torch brought no headers.
    """
    torch = torch_of(found)
    home, own = _made_at(settings, found, torch)
    if not (own / "include").is_dir():
        raise UsageError(f"{own} has no CUDA headers: torch did not come from wheels", "Install a CUDA toolkit")
    ui.say("toolkit", f"making CUDA {torch.cuda} from the package index in {home}")
    shutil.rmtree(home, ignore_errors=True)
    packages = home / "packages"
    try:
        installer.into_folder(settings, found, packages, [f"cuda-toolkit[{_PARTS}]=={_release(found, torch)}"])
    except SageError as error:
        raise SageError(f"the CUDA compiler could not be installed: {error.what}", "Check the package index") from None
    _link(home, packages / "nvidia" / own.name, own)
    # Written last: a half-made toolkit is made again.
    (home / "complete").write_text(str(own), encoding="utf-8")
    version, build = _nvcc(settings, home)
    return Toolkit(home=home, version=version, build=build, origin=_ON_INDEX, compiler=host_compiler(settings))


def _release(found: Target, torch: Torch) -> str:
    return found.versions.get("cuda-toolkit") or f"{torch.cuda}.*"


def _made_at(settings: Settings, found: Target, torch: Torch) -> tuple[Path, Path]:
    """Where `make` makes the CUDA_HOME for this torch, and where torch's own CUDA packages are."""
    own = torch.folder.parent / "nvidia" / f"cu{torch.cuda.split('.')[0]}"
    release = _release(found, torch).replace(".*", "")
    return settings.work_dir / "toolkit" / f"cuda-{release}-{found.python_tag}", own


def _link(home: Path, fresh: Path, own: Path) -> None:
    """`home` becomes a CUDA_HOME of links: the compiler's files, and the headers that only torch's packages have."""
    for source, place in ((fresh, home), (own / "include", home / "include")):
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
