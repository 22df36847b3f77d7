"""The Hub store against a loopback Hub, through the real client."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sagewheels
from sagewheels.config import Settings
from sagewheels.errors import StoreError, UsageError
from sagewheels.store import Conflict, Store, tries
from sagewheels.store.directory import DirectoryStore
from sagewheels.store.hub import HubStore
from sagewheels.store.opening import open_store
from tests.hub import Hub

REPO, WHEEL = "me/wheels", "sageattention-2.2.0+cu130torch2.11sm120-cp312-cp312-linux_x86_64.whl"
Opener = Callable[..., HubStore]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def opened(hub: Hub, pauses: list[float], capfd: pytest.CaptureFixture[str]) -> Iterator[Opener]:
    def make(token: str = "hf_write", **more: Any) -> HubStore:
        known: dict[str, Any] = {"repo_id": REPO, "folder": "sage", "endpoint": hub.endpoint, "timeout": (2.0, 0.2)}
        return HubStore(**{**known, "token": token, "pause": pauses.append, **more})

    yield make
    out, err = capfd.readouterr()
    assert "hf_" not in out + err


def refusal(ask: Callable[[], object]) -> str:
    """The one line of the StoreError, which holds no token, nor do the errors behind it."""
    with pytest.raises(StoreError) as caught:
        ask()
    error: BaseException | None = caught.value
    while error is not None:
        assert "hf_write" not in f"{error} {error!r}"
        assert "hf_read" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_exist_reads_as_empty(hub: Hub, opened: Opener) -> None:
    store = opened()
    assert (store.read("index.json").revision, store.read("index.json").files, store.names()) == ("", {}, [])
    hub.create(REPO)
    assert (opened(branch="other").read("a").revision, opened(branch="other").names()) == ("", [])
    snapshot = store.read("index.json", "latest.json")
    assert (snapshot.files, snapshot.revision, store.names()) == (
        {},
        hub.repos["dataset", REPO].branches["main"][0],
        [],
    )


def test_a_read_is_one_request_a_file_and_one_revision(hub: Hub, opened: Opener) -> None:
    repo = hub.create(REPO, {"sage/index.json": b"1", "sage/latest.json": b"1", "README.md": b"card"})
    first = repo.branches["main"][0]
    snapshot = opened().read("index.json", "latest.json", "README.md", "none.json")
    assert snapshot.files == {"index.json": b"1", "latest.json": b"1", "README.md": b"card"}
    assert snapshot.revision == first
    assert [line.split("resolve/")[1].split("/")[0] for line in hub.requests] == ["main", first, first, first]


def test_a_commit_is_seen_whole(hub: Hub, opened: Opener, tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    wheel.write_bytes(b"wheel" * 100_000)
    store = opened()
    revision = store.commit("", {WHEEL: wheel, "index.json": b"{}", "README.md": b"---\ntags:\n- a\n---\n"}, "first")
    assert hub.commits == 1
    assert set(hub.files(REPO)) == {".gitattributes", f"sage/{WHEEL}", "sage/index.json", "README.md"}
    assert store.read("index.json").revision == revision
    assert store.names() == ["index.json", WHEEL]
    seen: list[tuple[int, int]] = []
    store.download(WHEEL, tmp_path / "to" / WHEEL, lambda done, total: seen.append((done, total)))
    assert (tmp_path / "to" / WHEEL).read_bytes() == wheel.read_bytes()
    assert seen[-1] == (500_000, 500_000)


def test_long_listings_are_followed(hub: Hub, opened: Opener) -> None:
    hub.create(REPO, {f"sage/{at}.txt": b"" for at in range(8)} | {"other/a": b""})
    assert opened().names() == [f"{at}.txt" for at in range(8)]


@pytest.mark.parametrize("kind", ["model", "space"])
def test_models_and_spaces(hub: Hub, opened: Opener, tmp_path: Path, kind: str) -> None:
    store = opened(repo_type=kind, folder="")
    (tmp_path / "a.whl").write_bytes(b"a")
    store.commit("", {"a.whl": tmp_path / "a.whl", "index.json": b"{}"}, "first")
    assert store.read("index.json").files == {"index.json": b"{}"}
    assert "a.whl" in store.names()


def test_another_branch_and_a_private_repository(hub: Hub, opened: Opener) -> None:
    store = opened(branch="next", private=True)
    store.commit("", {"index.json": b"{}"}, "first")
    assert hub.repos["dataset", REPO].private
    assert "sage/index.json" in hub.files(REPO, "next")
    assert "sage/index.json" not in hub.files(REPO)
    assert opened("hf_read", branch="next").read("index.json").files == {"index.json": b"{}"}
    line = refusal(lambda: opened("", branch="next").read("index.json"))
    assert line.startswith(f"hf://datasets/{REPO}@next/sage does not exist, or is private and HF_TOKEN is not set")
    assert f"write access to {REPO}" in line


def test_a_stranger_is_told_what_to_check(hub: Hub, opened: Opener) -> None:
    line = refusal(lambda: opened("").read("index.json"))
    assert line == (
        f"hf://datasets/{REPO}@main/sage does not exist, or is private and HF_TOKEN is not set (401). Check HF_REPO_ID "
        f"(or SAGE_STORE). Set HF_TOKEN to a token with write access to {REPO}, from "
        "https://huggingface.co/settings/tokens."
    )


@pytest.mark.parametrize("netrc", ["", "machine 127.0.0.1 login hf_ambient password hf_ambient\n"])
def test_the_token_stays_with_its_host(
    hub: Hub, opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netrc: str
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    hub.create(REPO, {f"sage/{WHEEL}": b"w"}, private=True)
    with Hub() as other:
        other.create(REPO, {"sage/index.json": b"elsewhere", f"sage/{WHEEL}": b"elsewhere"})
        hub.misbehave("GET", other.endpoint, 2)
        assert opened().read("index.json").files == {"index.json": b"elsewhere"}
        opened().download(WHEEL, tmp_path / WHEEL)
        assert (tmp_path / WHEEL).read_bytes() == b"elsewhere"
        assert (hub.tokens_seen, other.tokens_seen) == ({"hf_write"}, {""})
        other.misbehave("GET", hub.endpoint)
        hub.misbehave("GET", other.endpoint)
        opened().download(WHEEL, tmp_path / WHEEL)
        assert (hub.tokens_seen, other.tokens_seen) == ({"hf_write"}, {""}), "and is with it again when led back"
    hub.misbehave("GET", hub.endpoint)
    opened().download(WHEEL, tmp_path / WHEEL)
    assert (tmp_path / WHEEL).read_bytes() == b"w"


def test_something_else_that_answers(hub: Hub, opened: Opener) -> None:
    hub.create(REPO)
    hub.misbehave("GET", "200", 2)
    assert "that is not what a Hub answers. Check HF_ENDPOINT" in refusal(opened().names)
    with pytest.raises(UsageError, match=r"HF_ENDPOINT is not an http\(s\) address"):
        opened(endpoint="http://127.0.0.1:port")


def test_an_endpoint_with_credentials_is_refused(opened: Opener) -> None:
    """It would be part of the address in each published manifest."""
    with pytest.raises(UsageError) as caught:
        opened(endpoint="http://me:secret@127.0.0.1")
    assert str(caught.value) == "HF_ENDPOINT holds a name or password. Leave them out: it is HF_TOKEN that signs in."


def test_a_web_page_is_no_file_of_a_store(hub: Hub, opened: Opener, pauses: list[float], tmp_path: Path) -> None:
    """As from a proxy, or from a hotel that wants to be signed in to."""
    hub.create(REPO, {"sage/index.json": b"{}", "README.md": b"card", f"sage/{WHEEL}": b"w"})
    hub.misbehave("GET", "portal", 2)
    assert opened().read("index.json", "README.md").files == {"index.json": b"{}", "README.md": b"card"}
    hub.misbehave("GET", "portal", 99)
    asks = {
        f"index.json could not be read from hf://datasets/{REPO}@main/sage": lambda: opened().read("index.json"),
        f"the list of files could not be read from hf://datasets/{REPO}@main/sage": opened().names,
        f"{WHEEL} could not be downloaded from hf://datasets/{REPO}@main/sage": lambda: opened().download(
            WHEEL, tmp_path / WHEEL
        ),
    }
    for failed, ask in asks.items():
        assert refusal(ask) == (
            f"{failed}: 127.0.0.1: a web page came instead, as from a proxy or a login page (3 tries). Check the "
            "network, or try again later."
        )
    assert (len(pauses), list(tmp_path.iterdir())) == (8, [])


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("portal", "a web page came instead, as from a proxy or a login page (3 tries). Check the network"),
        ("corrupt", "that is not what a Hub answers (3 tries). Check the network"),
        ("loop", "it redirects without end. Check the address and the settings of your network"),
        ("garbage", "the connection broke off (3 tries). Check the network"),
        ("trickle", "it sends less than 10 kB a second (3 tries). Check the network"),
    ],
)
def test_whatever_answers_to_a_commit(
    hub: Hub, opened: Opener, monkeypatch: pytest.MonkeyPatch, kind: str, told: str
) -> None:
    monkeypatch.setattr(tries, "GRACE", 0.2)
    hub.create(REPO)
    store = opened()
    parent = store.read("index.json").revision
    hub.misbehave("preupload", kind, 99)
    line = refusal(lambda: store.commit(parent, {"index.json": b"{}"}, "m"))
    assert line.startswith(f"hf://datasets/{REPO}@main/sage could not be written: 127.0.0.1: {told}")
    hub.behave()
    assert store.commit(parent, {"index.json": b"{}"}, "m")


def test_a_repository_that_is_said_to_be_there(hub: Hub, opened: Opener) -> None:
    """By a 409 without the address that the library wants; then it is there, or it is waited for."""
    hub.misbehave("POST /api/repos/create", "409")
    with pytest.raises(Conflict, match="was made and cannot be seen yet"):
        opened().commit("", {"index.json": b"{}"}, "first")
    assert opened().commit("", {"index.json": b"{}"}, "first")


def test_an_answer_of_somebody_else_is_no_card(hub: Hub, opened: Opener, pauses: list[float]) -> None:
    """What is read as the card is written again: an empty answer would wipe out what people wrote there."""
    hub.create(REPO, {"sage/index.json": b"{}", "README.md": b"card"})
    hub.misbehave(r"README\.md", "empty", 2)
    assert opened().read("index.json", "README.md").files["README.md"] == b"card"
    hub.misbehave(r"README\.md", "empty", 99)
    line = refusal(lambda: opened().read("index.json", "README.md"))
    assert line.endswith("127.0.0.1: that is not what a Hub answers (3 tries). Check the network, or try again later.")
    assert len(pauses) == 4


def test_a_list_without_end(hub: Hub, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagewheels.store.hub._MOST_PAGES", 2)
    hub.create(REPO, {f"sage/{at}.txt": b"" for at in range(6)})
    assert len(opened().names()) == 6
    hub.create(REPO, {f"sage/{at}.txt": b"" for at in range(7)})
    line = refusal(opened().names)
    assert line == (
        f"the list of files of hf://datasets/{REPO}@main/sage does not end. Check HF_ENDPOINT and the network."
    )


def test_a_stale_parent_is_a_conflict(hub: Hub, opened: Opener) -> None:
    first = opened().commit("", {"index.json": b"1"}, "first")
    opened().commit(first, {"index.json": b"2"}, "second")
    for parent in ("", first):
        with pytest.raises(Conflict, match=r"was changed by somebody else|was filled by somebody else"):
            opened().commit(parent, {"index.json": b"3"}, "late")
    assert hub.files(REPO)["sage/index.json"] == b"2"


def test_no_ambient_token_is_used(hub: Hub, opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login hf_ambient password hf_ambient\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", "hf_ambient")
    hub.create(REPO, {"sage/index.json": b"1"})
    assert opened("").read("index.json").files
    assert hub.tokens_seen == {""}
    assert not opened("").writable
    line = refusal(lambda: opened("").commit("", {"index.json": b"2"}, "m"))
    assert line.startswith(f"HF_TOKEN is not set, so hf://datasets/{REPO}@main/sage can only be read. Set HF_TOKEN to")


def test_wrong_and_weak_tokens(hub: Hub, opened: Opener) -> None:
    hub.create(REPO, {"sage/index.json": b"1"})
    assert "the Hub does not accept this HF_TOKEN (401)" in refusal(lambda: opened("hf_bad").read("index.json"))
    weak = opened("hf_read")
    line = refusal(lambda: weak.commit(weak.read("index.json").revision, {"index.json": b"2"}, "m"))
    assert line.startswith(f"HF_TOKEN has no right to write in {REPO} (403). Set HF_TOKEN to a token with write access")
    with pytest.raises(UsageError, match="HF_TOKEN holds characters that no token has"):
        opened("hf_bad\n")


def test_rights(hub: Hub, opened: Opener) -> None:
    assert opened().rights() == f"HF_TOKEN belongs to me and may write to {REPO}"
    assert opened(repo_id="team/x").rights() == "HF_TOKEN belongs to me and may write to team/x"
    assert "belongs to me and may not write to them/x" in refusal(opened(repo_id="them/x").rights)
    assert f"belongs to me and may not write to {REPO}" in refusal(opened("hf_read").rights)
    assert "HF_TOKEN is not set" in refusal(opened("").rights)
    assert "does not accept this HF_TOKEN" in refusal(opened("hf_bad").rights)


@pytest.mark.parametrize("kind", ["truncate", "stall", "drop", "429", "500", "503"])
def test_reads_and_downloads_survive_what_passes(
    hub: Hub, opened: Opener, pauses: list[float], tmp_path: Path, kind: str
) -> None:
    hub.create(REPO, {"sage/index.json": b"{}" * 500, f"sage/{WHEEL}": b"w" * 300_000})
    hub.misbehave("index.json", kind, 2)
    assert opened().read("index.json").files == {"index.json": b"{}" * 500}
    hub.misbehave(r"\.whl", kind, 2)
    opened().download(WHEEL, tmp_path / WHEEL)
    assert (tmp_path / WHEEL).read_bytes() == b"w" * 300_000
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL]
    assert len(pauses) == 4
    assert all(pause == 7 if kind == "429" else 0.5 <= pause <= 3 for pause in pauses)


@pytest.mark.parametrize("kind", ["truncate", "stall", "drop", "429", "500", "503"])
def test_reads_and_downloads_give_up_in_the_end(
    hub: Hub, opened: Opener, pauses: list[float], tmp_path: Path, kind: str
) -> None:
    hub.create(REPO, {"sage/index.json": b"{}" * 500, f"sage/{WHEEL}": b"w" * 300_000})
    hub.misbehave("resolve", kind, 99)
    told = {"truncate": "the connection broke off", "drop": "the connection broke off", "stall": "no answer in time"}
    for ask in (lambda: opened().read("index.json"), lambda: opened().download(WHEEL, tmp_path / WHEEL)):
        line = refusal(ask)
        assert f"127.0.0.1: {told.get(kind, kind)}" in line
        assert line.endswith("(3 tries). Check the network, or try again later.")
    assert len(hub.requests) == 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["401", "403", "404", "409", "412"])
def test_refusals_are_not_asked_again(hub: Hub, opened: Opener, pauses: list[float], tmp_path: Path, kind: str) -> None:
    hub.create(REPO, {"sage/index.json": b"{}", f"sage/{WHEEL}": b"w"})
    hub.misbehave("resolve", kind, 99)
    assert f"{kind}" in refusal(lambda: opened().read("index.json"))
    assert f"{kind}" in refusal(lambda: opened().download(WHEEL, tmp_path / WHEEL))
    assert (len(hub.requests), pauses, list(tmp_path.iterdir())) == (2, [], [])


def test_a_corrupt_body_is_for_the_caller_to_find(hub: Hub, opened: Opener, tmp_path: Path) -> None:
    hub.create(REPO, {f"sage/{WHEEL}": b"w" * 1000})
    hub.misbehave(r"\.whl", "corrupt")
    opened().download(WHEEL, tmp_path / WHEEL)
    assert hashlib.sha256((tmp_path / WHEEL).read_bytes()).digest() != hashlib.sha256(b"w" * 1000).digest()


@pytest.mark.parametrize("where", ["preupload", "objects/batch", "PUT /lfs", "verify", "commit/main", "validate-yaml"])
@pytest.mark.parametrize("kind", ["stall", "drop", "429", "503"])
def test_commits_survive_what_passes(
    hub: Hub, opened: Opener, pauses: list[float], tmp_path: Path, where: str, kind: str
) -> None:
    (tmp_path / WHEEL).write_bytes(b"w" * 1000)
    hub.create(REPO)
    store = opened()
    parent = store.read("index.json").revision
    hub.misbehave(where, kind)
    started = time.monotonic()
    store.commit(parent, {WHEEL: tmp_path / WHEEL, "index.json": b"{}", "README.md": b"---\ntags:\n---\n"}, "m")
    assert hub.files(REPO)[f"sage/{WHEEL}"] == b"w" * 1000
    assert (hub.commits, len(pauses)) == (1, 1)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("kind", ["stall", "drop", "429", "500"])
def test_commits_give_up_in_the_end(hub: Hub, opened: Opener, pauses: list[float], kind: str) -> None:
    hub.create(REPO)
    store = opened()
    parent = store.read("index.json").revision
    hub.misbehave("commit/main", kind, 99)
    line = refusal(lambda: store.commit(parent, {"index.json": b"{}"}, "m"))
    assert line.startswith(f"hf://datasets/{REPO}@main/sage could not be written: 127.0.0.1: ")
    assert (hub.commits, len(pauses)) == (0, 2)


@pytest.mark.parametrize("kind", ["409", "412"])
def test_the_hubs_conflicts_are_conflicts(hub: Hub, opened: Opener, kind: str) -> None:
    hub.create(REPO)
    store = opened()
    parent = store.read("index.json").revision
    hub.misbehave("commit/main", kind)
    with pytest.raises(Conflict):
        store.commit(parent, {"index.json": b"{}"}, "m")
    assert store.commit(parent, {"index.json": b"{}"}, "m")


def test_a_commit_whose_answer_was_lost_ends_in_conflict(hub: Hub, opened: Opener) -> None:
    hub.create(REPO)
    store = opened()
    parent = store.read("index.json").revision
    hub.misbehave("commit/main", "lose")
    with pytest.raises(Conflict):
        store.commit(parent, {"index.json": b"{}"}, "m")
    assert (hub.commits, store.read("index.json").files) == (1, {"index.json": b"{}"})


def test_a_card_that_the_hub_refuses(hub: Hub, opened: Opener) -> None:
    hub.create(REPO)
    store = opened()
    line = refusal(lambda: store.commit(store.read("a").revision, {"README.md": b"---\n[broken\n---\n"}, "m"))
    assert line.startswith(
        "the Hub refuses the card: Invalid metadata in README.md. - bad YAML. Correct the YAML on top of"
    )
    assert hub.commits == 0


def test_an_endpoint_where_nobody_listens(opened: Opener, pauses: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
    line = refusal(lambda: opened(endpoint=dead).read("index.json"))
    assert "127.0.0.1: the connection was refused (3 tries). Check the network" in line
    assert "the connection was refused" in refusal(lambda: opened(endpoint=dead).commit("a" * 40, {"a": b""}, "m"))
    assert len(pauses) == 4


def test_paths_that_lead_out_of_the_folder(hub: Hub, opened: Opener, tmp_path: Path) -> None:
    for path in ("../a", "/a", "a/../b", ".git/config"):
        assert "is not the name of a file" in refusal(lambda path=path: opened().read(path))  # type: ignore[misc]
        assert "is not the name" in refusal(lambda path=path: opened().commit("", {path: b""}, "m"))  # type: ignore[misc]
    assert hub.requests == []


def test_addresses_and_labels() -> None:
    store = HubStore(repo_id=REPO, branch="a/b", folder="sage")
    assert store.label == f"hf://datasets/{REPO}@a/b/sage"
    assert store.address("a+b.whl") == f"https://huggingface.co/datasets/{REPO}/resolve/a%2Fb/sage/a%2Bb.whl"
    model = HubStore(repo_id=REPO, repo_type="model")
    assert (model.label, model.address("a.whl")) == (
        f"hf://models/{REPO}@main",
        f"https://huggingface.co/{REPO}/resolve/main/a.whl",
    )


def test_looking_does_not_load_the_client(hub: Hub) -> None:
    hub.create(REPO, {"index.json": b"1"})
    script = (
        "import sys\nfrom sagewheels.store.hub import HubStore\n"
        "heavy = {'requests', 'huggingface_hub', 'httpx2'}\nassert not heavy & set(sys.modules)\n"
        f"HubStore(repo_id={REPO!r}, endpoint={hub.endpoint!r}).read('index.json')\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(sagewheels.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "['requests']\n"


@pytest.mark.parametrize(
    ("where", "label"),
    [
        ("", "hf://datasets/a/b@main/sageattention220"),
        ("hf://datasets/o/n", "hf://datasets/o/n@main/sageattention220"),
        ("hf://models/o/n@dev/x/y/", "hf://models/o/n@dev/x/y"),
        ("hf://o/n@refs%2Fpr%2F1/x", "hf://datasets/o/n@refs/pr/1/x"),
        ("hf://spaces/o/n/x", "hf://spaces/o/n@main/x"),
        ("file:///mnt/a%20b", "/mnt/a b"),
        ("/mnt/store", "/mnt/store"),
    ],
)
def test_opening(where: str, label: str) -> None:
    store: Store = open_store(Settings(sage_store=where, hf_repo_id="a/b"))
    assert store.label == label
    assert isinstance(store, DirectoryStore) == label.startswith("/")


@pytest.mark.parametrize(
    "where",
    [
        "http://x/y",
        "https://huggingface.co/a/b",
        "s3://a",
        "hf://",
        "hf://datasets/o",
        "hf://o/n/../x",
        "file://host/x",
    ],
)
def test_opening_nonsense(where: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(Settings(sage_store=where))
    assert caught.value.code == 2
