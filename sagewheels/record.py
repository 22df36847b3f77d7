"""RECORD, the list of what a wheel installs, each file with its hash: how it is written, and read where it lies."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from pathlib import Path


def written(sha256: bytes) -> str:
    """The form in which RECORD has a sha256."""
    return f"sha256={base64.urlsafe_b64encode(sha256).rstrip(b'=').decode()}"


def digest(content: bytes) -> str:
    """The sha256 of a file, in that form."""
    return written(hashlib.sha256(content).digest())


def rows(dist_info: Path) -> list[list[str]]:
    """What is installed, as RECORD lists it. Raises OSError, and ValueError for what is no table."""
    try:
        return list(csv.reader(io.StringIO((dist_info / "RECORD").read_text(encoding="utf-8"))))
    except csv.Error as error:
        raise ValueError(str(error)) from None
