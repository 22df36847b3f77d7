"""The directory store: real folders, real locks, real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from sagewheels.errors import StoreError
from sagewheels.store import Conflict, Store, directory
from sagewheels.store.directory import DirectoryStore


def python(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Another process with sagewheels on its path."""
    command = [sys.executable, "-c", script, *args]
    env = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}  # some may not write
    env |= {"PYTHONPATH": str(Path(directory.__file__).parents[2])}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store", wait=0.2)


def test_a_store_that_does_not_exist_reads_as_empty(store: Store) -> None:
    snapshot = store.read("index.json", "latest.json")
    assert (snapshot.revision, snapshot.files, store.names()) == ("", {}, [])
    assert not Path(store.label).exists()


def test_what_is_committed_is_read_back(store: Store, tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"wheel" * 1000)
    revision = store.commit("", {"index.json": b"{}", "a+b.whl": wheel, "sub/c.txt": b"c"}, "first")
    snapshot = store.read("index.json", "a+b.whl", "gone.json")
    assert snapshot.revision == revision != ""
    assert snapshot.files == {"index.json": b"{}", "a+b.whl": wheel.read_bytes()}
    assert store.names() == ["a+b.whl", "index.json", "sub/c.txt"]
    assert store.address("a+b.whl") == str(tmp_path / "store" / "a+b.whl")


def test_a_stale_parent_is_a_conflict_and_changes_nothing(store: Store) -> None:
    first = store.commit("", {"a.txt": b"1"}, "first")
    second = store.commit(first, {"a.txt": b"2"}, "second")
    for stale in ("", first, "nonsense"):
        with pytest.raises(Conflict):
            store.commit(stale, {"a.txt": b"3"}, "late")
    assert (store.read("a.txt").files, store.read().revision) == ({"a.txt": b"2"}, second)


def test_an_index_edited_by_hand_is_a_new_revision(store: Store) -> None:
    first = store.commit("", {"index.json": b"{}"}, "first")
    (Path(store.label) / "index.json").write_text('{"wheels": []}')
    with pytest.raises(Conflict):
        store.commit(first, {"index.json": b"{}"}, "late")


def test_a_folder_that_only_holds_latest_json_has_a_revision(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "latest.json").write_bytes(b"{}")
    revision = store.read("index.json").revision
    assert revision
    assert store.commit(revision, {"index.json": b"{}"}, "adopt") != revision


def test_download_reports_progress_and_leaves_no_part(store: Store, tmp_path: Path) -> None:
    store.commit("", {"a.whl": b"x" * 3_000_000}, "first")
    seen: list[tuple[int, int]] = []
    store.download("a.whl", tmp_path / "house" / "a.whl", lambda done, total: seen.append((done, total)))
    assert (tmp_path / "house" / "a.whl").read_bytes() == b"x" * 3_000_000
    assert seen[-1] == (3_000_000, 3_000_000)
    assert [path.name for path in (tmp_path / "house").iterdir()] == ["a.whl"]


