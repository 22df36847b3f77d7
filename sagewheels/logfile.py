"""Logs of others, read in parts: any size, any bytes, UTF-8 or UTF-16, a file or stdin."""

from __future__ import annotations

import codecs
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sagewheels import ui
from sagewheels.errors import UsageError

MOST = 1_000_000_000
"""Bytes that are read of one log: a stream may never end."""
_BLOCK = 1 << 20
_LONGEST = 1 << 16
"""Letters after which a line is cut: binary junk has no lines."""
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """The log to read; `-` is stdin. Raises UsageError for what is no file that can be read."""
    if name == "-":
        yield sys.stdin.buffer
        return
    path = Path(name).expanduser()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "no plain file"
            raise UsageError(f"{path} is {kind}", "Name the log itself; --log - reads what is piped in")
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror})", "Give the path of a log, or - for stdin"
        ) from None


def blocks(stream: BinaryIO, most: int = MOST) -> Iterator[str]:
    """The text in parts of about a megabyte that end with a line, or where a line is too long to be one.

    Bytes that are no text become replacement characters. What is behind `most` bytes is left out, which is said.
    """
    data, left = stream.read(_BLOCK), most
    decoder = codecs.getincrementaldecoder(_encoding(data))(errors="replace")
    rest = ""
    while data and left > 0:
        left -= len(data)
        whole, rest = _cut(rest + decoder.decode(data))
        yield whole
        data = stream.read(min(_BLOCK, max(left, 1)))
    if data:
        ui.warn("doctor", f"only the first {ui.size(most)} of the log were read")
    yield rest + decoder.decode(b"", final=True)


def _cut(text: str) -> tuple[str, str]:
    """What ends with a line, and the line that has only begun; a line that is too long ends here."""
    place = text.rfind("\n") + 1
    if len(text) - place > _LONGEST:
        return text + "\n", ""
    return text[:place], text[place:]


def _encoding(data: bytes) -> str:
    """By its mark; PowerShell writes UTF-16 with one, and other programs without: every second byte of it is zero."""
    for mark, name in _BOMS:
        if data.startswith(mark):
            return name
    head = data[:4000]
    for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(head) > 8 and head[start::2].count(0) > 0.7 * len(head) / 2 > 5 * head[1 - start :: 2].count(0):
            return name
    return "utf-8"
