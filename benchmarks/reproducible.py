"""Builds one manifest twice, as two users in two folders would, and compares the wheels member by member.

    python benchmarks/reproducible.py PYTHON_OF_THE_TARGET [--manifest demo] [--arch 12.0]

The second build has another work folder of another length, another umask, time zone, language and hash seed, and
nothing of the first one's: no object, no tool, no checkout. Prints a Markdown table, names the sections in which two
binaries differ, and ends with 1 unless both wheels are the same bytes. SAGE_SOURCE_REPO and the like are heeded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

_ROOT = Path(__file__).resolve().parent.parent
_WAYS = (
    ("one", 0o022, {"TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}),
    ("two/in a longer path", 0o077, {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "2"}),
)


def build(folder: Path, python: str, manifest: str, archs: str, umask: int, also: dict[str, str]) -> Path:
    """The wheel that a build with everything below `folder` makes. Ends the run when there is none."""
    folder.mkdir(parents=True)
    own = {
        "HOME": "home",
        "WORK_DIR": "work",
        "WHEELHOUSE_DIR": "wheels",
        "LOG_DIR": "logs",
        "OBJECT_CACHE_DIR": "cache",
    }
    env = {**os.environ, **also, **{key: str(folder / name) for key, name in own.items()}}
    env.update(PYTHON_BIN=python, PYTHONPATH=str(_ROOT))
    argv = [sys.executable, "-m", "sagewheels", "build", "--manifest", manifest, "--arch", archs]
    started = time.monotonic()
    done = subprocess.run(argv, cwd=folder, env=env, umask=umask, check=False)
    found = sorted((folder / "wheels").glob("*.whl"))
    if done.returncode or len(found) != 1:
        sys.exit(f"the build in {folder.name} ended with {done.returncode} and {len(found)} wheels")
    print(f"built in {time.monotonic() - started:.0f} s with umask {umask:03o}, {also}\n", flush=True)
    return found[0]


def digest(data: bytes) -> str:
    """The beginning of its sha256."""
    return hashlib.sha256(data).hexdigest()[:16]


def sections(one: bytes, two: bytes) -> Iterator[str]:
    """The sections of two binaries that differ."""
    try:
        left, right = (
            {part.name: part.data() for part in ELFFile(BytesIO(data)).iter_sections()} for data in (one, two)
        )
    except ELFError:
        return
    yield from (name for name in sorted({*left, *right}) if left.get(name) != right.get(name))


def compare(one: Path, two: Path) -> Iterator[str]:
    """The rows of the table."""
    with zipfile.ZipFile(one) as left, zipfile.ZipFile(two) as right:
        names = sorted({*left.namelist(), *right.namelist()})
        for name in names:
            if name not in left.namelist() or name not in right.namelist():
                yield f"| {name} | only in {'the first' if name in left.namelist() else 'the second'} | **no** |"
                continue
            first, second = left.read(name), right.read(name)
            differ = "yes" if first == second else f"**no** {' '.join(sections(first, second))}".rstrip()
            yield f"| {name} | {digest(first)} {digest(second)} | {differ} |"
    whole = one.read_bytes(), two.read_bytes()
    alike = "yes" if whole[0] == whole[1] else "**no**"
    yield f"| the wheel, {len(whole[0])} bytes | {digest(whole[0])} {digest(whole[1])} | {alike} |"
    yield f"| its name | {one.name} | {'yes' if one.name == two.name else f'**no**, {two.name}'} |"


def main() -> int:
    """0 when both are the same bytes under the same name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("--manifest", default="demo")
    parser.add_argument("--arch", default="12.0")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        ways = [(Path(root) / name, umask, also) for name, umask, also in _WAYS]
        made = [build(path, given.python, given.manifest, given.arch, umask, also) for path, umask, also in ways]
        rows = list(compare(*made))
    print("| member | sha256 of each, 16 digits | same |\n|---|---|---|", *rows, sep="\n")
    return 1 if any("**no**" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
