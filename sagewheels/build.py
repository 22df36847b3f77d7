"""Compiling: a checkout becomes a wheel, its log, and a wheel manifest made from the wheel itself."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sagewheels
from sagewheels import arch, installer, proc, source, stack, toolkit, ui, wheel, wheelhouse
from sagewheels.arch import Arch
from sagewheels.config import Settings
from sagewheels.errors import BuildFailed, SageError
from sagewheels.host import Host
from sagewheels.manifest import SCHEMA, WheelManifest, parse
from sagewheels.recipe import ArchRule, Recipe
from sagewheels.resources import probe_source
from sagewheels.source import Checkout
from sagewheels.target import Target
from sagewheels.toolkit import Toolkit

_UNIT_DONE = re.compile(r"^\[\d+/\d+\] ", re.MULTILINE)
_MATTERS = (
    re.compile(r"\bKilled\b|signal 9|out of memory|No space left"),
    re.compile(r"\b(?:fatal )?error\b *:|\berror #\d|^#error|undefined reference|cannot find -l|No such file"),
    re.compile(r"ptxas fatal|nvcc fatal|cicc.*fail|Segmentation"),
    re.compile(r"\b(?:\w+Error|FAILED|Exception)\b"),
)


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Extensions built at once, and compilers at once in each of them: they multiply."""

    extensions: int
    compilers: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What is appended for each compiler and the linker: the manifest's flags, then the user's own."""

    cxx: str
    nvcc: str
    link: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides what the compiler is asked to do, and so what the wheel is."""

    recipe: Recipe
    rules: tuple[ArchRule, ...]
    archs: tuple[Arch, ...]
    target: Target
    toolkit: Toolkit
    jobs: Jobs
    tools: str
    glibc: str
    flags: Flags

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extension modules that the wheel must hold."""
        return self.recipe.extensions(self.archs)

    @property
    def units(self) -> int:
        """Translation units to compile."""
        return sum(self.recipe.units[name] for name in self.extensions)


def jobs(settings: Settings, recipe: Recipe, archs: Sequence[Arch], host: Host) -> Jobs:
    """How many compilers at once: as many as cores, and as memory holds; EXT_PARALLEL and MAX_JOBS win. Pure."""
    names = recipe.extensions(archs)
    units = sum(recipe.units[name] for name in names)
    room = max(1, host.memory // recipe.memory_per_unit)
    at_once = max(1, min(host.cores, room))
    side = settings.ext_parallel or min(len(names), at_once)
    # With a slot for every unit, no extension has to hold back for the others.
    each = settings.max_jobs or (at_once if at_once >= units else max(1, at_once // side))
    limit = "cores" if host.cores <= room else "memory"
    return Jobs(extensions=side, compilers=each, why=f"{host.cores} cores, {ui.size(host.memory)} free, by {limit}")


def label(plan: Plan, key: str) -> str:
    """The local version label: CUDA, torch, archs, and the build key, since two builds must not share a name."""
    torch = plan.target.torch
    assert torch is not None
    version = torch.public[:-2] if re.fullmatch(r"\d+\.\d+\.0", torch.public) else torch.public
    archs = "".join(f"sm{one.plain.number}{'ptx' if one.ptx else ''}" for one in plan.archs)
    return f"cu{torch.cuda.replace('.', '')}torch{version}{archs}.k{key[:8]}"


def build_key(plan: Plan, commit: str, patches: Sequence[str]) -> str:
    """sha256 over the declared inputs: same key, same wheel."""
    torch = plan.target.torch
    assert torch is not None
    inputs = {
        "name": plan.recipe.name,
        "version": plan.recipe.version,
        "commit": commit,
        "patches": list(patches),
        "archs": [str(one) for one in plan.archs],
        "torch": torch.version,
        "python": plan.target.python_tag,
        "machine": plan.target.machine,
        "nvcc": plan.toolkit.build,
        "compiler": plan.toolkit.compiler,
        "glibc": plan.glibc,
        "tools": plan.tools,
        "flags": asdict(plan.flags),
        "environment": dict(plan.recipe.environment),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _flags(settings: Settings, recipe: Recipe, cuda: str) -> Flags:
    return Flags(
        cxx=" ".join([*recipe.cxx_flags, *settings.variable("CXX_APPEND_FLAGS").split()]),
        nvcc=" ".join([*recipe.nvcc(cuda), *settings.nvcc_append_flags.split()]),
        link=" ".join([*recipe.link_flags, *settings.variable("LDFLAGS").split()]),
    )


def prepare(settings: Settings, recipe: Recipe, archs: tuple[Arch, ...], target: Target, host: Host) -> Plan:
    """Everything that can fail before the compile does fail here: archs, toolkit, build tools.

    Raises UsageError with the remedy.
    """
    recipe.refuse_mixed(archs)
    rules = tuple(recipe.rules(archs))
    kit = toolkit.find(settings, target, recipe, rules)
    return Plan(
        recipe=recipe,
        rules=rules,
        archs=archs,
        target=target,
        toolkit=kit,
        jobs=jobs(settings, recipe, archs, host),
        tools=_tools(settings, target, recipe),
        glibc=host.glibc,
        flags=_flags(settings, recipe, kit.version),
    )


def _tools_folder(settings: Settings, target: Target, recipe: Recipe) -> Path:
    digest = hashlib.sha256("\n".join(recipe.requires).encode()).hexdigest()[:12]
    return settings.work_dir / "buildtools" / f"{target.python_tag}-{digest}"


def _tools(settings: Settings, target: Target, recipe: Recipe) -> str:
    """Puts setuptools and ninja into a folder of their own and returns their versions.

    The target's own ones are not touched; they are used, and that is said, where the index gives nothing.
    """
    folder = _tools_folder(settings, target, recipe)
    done = folder / "complete"
    if done.exists():
        return done.read_text(encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        installer.into_folder(settings, target, folder, recipe.requires)
    except SageError as error:
        ui.say("build", f"using the target's own build tools: the package index gives none ({error.what[:120]})")
        shutil.rmtree(folder, ignore_errors=True)
        return "the target's own"
    found = sorted(path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info"))
    done.write_text(" ".join(found), encoding="utf-8")
    return " ".join(found)


def run(settings: Settings, plan: Plan, *, force: bool = False) -> tuple[Path, WheelManifest]:
    """A wheel in the wheelhouse with its manifest; the one that is there already when the build key is the same.

    Raises UsageError or StoreError for the source, BuildFailed with the line of the log that matters.
    """
    tree = source.checkout(settings, plan.recipe, settings.work_dir / "source" / plan.recipe.file.stem)
    key = build_key(plan, tree.commit, [patch.sha256 for patch in tree.patches])
    if not force and (kept := wheelhouse.of_build_key(settings, key)):
        ui.say("build", f"{kept[0].name} is in the wheelhouse already, with the same build key {key[:8]}")
        return kept
    started = time.monotonic()
    out = settings.work_dir / "out" / key[:16]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = _log_path(settings, plan)
    _compile(settings, plan, tree, key, out, log)
    made = sorted(out.glob("*.whl"))
    if len(made) != 1:
        raise BuildFailed(f"the build ended without a wheel: {matters(log)}", f"See {log}")
    found = wheel.inspect(made[0], plan.recipe.package)
    _as_planned(plan, found)
    manifest = describe(settings, plan, tree, key, found)
    kept_as = wheelhouse.keep(settings, found.path, manifest)
    ui.say("build", f"{kept_as.name}, {ui.size(found.size)}, in {ui.duration(time.monotonic() - started)}")
    return kept_as, manifest


def environment(settings: Settings, plan: Plan, tree: Checkout, key: str, out: Path) -> dict[str, str]:
    """What the source's setup.py and its compilers are told."""
    extra = out / "label.cfg"
    extra.write_text(f"[egg_info]\ntag_build = +{label(plan, key)}\n", encoding="utf-8")
    tools = _tools_folder(settings, plan.target, plan.recipe)
    env = toolkit.environment(settings, plan.toolkit.home)
    stubs = _stubs(settings, plan)
    own = {
        "PATH": f"{tools / 'bin'}:{env['PATH']}",
        "PYTHONPATH": ":".join(filter(None, [str(tools), settings.variable("PYTHONPATH")])),
        "LIBRARY_PATH": ":".join(filter(None, [str(stubs), settings.variable("LIBRARY_PATH")])),
        "DIST_EXTRA_CONFIG": str(extra),
        "SOURCE_DATE_EPOCH": str(tree.epoch),
        "TORCH_CUDA_ARCH_LIST": arch.join(plan.archs),
        "CUDAARCHS": settings.cudaarchs or ";".join(one.plain.number for one in plan.archs),
        "EXT_PARALLEL": str(plan.jobs.extensions),
        "MAX_JOBS": str(plan.jobs.compilers),
        "CXX_APPEND_FLAGS": plan.flags.cxx,
        "NVCC_APPEND_FLAGS": plan.flags.nvcc,
        "LDFLAGS": plan.flags.link,
        **plan.recipe.environment,
    }
    return {**env, **own}


