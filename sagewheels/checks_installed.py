"""Checks of what is installed in the target: the package itself, packages that contradict, and Triton's cache."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

from sagewheels import installed as memory
from sagewheels import installer, proc, symptoms, ui
from sagewheels.checks import Check, judged
from sagewheels.job import Job
from sagewheels.target import Target, Torch

_SECONDS = 40.0
"""For importing torch and the package: 3 s, from a network disk that is read for the first time many more."""
_MOST_FILES = 20_000
_NO_DRIVER = "libcuda.so.1"
_IMPORT = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"


def package(job: Job) -> Iterator[Check]:
    """Which version is there, whose it is, whether it is for this torch, and whether it can be imported."""
    name, found = job.recipe.name, job.target
    have = found.versions.get(name)
    if not have:
        yield Check(what=name, standing="ok", found="not installed yet")
        return
    state = memory.read_state(job.settings, found, job.recipe)
    ours = memory.is_in_place(found, job.recipe, state, str(state.get("sha256")))
    trouble = _wrong_version(have, job.recipe.version) or _of_another_torch(have, found.torch)
    whose = "installed by sagewheels" if ours else "not installed by sagewheels: nothing here has proven it"
    remedy = "auto installs one that fits; rollback brings this one back"
    yield judged(name, trouble and f"{have} is installed: {trouble}", remedy, f"{have} is installed, {whose}")
    yield _imported(job, whole=not _wrong_version(have, job.recipe.version))


def _wrong_version(have: str, wanted: str) -> str:
    try:
        same = Version(have).release == Version(wanted).release
    except InvalidVersion:
        same = have.partition("+")[0] == wanted
    return "" if same else f"{wanted} is wanted"


def _of_another_torch(have: str, torch: Torch | None) -> str:
    """Why a wheel with this label was not made for this torch, as far as its label says."""
    label = have.partition("+")[2]
    release = re.search(r"torch(\d+\.\d+)(?!.*higher)", label)
    cuda = re.search(r"^cu(\d{2})", label)
    if not torch:
        return "there is no torch"
    if release and f"{torch.public}.".split(".")[:2] != release[1].split("."):
        return f"it was built for torch {release[1]}, the target has {torch.public}"
    if cuda and torch.cuda and torch.cuda.split(".")[0] != cuda[1]:
        return f"it was built for CUDA {cuda[1]}, torch has {torch.cuda}"
    return ""


def _imported(job: Job, *, whole: bool) -> Check:
    """The import, in the target; of a `whole` package also each module, which packages hide behind a bare except."""
    archs = [one for one in job.archs if one.plain in job.recipe.archs]
    modules = [f"{job.recipe.package}.{name}" for name in job.recipe.extensions(archs)] if whole else []
    env = {key: value for key, value in job.settings.environ.items() if not key.startswith("PYTHON")}
    with tempfile.TemporaryDirectory(prefix="sagewheels-import-") as empty:
        argv: list[str | Path] = [job.target.python, "-B", "-c", _IMPORT, job.recipe.package, *modules]
        done = proc.run(argv, env=env, cwd=Path(empty), timeout=_SECONDS)
    if done.code and _NO_DRIVER in done.last_line and not job.host.driver:
        return Check(what="import", standing="ok", found="cannot be tried without the NVIDIA driver")
    remedy = symptoms.remedy(done.err, "import", but="auto installs one that fits, and proves it")
    trouble = f"importing {job.recipe.package} failed: {done.last_line}" if done.code else ""
    return judged("import", trouble, remedy, f"{job.recipe.package} and {ui.count(len(modules), 'module')} load")


def packages(job: Job) -> Iterator[Check]:
    """What the installer finds contradictory, as far as it is about the stack, setuptools or the package."""
    uv = installer.uv_program(job.settings)
    if not uv:
        yield Check(what="packages", standing="ok", found="not looked at: needs uv")
        return
    done = proc.run([uv, "pip", "check", "--python", job.target.python], env=job.settings.environ, timeout=30)
    mine = {"torch", "torchvision", "torchaudio", "triton", "setuptools", job.recipe.name}
    told = [line.strip().replace("`", "") for line in done.err.splitlines() if mine & set(_names(line))]
    remedy = "Install what is asked for: stack mends torch and triton, pip install --upgrade setuptools the rest"
    yield judged("packages", "; ".join(told)[:400], remedy, "torch, triton and setuptools suit those who need them")


def _names(line: str) -> list[str]:
    """The two packages of a line of `uv pip check`."""
    return re.findall(r"`([\w.-]+)", line)[:2] if line.startswith("The package ") else []


def triton_cache(job: Job) -> Iterator[Check]:
    """Modules in Triton's cache that another Python, or another Triton, has left there."""
    folder = _cache(job)
    stale = _stale(folder, job.target)
    remedy = f"If a call fails with PY_SSIZE_T_CLEAN or undefined symbols: rm -r {folder}"
    trouble = (
        f"{ui.count(len(stale), 'module')} in {folder} made for another Python or Triton: {stale[0]}" if stale else ""
    )
    yield judged(
        "Triton cache", trouble, remedy, f"nothing stale in {folder}" if folder.is_dir() else f"{folder} is not there"
    )


def _cache(job: Job) -> Path:
    own = job.settings.variable("TRITON_CACHE_DIR")
    home = job.settings.variable("TRITON_HOME") or job.settings.variable("HOME") or str(Path.home())
    return Path(own) if own else Path(home) / ".triton" / "cache"


def _stale(folder: Path, found: Target) -> list[str]:
    """Names of modules with the tag of another Python, or with none and older than the Triton that is installed."""
    info = found.dist_info.get("triton")
    since = info.stat().st_mtime if info and info.exists() else 0.0
    stale = []
    for seen, (path, changed) in enumerate(_modules(folder)):
        tagged = re.search(r"\.(cpython-\d+t?)[.-]", path)
        mine = f"{found.soabi}-".startswith(f"{tagged[1]}-") if tagged else changed >= since
        if not mine:
            stale.append(path)
        if seen > _MOST_FILES:
            break
    return stale


def _modules(folder: Path) -> Iterator[tuple[str, float]]:
    """Every .so one folder down, with when it was written; what cannot be read is passed over."""
    try:
        for one in os.scandir(folder):
            if one.is_dir(follow_symlinks=False):
                yield from ((f.name, f.stat().st_mtime) for f in os.scandir(one) if f.name.endswith(".so"))
    except OSError:
        return
