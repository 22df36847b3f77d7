"""The object cache: found by content alone, checked at each use, and never a reason for a build to fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sagewheels import objects
from sagewheels.objects import Objects
from sagewheels.resources import ROOT

KEY = "ab" * 32
OBJECT = b"the object" * 1000
REMEDY = "Set OBJECT_CACHE_DIR to a folder that can be written"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source with a header, and what was compiled from it."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.cu").write_text("#include <a.h>")
    (tmp_path / "src" / "a.h").write_text("int a;")
    (tmp_path / "made.o").write_bytes(OBJECT)
    return tmp_path


def cache(place: Path) -> Objects:
    """As another build opens it: nothing is remembered."""
    return Objects(place / "cache", lambda name: place / name)


def keep(place: Path, *names: str, key: str = KEY) -> None:
    cache(place).keep(key, "a.cu", place / "made.o", names or ("src/a.cu", "src/a.h"), seconds=12.345, memory=7)


def found(place: Path, key: str = KEY) -> bytes | None:
    """What the cache gives for a.cu."""
    out = place / "out.o"
    out.unlink(missing_ok=True)
    entry = cache(place).find(key, out)
    assert (entry is not None) == out.exists()
    assert not list(place.glob(".*")), "no part of a copy is left"
    return out.read_bytes() if entry else None


def entry_files(place: Path) -> tuple[Path, Path]:
    """The one entry, and its object."""
    (described,) = (place / "cache" / "ab" / KEY).glob("*.json")
    (made,) = (place / "cache" / "ab" / KEY).glob("*.o")
    return described, made


def test_what_is_kept_is_found(place: Path) -> None:
    keep(place)
    assert found(place) == OBJECT
    entry = cache(place).find(KEY, place / "out.o")
    assert entry
    assert (entry.unit, entry.seconds, entry.memory, set(entry.dependencies)) == (
        "a.cu",
        12.3,
        7,
        {"src/a.cu", "src/a.h"},
    )
    assert found(place, "cd" * 32) is None


def test_nothing_is_found_where_a_dependency_is_another(place: Path) -> None:
    keep(place)
    header = place / "src" / "a.h"
    times = (header.stat().st_atime_ns, header.stat().st_mtime_ns)
    header.write_text("int b;")
    os.utime(header, ns=times)
    assert found(place) is None, "its size and its time are as before"
    header.unlink()
    assert found(place) is None
    header.write_text("int a;")
    os.utime(header, ns=(1, 1))
    assert found(place) == OBJECT, "its time is another"


def test_two_contents_of_a_header_have_an_entry_each(place: Path) -> None:
    keep(place)
    (place / "src" / "a.h").write_text("int b;")
    (place / "made.o").write_bytes(b"another")
    keep(place)
    assert found(place) == b"another"
    (place / "src" / "a.h").write_text("int a;")
    assert found(place) == OBJECT


def test_a_dependency_that_cannot_be_read_is_never_the_same(place: Path) -> None:
    """Neither where it was compiled, nor here: that nobody knows it is no content."""
    keep(place, "src/a.cu", "src/gone.h")
    assert found(place) is None
    keep(place, "src/a.cu", "src/a\0b.h", key=KEY)
    assert found(place) is None


def test_what_has_no_dependencies_is_not_believed(place: Path) -> None:
    cache(place).keep(KEY, "a.cu", place / "made.o", (), seconds=1, memory=1)
    assert found(place) is None


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "missing", "folder"])
def test_a_damaged_object_is_not_used(place: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    keep(place)
    _, made = entry_files(place)
    if damage == "flipped":
        made.write_bytes(OBJECT[:-1] + b"T")
    elif damage == "short":
        made.write_bytes(OBJECT[:100])
    elif damage == "empty":
        made.write_bytes(b"")
    else:
        made.unlink()
    if damage == "folder":
        made.mkdir()
    assert found(place) is None
    assert capsys.readouterr().out == "[build] the cached object of a.cu is damaged: compiling it again\n"
    if damage != "folder":
        keep(place)
        assert found(place) == OBJECT, "compiled again, it is whole again"


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("what", ["entry", "object", "dependency"])
def test_what_never_ends_is_not_read(place: Path, kind: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    keep(place)
    described, made = entry_files(place)
    path = {"entry": described, "object": made, "dependency": place / "src" / "a.h"}[what]
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert found(place) is None
    said = {
        "entry": f"[build] the cache entry {described.name} cannot be read: compiling again\n",
        "object": "[build] the cached object of a.cu is damaged: compiling it again\n",
        "dependency": "",
    }
    assert capsys.readouterr().out == said[what]
    keep(place)
    assert found(place) == (None if what == "dependency" else OBJECT)


GOOD: dict[str, Any] = {
    "schema": 2,
    "unit": "a.cu",
    "object": "ab" * 32,
    "dependencies": {"src/a.cu": "cd" * 32},
    "seconds": 1,
    "memory": 1,
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        "{}",
        "\x00",
        "[" * 100_000,
        json.dumps({**GOOD, "schema": "2"}),
        json.dumps({**GOOD, "schema": None}),
        json.dumps({**GOOD, "dependencies": []}),
        json.dumps({**GOOD, "dependencies": ["src/a.cu"]}),
        json.dumps({**GOOD, "dependencies": {}}),
        json.dumps({**GOOD, "memory": "much"}),
        json.dumps({**GOOD, "memory": None}),
        json.dumps({**GOOD, "seconds": []}),
        json.dumps({**GOOD, "memory": float("inf")}),
        json.dumps({**GOOD, "object": "../../evil"}),
        json.dumps({**GOOD, "object": 7}),
        json.dumps({key: value for key, value in GOOD.items() if key != "object"}),
    ],
)
def test_an_entry_that_is_none_is_passed_over(place: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    keep(place)
    described, _ = entry_files(place)
    described.with_name("0000.json").write_text(text, encoding="utf-8")
    assert found(place) == OBJECT, "the others are still used"
    assert capsys.readouterr().out == "[build] the cache entry 0000.json cannot be read: compiling again\n"
    described.write_text(described.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert found(place) is None


@pytest.mark.parametrize("schema", [1, 3])
def test_entries_of_another_version_are_passed_over_in_silence(
    place: Path, schema: int, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(place)
    described, _ = entry_files(place)
    data = json.loads(described.read_text(encoding="utf-8"))
    described.write_text(json.dumps({**data, "schema": schema}), encoding="utf-8")
    assert found(place) is None
    assert capsys.readouterr().out == ""


def test_an_entry_of_strange_names_is_no_match(place: Path) -> None:
    keep(place)
    described, _ = entry_files(place)
    for name in ("a\0b", "/", "", "\udcff", "../" * 50):
        data = json.loads(described.read_text(encoding="utf-8"))
        described.write_text(json.dumps({**data, "dependencies": {name: "cd" * 32}}), encoding="utf-8")
        assert found(place) is None


def failing(number: int, after: int = 0) -> Callable[[Any, Any], Any]:
    """A copy that fails so, having written that much."""

    def copy(source: Any, target: Any) -> Any:
        Path(target).write_bytes(Path(source).read_bytes()[:after])
        raise OSError(number, os.strerror(number))

    return copy


def test_a_full_disk_is_said_once_and_nothing_stays(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "copyfile", failing(errno.ENOSPC, 100))
    one = cache(place)
    for key in (KEY, "cd" * 32):
        one.keep(key, "a.cu", place / "made.o", ("src/a.cu",), seconds=1, memory=1)
    said = capsys.readouterr()
    line = f"objects cannot be kept in {place / 'cache'} (No space left on device): they are compiled again. {REMEDY}"
    assert (said.out, said.err) == ("", f"[build] warning: {line}\n")
    assert [path for path in (place / "cache").rglob("*") if path.is_file()] == []
    assert (place / "made.o").read_bytes() == OBJECT


def test_a_folder_that_cannot_be_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in its place, which stops root too."""
    (place / "cache").write_text("no folder")
    keep(place)
    line = f"objects cannot be kept in {place / 'cache'} (Not a directory): they are compiled again. {REMEDY}"
    assert capsys.readouterr().err == f"[build] warning: {line}\n"
    assert found(place) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_of_others_is_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(place)
    described, _ = entry_files(place)
    described.parent.chmod(0o500)
    try:
        assert found(place) == OBJECT
        (place / "src" / "a.h").write_text("int b;")
        keep(place)
    finally:
        described.parent.chmod(0o700)
    assert f"(Permission denied): they are compiled again. {REMEDY}" in capsys.readouterr().err