def _stubs(settings: Settings, plan: Plan) -> Path:
    """A folder with a libcuda.so to link against: on a machine without a driver there is none.

    An empty library will do: nothing is resolved from it when a shared library is linked, only its name is recorded.
    """
    shipped = plan.toolkit.home / "lib64" / "stubs"
    if (shipped / "libcuda.so").exists():
        return shipped
    folder = settings.work_dir / "stubs"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "libcuda.so").exists():
        compiler = (settings.variable("CXX") or "c++").split()
        part = folder / f".libcuda.{os.getpid()}.so"
        soname = "-Wl,-soname,libcuda.so.1"
        argv: list[str | Path] = [*compiler, "-shared", "-nostdlib", soname, "-x", "c++", os.devnull, "-o", part]
        proc.run(argv, env=settings.environ, error=BuildFailed)
        part.replace(folder / "libcuda.so")
    return folder


def _log_path(settings: Settings, plan: Plan) -> Path:
    settings.log_dir.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return settings.log_dir / f"build-{plan.recipe.file.stem}-{stamp}-{os.getpid()}.log"


def _compile(settings: Settings, plan: Plan, tree: Checkout, key: str, out: Path, log: Path) -> None:
    """Runs the source's own build to its end, showing what is done. Raises BuildFailed."""
    env = environment(settings, plan, tree, key, out)
    argv: list[str | Path] = [plan.target.python, "-c", probe_source("build"), out.resolve(), str(os.getpid())]
    at_once = f"EXT_PARALLEL={plan.jobs.extensions} MAX_JOBS={plan.jobs.compilers}"
    ui.say("build", f"{plan.units} units for {arch.join(plan.archs)}, {at_once} ({plan.jobs.why}), log {log}")
    with log.open("w", encoding="utf-8") as stream, ui.progress("build") as shown:
        print(json.dumps({"build_key": key, "label": label(plan, key)}), file=stream, flush=True)
        with proc.stream(argv, log=stream, env=env, cwd=tree.folder) as process:
            while process.poll() is None:
                done = len(_UNIT_DONE.findall(log.read_text(encoding="utf-8", errors="replace")))
                shown.update(f"{min(done, plan.units)}/{plan.units} units, {_now(process.pid) or 'preparing'}")
                _wait(process, 1.0)
    if process.returncode:
        what = f"the compile failed ({proc.ending(process.returncode)}): {matters(log)}"
        raise BuildFailed(what, f"The whole log is {log}; what was installed is untouched")


