"""The page and the card of a store: what they say, that nothing written by others gets through, and what they print."""

from __future__ import annotations

import html
import re
import subprocess
import time
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sagewheels import bad
from sagewheels import manifest as manifests
from sagewheels.manifest import WheelManifest
from sagewheels.resources import ROOT
from sagewheels.store import Store, index
from sagewheels.store.card import card
from sagewheels.store.directory import DirectoryStore
from sagewheels.store.hub import HubStore
from sagewheels.store.page import page
from tests import wheels
from tests.hub import Hub

REPO = "me/wheels"
HOSTILE = (
    "</script><script>window.broken=1</script>\"'><img src=x onerror=window.broken=1> javascript:window.broken=1 &amp;"
)
PROOF = {
    "gpu": "NVIDIA GeForce RTX 5090",
    "arch": "12.0",
    "at_utc": "2026-02-01T00:00:00Z",
    "worst_cosine": 0.99981,
    "worst_relative_l2": 0.0193,
    "speedup": {"2x32x16384x128": 1.41},
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def opened(hub: Hub, **more: Any) -> HubStore:
    return HubStore(repo_id=REPO, folder="sage", token="hf_write", endpoint=hub.endpoint, timeout=(2.0, 2.0), **more)


def entry(label: str = "cu130torch2.11sm120", tag: str = "cp312-cp312-linux_x86_64", **more: Any) -> WheelManifest:
    """A manifest of no wheel that is there."""
    data = {
        "wheel_file": f"sageattention-2.2.0+{label}-{tag}.whl",
        "wheel_sha256": "ab" * 32,
        "created_at_utc": "2026-01-01T00:00:00Z",
        "torch_version": "2.11.0",
        "cuda_version": "13.0",
        "archs": ["12.0"],
        "size": 3_400_000,
        **more,
    }
    return manifests.parse(data, "made")


class Seen(HTMLParser):
    """What a reader of a page finds: its rows by their attributes, its links, its lines, and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.links, self.lines = list[dict[str, str]](), list[str](), list[str]()
        self.tags, self.handlers, self._in = list[str](), list[str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.handlers += [key for key in found if key.startswith("on") or key == "style"]
        if found.get("class") == "w":
            self.rows.append({key.removeprefix("data-"): value for key, value in found.items()})
        if tag == "a":
            self.links.append(found["href"])
        self._in = tag
        if tag == "code":
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "code":
            self.lines[-1] += data


def test_what_a_page_shows(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "a store")
    one = entry(proofs=[PROOF], patches=[{"name": "a", "sha256": "b"}] * 3, glibc="2.34")
    old = entry("cu128torch2.8sm89", created_at_utc="2025-01-01T00:00:00Z", torch_version="2.8.0", archs=["8.6"])
    stable = entry(
        "cu130torch2.10sm90", "cp310-abi3-linux_x86_64", archs=["9.0a", "12.0"], stable_abi={"torch": "2.10"}
    )
    text = page([old, stable, one], store)
    seen = Seen(text)
    assert f"3 wheels. Newest proven: <bdi>sageattention {one.version}</bdi>, 2026-01-01." in text
    assert seen.lines[0] == f"sagewheels install --store '{tmp_path}/a store'"
    assert [row["python"] for row in seen.rows] == ["3.12", "3.12 3.10", "3.12"]
    assert [row["torch"] for row in seen.rows] == ["2.11.0", "2.11.0 2.10", "2.8.0"]
    assert [row["arch"] for row in seen.rows] == ["12.0", "12.0 9.0", "8.6"]
    assert [row["proven"] for row in seen.rows] == ["12.0", "", ""]
    for part in (">2.34 or newer<", ">0.9998<", ">0.019<", ">1.41x (2x32x16384x128)<", ">3,400,000 bytes<", ">3.4 MB<"):
        assert part in text
    assert "<dt>patches</dt><dd>3</dd>" in text
    assert "<dt>signature</dt><dd>none</dd>" in text
    address = f"{(tmp_path / 'a store').as_uri()}/{one.wheel_file.replace('+', '%2B')}#sha256={one.wheel_sha256}"
    assert seen.lines[1:3] == [f'pip install "{address}"', f'uv pip install "sageattention @ {address}"']
    assert seen.links[1] == f"{one.wheel_file.replace('+', '%2B')}#sha256={one.wheel_sha256}", (
        "from wherever it is read"
    )
    assert len(text.encode()) - len("".join(re.findall(r"<li.*?</li>", text))) < 20_000


def test_the_same_store_is_the_same_page_in_any_order(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    some = [entry(f"cu130torch2.{at}sm120", torch_version=f"2.{at}.0", proofs=[PROOF]) for at in range(8)]
    assert page(some, store) == page(some[::-1], store)


def test_a_bad_wheel_comes_last_and_cannot_be_installed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    good, gone = entry("cu128torch2.8sm89", archs=["8.9", "12.0"]), entry(created_at_utc="2026-03-01T00:00:00Z")
    gone = gone.updated(wheel_sha256="cd" * 32)
    listed = [bad.read({"wheel_sha256": one.wheel_sha256, "arch": "12.0", "reason": HOSTILE}) for one in (good, gone)]
    text = page([good, gone], store, bad.by_name(mark for mark in listed if mark))
    seen = Seen(text)
    assert [row["arch"] for row in seen.rows] == ["12.0 8.9", "12.0"]
    assert f"It is <bdi>known to be bad on arch 12.0: {html.escape(HOSTILE)}</bdi>" in text
    assert "<s><bdi>sageattention 2.2.0</bdi></s>" in text
    assert "bad on 12.0</span>" in text
    assert [line.partition("-2.2")[0].partition(" ")[0] for line in seen.lines if "cd" * 32 in line] == ["cd" * 32]
    assert not any("cd" * 32 in link for link in seen.links), "pip --find-links must not take it for an offer"


def test_nothing_of_others_becomes_markup(tmp_path: Path) -> None:
    """Every text of a manifest, a proof and a mark."""
    store = DirectoryStore(tmp_path)
    raw = {**PROOF, "gpu": HOSTILE, "arch": HOSTILE, "at_utc": HOSTILE, "speedup": {HOSTILE: 1.0}}
    odd = {**PROOF, "worst_cosine": HOSTILE, "worst_relative_l2": 1e300, "speedup": [HOSTILE]}
    texts = ("created_at_utc", "glibc", "built_for", "torch_version", "python_version", "hf_wheel_url", "platform")
    evil = entry(proofs=[raw, odd], signature=HOSTILE, patches=HOSTILE, **dict.fromkeys(texts, HOSTILE))
    evil = evil.updated(proofs=[{**raw, "speedup": {"\u202egpj\x1b[31m": 1.0}}, raw, odd])
    plain = Seen(page([entry(proofs=[PROOF], signature="x")], store))
    text = page([evil], store)
    seen = Seen(text)
    assert (seen.handlers, seen.tags.count("script"), "img" in seen.tags) == ([], 1, False)
    assert set(seen.tags) == set(plain.tags)
    assert seen.links == [plain.links[0], f"{evil.wheel_file.replace('+', '%2B')}#sha256={evil.wheel_sha256}"]
    assert not re.search("[\u202e\x1b]", text)
    assert "<dd>unreadable, not checked by this page</dd>" in text


def test_only_our_script_and_style_may_run(tmp_path: Path) -> None:
    """The policy names their hashes, so a browser says whether they are right: tests/test_store_browser.py."""
    text = page([entry()], DirectoryStore(tmp_path))
    policy = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert len(policy) == 1
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]{43}='; script-src 'sha256-[\w+/]{43}='; "
        r"base-uri 'none'; form-action 'none'",
        policy[0],
    )
    assert text.index("Content-Security-Policy") < text.index("<style>")


def test_ten_thousand_wheels(tmp_path: Path) -> None:
    many = [entry(f"cu130torch2.{at}sm120", torch_version=f"2.{at}.0", proofs=[PROOF]) for at in range(10_000)]

    def seconds(count: int) -> float:
        started = time.process_time()
        assert page(many[:count], DirectoryStore(tmp_path)).count('<li class="w"') == count
        return time.process_time() - started

    # Against itself, since the tests share their machine: what looks at each wheel for each wheel takes 100 times.
    assert seconds(10_000) < 30 * seconds(1_000)
    text = page(many, DirectoryStore(tmp_path))
    assert text.count("<option>") == 53, "3.12, 13.0, 12.0, and the newest fifty of torch"
    assert "<option>2.9999.0</option>" in text


def test_the_page_comes_in_the_same_commit_and_stays_as_it_is(hub: Hub, tmp_path: Path) -> None:
    store = opened(hub)
    wheel = wheels.make(tmp_path)
    ours = wheels.describe(wheel)
    assert index.publish(store, wheel, ours)
    assert (hub.commits, set(hub.files(REPO)) >= {"README.md", "index.html", "sage/index.json"}) == (1, True)
    first = hub.files(REPO)["index.html"]
    assert b"none proven yet" in first
    assert not index.publish(store, wheel, ours)
    assert not index.initialise(store)
    assert index.add_proof(store, ours.updated(proofs=[PROOF]))
    assert b"RTX 5090" in hub.files(REPO)["index.html"]
    mark = bad.read({"wheel_file": wheel.name, "wheel_sha256": ours.wheel_sha256, "arch": "12.0"})
    assert mark
    assert index.add_mark(store, mark)
    assert b"known to be bad" in hub.files(REPO)["index.html"]
    assert hub.commits == 3


def test_a_store_without_a_page_gets_one(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    index.initialise(store)
    (tmp_path / "store" / "index.html").unlink()
    assert index.initialise(store)
    assert "0 wheels, none proven yet." in (tmp_path / "store" / "index.html").read_text()


def test_a_page_of_somebody_else_stays(hub: Hub, tmp_path: Path) -> None:
    hub.create(REPO, {"index.html": b"<h1>Mine</h1>"})
    wheel = wheels.make(tmp_path)
    index.publish(opened(hub), wheel, wheels.describe(wheel))
    assert hub.files(REPO)["index.html"] == b"<h1>Mine</h1>"


def test_a_space_shows_the_page(hub: Hub, tmp_path: Path) -> None:
    blank = b"<h1>Welcome to your static Space!</h1>"
    hub.create(REPO, {"index.html": blank}, kind="space")
    store = opened(hub, repo_type="space")
    wheel = wheels.make(tmp_path)
    index.publish(store, wheel, wheels.describe(wheel))
    files = hub.files(REPO, kind="space")
    text = files["README.md"].decode()
    assert text.startswith("---\ntitle: Wheels for CUDA and PyTorch\nsdk: static\napp_file: index.html\ntags:\n")
    assert "The App tab shows the same" in text
    assert f"/spaces/{REPO}/resolve/main/sage/tinyattn-1.0%2Bcu130".encode() in files["index.html"]


def test_the_front_of_the_card(hub: Hub, tmp_path: Path) -> None:
    front = "---\npretty_name: Wheels for CUDA and PyTorch\ntags:\n- wheels\n- cuda\n- pytorch\n"
    store = opened(hub)
    text = card([], store)
    assert text.startswith(f"{front}viewer: false\n---\n")
    assert card([], store, text.replace("viewer: false\n", "")) == text, "earlier cards of ours get it too"
    assert card([], store, f"{front}license: mit\n---\n").startswith(f"{front}license: mit\n---\n")
    assert card([], opened(hub, repo_type="model")).startswith("---\ntags:\n- wheels\n- cuda\n- pytorch\n---\n")
    assert f"[index.html]({hub.endpoint}/datasets/{REPO}/resolve/main/index.html)" in text
    assert "[index.html](index.html)" in card([], DirectoryStore(tmp_path))
    assert f"sagewheels install --store hf://datasets/{REPO}@main/sage\n" in text


@pytest.mark.parametrize("there", [True, False])
def test_a_private_repository_has_no_line_for_pip(hub: Hub, tmp_path: Path, there: bool) -> None:
    if there:
        hub.create(REPO, private=True)
    wheel = wheels.make(tmp_path)
    index.publish(opened(hub, private=not there), wheel, wheels.describe(wheel))
    for name in ("README.md", "index.html"):
        text = hub.files(REPO)[name].decode()
        assert "This store is private: pip and uv cannot sign in, sagewheels does with HF_TOKEN." in text
        assert "pip install" not in text.partition("<script>")[0]
        assert f"sagewheels install --store hf://datasets/{REPO}@main/sage" in text


# the printed lines, with the real pip and the real uv


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = wheels.venv(tmp_path_factory.mktemp("venv") / "env")
    wheels.lend_pip(python)
    return python


def words(tool: str, python: Path) -> list[str]:
    """The tool in this environment."""
    return [str(python), "-I", "-m", "pip"] if tool == "pip" else [wheels.uv(), "pip"]


def install(tool: str, python: Path, *what: str) -> subprocess.CompletedProcess[str]:
    """`tool install what`, into an environment that does not have it, with an empty cache and no index."""
    here = ["--python", str(python)] if tool == "uv" else ["--disable-pip-version-check"]
    yes = [] if tool == "uv" else ["--yes"]
    subprocess.run([*words(tool, python), "uninstall", *here, *yes, "tinyattn"], capture_output=True, check=False)
    argv = [*words(tool, python), "install", *here, "--no-index", "--no-cache-dir", *what]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def version(python: Path) -> str:
    code = "import tinyattn; from importlib.metadata import version; print(version('tinyattn'))"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def printed(store: Store, tool: str) -> list[str]:
    """What the card (for pip) and the page print for this tool, without the words before it."""
    files = store.read("README.md", "index.html").files
    found = re.findall(r'^pip install "(.+)"$', files["README.md"].decode(), re.MULTILINE) if tool == "pip" else []
    start = 'pip install "' if tool == "pip" else 'uv pip install "'
    return found + [
        line[len(start) : -1] for line in Seen(files["index.html"].decode()).lines if line.startswith(start)
    ]


@pytest.mark.parametrize("tool", ["pip", "uv"])
@pytest.mark.parametrize("kind", ["hub", "directory"])
def test_the_printed_line_installs_and_refuses_other_bytes(
    hub: Hub, tmp_path: Path, environment: Path, tool: str, kind: str
) -> None:
    store: Store = opened(hub) if kind == "hub" else DirectoryStore(tmp_path / "a store")
    wheel = wheels.make(tmp_path)
    index.publish(store, wheel, wheels.describe(wheel))
    lines = printed(store, tool)
    hub.tokens_seen.clear()
    assert (len(lines), len(set(lines))) == (2 if tool == "pip" else 1, 1)
    assert "%2Bcu130torch2.11sm120" in lines[0]
    done = install(tool, environment, lines[0])
    assert done.returncode == 0, done.stderr
    assert version(environment) == "1.0+cu130torch2.11sm120"
    assert hub.tokens_seen == ({""} if kind == "hub" else set()), "without a token"
    other = wheels.make(tmp_path / "other", python="mark = 'theirs'\n")
    if kind == "hub":
        repo = hub.repos["dataset", REPO]
        repo.add("main", {**hub.files(REPO), f"sage/{wheel.name}": other.read_bytes()})
    else:
        (tmp_path / "a store" / wheel.name).write_bytes(other.read_bytes())
    done = install(tool, environment, lines[0])
    assert done.returncode != 0
    assert re.search("hash mismatch|do not match the hashes|Expected sha256", done.stdout + done.stderr, re.IGNORECASE)


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_the_page_of_a_folder_serves_find_links(tmp_path: Path, environment: Path, tool: str) -> None:
    store = DirectoryStore(tmp_path / "store")
    wheel = wheels.make(tmp_path)
    index.publish(store, wheel, wheels.describe(wheel))
    moved = (tmp_path / "store").rename(tmp_path / "mounted elsewhere")
    done = install(tool, environment, "--find-links", (moved / "index.html").as_uri(), "tinyattn")
    assert done.returncode == 0, done.stderr
    assert version(environment) == "1.0+cu130torch2.11sm120"


@pytest.mark.index
def test_the_template_is_in_our_wheel(tmp_path: Path) -> None:
    argv = [wheels.uv(), "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("needs hatchling from a package index")
    made = next(tmp_path.glob("*.whl"))
    assert "sagewheels/store/page.html" in zipfile.ZipFile(made).namelist()
