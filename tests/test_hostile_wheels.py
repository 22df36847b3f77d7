"""Hostile wheels: whoever may write to a store publishes one, and nothing of it gets into the target.

Each case goes the user's way, fetch and then verify, with a sha256 and a size that are true of the hostile bytes unless
they are the case. It is refused with a line of its own; site-packages, the state and the user's folders stay as they
were, and no temporary file is left.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sagewheels import archive, auto, steps
from sagewheels.errors import SageError
from sagewheels.job import Job
from tests import wheels, zips
from tests.hub import Hub
from tests.wheels import NAME, PACKAGE, TAG, VERSION, Machine
from tests.zips import Raw, Zip

FULL = VERSION + wheels.LABEL
FILE = f"{NAME}-{FULL}-{TAG}.whl"
INFO = f"{NAME}-{FULL}.dist-info"
INIT, FUSED = f"{PACKAGE}/__init__.py", f"{PACKAGE}/_fused.abi3.so"
EVIL = b"import evil\n"
REPO = "me/wheels"

Make = Callable[[Path], Path]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is hostile, how it is made, and the line that refuses it; `changes` are lies of the manifest.

    `publish` changes the store's files after an honest publication; `at_fetch` says that it never gets into the
    wheelhouse.
    """

    name: str
    line: str
    make: Make = wheels.make
    changes: Mapping[str, Any] = field(default_factory=dict)
    publish: Callable[[dict[str, bytes]], object] | None = None
    code: int = 4
    at_fetch: bool = False


def with_files(**more: bytes) -> Make:
    """A wheel with these files, listed in a true RECORD."""
    return lambda folder: wheels.make(folder, {**wheels.content(), **more})


def file(name: str, data: bytes = EVIL) -> Make:
    """The same with one file."""
    return with_files(**{name: data})


def library(name: str, built: str = "_fused") -> Make:
    """The same with a shared library, which is not compiled before it is wanted."""

    def make(folder: Path) -> Path:
        return file(name, wheels.extension(built))(folder)

    return make


def with_info(**texts: bytes) -> Make:
    """A wheel with these files in dist-info; `__` stands for a dot."""
    return lambda folder: wheels.make(folder, info={name.replace("__", "."): text for name, text in texts.items()})


def with_record(change: Callable[[list[list[str]]], list[list[str]]]) -> Make:
    """A wheel with another RECORD."""
    return lambda folder: wheels.make(folder, record=change)


def zipped(change: Callable[[Zip], object]) -> Make:
    """A good wheel whose archive is written anew with a change."""
    return lambda folder: zips.changed(wheels.make(folder), change)


def member(name: str | bytes, data: bytes = EVIL, **changes: Any) -> Make:
    """A good wheel with one more member, which RECORD does not list."""
    return zipped(lambda parts: parts.members.append(zips.raw(name, data, **changes)))


def of(name: str, **changes: Any) -> Make:
    """A good wheel with fields of one member changed; those of one header as `local` and `central`."""

    def change(parts: Zip) -> None:
        for key, value in changes.items():
            setattr(parts[name], key, value)

    return zipped(change)


def module(data: Callable[[], bytes], name: str = "_fused") -> Make:
    """A wheel with another extension module."""
    return lambda folder: wheels.make(folder, wheels.content(**{name: data()}))


def elf(*pokes: tuple[int, str, int]) -> Make:
    """A wheel whose extension module has other numbers in its ELF header."""

    def poked() -> bytes:
        data = bytearray(wheels.extension())
        for place, form, value in pokes:
            struct.pack_into(form, data, place, value)
        return bytes(data)

    return module(poked)


def _section(kind: int, place: int, form: str, value: int) -> Make:
    """A wheel whose extension module has another number in the header of its section of this type."""

    def poked() -> bytes:
        data = bytearray(wheels.extension())
        start, size, count = *struct.unpack_from("<Q", data, 40), *struct.unpack_from("<2H", data, 58)
        for at in range(start, start + size * count, size):
            if struct.unpack_from("<L", data, at + 4) == (kind,):
                struct.pack_into(form, data, at + place, value)
        return bytes(data)

    return module(poked)


def _bomb(parts: Zip) -> None:
    data = bytes(30_000_000)
    parts.members.append(zips.raw(f"{PACKAGE}/zeros", data))


def _more_than_said(parts: Zip) -> None:
    parts[INIT].size -= 20


def _twice(parts: Zip) -> None:
    parts.members.append(zips.raw(INIT, EVIL))


def _overlap(parts: Zip) -> None:
    """A second name for the bytes of the first member."""
    first = parts.members[0]
    ghost = Raw(b"", b"", first.size, first.crc, central={"name": b"tinyattn/two.py", "offset": 0})
    parts.members.append(ghost)


def _hidden(parts: Zip) -> None:
    """A member that the directory does not list, as a program that reads from the front would find it."""
    parts["METADATA"].before = Zip([zips.raw(f"{PACKAGE}/hidden.py", EVIL)]).write()[:60]


def _two_archives(parts: Zip) -> None:
    parts.after = Zip([zips.raw(INIT, EVIL)]).write()


def _text_file(folder: Path) -> Path:
    path = wheels.make(folder)
    path.write_bytes(b"#!/bin/sh\nexec evil\n")
    return path


def _evil_in_front(folder: Path) -> Path:
    """The whole of another archive before the good one, whose offsets still count from its own beginning."""
    path = wheels.make(folder)
    path.write_bytes(Zip([zips.raw(INIT, EVIL)]).write() + path.read_bytes())
    return path


