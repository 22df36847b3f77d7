"""The archive of a wheel: bytes that follow from its members alone, whoever packs them, where and when."""

from __future__ import annotations

import csv
import io
import re
import stat
import time
import zipfile
import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sagewheels import record

_LEVEL = 9
_FIRST, _LAST = 315532800, 4354819198
"""1980-01-01 and the end of 2107, the dates that a zip archive can hold."""

Members = list[tuple[str, bytes]]


def made_with() -> str:
    """What the name and the bytes of a packed wheel depend on beside its members; declared in the build key.

    Another zlib may pack the same members into other bytes, another auditwheel may know another policy.
    """
    try:
        auditwheel = version("auditwheel")
    except PackageNotFoundError:
        auditwheel = "none"
    return f"auditwheel-{auditwheel} zlib-{zlib.ZLIB_RUNTIME_VERSION} level-{_LEVEL}"


def repack(path: Path, place: Path, *, epoch: int, platform: str = "") -> None:
    """Writes the wheel at `path` to `place`, its tags for `platform` if one is given: only WHEEL and RECORD change.

    Members come in the order of their names, dist-info last, all of one date and mode. What RECORD says of the others
    is kept as it was said, so that it can still be held against them. Raises what zipfile, zlib and csv raise.
    """
    with zipfile.ZipFile(path) as archive:
        members = [(item.filename, archive.read(item)) for item in archive.infolist() if not item.is_dir()]
    date = time.gmtime(min(max(epoch, _FIRST), _LAST))[:6]
    part = place.with_name(f".{place.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _in_order(_retagged(members, platform)):
            item = zipfile.ZipInfo(name, date)
            item.create_system = 3
            item.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(item, data, zipfile.ZIP_DEFLATED, _LEVEL)
    part.replace(place)


def _in_order(members: Members) -> Members:
    """By name; dist-info at the end with RECORD as its last, as the wheel format asks for."""
    return sorted(members, key=lambda one: (_is_info(one[0]), _is_info(one[0], "RECORD"), one[0]))


def _is_info(name: str, file: str = "") -> bool:
    folder, _, rest = name.partition("/")
    return folder.endswith(".dist-info") and rest.startswith(file) and (not file or rest == file)


def _retagged(members: Members, platform: str) -> Members:
    """The members with the tags in WHEEL for this platform, and the lines of RECORD sorted and true of WHEEL."""
    tagged = [(name, _tags(data, platform) if platform and _is_info(name, "WHEEL") else data) for name, data in members]
    changed = {name: data for (name, data), old in zip(tagged, members, strict=True) if data != old[1]}
    return [(name, _record(data, changed) if _is_info(name, "RECORD") else data) for name, data in tagged]


def _tags(text: bytes, platform: str) -> bytes:
    return re.sub(rb"(?m)^(Tag: .*-)[^-\n]*$", rb"\g<1>" + platform.encode(), text)


def _record(text: bytes, changed: dict[str, bytes]) -> bytes:
    rows = [_row(row, changed) for row in csv.reader(io.StringIO(text.decode("utf-8"))) if row]
    rows.sort(key=lambda row: (_is_info(row[0]), _is_info(row[0], "RECORD"), row))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def _row(row: Sequence[str], changed: dict[str, bytes]) -> Sequence[str]:
    if row[0] not in changed:
        return row
    data = changed[row[0]]
    return [row[0], record.digest(data), str(len(data))]
