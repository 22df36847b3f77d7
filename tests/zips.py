"""Zip archives as no packer writes them: every field of every header can lie."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")


@dataclass
class Raw:
    """One member: `packed` is what lies in the archive; `local` and `central` override single fields of its headers."""

    name: bytes
    packed: bytes
    size: int
    crc: int
    method: int = 8
    flags: int = 0
    attributes: int = 0o644 << 16
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    before: bytes = b""


@dataclass
class Zip:
    """An archive to be changed and written; `end` overrides fields of its last record."""

    members: list[Raw]
    between: bytes = b""
    after: bytes = b""
    end: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Raw:
        """The member whose name ends like this."""
        return next(one for one in self.members if one.name.endswith(name.encode()))

    def write(self) -> bytes:
        """The archive's bytes."""
        out, directory = bytearray(), bytearray()
        for one in self.members:
            out += one.before
            facts = {
                "name": one.name,
                "flags": one.flags,
                "method": one.method,
                "crc": one.crc,
                "packed": len(one.packed),
                "size": one.size,
                "extra": b"",
                "comment": b"",
                "attributes": one.attributes,
                "offset": len(out),
            }
            out += _local({**facts, **one.local}) + one.packed
            directory += _central({**facts, **one.central})
        out += self.between
        last: dict[str, Any] = {
            "start": len(out),
            "length": len(directory),
            "count": len(self.members),
            "here": None,
            "comment": b"",
        }
        last |= {"disk": 0, **self.end}
        here = last["count"] if last["here"] is None else last["here"]
        tail = (last["disk"], 0, here, last["count"], last["length"], last["start"], len(last["comment"]))
        return b"".join((out, directory, _END.pack(b"PK\x05\x06", *tail), last["comment"], self.after))


def _local(of: dict[str, Any]) -> bytes:
    sizes = (of["crc"], of["packed"], of["size"], len(of["name"]), len(of["extra"]))
    head = _LOCAL.pack(b"PK\x03\x04", 20, of["flags"], of["method"], 0, 0x21, *sizes)
    return head + bytes(of["name"]) + bytes(of["extra"])


def _central(of: dict[str, Any]) -> bytes:
    sizes = (of["crc"], of["packed"], of["size"], len(of["name"]), len(of["extra"]), len(of["comment"]))
    head = _CENTRAL.pack(
        b"PK\x01\x02", 0x314, 20, of["flags"], of["method"], 0, 0x21, *sizes, 0, 0, of["attributes"], of["offset"]
    )
    return head + bytes(of["name"]) + bytes(of["extra"]) + bytes(of["comment"])


def raw(name: str | bytes, data: bytes, **changes: Any) -> Raw:
    """A member that holds `data`."""
    name = name if isinstance(name, bytes) else name.encode()
    return Raw(name=name, packed=deflated(data), size=len(data), crc=zlib.crc32(data), **changes)


def deflated(data: bytes) -> bytes:
    """The data as a zip archive packs it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def changed(path: Path, change: Callable[[Zip], object]) -> Path:
    """The archive at `path`, taken apart, changed and written again in its place."""
    with zipfile.ZipFile(path) as archive:
        parts = Zip([raw(item.filename, archive.read(item)) for item in archive.infolist()])
    change(parts)
    path.write_bytes(parts.write())
    return path