def _wait(process: Any, seconds: float) -> None:
    """Waits for the end of the process, but not longer than that."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def _now(session: int) -> str:
    """What is compiling, shortly."""
    names = list(_compiling(session))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _compiling(session: int) -> Iterator[str]:
    """The files that compilers of this session work on now, each once."""
    seen: set[str] = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            words = (path / "cmdline").read_bytes().split(b"\0") if int(fields[3]) == session else []
        except (OSError, IndexError, ValueError):
            continue
        for flag, word in itertools.pairwise(words):
            name = Path(os.fsdecode(word)).name
            if flag == b"-c" and name.endswith((".cu", ".cpp", ".cc")) and name not in seen:
                seen.add(name)
                yield name


def matters(log: Path) -> str:
    """The line of a build log that says why it failed, with its number."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for pattern in _MATTERS:
        for number, line in enumerate(lines, 1):
            # ninja echoes whole compiler commands, in which -Werror and the like are no errors.
            if len(line) < 1000 and pattern.search(line) and not line.startswith("["):
                return f"{line.strip()[:300]} (line {number})"
    return f"{lines[-1].strip()[:300]} (last line)" if lines else "the log is empty"


def _as_planned(plan: Plan, found: wheel.Wheel) -> None:
    """The wheel holds every extension, for every arch. Raises BuildFailed: the source left something out."""
    missing = [name for name in plan.extensions if name not in found.extensions]
    if missing:
        raise BuildFailed(f"{found.path.name} was built without {', '.join(missing)}")
    for rule in plan.rules:
        for name in rule.extensions:
            have = found.extensions[name].archs
            if rule.cubin not in have:
                raise BuildFailed(f"{name} holds code for {arch.join(have) or 'nothing'}, not for {rule.cubin}")