def _many(folder: Path) -> Path:
    path = wheels.make(folder)
    return zips.changed(
        path, lambda parts: parts.members.extend(zips.raw(f"{PACKAGE}/{n}", b"") for n in range(10_001))
    )


def _big_text(folder: Path) -> Path:
    return wheels.make(folder, info={"METADATA": b"Summary: " + bytes(range(32, 127)) * 50_000})


def _fewer(parts: Zip) -> None:
    parts.end = {"count": 2, "here": 2}


def _appended(name: str, data: bytes) -> Callable[[Zip], None]:
    def change(parts: Zip) -> None:
        parts[name].packed += data

    return change


def _cut(parts: Zip) -> None:
    one = parts[FUSED]
    one.packed = one.packed[: len(one.packed) // 2]


def _stored(parts: Zip) -> None:
    one = parts[INIT]
    one.method, one.packed = 0, EVIL


def _rows(change: Callable[[list[str]], list[str]], name: str = INIT) -> Make:
    """A wheel with one row of RECORD changed."""
    return with_record(lambda rows: [change(row) if row[0] == name else row for row in rows])


def _renamed(folder: Path) -> Path:
    path = wheels.make(folder, version="0.9" + wheels.LABEL)
    return path.rename(path.with_name(FILE))


def _raw_record(text: bytes) -> Make:
    return lambda folder: wheels.make(folder, {**wheels.content(), f"{INFO}/RECORD": text})


def _newest(name: str, version: str) -> Callable[[], bytes]:
    """A module that needs a symbol of this glibc."""

    def made() -> bytes:
        library = wheels.library("libm.so.6", name, version)
        return wheels.extension(needs=(library,), calls=(name,))

    return made


def _tagged(tag: str, data: Callable[[], bytes], **wheel: bytes) -> Make:
    return lambda folder: wheels.make(folder, wheels.content(_fused=data()), tag=tag)


def _truncate(files: dict[str, bytes]) -> None:
    files[FILE] = files[FILE][:-1000]


def _corrupt(files: dict[str, bytes]) -> None:
    content = bytearray(files[FILE])
    content[len(content) // 2] ^= 1
    files[FILE] = bytes(content)


def _lengthen(files: dict[str, bytes]) -> None:
    files[FILE] += bytes(7)


def _html(files: dict[str, bytes]) -> None:
    files[FILE] = b"<html>moved</html>".ljust(len(files[FILE]))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


LINK = (stat.S_IFLNK | 0o777) << 16
THERE = "which lies outside of it."
ALIKE = "which programs read differently."
USELESS = "which a package of kernels has no use for."
UNREADABLE = f"{FILE} is not a readable zip archive"
NO_ELF = "_fused.abi3.so is not a readable ELF file"
OUT = f"outside of the package {PACKAGE}."
OTHER_MACHINE, OTHER_NAME = (62, "x86_64") if TAG.endswith("aarch64") else (183, "aarch64")
DATA = f"{NAME}-{FULL}.data"

ARCHIVES = [
    Case(name="no zip at all", make=_text_file, line=f"{UNREADABLE} (File is not a zip file)."),
    Case(
        name="a path that leads out",
        make=member("../evil.py"),
        line=f"{FILE} holds '../evil.py', {THERE}",
    ),
    Case(
        name="a path that leads out from below",
        make=member(f"{PACKAGE}/../../evil.py"),
        line=f"{FILE} holds '{PACKAGE}/../../evil.py', {THERE}",
    ),
    Case(name="an absolute path", make=member("/etc/evil"), line=f"{FILE} holds '/etc/evil', {THERE}"),
    Case(
        name="a path of Windows",
        make=member(f"{PACKAGE}\\..\\evil.py"),
        line=f"{FILE} holds '{PACKAGE}\\\\..\\\\evil.py', {THERE}",
    ),
    Case(
        name="another spelling of a path",
        make=member(f"{PACKAGE}/./evil.py"),
        line=f"{FILE} holds '{PACKAGE}/./evil.py', which is another spelling of {PACKAGE}/evil.py.",
    ),
    Case(
        name="a name with a NUL",
        make=member(f"{PACKAGE}/evil.py\0.txt"),
        line=f"{FILE} holds '{PACKAGE}/evil.py\\x00.txt', a name that cannot be written.",
    ),
    Case(
        name="a name with an escape sequence",
        make=member(f"{PACKAGE}/\x1b[2Jevil.py"),
        line=f"{FILE} holds '{PACKAGE}/\\x1b[2Jevil.py', a name that cannot be written.",
    ),
    Case(
        name="a name written backwards",
        make=member(f"{PACKAGE}/\u202eyp.live", flags=0x800),
        line=f"{FILE} holds '{PACKAGE}/\\u202eyp.live', a name that cannot be written.",
    ),
    Case(
        name="a name that is too long",
        make=member(f"{PACKAGE}/{'n' * 256}.py"),
        line=f"{FILE} holds '{PACKAGE}/{'n' * (59 - len(PACKAGE))}'..., a name that no file system takes.",
    ),
    Case(
        name="a name in no known encoding",
        make=member(f"{PACKAGE}/\xe9.py".encode("cp437")),
        line=f"{FILE} holds '{PACKAGE}/\xe9.py', and does not say in which encoding.",
    ),
    Case(name="a member twice", make=zipped(_twice), line=f"{FILE} holds {INIT} twice."),
    Case(
        name="a member twice, but for case",
        make=member(f"{PACKAGE}/__INIT__.py"),
        line=f"{FILE} holds {INIT} and {PACKAGE}/__INIT__.py, which may be one file.",
    ),
    Case(
        name="a member twice, but for how an accent is written",
        make=zipped(
            lambda parts: parts.members.extend(
                zips.raw(f"{PACKAGE}/{name}.py", EVIL, flags=0x800) for name in ("\xe9", "e\u0301")
            )
        ),
        line=f"{FILE} holds {PACKAGE}/\xe9.py and {PACKAGE}/e\u0301.py, which may be one file.",
    ),
    Case(
        name="a file that is a folder too",
        make=member(f"{INIT}/evil.py"),
        line=f"{FILE} holds {INIT}, and {INIT}/evil.py below it.",
    ),
    Case(
        name="a symbolic link",
        make=member(f"{PACKAGE}/link", b"/etc/passwd", attributes=LINK),
        line=f"{FILE} holds the symbolic link {PACKAGE}/link.",
    ),
    *(
        Case(
            name=f"a {kind}",
            make=member(f"{PACKAGE}/{kind}", b"", attributes=(mode | 0o644) << 16),
            line=f"{FILE} holds {PACKAGE}/{kind}, which is neither a plain file nor a folder.",
        )
        for kind, mode in (("fifo", stat.S_IFIFO), ("device", stat.S_IFBLK), ("socket", stat.S_IFSOCK))
    ),
    Case(
        name="a file that says it is a folder",
        make=member(f"{PACKAGE}/folder", attributes=0x10),
        line=f"{FILE} holds {PACKAGE}/folder, which is neither a plain file nor a folder.",
    ),
    Case(
        name="a folder with content",
        make=member(f"{PACKAGE}/folder/"),
        line=f"{FILE} holds the folder {PACKAGE}/folder/ with content of its own.",
    ),
    Case(
        name="setuid",
        make=member(f"{PACKAGE}/su", attributes=(stat.S_IFREG | 0o4755) << 16),
        line=f"{FILE} holds {PACKAGE}/su with the rights of its owner (setuid, setgid or sticky).",
    ),
    Case(
        name="an encrypted member",
        make=member(f"{PACKAGE}/secret", flags=1),
        line=f"{FILE} holds {PACKAGE}/secret, which is encrypted.",
    ),
    Case(
        name="sizes behind the data",
        make=of(INIT, flags=8, local={"crc": 0, "packed": 0, "size": 0}),
        line=f"{FILE} holds {INIT} with the flags 0x8, {ALIKE}",
    ),
    Case(
        name="a method that few programs know",
        make=of(INIT, method=93),
        line=f"{FILE} holds {INIT}, packed by method 93: only 0 and 8 are for wheels.",
    ),
    Case(
        name="zip64 sizes of one member",
        make=of(INIT, central={"extra": struct.pack("<2H2Q", 1, 16, 7, 7), "packed": 0xFFFFFFFF, "size": 0xFFFFFFFF}),
        line=f"{FILE} holds {INIT} with extra fields, {ALIKE}",
    ),
    Case(
        name="another name in an extra field",
        make=of(INIT, central={"extra": struct.pack("<2HBL", 0x7075, 12, 1, 0) + b"evil.py"}),
        line=f"{FILE} holds {INIT} with extra fields, {ALIKE}",
    ),
    Case(
        name="extra fields in one header only",
        make=of(INIT, local={"extra": struct.pack("<2H", 0x1234, 0)}),
        line=f"{FILE}: {INIT} has extra fields in its header, {ALIKE}",
    ),
    Case(
        name="zip64 at the end",
        make=zipped(lambda parts: parts.end.update(count=0xFFFF)),
        line=f"{FILE} is a zip64 archive, which nothing of its size has to be.",
    ),
    Case(
        name="a zip64 locator before the end",
        make=of("RECORD", central={"comment": b"PK\x06\x07" + bytes(16)}),
        line=f"{FILE} is a zip64 archive, which nothing of its size has to be.",
    ),
    Case(name="too many members", make=_many, line=f"{FILE} holds 10006 members, more than 10000."),
    Case(
        name="a directory with more than it says",
        make=zipped(_fewer),
        line=f"{FILE} has a directory of 5 members, and says that there are 2.",
    ),
    Case(
        name="a second part",
        make=zipped(lambda parts: parts.end.update(disk=1)),
        line=f"{FILE} says that it goes on elsewhere, in another part or a comment.",
    ),
    Case(
        name="a comment",
        make=zipped(lambda parts: parts.end.update(comment=b"an archive may hide here")),
        line=f"{FILE} has bytes behind its end, where an archive may hide another.",
    ),
    Case(
        name="a comment that ends like an archive",
        make=zipped(lambda parts: parts.end.update(comment=Zip([]).write())),
        line=f"{UNREADABLE} (its directory is not where it says).",
    ),
    Case(
        name="a second archive behind it",
        make=zipped(_two_archives),
        line=f"{UNREADABLE} (its directory is not where it says).",
    ),
    Case(
        name="bytes behind the end",
        make=zipped(lambda parts: setattr(parts, "after", b"\n")),
        line=f"{FILE} has bytes behind its end, where an archive may hide another.",
    ),
    Case(
        name="another archive in front", make=_evil_in_front, line=f"{UNREADABLE} (its directory is not where it says)."
    ),
    Case(
        name="a program in front",
        make=of(INIT, before=b"#!/bin/sh\nexec evil\n"),
        line=f"{FILE}: {INIT} has something before it, which its archive does not list.",
    ),
    Case(
        name="a member that the directory does not list",
        make=zipped(_hidden),
        line=f"{FILE}: {INFO}/METADATA has something before it, which its archive does not list.",
    ),
    Case(
        name="bytes before the directory",
        make=zipped(lambda parts: setattr(parts, "between", b"hidden")),
        line=f"{FILE} has bytes between its members and their directory.",
    ),
    Case(
        name="two names for the same bytes",
        make=zipped(_overlap),
        line=f"{FILE}: {PACKAGE}/two.py overlaps another, which its archive does not list.",
    ),
    Case(
        name="a header elsewhere",
        make=of(INIT, central={"offset": 10}),
        line=f"{FILE}: {INIT} has something before it, which its archive does not list.",
    ),
    Case(
        name="another name in the header",
        make=of(INIT, local={"name": INIT.replace("init", "evil").encode()}),
        line=f"{FILE}: {INIT} has another name in its header (b'{PACKAGE}/__evil__.py').",
    ),
    *(
        Case(
            name=f"another {what} in the header",
            make=of(INIT, local={what: value}),
            line=f"{FILE}: {INIT} has a header that differs from the directory.",
        )
        for what, value in (("method", 0), ("flags", 0x800), ("size", 7), ("crc", 7))
    ),
    Case(
        name="a bomb",
        make=zipped(_bomb),
        line=f"{FILE} would unpack to {{whole}} bytes, {{times}} times its size.",
    ),
    Case(
        name="more bytes than the directory says",
        make=zipped(_more_than_said),
        line=f"{FILE}: {INIT} says 50 bytes, and holds more.",
    ),
    Case(
        name="fewer bytes than the directory says",
        make=zipped(lambda parts: setattr(parts[INIT], "size", 100)),
        line=f"{FILE}: {INIT} says 100 bytes, and holds 70.",
    ),
    Case(
        name="another checksum",
        make=zipped(lambda parts: setattr(parts[INIT], "crc", 7)),
        line=f"{FILE}: {INIT} has another checksum than its archive says.",
    ),
    Case(
        name="bytes behind what was packed",
        make=zipped(_appended(INIT, EVIL)),
        line=f"{FILE}: {INIT} has bytes behind its end.",
    ),
    Case(name="a member cut short", make=zipped(_cut), line=f"{FILE}: {FUSED} ends before its end."),
    Case(
        name="not packed, with two sizes",
        make=zipped(_stored),
        line=f"{FILE}: {INIT} is not packed, and has two sizes.",
    ),
]


CONTENTS = [
    *(
        Case(name=name, make=file(path), line=f"{FILE} would install {path}, {OUT}")
        for name, path in (
            ("a .pth file", "evil.pth"),
            ("sitecustomize", "sitecustomize.py"),
            ("usercustomize", "usercustomize.py"),
            ("a module beside the package", f"{PACKAGE}.py"),
            ("a second package", "numpy/__init__.py"),
            ("a file in torch", "torch/version.py"),
            ("a data script", f"{DATA}/scripts/python"),
            ("a data header", f"{DATA}/headers/Python.h"),
            ("data for purelib", f"{DATA}/purelib/torch/__init__.py"),
            ("data for the prefix", f"{DATA}/data/lib/python3/evil.py"),
        )
    ),
    Case(
        name="the package in other letters",
        make=file("TinyAttn/__init__.py"),
        line=f"{FILE} holds {INIT} and TinyAttn/__init__.py, which may be one file.",
    ),
    Case(
        name="compiled Python",
        make=file(f"{PACKAGE}/core.pyc"),
        line=f"{FILE} holds {PACKAGE}/core.pyc, compiled Python that need not be what its source says.",
    ),
    Case(
        name="a cache of compiled Python",
        make=file(f"{PACKAGE}/__pycache__/x"),
        line=f"{FILE} holds {PACKAGE}/__pycache__/x, compiled Python that need not be what its source says.",
    ),
    Case(
        name="a program",
        make=library(f"{PACKAGE}/tool"),
        line=f"{FILE} holds {PACKAGE}/tool, a program or library that is no extension module.",
    ),
    Case(
        name="a program of Windows",
        make=file(f"{PACKAGE}/tool.exe", b"MZ\x90\x00"),
        line=f"{FILE} holds {PACKAGE}/tool.exe, a program or library that is no extension module.",
    ),
    Case(
        name="a library with a version",
        make=library(f"{PACKAGE}/libc10.so.1"),
        line=f"{FILE} holds {PACKAGE}/libc10.so.1, a program or library that is no extension module.",
    ),
    Case(
        name="a library in dist-info",
        make=library(f"{INFO}/x.so"),
        line=f"{FILE} holds {INFO}/x.so, which is no extension module by its name.",
    ),
    Case(
        name="archs in the name of a module",
        make=library(f"{PACKAGE}/_x.sm_120.so", "_x"),
        line=f"{FILE} holds {PACKAGE}/_x.sm_120.so, which is no extension module by its name.",
    ),
    Case(
        name="a module twice",
        make=library(f"{PACKAGE}/_fused.so"),
        line=f"{FILE} holds the module _fused twice.",
    ),
    *(
        Case(
            name=f"an {name} of another installer",
            make=file(f"{INFO}/{name}", b"conda\n"),
            line=f"{FILE} holds {name}, which only an installer may write.",
        )
        for name in ("INSTALLER", "REQUESTED", "direct_url.json")
    ),
    *(
        Case(
            name=f"entry points for {group}",
            make=with_info(entry_points__txt=f"[{group}]\npip = {PACKAGE}:main\n".encode()),
            line=f"{FILE} would install programs, {USELESS}",
        )
        for group in ("console_scripts", "gui_scripts")
    ),
    *(
        Case(
            name=f"entry points for {group}",
            make=with_info(entry_points__txt=f"\n [{group}]\nx = {PACKAGE}:main\n".encode()),
            line=f"{FILE} would be loaded by others through the entry points [{group}], {USELESS}",
        )
        for group in ("torch.backends", "pytest11")
    ),
    Case(
        name="entry points behind a form feed",
        make=with_info(entry_points__txt=f"#\x0c[console_scripts]\npip = {PACKAGE}:main\n".encode()),
        line=f"{FILE} would install programs, {USELESS}",
    ),
]

INFOS = [
    Case(name="no RECORD", make=with_info(RECORD=None), line=f"{FILE} has no readable RECORD."),  # type: ignore[arg-type]
    Case(name="no METADATA", make=with_info(METADATA=None), line=f"{FILE} has no readable METADATA."),  # type: ignore[arg-type]
    Case(name="no WHEEL", make=with_info(WHEEL=None), line=f"{FILE} has no readable WHEEL."),  # type: ignore[arg-type]
    Case(name="a RECORD that is no text", make=_raw_record(b"\xff\xfe"), line=f"{FILE} has no readable RECORD."),
    Case(
        name="a METADATA of megabytes",
        make=_big_text,
        line=f"{FILE} has a METADATA of 4750009 bytes.",
    ),
    Case(
        name="a RECORD that is no table",
        make=_raw_record(b'"open,sha256=x,1\n'),
        line=f"{FILE}: RECORD is not a table (unexpected end of data).",
    ),
    Case(
        name="a row with too few columns",
        make=_rows(lambda row: row[:2]),
        line=f"{FILE}: RECORD has 2 columns in row 1, not 3.",
    ),
    Case(
        name="a row with too many columns",
        make=_rows(lambda row: [*row, "more"]),
        line=f"{FILE}: RECORD has 4 columns in row 1, not 3.",
    ),
    Case(
        name="a row twice",
        make=with_record(lambda rows: [*rows, rows[0]]),
        line=f"{FILE}: RECORD lists {INIT} twice.",
    ),
    Case(
        name="an absolute path in RECORD",
        make=with_record(lambda rows: [*rows, ["/etc/passwd", "", ""]]),
        line=f"{FILE}: RECORD lists '/etc/passwd', {THERE}",
    ),
    Case(
        name="a path in RECORD that leads out",
        make=with_record(lambda rows: [*rows, ["../../torch/__init__.py", "", ""]]),
        line=f"{FILE}: RECORD lists '../../torch/__init__.py', {THERE}",
    ),
    Case(
        name="a RECORD with its own hash",
        make=_rows(lambda row: [row[0], "sha256=AAAA", "7"], f"{INFO}/RECORD"),
        line=f"{FILE}: RECORD gives a hash or a size of itself, which cannot be.",
    ),
    *(
        Case(
            name=f"{kind} in RECORD",
            make=_rows(lambda row, kind=kind: [row[0], f"{kind}=AAAA", row[2]]),  # type: ignore[misc]
            line=f"{FILE}: RECORD has '{kind}' for {INIT}, not sha256.",
        )
        for kind in ("md5", "sha1")
    ),
    Case(
        name="no hash in RECORD",
        make=_rows(lambda row: [row[0], "", row[2]]),
        line=f"{FILE}: {INIT} is not what RECORD says.",
    ),
    Case(
        name="a wrong size in RECORD",
        make=_rows(lambda row: [row[0], row[1], "7"], FUSED),
        line=f"{FILE}: {FUSED} is not what RECORD says.",
    ),
    Case(
        name="a file that RECORD does not list",
        make=member(f"{PACKAGE}/extra.py"),
        line=f"{FILE}: RECORD and content differ in {PACKAGE}/extra.py.",
    ),
    Case(
        name="a file that RECORD alone has",
        make=with_record(lambda rows: [*rows, wheels.row(f"{PACKAGE}/gone.py", b"")]),
        line=f"{FILE}: RECORD and content differ in {PACKAGE}/gone.py.",
    ),
    Case(
        name="a second dist-info",
        make=file("torch-2.11.0.dist-info/METADATA", b"Name: torch\n"),
        line=f"{FILE} has {INFO}, torch-2.11.0.dist-info, not {INFO}.",
    ),
    Case(
        name="the dist-info of another version",
        make=_renamed,
        line=f"{FILE} has {INFO.replace('1.0', '0.9', 1)}, not {INFO}.",
    ),
    Case(
        name="METADATA of another package",
        make=with_info(METADATA=f"Name: torch\nVersion: {FULL}\n".encode()),
        line=f"{FILE}: METADATA is of torch {FULL}.",
    ),
    Case(
        name="METADATA of another version",
        make=with_info(METADATA=f"Name: {NAME}\nVersion: 99\n".encode()),
        line=f"{FILE}: METADATA is of {NAME} 99.",
    ),
    Case(
        name="METADATA of two packages",
        make=with_info(METADATA=f"Name: {NAME}\nVersion: {FULL}\nName: torch\n".encode()),
        line=f"{FILE}: METADATA has several lines Name.",
    ),
    Case(
        name="WHEEL without tags",
        make=with_info(WHEEL=b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\n"),
        line=f"{FILE}: WHEEL has the tags none.",
    ),
    Case(
        name="WHEEL with another tag",
        make=with_info(WHEEL=b"Wheel-Version: 1.0\nTag: py3-none-any\n"),
        line=f"{FILE}: WHEEL has the tags py3-none-any.",
    ),
    Case(
        name="a Wheel-Version of the future",
        make=with_info(WHEEL=f"Wheel-Version: 2.0\nTag: {TAG}\n".encode()),
        line=f"{FILE} is of Wheel-Version 2.0, not 1.0.",
    ),
    Case(
        name="two Wheel-Versions",
        make=with_info(WHEEL=f"Wheel-Version: 1.0\nWheel-Version: 2.0\nTag: {TAG}\n".encode()),
        line=f"{FILE} is of Wheel-Version 1.0, 2.0, not 1.0.",
    ),
    Case(
        name="pure Python with extension modules",
        make=with_info(WHEEL=f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {TAG}\n".encode()),
        line=f"{FILE} says that it is pure Python, and holds extension modules.",
    ),
]

PLAIN = f"{NAME}-{FULL}-cp310-abi3-{TAG.rpartition('-')[2]}.whl"
OLD = f"{NAME}-{FULL}-py3-none-manylinux_2_5_{TAG.partition('linux_')[2]}.whl"

BINARIES = [
    Case(
        name="an extension module that is no ELF",
        make=module(lambda: b"#!/bin/sh\n"),
        line=f"{NO_ELF} (Magic number does not match).",
    ),
    Case(
        name="an extension module of another machine",
        make=elf((18, "<H", OTHER_MACHINE)),
        line=f"{FILE} is tagged {TAG}, but _fused is for {OTHER_NAME}.",
    ),
    Case(
        name="an extension module of a machine that nobody has",
        make=elf((18, "<H", 8)),
        line=f"{FILE} is tagged {TAG}, but _fused is for another machine.",
    ),
    Case(
        name="an extension module for 32 bits",
        make=module(lambda: b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + struct.pack("<2HL", 3, 3, 1).ljust(48, b"\0")),
        line=f"{NO_ELF} (it is for 32 bits).",
    ),
    Case(
        name="an extension module that is a program",
        make=elf((16, "<H", 2)),
        line=f"{NO_ELF} (it is no shared library).",
    ),
    Case(
        name="an extension module that hides what it needs",
        make=elf((40, "<Q", 0), (58, "<H", 0), (60, "<H", 0), (62, "<H", 0)),
        line=f"{NO_ELF} (its sections are not what is loaded).",
    ),
    Case(
        name="an extension module that shows other libraries",
        make=_section(6, 24, "<Q", 64),
        line=f"{NO_ELF} (its sections are not what is loaded).",
    ),
    Case(
        name="an extension module that shows other symbols",
        make=_section(11, 16, "<Q", 64),
        line=f"{NO_ELF} (its sections are not what is loaded).",
    ),
    Case(
        name="archs in the manifest that no binary holds",
        changes={"archs": ["9.0a", "12.0"]},
        line=f"{FILE}: its manifest says that it is for 9.0a, which no binary holds.",
    ),
    Case(
        name="archs of a module that it does not hold",
        changes={"extensions": {"_fused": ["9.0a", "12.0"]}},
        line=f"{FILE}: _fused holds ['12.0'], its manifest says ['9.0a', '12.0'].",
    ),
    Case(
        name="a module in the manifest alone",
        changes={"extensions": {"_fused": ["12.0"], "_attn": ["12.0"]}},
        line=f"{FILE}: _attn holds nothing, its manifest says ['12.0'].",
    ),
    Case(
        name="a module that the manifest does not have",
        make=lambda folder: wheels.make(
            folder, wheels.content(_fused=wheels.extension(), _evil=wheels.extension("_evil"))
        ),
        line=f"{FILE}: _evil holds ['12.0'], its manifest says nothing.",
    ),
    Case(
        name="archs that are text",
        changes={"extensions": ["_fused", "12.0"]},
        line=f"{FILE}: the extensions in its manifest are no table of archs.",
    ),
    Case(
        name="code for another GPU alone, which the manifest does not say",
        make=module(lambda: wheels.extension(archs="9.0a")),
        changes={"extensions": None},
        line=f"{FILE}: _fused holds 9.0a, which does not run on 12.0.",
    ),
    Case(
        name="PTX alone",
        make=module(lambda: wheels.extension(archs="12.0+PTX")),
        changes={"extensions": None},
        line=f"{FILE}: _fused holds 12.0+PTX, which does not run on 12.0.",
    ),
    Case(
        name="no CUDA code at all",
        make=module(lambda: wheels.extension(archs="")),
        changes={"extensions": None},
        line=f"{FILE}: _fused holds no CUDA code, which does not run on 12.0.",
    ),
    Case(
        name="a newer glibc than the machine's",
        make=module(_newest("from_the_future", "GLIBC_2.99")),
        line=f"{FILE} needs GLIBC_2.99, this machine has {wheels.GLIBC}.",
    ),
    Case(
        name="a newer glibc than the manifest says",
        make=module(_newest("from_the_past", "GLIBC_2.19")),
        changes={"glibc": "2.17"},
        line=f"{FILE} needs GLIBC_2.19, its manifest says 2.17.",
    ),
    Case(
        name="a newer glibc than the tag says",
        make=_tagged(OLD.split("-", 2)[2].removesuffix(".whl"), _newest("from_the_past", "GLIBC_2.19")),
        line=f"{OLD} needs GLIBC_2.19, its tag says 2.5.",
    ),
    Case(
        name="a CUDA of another major",
        make=module(lambda: wheels.extension(needs=(wheels.library("libcudart.so.12", "cuda_call"),))),
        line=f"{FILE}: _fused needs libcudart.so.12, torch has CUDA 13.0.",
    ),
    Case(
        name="a library that nobody brings",
        make=module(lambda: wheels.extension(needs=(wheels.library("libforeign.so.3", "foreign"),))),
        line=f"{FILE}: _fused needs libforeign.so.3, which torch does not bring.",
    ),
    Case(
        name="abi3 with more than the limited API",
        make=_tagged(
            PLAIN.split("-", 2)[2].removesuffix(".whl"), lambda: wheels.extension(calls=("_PyObject_GetDictPtr",))
        ),
        line=(
            f"{PLAIN} is tagged abi3, but _fused needs _PyObject_GetDictPtr, "
            "which is not in the limited API of Python 3.10."
        ),
    ),
    Case(
        name="a stable ABI of torch that it is not on",
        make=module(lambda: wheels.extension(calls=("_ZN2at4fakeEv",))),
        changes={"stable_abi": {"torch": "2.10"}},
        line=(
            f"{FILE} claims torch 2.10 or newer, but _fused needs _ZN2at4fakeEv, "
            "which is not in the stable ABI of libtorch."
        ),
    ),
]

DOWNLOADS = [
    Case(
        name="a download cut short",
        publish=_truncate,
        line=f"{FILE} has {{short}} bytes, its manifest says {{size}}. Fetch it again.",
        at_fetch=True,
    ),
    Case(
        name="a download with more behind it",
        publish=_lengthen,
        line=f"{FILE} has more than the {{size}} bytes of its manifest. Fetch it again.",
        at_fetch=True,
    ),
    Case(
        name="one flipped bit",
        publish=_corrupt,
        line=(
            f"{FILE} has sha256 {{flipped}}, its manifest says {{good}}. "
            "It was changed or damaged: fetch it again, and do not install it."
        ),
        at_fetch=True,
    ),
    Case(
        name="a page of the same size",
        publish=_html,
        line=(
            f"{FILE} has sha256 {{page}}, its manifest says {{good}}. "
            "It was changed or damaged: fetch it again, and do not install it."
        ),
        at_fetch=True,
    ),
    Case(
        name="the sha256 of another file",
        changes={"wheel_sha256": "0" * 64},
        line=(
            f"{FILE} has sha256 {{good}}, its manifest says 000000000000. "
            "It was changed or damaged: fetch it again, and do not install it."
        ),
        at_fetch=True,
    ),
    Case(
        name="a wheel that is listed and not there",
        publish=lambda files: files.pop(FILE),
        line=f"{FILE} is not in {{store}}. Publish it again.",
        code=7,
        at_fetch=True,
    ),
    Case(
        name="a size that no wheel has",
        changes={"size": 10**30},
        line="{store} holds no wheel for this machine. Run auto or build to make one.",
        code=3,
        at_fetch=True,
    ),
    Case(
        name="no sha256",
        changes={"wheel_sha256": None},
        line="{store} holds no wheel for this machine. Run auto or build to make one.",
        code=3,
        at_fetch=True,
    ),
    Case(
        name="the name in other letters",
        changes={"wheel_file": FILE.upper().replace(".WHL", ".whl")},
        publish=lambda files: files.update({FILE.upper().replace(".WHL", ".whl"): files[FILE]}),
        line="{store} holds no wheel for this machine. Run auto or build to make one.",
        code=3,
        at_fetch=True,
    ),
]


CASES = [*ARCHIVES, *CONTENTS, *INFOS, *BINARIES, *DOWNLOADS]


class Bench:
    """A machine that nothing may change, and a store for each case."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.settings.work_dir.mkdir(exist_ok=True)  # the lock of each run lies there
        first = machine.job()
        self.target, self.host = first.target, first.host

    def publish(self, folder: Path, case: Case) -> tuple[Path, dict[str, bytes]]:
        """A store as an attacker leaves it who may write to it."""
        path = case.make(folder / "dist")
        entry = {**wheels.describe(path).data, **case.changes}
        files = {path.name: path.read_bytes(), f"{path.name}.json": json.dumps(entry).encode()}
        files["index.json"] = json.dumps({"schema": 1, "wheels": [entry]}).encode()
        if case.publish:
            case.publish(files)
        (folder / "store").mkdir()
        for name, content in files.items():
            (folder / "store" / name).write_bytes(content)
        return path, files

    def job(self, folder: Path, *, fresh: bool = False) -> Job:
        job = self.machine.job(sage_store=str(folder / "store"), wheelhouse_dir=folder / "house")
        if not fresh:
            job.target, job.host = self.target, self.host
        return job


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    wheels.workshop()  # made before a test looks at what is temporary
    return Bench(wheels.machine(tmp_path_factory.mktemp("machine")))


@pytest.fixture(autouse=True)
def _marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archs come from marks in the binaries; the glibc of this machine is all that decides, whatever the tag."""
    wheels.without_cuobjdump(monkeypatch)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go: there are none when the test is over."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] == []


def _line(case: Case, folder: Path, path: Path, files: Mapping[str, bytes]) -> str:
    """The line of a case with what only its files can tell."""
    if "{" not in case.line:
        return case.line
    good = path.read_bytes()
    now = files.get(FILE, good)
    facts: dict[str, object] = {"store": folder / "store", "size": len(good), "good": _sha(good)}
    facts |= {"short": len(now), "long": len(now), "flipped": _sha(now), "page": _sha(now)}
    if "{whole}" in case.line:
        whole, packed = _unpacked(good)
        facts |= {"whole": whole, "times": whole // packed}
    return case.line.format(**facts)


def _with_next(line: str) -> str:
    """The line with what comes next, where a case does not name that itself: it is the same for every bad wheel."""
    return line if ". " in line else f"{line} {steps.REFUSED}."


def _unpacked(data: bytes) -> tuple[int, int]:
    """What an archive says that it unpacks to, and where its directory begins."""
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return sum(item.file_size for item in opened.infolist()), opened.start_dir


def _go(job: Job) -> None:
    made = steps.do_fetch(job)
    assert made is not None
    steps.do_verify(job, made)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile(
    case: Case, bench: Bench, tmp_path: Path, temporary: Path, everything: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path, files = bench.publish(tmp_path, case)
    line, before = _line(case, tmp_path, path, files), wheels.tree(bench.machine.folder)
    ways = [(_go, bench.job(tmp_path)), *([(auto.install, bench.job(tmp_path, fresh=True))] if everything else [])]
    for way, job in ways:
        with pytest.raises(SageError) as caught:
            way(job)
        assert (str(caught.value), caught.value.code) == (_with_next(line), case.code)
        assert wheels.tree(bench.machine.folder) == before
        house = tmp_path / "house"
        there = sorted(one.name for one in house.iterdir()) if house.exists() else []
        assert there == ([] if case.at_fetch else [path.name, f"{path.name}.json"])
    shown = capsys.readouterr()
    assert all(one.isprintable() for one in (shown.out + shown.err).splitlines())


def test_each_cause_has_a_reason_of_its_own() -> None:
    """As many lines as there are causes: what is said of many files, or of both headers, is one."""
    assert len({case.name for case in CASES}) == len(CASES) >= 100
    assert len({case.line for case in CASES}) >= 85


def test_the_honest_wheel_is_installed(tmp_path: Path, temporary: Path) -> None:
    """Else every line above would be worth nothing."""
    machine = wheels.machine(tmp_path / "machine")
    bench = Bench(machine)
    honest = Case(name="honest", line="")
    bench.publish(tmp_path, honest)
    _go(bench.job(tmp_path))
    assert machine.import_version() == "ours"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wheel_file": "../../evil.whl"}, "wheel_file '../../evil.whl' is not the name of a wheel."),
        ({"size": 10**30}, "size is not a number of bytes."),
        ({"size": -1}, "size is not a number of bytes."),
        ({"size": True}, "size is not a number of bytes."),
        ({"schema": 10**99}, f"schema 1{'0' * 39} is newer than this sagewheels. Update sagewheels."),
        ({"archs": ["12.0", 9]}, "archs is not a list of text."),
        ({"archs": ["\u0661\u0662.0"]}, "'\u0661\u0662.0' is not a compute capability."),
        ({"cuda_version": "\u0661\u0663.0"}, "cuda_version '\u0661\u0663.0' is not a version in numbers."),
        ({"stable_abi": {"torch": "\u0662.10"}}, "stable_abi '\u0662.10' is not a version in numbers."),
        ({"proofs": ["12.0"]}, "proofs is not a list of objects."),
        ({"wheel_sha256": "0" * 63}, "wheel_sha256 is not a sha256."),
        (
            {"wheel_file": f"{NAME}-1-{'.'.join('abcdefghi')}-{'.'.join('abcdefgh')}-any.whl"},
            f"wheel_file '{NAME}-1-a.b.c.d.e.f.g.h.i-a.b.c.d.e.f.g.h-any.whl' has more than 64 tags.",
        ),
    ],
)
def test_a_manifest_that_cannot_be(
    changes: dict[str, Any], said: str, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said and passed over: a wheel that nobody can name is not fetched."""
    bench.publish(tmp_path, Case(name="", line="", changes=changes))
    with pytest.raises(SageError) as caught:
        _go(bench.job(tmp_path))
    assert caught.value.code == 3
    assert f"[store] warning: index.json entry 1: {said}\n" in capsys.readouterr().err
    assert not (tmp_path / "house").exists()


@pytest.mark.parametrize("kind", ["truncate", "corrupt"])
def test_a_hub_that_sends_other_bytes(
    kind: str, bench: Bench, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels.without_waiting(monkeypatch)
    files = bench.publish(tmp_path, Case(name="", line=""))[1]
    before = wheels.tree(bench.machine.folder)
    with Hub() as hub:
        hub.create(REPO, {f"sage/{name}": content for name, content in files.items()})
        hub.misbehave(r"GET .*\.whl$", kind, 99)
        where: dict[str, Any] = {
            "sage_store": "",
            "hf_repo_id": REPO,
            "hf_endpoint": hub.endpoint,
            "remote_dir": "sage",
        }
        job = bench.machine.job(**where, wheelhouse_dir=tmp_path / "house")
        with pytest.raises(SageError) as caught:
            _go(job)
    assert caught.value.code == {"truncate": 7, "corrupt": 4}[kind]
    assert wheels.tree(bench.machine.folder) == before
    assert list((tmp_path / "house").iterdir()) == []


def test_what_unpacks_to_too_much(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MOST_BYTES", 1000)
    bench.publish(tmp_path, Case(name="", line=""))
    with pytest.raises(SageError) as caught:
        _go(bench.job(tmp_path))
    assert str(caught.value) == f"{FILE} would unpack to more than 1000 bytes. {steps.REFUSED}."
