"""Files that are whole or absent: what a killed writer left goes at once, what somebody still writes stays."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sagewheels import files, wheelhouse
from sagewheels.config import Settings
from sagewheels.errors import SageError, UsageError
from sagewheels.resources import ROOT
from sagewheels.store.directory import DirectoryStore

WRITER = """
import sys, time
from pathlib import Path
from sagewheels import files

with files.arriving(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print(stream.name, flush=True)
    sys.stdin.read()
"""


def writer(to: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process that is in the middle of writing `to`, and its unfinished file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(to)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def write(to: Path, content: bytes = b"new") -> None:
    with files.arriving(to) as stream:
        stream.write(content)


def test_a_part_goes_when_its_writer_is_dead_and_not_before(tmp_path: Path) -> None:
    """However old it is: a slow network may bring nothing for hours, and a clock may be wrong."""
    process, part = writer(tmp_path / "slow")
    os.utime(part, (1, 1))
    write(tmp_path / "a")
    assert part.read_bytes() == b"half"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert part.exists()
    write(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_writer_that_ends_well_has_its_file(tmp_path: Path) -> None:
    process, part = writer(tmp_path / "slow")
    files.sweep(tmp_path)
    process.communicate()
    assert (process.returncode, (tmp_path / "slow").read_bytes(), part.exists()) == (0, b"half", False)


@pytest.mark.parametrize(("age", "left"), [(0, True), (7 * 3600, False)])
def test_without_locks_the_age_of_a_part_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: int, left: bool
) -> None:
    part = tmp_path / ".part-1-x"
    part.write_bytes(b"")
    now = part.stat().st_mtime
    os.utime(part, (now - age, now - age))

    def no_locks(file: object, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write(tmp_path / "a")
    assert (part.exists(), (tmp_path / "a").read_bytes()) == (left, b"new")


def test_a_part_that_was_swept_before_its_lock_was_taken_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = fcntl.flock, []

    def late(file: object, kind: int) -> None:
        (part,) = tmp_path.glob(".part-*")
        seen.append(part)
        if len(seen) == 1:
            part.unlink()
        real(file, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    write(tmp_path / "a")
    assert len(set(seen)) == 2
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a", b"old")
    with pytest.raises(KeyError), files.arriving(tmp_path / "a") as stream:
        stream.write(b"new")
        raise KeyError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_an_unfinished_file_is_filled_anew_and_named_by_the_block_around(tmp_path: Path) -> None:
    """What is fetched stays under its writer's lock until it was checked."""
    (tmp_path / "from").write_bytes(b"from the store")
    with files.arriving(tmp_path / "a") as stream:
        part = Path(stream.name)
        part.write_bytes(b"what a first try left, which is longer")
        files.copy(tmp_path / "from", part)
        assert part.read_bytes() == b"from the store"
        files.sweep(tmp_path)
        assert part.exists()
    assert (tmp_path / "a").read_bytes() == b"from the store"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "from"]


def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"")
    (tmp_path / ".part-1-x").symlink_to("theirs")
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".part-1-x", "theirs"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError) as caught:
        write(tmp_path / "file" / "a")
    assert str(caught.value) == f"{tmp_path}/file/a cannot be used: it is not a folder. Name another folder."


def _given_up(run: Callable[[], object]) -> str:
    """What was raised, within seconds."""
    said = list[str]()

    def told() -> None:
        try:
            run()
        except (OSError, SageError) as error:
            said.append(str(error))

    thread = threading.Thread(target=told, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for ever"
    return "".join(said)


def test_a_pipe_is_no_file_to_wait_for(tmp_path: Path) -> None:
    """Whoever may write to a share or a wheelhouse puts one there; a device, or a file without an end, is none too."""
    store, house = tmp_path / "store", tmp_path / "house"
    for folder, names in ((store, ("index.json", ".lock", "a.whl")), (house, ("a.whl.json", wheelhouse.MARKS))):
        folder.mkdir()
        for name in names:
            os.mkfifo(folder / name)
    why = f"{store} cannot be used: it is no plain file. Check the folder and try again."
    shop = DirectoryStore(store)
    assert _given_up(lambda: shop.read("index.json")) == why
    assert _given_up(lambda: shop.download("a.whl", tmp_path / "a.whl")) == why
    settings = Settings(wheelhouse_dir=house)
    assert (_given_up(lambda: wheelhouse.wheels(settings)), _given_up(lambda: wheelhouse.marks(settings))) == ("", "")
    (store / "index.json").unlink()
    (store / "index.json").symlink_to("/dev/zero")
    assert _given_up(lambda: shop.read("index.json")) == why
    (store / "index.json").unlink()
    with (store / "index.json").open("wb") as stream:
        stream.truncate(1 << 40)
    why = f"{store} cannot be used: it is larger than 64 MiB. Check the folder and try again."
    assert _given_up(lambda: shop.read("index.json")) == why
