"""The zip archive of a wheel: one that every program reads alike, or none. Nothing is held in memory whole.

Two programs that read one archive differently install different files from the same bytes: uv and pip did until
CVE-2025-54368. So an archive must be what packers write: members one after another from the first byte, the directory
behind them, and nothing before, between or after. Whatever leaves a choice to the reader is refused.
"""

from __future__ import annotations

import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import ZipInfo

from sagewheels.errors import Refused
from sagewheels.files import FULL

_MOST_BYTES = 2_000_000_000
"""More than this unpacked is no attention wheel: upstream's largest is 23 MB packed."""
_MOST_MEMBERS = 10_000
_MOST_TIMES, _FEW_BYTES = 100, 10_000_000
"""Machine code packs to a fifth or so; what unpacks to a hundred times its size, and is not small, is a bomb."""
_LONGEST_NAME, _LONGEST_PATH, _LONGEST_TEXT = 255, 500, 4_000_000
_BLOCK = 1 << 20
_LOCAL, _DIRECTORY, _END = struct.Struct("<4s5H3L2H"), 46, struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR, _ZIP64_SIZE = b"PK\x06\x07", 20
_FLAGS = 0x0806
"""UTF-8 names, and how hard deflate tried. Any other says that it is encrypted, or that sizes stand elsewhere."""
_DOS_FOLDER = 0x10
_EXTRA = {0x5455, 0x7875}
"""Times and owners, as Info-ZIP writes them. Others hold another name or another size of the member."""
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, struct.error, ValueError)


@dataclass(frozen=True)
class Archive:
    """An open archive whose structure was looked at; `name` is the wheel's file name, for messages."""

    name: str
    members: tuple[ZipInfo, ...]
    _starts: Mapping[str, int]
    _stream: BinaryIO

    @property
    def files(self) -> dict[str, ZipInfo]:
        """The members that are files, by name."""
        return {item.filename: item for item in self.members if not item.is_dir()}

    def blocks(self, item: ZipInfo) -> Iterator[bytes]:
        """The content of a member, piece by piece; it has the size and the checksum that the directory says.

        Raises Refused.
        """
        size = crc = 0
        self._stream.seek(self._starts[item.filename])
        for block in self._unpacked(item):
            size, crc = size + len(block), zlib.crc32(block, crc)
            if size > item.file_size:
                break
            yield block
        if size != item.file_size:
            what = "more" if size > item.file_size else f"{size}"
            raise Refused(f"{self.name}: {item.filename} says {item.file_size} bytes, and holds {what}")
        if crc != item.CRC:
            raise Refused(f"{self.name}: {item.filename} has another checksum than its archive says")

    def _unpacked(self, item: ZipInfo) -> Iterator[bytes]:
        left = item.compress_size
        if item.compress_type == zipfile.ZIP_STORED:
            while left and (block := self._stream.read(min(left, _BLOCK))):
                left -= len(block)
                yield block
            return
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        while not unpack.eof:
            packed = unpack.unconsumed_tail
            if not packed:
                packed = self._stream.read(min(left, _BLOCK))
                left -= len(packed)
            block = unpack.decompress(packed, _BLOCK)
            if not block and not packed:
                raise Refused(f"{self.name}: {item.filename} ends before its end")
            yield block
        if left or unpack.unused_data:
            raise Refused(f"{self.name}: {item.filename} has bytes behind its end")

    def text(self, name: str) -> str:
        """A member as text. Raises Refused when there is none, or when it is no UTF-8 or absurdly long."""
        short, item = name.rsplit("/", 1)[-1], self.files.get(name)
        if item and item.file_size > _LONGEST_TEXT:
            raise Refused(f"{self.name} has a {short} of {item.file_size} bytes")
        try:
            return b"".join(self.blocks(self.files[name])).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            raise Refused(f"{self.name} has no readable {short}") from None


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive at `path`, its structure looked at. Raises Refused, also for what cannot be read inside the block."""
    file = path.name
    try:
        with path.open("rb") as stream:
            directory = _ending(stream, file)
            with zipfile.ZipFile(stream) as archive:
                members = tuple(archive.infolist())
            _names(members, file)
            _kinds(members, file)
            _sizes(members, directory, file)
            yield Archive(file, members, _gapless(stream, members, directory, file), stream)
    except _UNREADABLE as error:
        if getattr(error, "errno", None) in FULL:  # a full disk says nothing about the wheel
            raise
        raise Refused(f"{file} is not a readable zip archive ({error})") from None


def _ending(stream: BinaryIO, file: str) -> int:
    """Where the directory begins. The record that says so is the last thing in the file, and is believed by all."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _END.size - _ZIP64_SIZE))
    tail = stream.read()
    if tail[-_END.size :][:4] != b"PK\x05\x06":
        if not zipfile.is_zipfile(stream):
            raise zipfile.BadZipFile("File is not a zip file")
        raise Refused(f"{file} has bytes behind its end, where an archive may hide another")
    _, disk, first, here, count, length, start, comment = _END.unpack(tail[-_END.size :])
    if tail.startswith(_ZIP64_LOCATOR) or 0xFFFF in (here, count) or 0xFFFFFFFF in (length, start):
        raise Refused(f"{file} is a zip64 archive, which nothing of its size has to be")
    if count > _MOST_MEMBERS:
        raise Refused(f"{file} holds {count} members, more than {_MOST_MEMBERS}")
    if (disk, first, here, comment) != (0, 0, count, 0):
        raise Refused(f"{file} says that it goes on elsewhere, in another part or a comment")
    if start + length + _END.size != size:
        raise zipfile.BadZipFile("its directory is not where it says")
    stream.seek(start)
    _counted(stream.read(length), count, file)
    return int(start)


