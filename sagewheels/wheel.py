"""What a wheel really contains: read from its bytes, nothing believed."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import lzma
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import HeaderParser
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

from sagewheels import arch, proc, stableabi
from sagewheels.arch import Arch
from sagewheels.errors import Refused, UsageError
from sagewheels.files import FULL

_MOST_BYTES = 2_000_000_000
"""More than this unpacked is no attention wheel: upstream's largest is 23 MB packed."""
_CUBIN = re.compile(r"\bsm_(\d+[af]?)\b")


@dataclass(frozen=True, kw_only=True)
class Extension:
    """One extension module: archs of its cubins, PTX included, libraries and symbols it needs, newest GLIBC symbol."""

    module: str
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

    Raises Refused, with the reason, when it is not a wheel that can be installed without harm: not a zip, a member
    outside the package, a RECORD that lies, metadata of another package, binaries that cannot be read, or that need
    more of Python than the tag abi3 promises.
    """
    sha256, size = file_hash(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _members(archive, path.name, package)
            info = _dist_info(archive, path.name)
            _record(archive, info, path.name)
            _no_programs(archive, info, path.name)
            name, version = _metadata(archive, info, path.name)
            tags = _tags(archive, info, path.name)
            extensions = dict(_extensions(archive, package))
            _limited(tags, extensions, path.name)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        csv.Error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        if getattr(error, "errno", None) in FULL:  # a full disk says nothing about the wheel
            raise
        raise Refused(f"{path.name} is not a readable zip archive ({error})") from None
    return Wheel(path=path, sha256=sha256, size=size, name=name, version=version, tags=tags, extensions=extensions)


def _members(archive: zipfile.ZipFile, file: str, package: str) -> None:
    """Every member lies in the package or in one dist-info folder, once, as a plain file of a sane size."""
    seen: set[str] = set()
    for item in archive.infolist():
        parts = PurePosixPath(item.filename).parts
        if item.filename.startswith("/") or "\\" in item.filename or ".." in parts or not parts:
            raise Refused(f"{file} holds {item.filename!r}, which lies outside of it")
        if item.filename.rstrip("/") != str(PurePosixPath(item.filename)):
            raise Refused(f"{file} holds {item.filename!r}, which is another spelling of {'/'.join(parts)}")
        if item.filename in seen:
            raise Refused(f"{file} holds {item.filename} twice")
        seen.add(item.filename)
        if stat.S_ISLNK(item.external_attr >> 16):
            raise Refused(f"{file} holds the symbolic link {item.filename}")
        if parts[0] != package and not parts[0].endswith(".dist-info"):
            raise Refused(f"{file} would install {item.filename}, outside of the package {package}")
    if sum(item.file_size for item in archive.infolist()) > _MOST_BYTES:
        raise Refused(f"{file} would unpack to more than {_MOST_BYTES} bytes")


def _dist_info(archive: zipfile.ZipFile, file: str) -> str:
    name, version = file.split("-", 2)[:2]
    folders = {item.split("/", 1)[0] for item in archive.namelist() if item.split("/", 1)[0].endswith(".dist-info")}
    if folders != {f"{name}-{version}.dist-info"}:
        raise Refused(f"{file} has {', '.join(sorted(folders)) or 'no dist-info'}, not {name}-{version}.dist-info")
    return folders.pop()


def _record(archive: zipfile.ZipFile, info: str, file: str) -> None:
    """RECORD lists every file but itself, with its true sha256 and size. Source: the wheel format specification."""
    listed = {row[0]: row for row in csv.reader(io.StringIO(_text(archive, f"{info}/RECORD", file))) if len(row) == 3}
    present = {item for item in archive.namelist() if not item.endswith("/")}
    odd = {f"{info}/RECORD", f"{info}/RECORD.jws", f"{info}/RECORD.p7s"}
    if present - odd != set(listed) - odd:
        wrong = sorted((present - odd) ^ (set(listed) - odd))
        raise Refused(f"{file}: RECORD and content differ in {wrong[0]}")
    for name in sorted(present - odd):
        content = archive.read(name)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if listed[name][1] != f"sha256={digest}" or listed[name][2] != str(len(content)):
            raise Refused(f"{file}: {name} is not what RECORD says")


def _no_programs(archive: zipfile.ZipFile, info: str, file: str) -> None:
    """Entry points become programs in bin/, where one called pip or torchrun would replace the real one."""
    name = f"{info}/entry_points.txt"
    if name in archive.namelist() and re.search(r"^\s*\[\s*(console|gui)_scripts", _text(archive, name, file), re.M):
        raise Refused(f"{file} would install programs, which a package of kernels has no use for")


def _metadata(archive: zipfile.ZipFile, info: str, file: str) -> tuple[str, str]:
    head = HeaderParser().parsestr(_text(archive, f"{info}/METADATA", file))
    name, version = str(head["Name"] or ""), str(head["Version"] or "")
    if [re.sub(r"[-_.]+", "_", name).lower(), version] != file.split("-", 2)[:2]:
        raise Refused(f"{file}: METADATA is of {name or 'nothing'} {version}")
    return name, version


def _tags(archive: zipfile.ZipFile, info: str, file: str) -> tuple[str, ...]:
    head = HeaderParser().parsestr(_text(archive, f"{info}/WHEEL", file))
    tags = tuple(sorted(str(tag) for tag in head.get_all("Tag") or ()))
    parts = [part.split(".") for part in file[: -len(".whl")].rsplit("-", 3)[1:]]
    named = sorted("-".join((python, abi, place)) for python in parts[0] for abi in parts[1] for place in parts[2])
    if list(tags) != named:
        raise Refused(f"{file}: WHEEL has the tags {', '.join(tags) or 'none'}")
    return tags


def _limited(tags: tuple[str, ...], extensions: Mapping[str, Extension], file: str) -> None:
    """A wheel that is tagged abi3 uses the limited API of the Python in its tag and nothing else."""
    python = stableabi.oldest_python(tags)
    for name, item in extensions.items() if python else ():
        more = stableabi.beyond_python(item.undefined, python)
        if more:
            what = f"{name} needs {more[0]}, which is not in the limited API of Python {python}"
            raise Refused(f"{file} is tagged abi3, but {what}")


def _text(archive: zipfile.ZipFile, name: str, file: str) -> str:
    try:
        return archive.read(name).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        raise Refused(f"{file} has no readable {name.rsplit('/', 1)[-1]}") from None


def _extensions(archive: zipfile.ZipFile, package: str) -> Iterator[tuple[str, Extension]]:
    """Each shared library of the package, read as ELF and listed by cuobjdump."""
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="sagewheels-inspect-") as folder:
        for item in archive.infolist():
            if item.filename.endswith(".so"):
                place = Path(folder) / PurePosixPath(item.filename).name
                with archive.open(item) as source, place.open("wb") as target:
                    shutil.copyfileobj(source, target)
                module = item.filename[len(package) + 1 :].split(".", 1)[0].replace("/", ".")
                if module in seen:
                    raise Refused(f"{PurePosixPath(archive.filename or '').name} holds the module {module} twice")
                seen.add(module)
                yield module, _extension(place, module)


def _extension(path: Path, module: str) -> Extension:
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            sections = list(elf.iter_sections())
            needed = [tag.needed for one in sections if isinstance(one, DynamicSection) for tag in _needed(one)]
            versions = [one for one in sections if isinstance(one, GNUVerNeedSection)]
            names = [aux.name for one in versions for _, each in one.iter_versions() for aux in each]
            tables = [one for one in sections if isinstance(one, SymbolTableSection)]
            symbols = [symbol for one in tables for symbol in one.iter_symbols()]
            cxx11 = any("__cxx11" in symbol.name for symbol in symbols)
            undefined = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name}
    except (ELFError, OSError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise Refused(f"{path.name} is not a readable ELF file ({error})") from None
    glibc = [name[6:] for name in names if re.fullmatch(r"GLIBC_\d+(\.\d+)*", name)]
    return Extension(
        module=module,
        archs=cubins(path),
        needed=tuple(sorted(needed)),
        glibc=max(glibc, key=_release, default=""),
        abi="cxx11" if cxx11 else "",
        undefined=tuple(sorted(undefined)),
    )


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
    """The archs of the cubins and PTX in a shared library, none for one without CUDA code."""
    found: set[Arch] = set()
    for option, ptx in (("--list-elf", ""), ("--list-ptx", "+PTX")):
        done = proc.run([cuobjdump(), option, path], timeout=300)
        found.update(arch.parse(number + ptx) for number in _CUBIN.findall(done.out))
        if done.code and "does not contain device code" not in done.err + done.out:
            raise Refused(f"{path.name} cannot be read by cuobjdump: {done.last_line[:120]}")
    return tuple(sorted(found))


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")) if text else ()
