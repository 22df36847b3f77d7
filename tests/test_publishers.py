"""Many publishers at once, on a Hub whose commits take their time and whose reads lag, and on a folder."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sagewheels import bad
from sagewheels.errors import StoreError
from sagewheels.manifest import WheelManifest
from sagewheels.store import Store, contention, index
from sagewheels.store.directory import DirectoryStore
from sagewheels.store.entries import marks
from sagewheels.store.hub import HubStore
from tests.hub import Hub
from tests.publisher import SECOND, made, nap

REPO = "me/wheels"
PROOF = {"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z", "cosine": 0.9999}


def opened(hub: Hub) -> HubStore:
    return HubStore(repo_id=REPO, folder="sage", token="hf_write", endpoint=hub.endpoint, timeout=(10, 10), pause=nap)


def together(*calls: Callable[[], object]) -> None:
    """Runs each call in a thread of its own, all from the same moment on; what one of them raises is raised here."""
    errors, start = list[BaseException](), threading.Barrier(len(calls))

    def one(call: Callable[[], object]) -> None:
        try:
            start.wait()
            assert call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def complete(store: Store, published: list[tuple[Path, WheelManifest]], to: Path) -> None:
    """The index lists each of these wheels once, the bytes of each are right, and the card offers it."""
    found, problems, _ = index.load(store)
    assert problems == []
    assert sorted(one.wheel_file for one in found) == sorted(wheel.name for wheel, _ in published)
    card = store.read("README.md").files["README.md"].decode()
    for wheel, ours in published:
        store.download(wheel.name, to / "back.whl")
        assert (to / "back.whl").read_bytes() == wheel.read_bytes()
        assert card.count(f"#sha256={ours.wheel_sha256}") == 1
        beside = store.read(f"{wheel.name}.json").files[f"{wheel.name}.json"]
        assert json.loads(beside)["wheel_sha256"] == ours.wheel_sha256


def test_many_publishers_on_a_hub(tmp_path: Path, everything: bool) -> None:
    """As many commits as wheels, with the bytes of each uploaded once; while it lasts, others prove and mark."""
    count = 32 if everything else 8
    with Hub() as hub:
        hub.create(REPO)
        first, ours = made(tmp_path, 1000)
        index.publish(opened(hub), first, ours, pause=nap)
        stores = [opened(hub) for _ in range(count + 2)]
        for store in stores:
            # The first write of each replaces the HTTP client of huggingface_hub, which is one for all threads.
            store.initialise()
        hub.commit_seconds, hub.lag_seconds = 1.5 * SECOND, 1.0 * SECOND
        published = [made(tmp_path, at) for at in range(count)]
        marked = bad.read({"wheel_file": first.name, "wheel_sha256": ours.wheel_sha256, "arch": "8.9"})
        assert marked
        together(
            *[partial(index.publish, store, *one, pause=nap) for store, one in zip(stores, published, strict=False)],
            partial(index.add_proof, stores[-2], ours.updated(proofs=[PROOF]), pause=nap),
            partial(index.add_mark, stores[-1], marked, pause=nap),
        )
        asked = [line for line in hub.requests if "/commit/" in line]
        puts = [line for line in hub.requests if line.startswith("PUT /lfs/")]
        print(f"{count + 2} writers: {len(asked)} tries, {len(hub.requests)} requests")
        assert (hub.commits, hub.lfs_puts, len(puts)) == (count + 3, count + 1, count + 1)
        assert len(asked) <= contention.TRIES * count // 2, "tries are bounded"
        nap(3)  # until reads have caught up
        complete(stores[0], [(first, ours), *published], tmp_path)
        assert [mark.arch for mark in marks(stores[0].read("index.json"))[0]] == ["8.9"]
        assert [one.proofs[0].gpu for one in index.load(stores[0])[0] if one.proofs] == [PROOF["gpu"]]


def test_many_publishers_of_several_processes_on_a_folder(tmp_path: Path, everything: bool) -> None:
    published, store = [made(tmp_path, at) for at in range(32 if everything else 6)], tmp_path / "store"
    argv, root = [sys.executable, "-m", "tests.publisher", str(store)], Path(__file__).parent.parent
    processes = [subprocess.Popen([*argv, str(wheel)], stdin=subprocess.PIPE, cwd=root) for wheel, _ in published]
    for process in processes:
        assert process.stdin
        process.stdin.close()
    assert [process.wait(300) for process in processes] == [0] * len(published)
    complete(DirectoryStore(store), published, tmp_path)


def test_a_commit_that_its_own_publisher_does_not_see_yet_is_not_made_twice(tmp_path: Path) -> None:
    """The answer is lost, and reads go on showing the state before: it is neither repeated nor taken for lost."""
    with Hub() as hub:
        hub.create(REPO)
        hub.commit_seconds, hub.lag_seconds = 0.02, 0.5
        hub.misbehave("/commit/", "lose", 1)
        wheel, ours = made(tmp_path, 1)
        assert index.publish(opened(hub), wheel, ours, pause=nap)
        assert (hub.commits, hub.lfs_puts) == (1, 1)
        hub.lag_seconds = 0.3
        assert index.add_proof(opened(hub), ours.updated(proofs=[PROOF]), pause=nap), "the wheel is found after all"
        assert hub.commits == 2


def test_an_unlisted_file_is_downloaded_once_however_often_others_are_quicker(tmp_path: Path) -> None:
    with Hub() as hub:
        wheel, ours = made(tmp_path, 1)
        hub.create(REPO, {f"sage/{wheel.name}": wheel.read_bytes()})
        hub.misbehave("/commit/", "412", 4)
        assert index.publish(opened(hub), wheel, ours, pause=nap)
        asked = [line for line in hub.requests if line.startswith("GET") and ".whl" in line and ".json" not in line]
        assert len(asked) == 1


def test_windows_grow_to_a_minute() -> None:
    longest = [max(contention.wait_after(conflicts) for _ in range(300)) for conflicts in range(1, 9)]
    assert all(wait <= min(60.0, 2.0**at) for at, wait in enumerate(longest, 1))
    assert all(wait > min(60.0, 2.0**at) * 0.8 for at, wait in enumerate(longest, 1))
    assert min(contention.wait_after(1) for _ in range(300)) >= 0.2


def test_who_waits_long_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a clock of its own: the pauses pass on it, and one line comes every quarter of a minute."""
    now = [0.0]
    monkeypatch.setattr("sagewheels.ui.time.monotonic", lambda: now[0])

    def pause(seconds: float) -> None:
        now[0] += seconds
        repo.add("main", hub.files(REPO))

    with Hub() as hub:
        repo = hub.create(REPO)
        hub.misbehave("/commit/", "409", 999)
        with pytest.raises(StoreError) as caught:
            index.publish(opened(hub), *made(tmp_path, 1), pause=pause)
    label = "hf://datasets/me/wheels@main/sage"
    what = f"{label} kept changing during {contention.TRIES} tries"
    assert str(caught.value) == f"{what}. Try again when others have finished."
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"[store] waiting for a turn at {label}: ")
    assert all(" by others meanwhile, " in line for line in said)
    assert 10 <= len(said) <= now[0] / 15


def test_what_changes_along_is_in_the_same_commit(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.commit("", {"claims.json": b"before", "other.json": b"kept"}, "by hand")
    seen = list[bytes | None]()

    def change(content: bytes | None) -> bytes | None:
        seen.append(content)
        return b"after"

    wheel, ours = made(tmp_path, 1)
    assert index.publish(store, wheel, ours, along={"claims.json": change, "other.json": lambda _: None})
    assert store.read("claims.json", "other.json").files == {"claims.json": b"after", "other.json": b"kept"}
    assert seen == [b"before"]
    revision = store.read().revision
    assert not index.publish(store, wheel, ours, along={"claims.json": change})
    assert (store.read().revision, seen) == (revision, [b"before"]), "what is there already is no commit"