def _counted(directory: bytes, count: int, file: str) -> None:
    """The directory has as many entries as it says, and fills its place."""
    place = found = 0
    while directory[place : place + 4] == b"PK\x01\x02":
        found += 1
        place += _DIRECTORY + sum(struct.unpack_from("<3H", directory, place + 28))
    if (found, place) != (count, len(directory)):
        raise Refused(f"{file} has a directory of {found} members, and says that there are {count}")


def _names(members: tuple[ZipInfo, ...], file: str) -> None:
    """Every name leads to one place inside, whoever reads it, and on a file system that does not tell a from A."""
    seen, alike = set[str](), dict[str, str]()
    for item in members:
        name, parts = item.filename, PurePosixPath(item.filename).parts
        if not item.orig_filename.isprintable():
            raise Refused(f"{file} holds {item.orig_filename[:80]!r}, a name that cannot be written")
        if name.startswith("/") or "\\" in name or ".." in parts or not parts:
            raise Refused(f"{file} holds {name[:120]!r}, which lies outside of it")
        if name.rstrip("/") != str(PurePosixPath(name)) or name.endswith("//"):
            raise Refused(f"{file} holds {name[:120]!r}, which is another spelling of {'/'.join(parts)[:120]}")
        if len(name) > _LONGEST_PATH or max(len(part.encode()) for part in parts) > _LONGEST_NAME:
            raise Refused(f"{file} holds {name[:60]!r}..., a name that no file system takes")
        if not name.isascii() and not item.flag_bits & 0x800:
            raise Refused(f"{file} holds {name[:120]!r}, and does not say in which encoding")
        if name in seen:
            raise Refused(f"{file} holds {name} twice")
        seen.add(name)
        other = alike.setdefault(unicodedata.normalize("NFKC", name.rstrip("/")).casefold(), name)
        if other != name:
            raise Refused(f"{file} holds {other} and {name}, which may be one file")
    files = {item.filename for item in members if not item.is_dir()}
    for name in sorted(seen):
        above = next((name[:at] for at, letter in enumerate(name) if letter == "/" and name[:at] in files), "")
        if above:
            raise Refused(f"{file} holds {above}, and {name} below it")


