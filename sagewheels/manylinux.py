"""The platform tag of a fresh wheel: the oldest manylinux on which it loads, as auditwheel judges its symbols."""

from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from sagewheels import packing, proc, ui
from sagewheels.errors import SageError
from sagewheels.target import Target

_BROUGHT = re.compile(r"libcuda\.so\.1|lib(?:cudart|nvrtc)\.so\.\d+(?:\.\d+)*")
"""Libraries of the driver, and of the CUDA packages that torch requires; torch's own lie in its lib folder."""
_BARRED = ("unsupported_isa", "pyfpe", "ucs2")
"""Findings of auditwheel that no manylinux allows, whatever the libraries."""


def sealed(path: Path, target: Target, epoch: int) -> Path:
    """The wheel under its honest platform tag, packed so that the same members give the same bytes.

    A wheel that no manylinux fits keeps its tag, and why is said. It is never given up: one that cannot be read or
    written stays as it is, for `wheel.inspect` to refuse.
    """
    name, _, plain = path.name.removesuffix(".whl").rpartition("-")
    try:
        tag, why = verdict(path, target) if plain == f"linux_{target.machine}" else ("", "")
        place = path.with_name(f"{name}-{tag or plain}.whl")
        packing.repack(path, place, epoch=epoch, platform=tag)
    except (zipfile.BadZipFile, zlib.error, csv.Error, EOFError, OSError, RuntimeError, ValueError) as error:
        ui.warn("build", f"{path.name} stays as the build backend packed it ({error})")
        return path
    if why:
        ui.say("build", f"the wheel keeps the tag {plain}, which does not tell installers where it loads: {why}")
    if place != path:
        path.unlink()
    return place


def verdict(path: Path, target: Target) -> tuple[str, str]:
    """`manylinux_2_34_x86_64` and nothing, or nothing and why the wheel can have no such tag."""
    try:
        return _judged(_audit(path), target)
    except (SageError, KeyError, TypeError, AttributeError, ValueError) as error:
        return "", f"auditwheel cannot judge it ({str(error).rstrip('.')[:200]})"


def _audit(path: Path) -> Any:
    """What `auditwheel show --json` says. Its command line has a versioned schema, its Python modules have none.

    No library of this machine is looked into, so that the verdict is about the wheel alone.
    """
    with tempfile.TemporaryDirectory(prefix="sagewheels-audit-") as empty:
        show: list[str | Path] = ["show", "--json", "--ldpaths", empty, path.resolve()]
        done = proc.run([sys.executable, "-m", "auditwheel", *show], cwd=Path(empty), timeout=300)
    try:
        found = json.loads(done.out)
    except ValueError:
        raise ValueError(done.last_line) from None
    if found["version"] != 1 or "error" in found:
        raise ValueError(found.get("error") or f"its answer is of version {found['version']}, not 1")
    return found


def _judged(found: Any, target: Target) -> tuple[str, str]:
    """The oldest manylinux that has the symbols, and all libraries but those that torch and the driver bring."""
    asked = found["sym_tag"]
    if barred := [key for key in _BARRED if found[key]]:
        return "", f"auditwheel finds {', '.join(barred)}, which no manylinux allows"
    if not _release(asked):
        musl = asked.startswith("musllinux")
        return "", "it is for musl" if musl else "it needs newer symbols than any manylinux that auditwheel knows"
    # A newer manylinux may have a library that an older one lacks.
    able = [tag for tag in {asked, found["overall_tag"], *found["policy_upgrades"]} if _release(tag) >= _release(asked)]
    lacking = {tag: _lacking(found["policy_upgrades"].get(tag, {}), target) for tag in able}
    tag = min((tag for tag in able if not lacking[tag]), key=_release, default="")
    if not tag:
        return "", f"it needs {', '.join(lacking[asked])}, which neither torch nor {asked} brings"
    # A compiler may bring a newer libstdc++ than the system of its host has.
    if not any(one.endswith(f"-{tag}") for one in target.tags):
        return "", f"its symbols are those of {tag}, which this machine is not"
    return tag, ""


def _lacking(upgrade: Any, target: Target) -> list[str]:
    """Libraries and symbols that keep the wheel from a tag, less what is there wherever its torch is."""
    own = target.torch.folder / "lib" if target.torch else Path()
    libraries = upgrade.get("libs_to_eliminate", [])
    foreign = [name for name in libraries if not _BROUGHT.fullmatch(name) and not (own / name).is_file()]
    return [*foreign, *(name for names in upgrade.get("blacklisted_symbols", {}).values() for name in names)]


def _release(tag: str) -> tuple[int, ...]:
    """`manylinux_2_34_x86_64` as (2, 34); empty for any other tag."""
    found = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    return tuple(map(int, found.groups())) if found else ()
