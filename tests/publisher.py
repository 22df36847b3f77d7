"""A publisher as a process of its own, which imports little: `python -m tests.publisher STORE WHEEL`.

It begins when its standard input closes, so that many begin at the same moment.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from sagewheels import manifest as manifests
from sagewheels.manifest import WheelManifest
from sagewheels.store import index
from sagewheels.store.directory import DirectoryStore

SECOND = 0.05
"""What a second is in these tests: commits take 1.5 of them, as on the real Hub, and pauses are as much shorter."""


def nap(seconds: float) -> None:
    """A pause."""
    time.sleep(seconds * SECOND)


def made(folder: Path, at: int) -> tuple[Path, WheelManifest]:
    """A file with the name of a wheel, unlike any other, and its manifest."""
    wheel = folder / f"sageattention-2.2.0+cu{130 + at}torch2.11sm120-cp312-cp312-linux_x86_64.whl"
    wheel.write_bytes(f"wheel {at} ".encode() * 5000)
    return wheel, described(wheel)


def described(wheel: Path) -> WheelManifest:
    """The manifest of such a file."""
    data = {
        "schema": 1,
        "wheel_file": wheel.name,
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "created_at_utc": "2026-01-01T00:00:00Z",
        "torch_version": "2.11.0",
        "archs": ["12.0"],
    }
    return manifests.parse(data, "made")


if __name__ == "__main__":
    where, file = map(Path, sys.argv[1:])
    sys.stdin.read()
    sys.exit(0 if index.publish(DirectoryStore(where), file, described(file), pause=nap) else 1)
