"""What a wheel really contains: read from its bytes, nothing believed."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from sagewheels import arch, archive, contents, proc, stableabi
from sagewheels.arch import Arch
from sagewheels.errors import Refused, UsageError

_CUBIN = re.compile(r"\bsm_([0-9]+[af]?)\b")


@dataclass(frozen=True, kw_only=True)
class Extension:
    """One extension module: archs of its cubins, PTX included, libraries and symbols it needs, newest GLIBC symbol."""

    module: str
    machine: str
    archs: tuple[Arch, ...]
    needed: tuple[str, ...]
    glibc: str
    abi: str
    undefined: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """The facts of one wheel file; `extensions` by module name without the package, such as `_fused`."""

    path: Path
    sha256: str
    size: int
    name: str
    version: str
    tags: tuple[str, ...]
    extensions: Mapping[str, Extension]

    @property
    def held(self) -> Mapping[str, tuple[Arch, ...]]:
        """The archs of the cubins, PTX included, in each extension module."""
        return {name: item.archs for name, item in self.extensions.items()}

    @property
    def beyond_libtorch(self) -> str:
        """`_fused needs ..., which is not in the stable ABI of libtorch`; empty when no extension does."""
        for name, item in self.extensions.items():
            if more := stableabi.beyond_torch(item.undefined):
                return f"{name} needs {more[0]}, which is not in the stable ABI of libtorch"
        return ""

    @property
    def glibc(self) -> str:
        """The newest GLIBC version that any extension asks for."""
        return max((item.glibc for item in self.extensions.values()), key=_release, default="")


def file_hash(path: Path) -> tuple[str, int]:
    """sha256 and size of the bytes on disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def inspect(path: Path, package: str) -> Wheel:
    """The facts of the wheel at `path`, whose importable package is `package`.

    Raises Refused, with the reason, when it is not a wheel that can be installed without harm: not a zip that all
    programs read alike, a member outside the package, a RECORD that lies, metadata of another package, binaries that
    cannot be read, are of another machine, or need more of Python than the tag abi3 promises.
    """
    sha256, size = file_hash(path)
    with archive.opened(path) as wheel, tempfile.TemporaryDirectory(prefix="sagewheels-inspect-") as folder:
        info = contents.check(wheel, package)
        modules = contents.record(wheel, info, Path(folder))
        contents.no_entry_points(wheel, info)
        name, version = contents.metadata(wheel, info)
        tags = contents.tags(wheel, info)
        extensions = dict(_extensions(modules, package, path.name))
    _of_machine(tags, extensions, path.name)
    _limited(tags, extensions, path.name)
    return Wheel(path=path, sha256=sha256, size=size, name=name, version=version, tags=tags, extensions=extensions)


def _of_machine(tags: tuple[str, ...], extensions: Mapping[str, Extension], file: str) -> None:
    """The binaries are of the machine in the tags, which need not name one."""
    for tag in tags:
        for name, item in extensions.items():
            if not tag.endswith(("-any", f"_{item.machine}")):
                raise Refused(f"{file} is tagged {tag}, but {name} is for {item.machine}")


def _limited(tags: tuple[str, ...], extensions: Mapping[str, Extension], file: str) -> None:
    """A wheel that is tagged abi3 uses the limited API of the Python in its tag and nothing else."""
    python = stableabi.oldest_python(tags)
    for name, item in extensions.items() if python else ():
        more = stableabi.beyond_python(item.undefined, python)
        if more:
            what = f"{name} needs {more[0]}, which is not in the limited API of Python {python}"
            raise Refused(f"{file} is tagged abi3, but {what}")


def _extensions(modules: Mapping[str, Path], package: str, file: str) -> Iterator[tuple[str, Extension]]:
    """Each extension module, read as ELF and listed by cuobjdump."""
    seen: set[str] = set()
    for name, place in modules.items():
        module = name[len(package) + 1 :].split(".", 1)[0].replace("/", ".")
        if module in seen:
            raise Refused(f"{file} holds the module {module} twice")
        seen.add(module)
        yield module, _extension(place, module)


def _extension(path: Path, module: str) -> Extension:
    # Here, since it takes longer to load than a run that finds all in place has to do.
    from sagewheels import elf

    found = elf.read(path)
    glibc = [name[6:] for name in found.versions if re.fullmatch(r"GLIBC_[0-9]{1,6}(\.[0-9]{1,6})*", name)]
    return Extension(
        module=module,
        machine=found.machine,
        archs=cubins(path),
        needed=found.needed,
        glibc=max(glibc, key=_release, default=""),
        abi="cxx11" if found.is_cxx11 else "",
        undefined=found.undefined,
    )


def cuobjdump() -> Path:
    """The cuobjdump of the tool's own environment, else the one on PATH. Raises UsageError when there is none."""
    own = find_spec("nvidia")
    for folder in (own.submodule_search_locations or ()) if own else ():
        for path in sorted(Path(folder).glob("cu*/bin/cuobjdump"), reverse=True):
            return path
    found = shutil.which("cuobjdump")
    if not found:
        raise UsageError("cuobjdump is missing", "Install the package nvidia-cuda-cuobjdump beside sagewheels")
    return Path(found)


def cubins(path: Path) -> tuple[Arch, ...]:
    """The archs of the cubins and PTX in a shared library, none for one without CUDA code. Raises Refused."""
    found: set[Arch] = set()
    for option, ptx in (("--list-elf", ""), ("--list-ptx", "+PTX")):
        done = proc.run([cuobjdump(), option, path], timeout=300)
        found |= listed_archs(done.out, ptx, path.name)
        if done.code and "does not contain device code" not in done.err + done.out:
            raise Refused(f"{path.name} cannot be read by cuobjdump: {done.last_line[:120]}")
    return tuple(sorted(found))


def listed_archs(output: str, suffix: str, name: str) -> set[Arch]:
    """The archs in a listing of cuobjdump. Raises Refused for one that nobody knows."""
    try:
        return {arch.parse(number + suffix) for number in _CUBIN.findall(output)}
    except UsageError as error:
        raise Refused(f"{name} cannot be understood: {error.what}") from None


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")) if text else ()
