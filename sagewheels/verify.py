"""Is a wheel what its manifest claims, and made for this machine? Nothing is installed before this says yes."""

from __future__ import annotations

import re
from pathlib import Path

from sagewheels import arch, match, wheel
from sagewheels.errors import Refused
from sagewheels.manifest import WheelManifest
from sagewheels.match import Wanted
from sagewheels.recipe import Recipe
from sagewheels.wheel import Wheel

_PROVIDED = re.compile(
    r"(?:lib(?:c10|c10_cuda|torch|torch_cpu|torch_cuda|torch_python|cudart|cuda|stdc\+\+|gcc_s|gomp|m|c|pthread|dl|rt)"
    r"\.so(?:\.\d+)*|ld-linux[\w.-]*)"
)
"""Libraries that torch, the driver or the system bring."""


def bytes_as_promised(path: Path, manifest: WheelManifest) -> None:
    """The bytes on disk have the promised size and sha256; this comes before anything else looks at them.

    Raises Refused. A manifest without a sha256 is not refused here: matching has rejected it, or the user allowed it.
    """
    digest, size = wheel.file_hash(path)
    if manifest.size is not None and size != manifest.size:
        raise Refused(f"{manifest.wheel_file} has {size} bytes, its manifest says {manifest.size}", "Fetch it again")
    if manifest.wheel_sha256 and digest != manifest.wheel_sha256:
        what = f"{manifest.wheel_file} has sha256 {digest[:12]}, its manifest says {manifest.wheel_sha256[:12]}"
        raise Refused(what, "It was changed or damaged: fetch it again, and do not install it")


def check(path: Path, manifest: WheelManifest, wanted: Wanted, recipe: Recipe) -> Wheel:
    """The facts of a wheel that may be installed here.

    Raises Refused with the first reason: bytes, fit, content, archs and libraries of the binaries, in this order.
    """
    if path.name != manifest.wheel_file:
        raise Refused(f"{path.name} is not {manifest.wheel_file}, which its manifest describes")
    bytes_as_promised(path, manifest)
    verdict = match.judge(manifest, wanted)
    if not verdict.fits:
        raise Refused(f"{path.name} was not made for this machine: {'; '.join(verdict.reasons)}")
    found = wheel.inspect(path, recipe.package)
    stable(found, manifest)
    _binaries(found, manifest, wanted, recipe)
    _libraries(found, manifest, wanted)
    return found


def stable(found: Wheel, manifest: WheelManifest) -> None:
    """A wheel that claims many a torch needs nothing but libtorch's stable ABI. Raises Refused with the symbol."""
    if manifest.stable_torch and found.beyond_libtorch:
        raise Refused(f"{found.path.name} claims torch {manifest.needs_torch}, but {found.beyond_libtorch}")


def _binaries(found: Wheel, manifest: WheelManifest, wanted: Wanted, recipe: Recipe) -> None:
    """The archs in the binaries are those of the manifest, and each needed extension runs on the wanted archs."""
    claimed = manifest.data.get("extensions")
    if claimed is not None and not isinstance(claimed, dict):
        raise Refused(f"{found.path.name}: the extensions in its manifest are no table of archs")
    if isinstance(claimed, dict):
        real = {name: [str(one) for one in archs] for name, archs in found.held.items()}
        for name in sorted({*claimed, *real}):
            if claimed.get(name) != real.get(name):
                what = f"{name} holds {real.get(name, 'nothing')}, its manifest says {claimed.get(name, 'nothing')}"
                raise Refused(f"{found.path.name}: {what}")
        for one in manifest.archs:
            if not any(one in archs for archs in found.held.values()):
                raise Refused(f"{found.path.name}: its manifest says that it is for {one}, which no binary holds")
    for gpu in wanted.archs:
        rule = recipe.archs.get(gpu) or next((one for one in recipe.archs.values() if one.cubin.runs_on(gpu)), None)
        for name in rule.extensions if rule else ():
            have = found.held.get(name, ())
            if not arch.covers(have, gpu):
                holds = arch.join(have) or "no CUDA code"
                raise Refused(f"{found.path.name}: {name} holds {holds}, which does not run on {gpu}")


def _libraries(found: Wheel, manifest: WheelManifest, wanted: Wanted) -> None:
    """The libraries that the binaries need are there: this glibc, torch's CUDA, and nothing unheard of."""
    promised = {"its manifest says": manifest.glibc, "its tag says": match.tagged_glibc("-".join(found.tags))}
    for who, glibc in promised.items():
        if glibc and _numbers(found.glibc) > _numbers(glibc):
            raise Refused(f"{found.path.name} needs GLIBC_{found.glibc}, {who} {glibc[:20]}")
    if wanted.glibc and found.glibc and _numbers(found.glibc) > _numbers(wanted.glibc):
        raise Refused(f"{found.path.name} needs GLIBC_{found.glibc}, this machine has {wanted.glibc}")
    major = wanted.cuda.partition(".")[0]
    for item in found.extensions.values():
        for library in item.needed:
            runtime = re.fullmatch(r"libcudart\.so\.(\d+)(?:\.\d+)*", library)
            if runtime and runtime[1] != major:
                raise Refused(f"{found.path.name}: {item.module} needs {library}, torch has CUDA {wanted.cuda}")
            if not _PROVIDED.fullmatch(library):
                raise Refused(f"{found.path.name}: {item.module} needs {library}, which torch does not bring")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,6}", text))
