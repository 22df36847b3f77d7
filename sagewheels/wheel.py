"""What a wheel really contains: read from its bytes, nothing believed."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection, DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import Section, SymbolTableSection

from sagewheels import arch, archive, contents, proc, stableabi
from sagewheels.arch import Arch
from sagewheels.errors import Refused, UsageError

_CUBIN = re.compile(r"\bsm_([0-9]+[af]?)\b")
_MACHINES = {("EM_X86_64", True): "x86_64", ("EM_AARCH64", True): "aarch64"}
_LOADED = {"DT_SYMTAB": "SHT_DYNSYM", "DT_VERNEED": "SHT_GNU_verneed"}


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
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            if elf.elfclass != 64:
                raise ValueError("it is for 32 bits")
            sections = list(elf.iter_sections())
            _as_loaded(elf, sections)
            needed = [tag.needed for one in sections if isinstance(one, DynamicSection) for tag in _needed(one)]
            versions = [one for one in sections if isinstance(one, GNUVerNeedSection)]
            names = [aux.name for one in versions for _, each in one.iter_versions() for aux in each]
            tables = [one for one in sections if isinstance(one, SymbolTableSection)]
            symbols = [symbol for one in tables for symbol in one.iter_symbols()]
            cxx11 = any("__cxx11" in symbol.name for symbol in symbols)
            undefined = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name}
            machine = _MACHINES.get((elf["e_machine"], elf.little_endian), "another machine")
    except (ELFError, OSError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise Refused(f"{path.name} is not a readable ELF file ({error})") from None
    glibc = [name[6:] for name in names if re.fullmatch(r"GLIBC_[0-9]{1,6}(\.[0-9]{1,6})*", name)]
    return Extension(
        module=module,
        machine=machine,
        archs=cubins(path),
        needed=tuple(sorted(needed)),
        glibc=max(glibc, key=_release, default=""),
        abi="cxx11" if cxx11 else "",
        undefined=tuple(sorted(undefined)),
    )


def _as_loaded(elf: ELFFile, sections: Sequence[Section]) -> None:
    """The sections, which are read here, are of what the loader follows, which never looks at them. Raises ValueError.

    Without this, a binary could show one list of libraries and symbols, and need another.
    """
    dynamic = next((one for one in elf.iter_segments() if isinstance(one, DynamicSegment)), None)
    if elf["e_type"] != "ET_DYN" or dynamic is None:
        raise ValueError("it is no shared library")
    loaded = {tag.entry.d_tag: tag.entry.d_val for tag in dynamic.iter_tags()}
    for tag, kind in _LOADED.items():
        shown = [one for one in sections if one["sh_type"] == kind]
        places = [(one["sh_addr"], one["sh_offset"]) for one in shown]
        if tag in loaded and places != [(loaded[tag], next(elf.address_offsets(loaded[tag]), None))]:
            raise ValueError("its sections are not what is loaded")
    own = [one["sh_offset"] for one in sections if isinstance(one, DynamicSection)]
    if own != [dynamic["p_offset"]] or loaded.get("DT_VERNEEDNUM", 0) != sum(
        one["sh_info"] for one in sections if isinstance(one, GNUVerNeedSection)
    ):
        raise ValueError("its sections are not what is loaded")


def _needed(section: DynamicSection) -> Iterator[Any]:
    yield from section.iter_tags("DT_NEEDED")


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