def test_many_threads_find_the_same(place: Path) -> None:
    keep(place)
    one = cache(place)
    with ThreadPoolExecutor(16) as threads:
        entries = list(threads.map(lambda number: one.find(KEY, place / f"out{number}.o"), range(64)))
    assert all(entries)
    assert {(place / f"out{number}.o").read_bytes() for number in range(64)} == {OBJECT}


WRITER = """
import sys
from pathlib import Path
from sagewheels.objects import Objects

place, who = Path(sys.argv[1]), sys.argv[2]
made = place / f"made{who}.o"
made.write_bytes(who.encode() * 300_000)
(place / f"ready{who}").touch()
for number in range(int(sys.argv[3])):
    cache = Objects(place / "cache", lambda name: place / name)
    cache.keep("ab" * 32, "a.cu", made, ["src/a.cu", "src/a.h"], seconds=1, memory=1)
"""


def writer(place: Path, who: str, times: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", textwrap.dedent(WRITER), str(place), who, str(times)]
    return subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_two_processes_keep_the_same_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has made another object, as nvcc may: whoever reads meanwhile gets one of them, whole."""
    both = [writer(place, who, 40) for who in "AB"]
    wanted = {b"A" * 300_000, b"B" * 300_000}
    seen: set[bytes] = set()
    while any(process.poll() is None for process in both):
        made = found(place)
        seen |= {made} if made else set()
    assert [process.returncode for process in both] == [0, 0]
    assert seen and seen <= wanted
    assert found(place) in wanted
    assert capsys.readouterr().out == "", "nothing was damaged"


@pytest.mark.parametrize("step", range(4))
def test_killed_while_keeping(place: Path, step: int, capsys: pytest.CaptureFixture[str]) -> None:
    """At each step of it: nothing is found then that was not complete, and the next one keeps it."""
    steps = ["shutil.copyfile", "Path.replace", "Path.write_text", "Path.replace"]
    script = f"""
import os, shutil, signal, sys
from pathlib import Path
from sagewheels.objects import Objects

place, calls = Path(sys.argv[1]), []
def stop(real):
    def stopped(*args, **options):
        calls.append(real)
        if len(calls) == {step + 1}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return stopped
for owner, name in ((shutil, "copyfile"), (Path, "replace"), (Path, "write_text")):
    setattr(owner, name, stop(getattr(owner, name)))
cache = Objects(place / "cache", lambda name: place / name)
cache.keep("ab" * 32, "a.cu", place / "made.o", ["src/a.cu", "src/a.h"], seconds=1, memory=1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(place)], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == -signal.SIGKILL, steps[step]
    assert found(place) is None
    keep(place)
    assert found(place) == OBJECT
    assert capsys.readouterr().out == ""


def test_a_file_is_read_once_in_a_build(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of headers are shared by all units."""
    keep(place)
    read: list[Path] = []
    real = objects._digest

    def digest(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(objects, "_digest", digest)
    one = cache(place)
    for number in range(3):
        assert one.find(KEY, place / f"out{number}.o")
    assert read.count(place / "src" / "a.h") == 1