def describe(settings: Settings, plan: Plan, tree: Checkout, key: str, found: wheel.Wheel) -> WheelManifest:
    """The wheel manifest: what the wheel is, read from the wheel, and what it was made from."""
    torch = plan.target.torch
    assert torch is not None
    versions = plan.target.versions
    python, _, platform = found.path.name[: -len(".whl")].rsplit("-", 3)[1:]
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "created_at_utc": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "wheel_file": found.path.name,
        "wheel_sha256": found.sha256,
        "size": found.size,
        "hf_wheel_url": None,
        "sageattention_version": found.version.partition("+")[0],
        "expected_sageattention_version": settings.sage_expect_version or None,
        "torch_version": torch.version,
        "torchvision_version": versions.get("torchvision"),
        "torchaudio_version": versions.get("torchaudio"),
        "triton_version": versions.get("triton"),
        "torch_index_url": _index(torch.version),
        "cuda_version": torch.cuda,
        "torch_abi": max(item.abi for item in found.extensions.values()) or None,
        "target_arch": arch.join(plan.archs),
        "cudaarchs": ";".join(one.plain.number for one in plan.archs),
        "archs": [str(one) for one in found.archs],
        "extensions": {name: [str(one) for one in item.archs] for name, item in sorted(found.extensions.items())},
        "glibc": found.glibc or None,
        "required_min_cuda": max((rule.min_cuda for rule in plan.rules), key=lambda text: [*map(int, text.split("."))]),
        "built_for": ", ".join(f"sm_{rule.cubin.number}" for rule in plan.rules),
        "built_from_repo": tree.repo,
        "built_from_ref": tree.ref or None,
        "built_from_commit": tree.commit,
        "patches": [{"name": patch.file, "sha256": patch.sha256} for patch in tree.patches],
        "build_key": key,
        "builder_gpu_name": None,
        "builder_gpu_compute_capability": None,
        "python_version": plan.target.version,
        "python_tag": python,
        "platform": platform,
        "machine": plan.target.machine,
        "toolchain": {
            "nvcc": plan.toolkit.build,
            "compiler": plan.toolkit.compiler,
            "tools": plan.tools,
            "glibc": plan.glibc,
            "flags": asdict(plan.flags),
            "sagewheels": sagewheels.__version__,
        },
        "proofs": [],
        "signature": None,
    }
    return parse(data, found.path.name)


def _index(version: str) -> str | None:
    """PyTorch's own index that has this very torch, by its local version; None where it has none."""
    found = re.search(r"(\.dev\d+)?\+(cu\d+)$", version)
    return stack.index_url(found[2], nightly=bool(found[1])) if found else None
