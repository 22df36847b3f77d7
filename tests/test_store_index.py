"""The index: merging is pure; publishing is tried on a real folder and on a loopback Hub, with others in the way."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from sagewheels import bad
from sagewheels import manifest as manifests
from sagewheels.bad import Mark
from sagewheels.errors import Refused, StoreError
from sagewheels.manifest import WheelManifest
from sagewheels.store import Snapshot, Store, index
from sagewheels.store.card import BEGIN, END, card
from sagewheels.store.directory import DirectoryStore
from sagewheels.store.entries import entries
from sagewheels.store.entries import marks as marks_of
from sagewheels.store.hub import HubStore
from tests.hub import Hub

REPO = "me/wheels"
NAME = "sageattention-2.2.0+cu{cuda}torch2.11sm120-cp312-cp312-linux_x86_64.whl"
LEGACY = {
    "created_at_utc": "2025-08-01T10:00:00Z",
    "wheel_file": "sageattention-2.2.0-cp312-cp312-linux_x86_64.whl",
    "wheel_sha256": "a" * 64,
    "hf_wheel_url": None,
    "torch_version": "2.8.0+cu128",
    "target_arch": "12.0+PTX",
    "their_own_key": {"kept": True},
}
PROOF = {"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z", "cosine": 0.9999}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(params=["directory", "hub"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "directory":
        yield DirectoryStore(tmp_path / "store")
    else:
        with Hub() as hub:
            yield opened(hub)


def opened(hub: Hub) -> HubStore:
    return HubStore(repo_id=REPO, folder="sage", token="hf_write", endpoint=hub.endpoint, timeout=(2.0, 2.0), pause=nap)


def nap(seconds: float) -> None:
    time.sleep(seconds / 50)


def made(tmp_path: Path, cuda: int = 130, content: bytes = b"wheel", **more: Any) -> tuple[Path, WheelManifest]:
    """A file with the name of a wheel, and its manifest."""
    wheel = tmp_path / f"house-{hashlib.sha256(content).hexdigest()[:6]}" / NAME.format(cuda=cuda)
    wheel.parent.mkdir(exist_ok=True)
    wheel.write_bytes(content)
    data = {
        "schema": 1,
        "wheel_file": wheel.name,
        "wheel_sha256": hashlib.sha256(content).hexdigest(),
        "created_at_utc": "2026-01-01T00:00:00Z",
        "torch_version": "2.11.0",
        "cuda_version": "13.0",
        "archs": ["12.0"],
        **more,
    }
    return wheel, manifests.parse(data, "made")


def put(store: Store, files: dict[str, object]) -> None:
    """What somebody else left in the store."""
    content = {name: json.dumps(data).encode() if not isinstance(data, bytes) else data for name, data in files.items()}
    store.commit(store.read("index.json").revision, content, "by hand")


def got(store: Store, name: str) -> Any:
    return json.loads(store.read(name).files[name])


def snapshot(**files: object) -> Snapshot:
    names = {"index": "index.json", "latest": "latest.json"}
    return Snapshot(revision="1", files={names[key]: json.dumps(data).encode() for key, data in files.items()})


def test_entries_unite_index_and_latest(tmp_path: Path) -> None:
    _, ours = made(tmp_path, proofs=[PROOF])
    found, problems = entries(snapshot(index={"schema": 1, "wheels": [dict(ours.data)]}, latest=LEGACY))
    assert [entry.wheel_file for entry in found] == [ours.wheel_file, LEGACY["wheel_file"]]
    assert problems == []
    assert entries(snapshot(latest=LEGACY))[0][0].torch == "2.8.0"
    assert entries(Snapshot(revision="", files={})) == ([], [])


def test_broken_entries_are_told_and_do_not_hide_others(tmp_path: Path) -> None:
    _, ours = made(tmp_path)
    wheels = [None, {}, {"wheel_file": "../x.whl"}, {**ours.data, "archs": "12.0"}, dict(ours.data)]
    found, problems = entries(snapshot(index={"wheels": wheels}, latest=[]))
    assert [entry.wheel_file for entry in found] == [ours.wheel_file]
    assert [problem.split(":")[0].split(" is not")[0] for problem in problems] == [
        "index.json entry 1",
        "index.json entry 2",
        "index.json entry 3",
        "index.json entry 4",
        "latest.json",
    ]
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"wheels": {}}', b"\xff", b"[" * 9999, b'{"wheels": NaN}'])
def test_an_index_that_is_none_is_one_problem(text: bytes) -> None:
    found, problems = entries(Snapshot(revision="1", files={"index.json": text}))
    assert (found, len(problems)) == ([], 1)


def test_duplicates_are_merged(tmp_path: Path) -> None:
    _, ours = made(tmp_path, proofs=[PROOF], note="index")
    other = {**ours.data, "proofs": [{**PROOF, "gpu": "H100"}], "note": "latest", "only": 1, "cuda_version": None}
    found, problems = entries(snapshot(index={"wheels": [dict(ours.data)]}, latest=other))
    assert problems == []
    assert [proof.gpu for proof in found[0].proofs] == ["H100", PROOF["gpu"]]
    assert (found[0].data["note"], found[0].data["only"], found[0].cuda) == ("index", 1, "13.0")
    clash = entries(snapshot(index={"wheels": [dict(ours.data)]}, latest={**other, "wheel_sha256": "b" * 64}))
    assert (len(clash[0]), len(clash[1]), clash[0][0].wheel_sha256) == (1, 1, ours.wheel_sha256)


def test_publish_into_nothing(store: Store, tmp_path: Path) -> None:
    wheel, ours = made(tmp_path)
    assert index.publish(store, wheel, ours, pause=nap)
    assert store.names() == sorted(
        {wheel.name, f"{wheel.name}.json", "index.json"}
        | ({"README.md", "index.html"} if isinstance(store, DirectoryStore) else set())
    )
    found, problems, seen = index.load(store)
    assert ([entry.wheel_sha256 for entry in found], problems) == ([ours.wheel_sha256], [])
    assert seen.revision == store.read().revision
    assert got(store, f"{wheel.name}.json") == dict(found[0].data)
    store.download(wheel.name, tmp_path / "back.whl")
    assert (tmp_path / "back.whl").read_bytes() == wheel.read_bytes()


def test_the_second_upload_is_no_commit(store: Store, tmp_path: Path) -> None:
    wheel, ours = made(tmp_path, proofs=[PROOF])
    assert index.publish(store, wheel, ours, pause=nap)
    revision = store.read().revision
    assert not index.publish(store, wheel, ours, pause=nap)
    assert not index.add_proof(store, ours, pause=nap)
    assert store.read().revision == revision


def test_a_proof_moves_latest_and_no_candidate_does(store: Store, tmp_path: Path) -> None:
    put(store, {"latest.json": LEGACY})
    wheel, ours = made(tmp_path)
    index.publish(store, wheel, ours, pause=nap)
    assert got(store, "latest.json") == LEGACY
    assert index.add_proof(store, ours.updated(proofs=[PROOF]), pause=nap)
    assert got(store, "latest.json")["proofs"] == [PROOF]
    old_wheel, old = made(tmp_path, cuda=128, created_at_utc="2025-12-31T23:00:00-02:00", proofs=[PROOF])
    index.publish(store, old_wheel, old, pause=nap)
    assert got(store, "latest.json")["wheel_file"] == old.wheel_file, "01:00 UTC is newer, whatever the text looks like"
    third = {**PROOF, "gpu": "H100"}
    index.add_proof(store, ours.updated(proofs=[third]), pause=nap)
    assert got(store, "latest.json")["wheel_file"] == old.wheel_file
    assert [entry["wheel_file"] for entry in got(store, "index.json")["wheels"]] == [
        LEGACY["wheel_file"],
        ours.wheel_file,
        old.wheel_file,
    ]
    assert [proof["gpu"] for proof in got(store, "index.json")["wheels"][1]["proofs"]] == ["H100", PROOF["gpu"]]


def test_what_others_wrote_is_kept(store: Store, tmp_path: Path) -> None:
    wheel, ours = made(tmp_path)
    theirs = {**LEGACY, "half": "\ud800"}
    put(
        store,
        {"index.json": {"schema": 1, "x": [1], "wheels": [theirs, "broken", {"wheel_file": 7}]}, "latest.json": LEGACY},
    )
    index.publish(store, wheel, ours, pause=nap)
    after = got(store, "index.json")
    assert after["x"] == [1]
    assert after["wheels"][:3] == [theirs, "broken", {"wheel_file": 7}]
    assert after["wheels"][3]["wheel_file"] == ours.wheel_file
    assert got(store, "latest.json") == LEGACY


def test_nobodys_wheel_is_overwritten(store: Store, tmp_path: Path) -> None:
    wheel, ours = made(tmp_path)
    other_wheel, other = made(tmp_path, content=b"something else")
    index.publish(store, wheel, ours, pause=nap)
    asks: list[Callable[[], object]] = [
        lambda: index.publish(store, other_wheel, other),
        lambda: index.add_proof(store, other),
    ]
    for ask in asks:
        with pytest.raises(
            StoreError, match=rf"already holds another .* of sha256 {ours.wheel_sha256}\. Nobody's wheel"
        ):
            ask()
    newer = {**ours.data, "schema": 99, "wheel_sha256": "c" * 64}
    put(store, {"index.json": {"wheels": [newer]}})
    with pytest.raises(StoreError, match=r"the entry for .* in index\.json of .* cannot be read"):
        index.publish(store, wheel, ours)
    assert got(store, "index.json") == {"wheels": [newer]}


def test_a_file_that_no_entry_lists_is_not_overwritten_either(store: Store, tmp_path: Path) -> None:
    wheel, ours = made(tmp_path)
    put(store, {wheel.name: b"something else"})
    with pytest.raises(StoreError, match=r"already holds another .*, which index\.json does not list\. Nobody's wheel"):
        index.publish(store, wheel, ours, pause=nap)
    store.download(wheel.name, tmp_path / "still.whl")
    assert (tmp_path / "still.whl").read_bytes() == b"something else"
    put(store, {wheel.name: wheel.read_bytes()})
    assert index.publish(store, wheel, ours, pause=nap), "what a killed upload left behind is taken up"
    assert [entry.wheel_file for entry in index.load(store)[0]] == [wheel.name]


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"wheels": 1}', b'{"schema": 2, "wheels": []}', b"\xff\xfe"])
def test_an_index_that_cannot_be_read_is_never_overwritten(tmp_path: Path, text: bytes) -> None:
    store = DirectoryStore(tmp_path / "store")
    put(store, {"index.json": text})
    wheel, ours = made(tmp_path)
    asks: list[Callable[[], object]] = [
        lambda: index.publish(store, wheel, ours, pause=nap),
        lambda: index.add_proof(store, ours, pause=nap),
        lambda: index.initialise(store, pause=nap),
    ]
    for ask in asks:
        with pytest.raises(StoreError, match=r"the store's index\.json .*(Mend it by hand|Update sagewheels)"):
            ask()
    assert (store.read("index.json").files, store.names()) == ({"index.json": text}, ["index.json"])


def test_a_file_that_is_not_what_its_manifest_says(store: Store, tmp_path: Path) -> None:
    wheel, ours = made(tmp_path)
    wheel.write_bytes(b"changed")
    with pytest.raises(Refused, match="is not the file that its manifest describes"):
        index.publish(store, wheel, ours)
    wheel.unlink()
    with pytest.raises(Refused, match="cannot be read"):
        index.publish(store, wheel, ours)
    assert store.names() == []


def test_a_proof_for_a_wheel_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is not in .*\. Upload it first\."):
        index.add_proof(store, made(tmp_path)[1], pause=nap)


def test_initialise(store: Store, tmp_path: Path) -> None:
    assert index.initialise(store, pause=nap)
    assert got(store, "index.json") == {"schema": 1, "wheels": []}
    assert not index.initialise(store, pause=nap)
    put(store, {"README.md": b"---\ntags:\n---\n", "latest.json": LEGACY})
    assert not index.initialise(store, pause=nap)


def test_many_publishers_at_once(store: Store, tmp_path: Path) -> None:
    put(store, {"latest.json": LEGACY})
    errors = list[BaseException]()

    def work(at: int) -> None:
        try:
            wheel, ours = made(tmp_path, cuda=130 + at, content=str(at).encode())
            assert index.publish(store, wheel, ours, pause=nap)
            assert index.add_proof(store, ours.updated(proofs=[{**PROOF, "gpu": f"GPU {at}"}]), pause=nap)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found, problems, _ = index.load(store)
    assert problems == []
    assert {entry.proofs[0].gpu for entry in found if entry.proofs} == {f"GPU {at}" for at in range(4)}
    assert len(found) == 5


def test_two_publishers_find_no_repository(hub: Hub, tmp_path: Path) -> None:
    first, second = made(tmp_path, cuda=130), made(tmp_path, cuda=128)
    late = opened(hub)
    assert late.read("index.json").revision == ""
    index.publish(opened(hub), *first, pause=nap)
    reads = iter([Snapshot(revision="", files={})])
    real = late.read
    late.read = lambda *paths: next(reads, None) or real(*paths)  # type: ignore[method-assign]
    index.publish(late, *second, pause=nap)
    assert {entry.wheel_file for entry in index.load(late)[0]} == {first[0].name, second[0].name}


@pytest.mark.parametrize(
    ("kind", "where"), [("409", "commit"), ("412", "commit"), ("503", "commit"), ("lose", "commit")]
)
def test_publishing_survives(hub: Hub, tmp_path: Path, kind: str, where: str) -> None:
    hub.create(REPO)
    hub.misbehave(where, kind, 2 if kind != "lose" else 1)
    wheel, ours = made(tmp_path)
    assert index.publish(opened(hub), wheel, ours, pause=nap)
    assert (hub.commits, hub.lfs_puts) == (1, 1)


def test_reads_that_lag_behind(hub: Hub, tmp_path: Path) -> None:
    hub.create(REPO)
    first, second = made(tmp_path, cuda=130), made(tmp_path, cuda=128)
    index.publish(opened(hub), *first, pause=nap)
    hub.misbehave("GET .*resolve/main/", "lag", 3)
    assert index.publish(opened(hub), *second, pause=nap)
    hub.misbehave("GET .*resolve/main/", "lag", 3)
    assert index.add_proof(opened(hub), second[1].updated(proofs=[PROOF]), pause=nap)
    assert [entry.wheel_file for entry in index.load(opened(hub))[0]] == [first[0].name, second[0].name]
    assert hub.commits == 3


def test_conflicts_without_end_do_end(hub: Hub, tmp_path: Path) -> None:
    repo, naps = hub.create(REPO), list[float]()
    hub.misbehave("commit", "412", 99)

    def pause(seconds: float) -> None:
        """Meanwhile somebody else was quicker, each time."""
        naps.append(seconds)
        repo.add("main", hub.files(REPO))

    with pytest.raises(StoreError, match=r"kept changing during 32 tries\. Try again when others have finished\."):
        index.publish(opened(hub), *made(tmp_path), pause=pause)
    assert (len(naps), max(naps) <= 60, sum(naps) <= 27 * 60, hub.commits) == (31, True, True, 0)
    puts = [line for line in hub.requests if "/lfs/" in line]
    assert len(puts) == 3, "the wheel is hashed and uploaded once: batch, PUT, verify"


def test_conflicts_with_nobody_end_sooner(hub: Hub, tmp_path: Path) -> None:
    hub.create(REPO)
    hub.misbehave("commit", "412", 99)
    naps = list[float]()
    with pytest.raises(
        StoreError, match=r"@main/sage refused 8 commits, though nothing changed there\. Try again later\."
    ):
        index.publish(opened(hub), *made(tmp_path), pause=naps.append)
    assert (len(naps), sum(naps) <= 182, hub.commits) == (8, True, 0)


def test_an_index_that_came_damaged_is_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    index.publish(opened(hub), *made(tmp_path, cuda=130), pause=nap)
    hub.misbehave(r"resolve/main/sage/index\.json", "corrupt", 2)
    naps = list[float]()
    assert len(index.load(opened(hub), pause=naps.append)[0]) == 1
    assert (len(naps), max(naps) <= 1) == (2, True)
    hub.misbehave(r"resolve/main/sage/index\.json", "corrupt", 2)
    assert index.publish(opened(hub), *made(tmp_path, cuda=128), pause=nap)
    assert (hub.commits, len(index.load(opened(hub))[0])) == (2, 2)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"wheels": {}}', b"\xff"])
def test_a_store_whose_index_stays_damaged_is_not_empty(hub: Hub, tmp_path: Path, text: bytes) -> None:
    hub.create(REPO, {"sage/index.json": text, "sage/latest.json": json.dumps(LEGACY).encode()})
    naps = list[float]()
    with pytest.raises(StoreError) as caught:
        index.load(opened(hub), pause=naps.append)
    assert re.fullmatch(
        r"the store's index\.json is not (JSON \(.+\)|a list of wheels)\. Try again later\. Mend it by hand or bring "
        r"back its last good version from the store's history, then publish again\.",
        str(caught.value),
    )
    assert (caught.value.code, len(naps), len(hub.requests)) == (7, 2, 6)
    with pytest.raises(StoreError, match=r"the store's index\.json is not .*, so nothing was published\. Mend it"):
        index.publish(opened(hub), *made(tmp_path), pause=nap)
    assert hub.commits == 0


def test_load_is_one_read(hub: Hub, tmp_path: Path) -> None:
    index.publish(opened(hub), *made(tmp_path), pause=nap)
    hub.requests.clear()
    index.load(opened(hub))
    assert len(hub.requests) == 2


def test_ten_thousand_wheels_are_read_quickly(tmp_path: Path) -> None:
    _, ours = made(tmp_path)
    wheels = [{**ours.data, "wheel_file": NAME.format(cuda=at)} for at in range(10_000)]

    def seconds(count: int) -> float:
        taken = snapshot(index={"wheels": wheels[:count]})
        started = time.process_time()
        assert len(entries(taken)[0]) == count
        return time.process_time() - started

    # Against itself, since the tests share their machine: what looks at each wheel for each wheel takes 100 times.
    assert seconds(10_000) < 30 * seconds(1_000)


def test_the_card(hub: Hub, tmp_path: Path) -> None:
    store = opened(hub)
    wheel, ours = made(tmp_path, proofs=[PROOF, {**PROOF, "gpu": "<b>|`evil`"}])
    index.publish(store, wheel, ours, pause=nap)
    text = hub.files(REPO)["README.md"].decode()
    assert re.match(r"---\npretty_name: .+\ntags:\n(- \w+\n)+viewer: false\n---\n\n# wheels\n", text)
    assert "| 2.2.0+cu130torch2.11sm120 | cp312 | 2.11.0 | 13.0 | 12.0 | NVIDIA GeForce RTX 5090, bevil |" in text
    line = re.search(r'^pip install "(http[^"#]+)#sha256=([0-9a-f]{64})"$', text, re.MULTILINE)
    assert line
    assert "+" not in line[1] and unquote(line[1]).endswith(f"/datasets/{REPO}/resolve/main/sage/{wheel.name}")
    assert line[2] == ours.wheel_sha256
    assert got(store, "index.json")["wheels"][0]["hf_wheel_url"] == line[1]


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("# Mine\n\nwords\n", ["# Mine\n\nwords\n\n<!--"]),
        ("---\nlicense: mit\n---\nwords", ["---\nlicense: mit\n---\nwords\n\n<!--"]),
        (f"a\n{BEGIN}\nold\n{END}\nafter\n", ["a\n<!--", "-->\nafter\n"]),
        (f"a\n{BEGIN}\nno end", ["a\n<!--", "no end"]),
    ],
)
def test_words_around_the_table_are_kept(tmp_path: Path, before: str, kept: list[str]) -> None:
    store = DirectoryStore(tmp_path / "store")
    put(store, {"README.md": before.encode()})
    index.publish(store, *made(tmp_path), pause=nap)
    text = store.read("README.md").files["README.md"].decode()
    assert all(part in text for part in kept)
    assert text.startswith("---\n")
    assert (text.count(BEGIN), text.count(END), "old\n" in text) == (1, 1, False)
    assert card(index.load(store)[0], store, text) == text


def test_the_install_line_of_a_directory(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "a store")
    wheel, ours = made(tmp_path)
    index.publish(store, wheel, ours)
    line = re.search(r'pip install "file://(.+)#sha256=(.+)"', store.read("README.md").files["README.md"].decode())
    assert line
    assert hashlib.sha256(Path(unquote(line[1])).read_bytes()).hexdigest() == line[2] == ours.wheel_sha256
    assert ours.data.get("hf_wheel_url") is None
    assert "hf_wheel_url" not in got(store, "index.json")["wheels"][0]


# wheels that are known to be bad


def mark(entry: WheelManifest, **changed: Any) -> Mark:
    """What smoke says of a wheel."""
    raw = {
        "wheel_file": entry.wheel_file,
        "wheel_sha256": entry.wheel_sha256,
        "arch": "12.0",
        "gpu": PROOF["gpu"],
        "reason": "3 of 128 cases are wrong",
        "at_utc": "2026-06-01T00:00:00Z",
        **changed,
    }
    found = bad.read(raw)
    assert found
    return found


def marks(store: Store) -> Any:
    return got(store, "index.json").get("known_bad")


def test_a_mark_is_one_commit_and_the_same_again_is_none(store: Store, tmp_path: Path) -> None:
    wheel, ours = made(tmp_path)
    index.publish(store, wheel, ours, pause=nap)
    assert index.add_mark(store, mark(ours), pause=nap)
    assert marks(store) == [mark(ours).raw]
    assert entries_of_marks(store) == ([mark(ours)], [])
    revision = store.read().revision
    assert not index.add_mark(store, mark(ours), pause=nap)
    assert not index.add_mark(store, mark(ours, at_utc="2026-05-01T00:00:00Z"), pause=nap)
    assert store.read().revision == revision
    assert index.add_mark(store, mark(ours, at_utc="2026-07-01T00:00:00Z"), pause=nap)
    assert [one["at_utc"] for one in marks(store)] == ["2026-07-01T00:00:00Z"]


def entries_of_marks(store: Store) -> tuple[list[Mark], list[str]]:
    return marks_of(store.read("index.json"))


def test_a_mark_of_a_wheel_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"sm120-cp312-cp312-linux_x86_64\.whl is not in .*\.$"):
        index.add_mark(store, mark(made(tmp_path)[1]), pause=nap)
    assert store.names() == []


def test_latest_never_names_a_bad_wheel(store: Store, tmp_path: Path) -> None:
    dated = {"created_at_utc": "2025-06-01T00:00:00Z", "proofs": [PROOF]}
    old_wheel, old = made(tmp_path, cuda=128, content=b"old", **dated)
    new_wheel, new = made(tmp_path, proofs=[PROOF])
    index.publish(store, old_wheel, old, pause=nap)
    index.publish(store, new_wheel, new, pause=nap)
    index.add_mark(store, mark(new, arch="9.0"), pause=nap)
    assert got(store, "latest.json")["wheel_file"] == new.wheel_file, "it was proven on another arch"
    index.add_mark(store, mark(new), pause=nap)
    assert got(store, "latest.json")["wheel_file"] == old.wheel_file
    index.add_mark(store, mark(old), pause=nap)
    assert got(store, "latest.json") == {}
    found, problems, _ = index.load(store)
    assert ([one.wheel_file for one in found], problems) == ([old.wheel_file, new.wheel_file], [])
    index.add_proof(store, new.updated(proofs=[{**PROOF, "at_utc": "2026-06-02T00:00:00Z"}]), pause=nap)
    assert got(store, "latest.json")["wheel_file"] == new.wheel_file
    assert [(one["wheel_file"], one["arch"]) for one in marks(store)] == [
        (new.wheel_file, "9.0"),
        (old.wheel_file, "12.0"),
    ], "the proof took back the mark of its arch, and no other"


def test_latest_does_not_move_to_another_package(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    wheel, ours = made(tmp_path, proofs=[PROOF])
    index.publish(store, wheel, ours, pause=nap)
    entry = {**ours.data, "wheel_file": "other-1.0-py3-none-any.whl", "created_at_utc": "2020-01-01T00:00:00Z"}
    other = {**entry, "wheel_sha256": "e" * 64}
    put(store, {"index.json": {"wheels": [dict(ours.data), other]}})
    index.add_mark(store, mark(ours), pause=nap)
    assert got(store, "latest.json") == {}


def test_what_the_first_installer_published_is_taken_out_of_latest(store: Store, tmp_path: Path) -> None:
    put(store, {"latest.json": LEGACY})
    legacy = manifests.parse(LEGACY, "legacy")
    index.add_mark(store, mark(legacy), pause=nap)
    assert got(store, "latest.json") == {}
    assert got(store, "index.json")["wheels"] == [LEGACY], "nothing is lost"


def test_an_older_proof_does_not_take_a_mark_back(store: Store, tmp_path: Path) -> None:
    wheel, ours = made(tmp_path)
    index.publish(store, wheel, ours, pause=nap)
    index.add_mark(store, mark(ours), pause=nap)
    index.add_proof(store, ours.updated(proofs=[PROOF]), pause=nap)
    assert marks(store) == [mark(ours).raw]
    assert "latest.json" not in store.read("latest.json").files


@pytest.mark.parametrize("strange", [7, "text", {"a": 1}])
def test_strange_marks_are_passed_over_and_kept(tmp_path: Path, strange: Any) -> None:
    store = DirectoryStore(tmp_path / "store")
    wheel, ours = made(tmp_path)
    put(store, {"index.json": {"wheels": [], "known_bad": [strange, {"wheel_sha256": "x"}]}})
    index.publish(store, wheel, ours, pause=nap)
    assert entries_of_marks(store) == ([], ["index.json: 2 marks in known_bad cannot be read"])
    index.add_mark(store, mark(ours), pause=nap)
    assert marks(store) == [strange, {"wheel_sha256": "x"}, mark(ours).raw]
    index.add_proof(store, ours.updated(proofs=[{**PROOF, "at_utc": "2026-06-02T00:00:00Z"}]), pause=nap)
    assert marks(store) == [strange, {"wheel_sha256": "x"}]
    put(store, {"index.json": {**got(store, "index.json"), "known_bad": strange}})
    assert entries_of_marks(store) == ([], ["index.json: known_bad is not a list and is passed over"])
    with pytest.raises(StoreError, match=r"known_bad in index\.json of .* is not a list\. Mend it by hand"):
        index.add_mark(store, mark(ours), pause=nap)
    other_wheel, other = made(tmp_path, cuda=128)
    assert index.publish(store, other_wheel, other, pause=nap)
    assert marks(store) == strange


@pytest.mark.parametrize("text", [b'{"known_bad": ', b'["known_bad"]', b'{"wheels": [], "known_bad": null}', b""])
def test_no_marks_in_an_index_without_them(text: bytes) -> None:
    assert marks_of(Snapshot(revision="1", files={"index.json": text})) == ([], [])
    assert marks_of(Snapshot(revision="", files={})) == ([], [])


def test_two_writers_of_marks(store: Store, tmp_path: Path) -> None:
    """One marks, the others publish and mark: whoever comes second adds to what is there by then."""
    wheel, ours = made(tmp_path)
    index.publish(store, wheel, ours, pause=nap)
    errors = list[BaseException]()

    def work(at: int) -> None:
        try:
            index.add_mark(store, mark(ours, arch=f"{8 + at}.0"), pause=nap)
            one = made(tmp_path, cuda=130 + at + 1, content=str(at).encode())
            index.publish(store, *one, pause=nap)
            index.add_mark(store, mark(one[1]), pause=nap)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(one["arch"] for one in marks(store)) == ["10.0", "12.0", "12.0", "12.0", "8.0", "9.0"]
    assert len(index.load(store)[0]) == 4


def test_a_mark_survives_others_in_the_way(hub: Hub, tmp_path: Path) -> None:
    hub.create(REPO)
    wheel, ours = made(tmp_path)
    index.publish(opened(hub), wheel, ours, pause=nap)
    hub.misbehave("commit", "412", 2)
    hub.misbehave("GET .*resolve/main/", "lag", 2)
    assert index.add_mark(opened(hub), mark(ours), pause=nap)
    assert (marks(opened(hub)), hub.commits) == ([mark(ours).raw], 2)


def test_the_card_does_not_offer_a_bad_wheel(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    wheel, ours = made(tmp_path, archs=["8.9", "12.0"], proofs=[{**PROOF, "arch": "8.9", "gpu": "L4"}])
    index.publish(store, wheel, ours, pause=nap)
    index.add_mark(store, mark(ours, reason="3 of 128 | <b>wrong</b>"), pause=nap)
    text = store.read("README.md").files["README.md"].decode()
    assert "| 8.9;12.0 | known to be bad (12.0); L4 |" in text
    words = "is known to be bad on arch 12.0: 3 of 128  bwrong/b (NVIDIA GeForce RTX 5090, 2026-06-01)"
    assert f"\n{wheel.name} {words}\n\n```sh\npip install " in text
    index.add_mark(store, mark(ours, arch="8.9"), pause=nap)
    text = store.read("README.md").files["README.md"].decode()
    assert "pip install" not in text
    assert text.count(f"\n{wheel.name} is known to be bad on arch ") == 2
    bare, unknown = made(tmp_path, cuda=128, content=b"bare", archs=None)
    index.publish(store, bare, unknown, pause=nap)
    assert store.read("README.md").files["README.md"].decode().count("pip install") == 1, "its archs are not known"
    index.add_mark(store, mark(unknown, arch=None), pause=nap)
    assert "pip install" not in store.read("README.md").files["README.md"].decode()


def test_latest_stays_with_the_package_that_it_names(tmp_path: Path) -> None:
    """The first installer installs whatever latest.json names."""
    store = DirectoryStore(tmp_path / "store")
    first, ours = made(tmp_path, proofs=[PROOF])
    index.publish(store, first, ours, pause=nap)
    content = b"another package"
    wheel = tmp_path / NAME.format(cuda=130).replace("sageattention", "other_attn")
    wheel.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    newer = {"wheel_file": wheel.name, "wheel_sha256": digest, "created_at_utc": "2026-02-01T00:00:00Z"}
    other = manifests.parse({**ours.data, **newer}, "made")
    assert index.publish(store, wheel, other, pause=nap)
    assert got(store, "latest.json")["wheel_file"] == ours.wheel_file
    assert [entry.name for entry in index.load(store)[0]] == ["sageattention", "other-attn"]
    assert "| other-attn | 2.2.0+cu130torch2.11sm120 |" in store.read("README.md").files["README.md"].decode()
    again, ours_again = made(tmp_path, 128, b"newer", proofs=[PROOF], created_at_utc="2026-01-15T00:00:00Z")
    index.publish(store, again, ours_again, pause=nap)
    assert got(store, "latest.json")["wheel_file"] == ours_again.wheel_file, "newer than the last of its own package"


def test_a_latest_that_names_nothing_is_replaced(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    put(store, {"latest.json": b"{"})
    wheel, ours = made(tmp_path, proofs=[PROOF])
    index.publish(store, wheel, ours, pause=nap)
    assert got(store, "latest.json")["wheel_file"] == ours.wheel_file
