"""What a build is asked to do: archs, toolkit, flags and jobs, and from them the build key and the label."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sagewheels import installer, packing, remotecache, ui
from sagewheels.arch import Arch
from sagewheels.config import Settings
from sagewheels.errors import SageError
from sagewheels.host import Host
from sagewheels.recipe import ArchRule, Recipe
from sagewheels.source import content_hash
from sagewheels.target import Target
from sagewheels.toolkit import Toolkit

BUILD_TOOLS = ("setuptools", "wheel", "packaging", "ninja")
"""What PyTorch extensions are built with; probed in the target, in case the package index cannot be reached."""


_TOOLS_SECONDS = 10.0
"""For 2 MB from the package index: 1 s."""

_ALSO = (
    "CC CXX CFLAGS CXXFLAGS CPPFLAGS CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH LIBRARY_PATH NVCC_PREPEND_FLAGS "
    "TORCH_NVCC_FLAGS CUDAARCHS"
).split()
"""Variables of the user that compilers read by themselves: they change the wheel, and so the build key."""


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """How many compilers run at once in all, and the bytes of memory that they share.

    `extensions` is how many the source may begin with at once: their compilers wait for their turn all the same.
    """

    at_once: int
    memory: int
    extensions: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What is appended for each compiler and the linker: the manifest's flags, then the user's own.

    `environment` holds what compilers read by themselves.
    """

    cxx: str
    nvcc: str
    link: str
    environment: str = ""


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
    launcher: str = ""
    """ccache or sccache, put before compilers; it decides nothing."""

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extension modules that the wheel must hold."""
        return self.recipe.extensions(self.archs)

    @property
    def units(self) -> int:
        """Translation units to compile."""
        return sum(self.recipe.units[name] for name in self.extensions)


def jobs(settings: Settings, recipe: Recipe, archs: Sequence[Arch], host: Host) -> Jobs:
    """As many compilers as cores, or as MAX_JOBS says. Pure.

    Who sets EXT_PARALLEL too means MAX_JOBS for each extension, as in the source's own build: their product then, but
    no more than there are cores.
    """
    names = recipe.extensions(archs)
    extensions = min(settings.ext_parallel or recipe.extensions_at_once or len(names), len(names))
    asked = settings.max_jobs
    if asked and settings.ext_parallel:
        asked = min(asked * settings.ext_parallel, host.cores)
    why = f"{ui.count(host.cores, 'core')}, {ui.size(host.memory)} free"
    return Jobs(
        at_once=asked or host.cores,
        memory=host.memory,
        extensions=extensions,
        why=f"MAX_JOBS; {why}" if asked else why,
    )


def label(plan: Plan, key: str) -> str:
    """The local version label: CUDA, torch, archs, and the build key, since two builds must not share a name.

    A wheel on the stable ABI is for one CUDA major and many a torch, so that neither is named more closely.
    """
    torch = plan.target.torch
    assert torch is not None
    version = torch.public[:-2] if re.fullmatch(r"\d+\.\d+\.0", torch.public) else torch.public
    archs = "".join(f"sm{one.plain.number}{'ptx' if one.ptx else ''}" for one in plan.archs)
    if plan.recipe.stable_torch:
        return f"cu{torch.cuda.partition('.')[0]}{archs}.k{key[:8]}"
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
        "packing": packing.made_with(),
        "flags": asdict(plan.flags),
        "environment": dict(plan.recipe.environment),
        "shims": shims(plan.recipe),
        "parts": {name: rule.parts for name, rule in plan.recipe.unit_rules.items()},
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def shims(recipe: Recipe) -> str:
    """The content hash of the headers of ours, empty where there are none."""
    if recipe.shims is None:
        return ""
    files = {str(path.relative_to(recipe.shims)): path.read_bytes() for path in recipe.shims.rglob("*.h")}
    return content_hash(files)


def flags(settings: Settings, recipe: Recipe, cuda: str) -> Flags:
    """The flags for an nvcc of this CUDA version. Pure."""
    return Flags(
        cxx=" ".join([*recipe.cxx_flags, *settings.variable("CXX_APPEND_FLAGS").split()]),
        nvcc=" ".join([*recipe.nvcc(cuda), *settings.nvcc_append_flags.split()]),
        link=" ".join([*recipe.link_flags, *settings.variable("LDFLAGS").split()]),
        environment=" ".join(f"{key}={settings.variable(key)}" for key in _ALSO if settings.variable(key)),
    )


def prepare(
    settings: Settings, recipe: Recipe, archs: tuple[Arch, ...], target: Target, host: Host, kit: Toolkit
) -> Plan:
    """What is built, and with what; whether it can be is for `preflight` to say. Raises UsageError for the archs."""
    archs = recipe.cubins_for(archs)
    rules = tuple(recipe.rules(archs))
    return Plan(
        recipe=recipe,
        rules=rules,
        archs=archs,
        target=target,
        toolkit=kit,
        jobs=jobs(settings, recipe, archs, host),
        tools=tools(settings, target, recipe),
        glibc=host.glibc,
        flags=flags(settings, recipe, kit.version),
        launcher=remotecache.choose(settings),
    )


def tools_folder(settings: Settings, target: Target, recipe: Recipe) -> Path:
    """Where setuptools and ninja are installed for a build, apart from the target."""
    digest = hashlib.sha256("\n".join(recipe.requires).encode()).hexdigest()[:12]
    return settings.work_dir / "buildtools" / f"{target.python_tag}-{digest}"


def has_tools(settings: Settings, target: Target, recipe: Recipe) -> bool:
    """Whether the build tools are in their folder, so that a build key can be told at once."""
    return (tools_folder(settings, target, recipe) / "complete").exists()


def tools(settings: Settings, target: Target, recipe: Recipe) -> str:
    """Puts setuptools and ninja into a folder of their own and returns their versions.

    The target's own ones are not touched; they are used, and that is said, where the index gives nothing in good time.
    """
    folder = tools_folder(settings, target, recipe)
    done = folder / "complete"
    if has_tools(settings, target, recipe):
        return done.read_text(encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        installer.into_folder(settings, target, folder, recipe.requires, timeout=_TOOLS_SECONDS)
    except SageError as error:
        ui.say("build", f"using the target's own build tools: the package index gives none ({error.what[:120]})")
        shutil.rmtree(folder, ignore_errors=True)
        have = [f"{name}-{target.versions[name]}" for name in BUILD_TOOLS if name in target.versions]
        return f"the target's own {' '.join(have) or 'build tools'}"
    found = sorted(path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info"))
    done.write_text(" ".join(found), encoding="utf-8")
    return " ".join(found)
