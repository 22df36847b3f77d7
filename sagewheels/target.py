"""The interpreter that is installed into: found, never guessed, and asked in one quick subprocess."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging import tags

from sagewheels import comfyui, proc
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.resources import probe_source

TOOL_MARKER = ".sagewheels-tool"
"""The bootstrap puts this file into the tool's own environment, which is never a target."""

STACK = ("torch", "torchvision", "torchaudio", "triton")


@dataclass(frozen=True, kw_only=True)
class Torch:
    """The torch of the target, as its files say; `cuda` is empty for a build without CUDA."""

    folder: Path
    version: str
    cuda: str

    @property
    def public(self) -> str:
        """The version without the local label: `2.11.0`."""
        return self.version.partition("+")[0]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Facts about the target; `versions` are installed distributions, `dist_info` their folders."""

    python: Path
    prefix: Path
    version: str
    soabi: str
    machine: str
    site: Path
    include: Path
    has_python_h: bool
    externally_managed: bool
    writable: bool
    torch: Torch | None
    versions: Mapping[str, str]
    dist_info: Mapping[str, Path]
    tags: tuple[str, ...] = field(repr=False)

    @property
    def python_tag(self) -> str:
        """`cp312`, or `cp313t` for a free-threaded build: the ABI part of the wheel tag."""
        return self.tags[0].split("-")[1]


def locate(settings: Settings) -> tuple[Path, str]:
    """The target's path and why it is this one.

    Raises UsageError when there is none, or when it is the tool's own environment.
    """
    for path, why in _choices(settings):
        comfyui.demand_meant(settings, path, why)
        if (path.parent.parent / TOOL_MARKER).exists():
            raise UsageError(f"{path} belongs to sagewheels itself", "Set PYTHON_BIN to the Python that runs your code")
        return path, why
    raise UsageError("no Python to install into was found", "Set PYTHON_BIN, or activate an environment")


def _choices(settings: Settings) -> list[tuple[Path, str]]:
    if own := comfyui.chosen(settings):
        return [(own.path, own.why)]
    if settings.python_bin:
        named = settings.python_bin
        found = shutil.which(
            str(Path(named).expanduser()) if named.startswith("~") else named, path=settings.variable("PATH") or None
        )
        if not found:
            raise UsageError(f"PYTHON_BIN={settings.python_bin} cannot be run", "Give the path of a python executable")
        return [(Path(found).absolute(), "PYTHON_BIN")]
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if settings.variable(name):
            path = Path(settings.variable(name)) / "bin" / "python"
            if not path.exists():
                raise UsageError(f"{name} is set, but {path} does not exist", "Activate it again, or set PYTHON_BIN")
            return [(path, f"the active environment ({name})")]
    found = shutil.which("python3", path=settings.variable("PATH") or None)
    return [(Path(found), "python3 on PATH")] if found else []


def probe(settings: Settings, *packages: str) -> Target:
    """Facts about the target, with the versions of the stack and of `packages`. Imports no torch.

    Raises UsageError when it does not answer, or is no CPython >= 3.9 on Linux.
    """
    path, why = locate(settings)
    return ask(path, why, settings.environ, packages)


def ask(path: Path, why: str, environ: Mapping[str, str], packages: tuple[str, ...] = ()) -> Target:
    """Facts about the interpreter at `path`. Raises UsageError as `probe` does."""
    argv: list[str | Path] = [path, "-I", "-c", probe_source("target"), json.dumps([*STACK, *packages])]
    done = proc.run(argv, env=environ, timeout=60)
    remedy = "Set PYTHON_BIN to a CPython 3.9 or newer"
    if done.code:
        raise UsageError(f"{path} ({why}) does not answer: {done.last_line}", remedy)
    try:
        facts: dict[str, Any] = json.loads(done.out.strip().splitlines()[-1])
        major, minor = (int(part) for part in facts["version"].split(".")[:2])
        if facts["implementation"] != "cpython" or (major, minor) < (3, 9):
            raise UsageError(f"{path} ({why}) is {facts['implementation']} {facts['version']}", remedy)
        return _target(facts, (major, minor))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} ({why}) printed something else than its facts", remedy) from None


def relies_on(settings: Settings, found: Target, packages: Iterable[str]) -> dict[str, list[str]] | None:
    """What the facts about the target rest on: `contents` of files and folders, `stats` of large files.

    None where that cannot be listed, as where the target has finders of imports that nobody here knows.
    """
    path, _ = locate(settings)
    argv: list[str | Path] = [path, "-I", "-c", probe_source("relies"), json.dumps([*STACK, *packages])]
    try:
        listed = json.loads(proc.run(argv, env=settings.environ, timeout=60).out.strip().splitlines()[-1])
        if not listed["plain"]:
            return None
        # What would be found before it on PATH, and what would make it ours.
        folders = settings.variable("PATH").split(os.pathsep)
        earlier = [str(Path(folder) / path.name) for folder in folders]
        folder = comfyui.around(Path(settings.comfyui_path or Path.cwd()))
        earlier += map(str, comfyui.places(folder) if folder else ())
        named = [str(path), str(found.python), str(path.parent.parent / TOOL_MARKER)]
        contents, stats = map(str, listed["contents"]), map(str, listed["stats"])
        return {"contents": [*contents, *named[2:], *earlier], "stats": [*stats, *named[:2]]}
    except (ValueError, IndexError, KeyError, TypeError):
        return None


def _target(facts: dict[str, Any], version: tuple[int, int]) -> Target:
    torch, found = facts["torch"], facts["distributions"]
    return Target(
        python=Path(facts["executable"]),
        prefix=Path(facts["prefix"]),
        version=facts["version"],
        soabi=facts["soabi"],
        machine=facts["machine"],
        site=Path(facts["platlib"]),
        include=Path(facts["include"]),
        has_python_h=facts["has_python_h"],
        externally_managed=facts["externally_managed"],
        writable=facts["writable"],
        torch=_torch(torch) if torch else None,
        versions={name: item["version"] for name, item in found.items()},
        dist_info={name: Path(item["path"]) for name, item in found.items()},
        tags=tags_of(version, free_threaded=facts["free_threaded"]),
    )


def _torch(facts: dict[str, str]) -> Torch | None:
    """None for a torch whose version.py is broken: it has to be installed again."""
    if "error" in facts or not facts["version"]:
        return None
    return Torch(folder=Path(facts["folder"]), version=facts["version"], cuda=facts["cuda"])


def tags_of(version: tuple[int, int], *, free_threaded: bool) -> tuple[str, ...]:
    """Wheel tags in order of preference: the same machine and libc as ours, the target's Python and ABI."""
    native = f"cp{version[0]}{version[1]}"
    abis = [native + "t"] if free_threaded else [native]
    own = tags.cpython_tags(python_version=version, abis=abis)
    return tuple(map(str, [*own, *tags.compatible_tags(python_version=version, interpreter=native)]))