def _kinds(members: tuple[ZipInfo, ...], file: str) -> None:
    """Every member is a plain file or a folder, packed in a way that every program knows."""
    for item in members:
        name, mode = item.filename, item.external_attr >> 16
        if stat.S_ISLNK(mode):
            raise Refused(f"{file} holds the symbolic link {name}")
        as_folder = stat.S_ISDIR(mode) or bool(item.external_attr & _DOS_FOLDER)
        if stat.S_IFMT(mode) not in (0, stat.S_IFDIR, stat.S_IFREG) or (as_folder and not item.is_dir()):
            raise Refused(f"{file} holds {name}, which is neither a plain file nor a folder")
        if mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
            raise Refused(f"{file} holds {name} with the rights of its owner (setuid, setgid or sticky)")
        if item.flag_bits & 0x1:
            raise Refused(f"{file} holds {name}, which is encrypted")
        if item.flag_bits & ~_FLAGS:
            raise Refused(f"{file} holds {name} with the flags {item.flag_bits:#x}, which programs read differently")
        if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"{file} holds {name}, packed by method {item.compress_type}: only 0 and 8 are for wheels")
        if not _EXTRA.issuperset(_fields(item.extra)):
            raise Refused(f"{file} holds {name} with extra fields, which programs read differently")
        if item.is_dir() and (item.file_size or item.compress_size):
            raise Refused(f"{file} holds the folder {name} with content of its own")


def _fields(extra: bytes) -> Iterator[int]:
    """The kinds of the extra fields; -1 for what is none."""
    while extra:
        kind, size = struct.unpack_from("<2H", extra) if len(extra) >= 4 else (-1, 0)
        yield kind if len(extra) >= 4 + size else -1
        extra = extra[4 + size :]


def _sizes(members: tuple[ZipInfo, ...], packed: int, file: str) -> None:
    """What it unpacks to has a sane size: `blocks` holds every member to what the directory says."""
    whole = sum(item.file_size for item in members)
    if whole > _MOST_BYTES:
        raise Refused(f"{file} would unpack to more than {_MOST_BYTES} bytes")
    if whole > max(_FEW_BYTES, _MOST_TIMES * packed):
        raise Refused(f"{file} would unpack to {whole} bytes, {whole // max(1, packed)} times its size")
    for item in members:
        if item.compress_type == zipfile.ZIP_STORED and item.file_size != item.compress_size:
            raise Refused(f"{file}: {item.filename} is not packed, and has two sizes")


def _gapless(stream: BinaryIO, members: tuple[ZipInfo, ...], directory: int, file: str) -> dict[str, int]:
    """Where the content of each begins: behind the one before it, under a header that agrees with the directory."""
    place, starts = 0, dict[str, int]()
    for item in sorted(members, key=lambda one: one.header_offset):
        if item.header_offset != place:
            between = "overlaps another" if item.header_offset < place else "has something before it"
            raise Refused(f"{file}: {item.filename} {between}, which its archive does not list")
        stream.seek(place)
        head = stream.read(_LOCAL.size)
        mark, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(head)
        name, extra = stream.read(name_length), stream.read(extra_length)
        if mark != b"PK\x03\x04":
            raise Refused(f"{file}: {item.filename} is not where its archive says")
        if name != item.orig_filename.encode("utf-8" if item.flag_bits & 0x800 else "cp437"):
            raise Refused(f"{file}: {item.filename} has another name in its header ({name[:80]!r})")
        said = (item.flag_bits, item.compress_type, item.CRC, item.compress_size, item.file_size)
        if (flags, method, crc, packed, size) != said:
            raise Refused(f"{file}: {item.filename} has a header that differs from the directory")
        if not _EXTRA.issuperset(_fields(extra)):
            raise Refused(f"{file}: {item.filename} has extra fields in its header, which programs read differently")
        starts[item.filename] = place + _LOCAL.size + name_length + extra_length
        place = starts[item.filename] + packed
    if place != directory:
        raise Refused(f"{file} has bytes between its members and their directory")
    return starts