def test_download_of_what_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^b\.whl is not in .*store\. Publish it again\.$"):
        store.download("b.whl", tmp_path / "b.whl")
    assert not (tmp_path / "b.whl").exists()


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "a/../../b", "", "a//b", ".revision", "a\\b", "a\nb", "./a"])
def test_paths_that_lead_out_of_the_store_are_refused(store: Store, tmp_path: Path, path: str) -> None:
    for ask in (
        lambda: store.read(path),
        lambda: store.commit("", {path: b"x"}, "bad"),
        lambda: store.download(path, tmp_path / "to"),
        lambda: store.address(path),
    ):
        with pytest.raises(StoreError, match="is not the name of a file in a store"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = DirectoryStore(tmp_path / "file")
    for ask in (
        lambda: store.read("a"),
        lambda: store.commit("", {"a": b""}, "m"),
        store.names,
        store.initialise,
        lambda: store.download("a", tmp_path / "to"),
    ):
        with pytest.raises(
            StoreError, match=r"file cannot be used: it is not a folder\. Name a folder with SAGE_STORE"
        ):
            ask()


@pytest.fixture
def read_only() -> Iterator[Path]:
    # pytest's own folders are closed to other users, and root may write anywhere.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        DirectoryStore(root).commit("", {"index.json": b"{}"}, "first")
        Path(folder).chmod(0o755)
        root.chmod(0o555)
        yield root
        root.chmod(0o755)


def test_a_folder_that_may_only_be_read(read_only: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from sagewheels.store.directory import DirectoryStore\n"
        "os.getuid() == 0 and os.setuid(65534)\n"
        "store = DirectoryStore(Path(sys.argv[1])); snapshot = store.read('index.json')\n"
        "print(snapshot.files, store.names())\n"
        "for ask in (lambda: store.commit(snapshot.revision, {'index.json': b'1'}, 'm'), store.rights):\n"
        "    try: ask()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = python(script, str(read_only))
    assert not done.stderr
    first, *errors = done.stdout.splitlines()
    assert first == "{'index.json': b'{}'} ['index.json']"
    assert [line.split(" ", 1)[0] for line in errors] == ["StoreError", "StoreError"]
    assert all("cannot be used: permission denied. Ask for the right to use it" in line for line in errors)


def test_a_full_disk_changes_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.commit("", {"index.json": b"{}"}, "first")
    real = directory._put

    def put(part: BinaryIO, content: bytes | Path) -> None:
        real(part, content)
        if content == b"2":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(directory, "_put", put)
    with pytest.raises(StoreError, match=r"the disk is full\. Free some space and try again"):
        store.commit(first, {"a.whl": b"1", "index.json": b"2"}, "second")
    assert store.read("index.json") == store.read("index.json")
    assert store.read().revision == first
    assert store.names() == ["index.json"]
    assert not list((tmp_path / "store").glob(".part-*"))


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_commit_that_was_killed_is_swept_up_and_never_hides_another(
    store: Store, tmp_path: Path, renames: int
) -> None:
    first = store.commit("", {"index.json": b"0"}, "first")
    script = (
        "import os, sys; from pathlib import Path; from sagewheels.store.directory import DirectoryStore\n"
        "left, real = int(sys.argv[2]), Path.replace\n"
        "def replace(self, to):\n"
        "    global left\n"
        "    if left == 0: os._exit(9)\n"
        "    left -= 1\n"
        "    return real(self, to)\n"
        "Path.replace = replace\n"
        "store = DirectoryStore(Path(sys.argv[1]))\n"
        "store.commit(store.read().revision, {'index.json': b'1', 'a.whl': b'wheel', 'latest.json': b'1'}, 'killed')\n"
    )
    done = python(script, store.label, str(renames))
    assert (done.returncode, done.stderr) == (9, "")
    snapshot = store.read("index.json", "a.whl")
    assert snapshot.files["index.json"] == b"0" or "a.whl" in snapshot.files
    if snapshot.files["index.json"] == b"1":
        with pytest.raises(Conflict):
            store.commit(first, {"index.json": b"2"}, "read before the kill")
    assert list(Path(store.label).glob(".part-*"))
    store.commit(snapshot.revision, {"index.json": b"2"}, "next")
    assert not list(Path(store.label).glob(".part-*"))


def test_a_lock_that_is_held_bounds_the_wait(store: Store) -> None:
    revision = store.commit("", {"index.json": b"{}"}, "first")
    with (Path(store.label) / ".lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"its lock was not free within 0\.2 s\. Wait for the other writer"):
            store.commit(revision, {"index.json": b"2"}, "second")
        assert store.read("index.json").files == {"index.json": b"{}"}


def test_readers_never_see_half_a_commit(store: Store) -> None:
    revision = store.commit("", {"index.json": b"0", "latest.json": b"0"}, "0")
    reader, wrong, ended = DirectoryStore(Path(store.label)), list[object](), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            files = reader.read("index.json", "latest.json").files
            if files["index.json"] != files["latest.json"]:
                wrong.append(files)

    thread = threading.Thread(target=watch)
    thread.start()
    writer = DirectoryStore(Path(store.label))
    for count in range(1, 40):
        text = str(count).encode()
        revision = writer.commit(revision, {"index.json": text, "latest.json": text}, "next")
    ended.set()
    thread.join()
    assert not wrong


def test_rights_and_initialise(store: DirectoryStore) -> None:
    assert store.rights() == f"this user may write to {store.label}, which the first upload makes"
    store.initialise()
    assert store.rights() == f"this user may write to {store.label}"
    shutil.rmtree(store.label)


def test_a_folder_that_leads_to_itself_is_no_endless_list(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"")
    (tmp_path / "again").symlink_to(tmp_path)
    assert "a.whl" in DirectoryStore(tmp_path).names()
