"""The files of a wheel: all of them in the package, none that acts on its own, and each what RECORD says."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from sagewheels.archive import Archive
from sagewheels.errors import Refused
from sagewheels.record import written

_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.abi3|\.cpython-\w+(?:-\w+)*)?\.so", re.ASCII)
"""The file of an extension module: its name is also in the output of cuobjdump, among what is searched for archs."""
_INSTALLERS = {"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}
_PROGRAMS = {"[console_scripts]", "[gui_scripts]"}
_PROGRAM_MARKS = (b"\x7fELF", b"MZ")
_ROW = 3


def check(archive: Archive, package: str) -> str:
    """The dist-info folder of a wheel whose files all have a place in it. Raises Refused."""
    for item in archive.members:
        top = item.filename.split("/", 1)[0]
        if top != package and not top.endswith(".dist-info"):
            raise Refused(f"{archive.name} would install {item.filename}, outside of the package {package}")
    info = _dist_info(archive)
    for name in archive.files:
        path = PurePosixPath(name)
        if path.suffix in (".pyc", ".pyo") or "__pycache__" in path.parts:
            raise Refused(f"{archive.name} holds {name}, compiled Python that need not be what its source says")
        if path.suffix == ".so" and (path.parts[0] == info or not _MODULE.fullmatch(path.name)):
            raise Refused(f"{archive.name} holds {name}, which is no extension module by its name")
        if path.parent.name == info and path.name in _INSTALLERS:
            raise Refused(f"{archive.name} holds {path.name}, which only an installer may write")
    return info


def _dist_info(archive: Archive) -> str:
    name, version = archive.name.split("-", 2)[:2]
    tops = {item.filename.split("/", 1)[0] for item in archive.members}
    folders = {top for top in tops if top.endswith(".dist-info")}
    if folders != {f"{name}-{version}.dist-info"}:
        found = ", ".join(sorted(folders)) or "no dist-info"
        raise Refused(f"{archive.name} has {found}, not {name}-{version}.dist-info")
    return folders.pop()


def record(archive: Archive, info: str, folder: Path) -> dict[str, Path]:
    """The extension modules by name, each unpacked below `folder`.

    RECORD lists every file but itself, with its true sha256 and size. Source: the wheel format specification. Raises
    Refused when it does not, and for a program that is no extension module.
    """
    listed, modules = _listed(archive, info), dict[str, Path]()
    for name in sorted(listed):
        digest, size = hashlib.sha256(), 0
        place = folder / str(len(modules)) / PurePosixPath(name).name
        if name.endswith(".so"):
            modules[name] = place
            place.parent.mkdir()
        with place.open("wb") if name in modules else io.BytesIO() as target:
            for block in archive.blocks(archive.files[name]):
                if not size and name not in modules and block.startswith(_PROGRAM_MARKS):
                    raise Refused(f"{archive.name} holds {name}, a program or library that is no extension module")
                digest.update(block)
                size += len(block)
                if name in modules:
                    target.write(block)
        if listed[name] != (written(digest.digest()), str(size)):
            raise Refused(f"{archive.name}: {name} is not what RECORD says")
    return modules


def _listed(archive: Archive, info: str) -> dict[str, tuple[str, str]]:
    """Hash and size of each file in RECORD, less RECORD itself and its signatures."""
    listed = dict[str, tuple[str, str]]()
    for row in _rows(archive, info):
        name = row[0]
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise Refused(f"{archive.name}: RECORD lists {name[:120]!r}, which lies outside of it")
        if name in listed:
            raise Refused(f"{archive.name}: RECORD lists {name} twice")
        listed[name] = (row[1], row[2])
    own = {f"{info}/RECORD", f"{info}/RECORD.jws", f"{info}/RECORD.p7s"}
    if any(listed.get(f"{info}/RECORD", ())):
        raise Refused(f"{archive.name}: RECORD gives a hash or a size of itself, which cannot be")
    if set(archive.files) - own != set(listed) - own:
        wrong = sorted((set(archive.files) - own) ^ (set(listed) - own))
        raise Refused(f"{archive.name}: RECORD and content differ in {wrong[0]}")
    for name, (digest, _) in listed.items():
        kind = digest.partition("=")[0]
        if name not in own and kind not in ("", "sha256"):
            raise Refused(f"{archive.name}: RECORD has {kind[:20]!r} for {name}, not sha256")
    return {name: row for name, row in listed.items() if name not in own}


def _rows(archive: Archive, info: str) -> list[list[str]]:
    try:
        rows = list(csv.reader(io.StringIO(archive.text(f"{info}/RECORD"), newline=""), strict=True))
    except csv.Error as error:
        raise Refused(f"{archive.name}: RECORD is not a table ({error})") from None
    for at, row in enumerate(rows, 1):
        if len(row) != _ROW:
            raise Refused(f"{archive.name}: RECORD has {len(row)} columns in row {at}, not {_ROW}")
    return rows


def no_entry_points(archive: Archive, info: str) -> None:
    """Programs would land in bin/, over pip or torchrun; other entry points are run by whoever asks for their group.

    torch loads those of torch.backends whenever it is imported, pytest its plugins. Raises Refused.
    """
    name = f"{info}/entry_points.txt"
    lines = archive.text(name).splitlines() if name in archive.files else []
    groups = [line.strip() for line in lines if line.strip().startswith("[")]
    if any("".join(group.split()).startswith(tuple(_PROGRAMS)) for group in groups):
        raise Refused(f"{archive.name} would install programs, which a package of kernels has no use for")
    if groups:
        what = f"would be loaded by others through the entry points {groups[0][:60]}"
        raise Refused(f"{archive.name} {what}, which a package of kernels has no use for")


def metadata(archive: Archive, info: str) -> tuple[str, str]:
    """Name and version, once each and those of the file name. Raises Refused."""
    head = HeaderParser().parsestr(archive.text(f"{info}/METADATA"))
    for key in ("Name", "Version"):
        if len(head.get_all(key) or ()) > 1:
            raise Refused(f"{archive.name}: METADATA has several lines {key}")
    name, version = str(head["Name"] or ""), str(head["Version"] or "")
    if [re.sub(r"[-_.]+", "_", name).lower(), version] != archive.name.split("-", 2)[:2]:
        raise Refused(f"{archive.name}: METADATA is of {name[:80] or 'nothing'} {version[:80]}")
    return name, version


def tags(archive: Archive, info: str) -> tuple[str, ...]:
    """The tags, in WHEEL as in the file name. Raises Refused, also for a WHEEL of another format."""
    head = HeaderParser().parsestr(archive.text(f"{info}/WHEEL"))
    found = tuple(sorted(str(tag) for tag in head.get_all("Tag") or ()))
    parts = [part.split(".") for part in archive.name[: -len(".whl")].rsplit("-", 3)[1:]]
    named = sorted("-".join((python, abi, place)) for python in parts[0] for abi in parts[1] for place in parts[2])
    if list(found) != named:
        raise Refused(f"{archive.name}: WHEEL has the tags {', '.join(found)[:200] or 'none'}")
    _installable(archive, head)
    return found


def _installable(archive: Archive, head: Message) -> None:
    versions = [str(one) for one in head.get_all("Wheel-Version") or ()]
    if len(versions) != 1 or not re.fullmatch(r"1\.[0-9]{1,3}", versions[0]):
        raise Refused(f"{archive.name} is of Wheel-Version {', '.join(versions)[:80] or 'none'}, not 1.0")
    pure = any(str(one).strip().lower() != "false" for one in head.get_all("Root-Is-Purelib") or ())
    if pure and any(name.endswith(".so") for name in archive.files):
        # Where the two folders of a Python differ, it would land in the one for code of every machine.
        raise Refused(f"{archive.name} says that it is pure Python, and holds extension modules")
