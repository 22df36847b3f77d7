"""Fetch: the best wheel of a real directory store and of a loopback Hub, or the reason why there is none."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagewheels import fetch, wheel, wheelhouse
from sagewheels.errors import NothingCompatible, Refused, SageError, StoreError, UsageError
from sagewheels.job import Job
from sagewheels.manifest import WheelManifest
from tests import wheels
from tests.hub import Hub
from tests.wheels import CUDA, NAME, TAG, VERSION, Machine

REPO = "me/wheels"
PROOF = {"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z"}
GOOD = f"{NAME}-{VERSION}{wheels.LABEL}-{TAG}.whl"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine that no test of this module changes: each has its own store and wheelhouse."""
    return wheels.machine(tmp_path_factory.mktemp("machine"))


class Bench:
    """A store, directory or Hub, that holds what a test puts there, and jobs that read it."""

    def __init__(self, machine: Machine, folder: Path, hub: Hub | None) -> None:
        self.machine, self.folder, self.hub = machine, folder, hub
        self.house, self.store = folder / "wheelhouse", folder / "store"
        self.files: dict[str, bytes] = {}

    @property
    def label(self) -> str:
        return f"hf://datasets/{REPO}@main/sage" if self.hub else str(self.store)

    def job(self, **changes: Any) -> Job:
        where = {"sage_store": str(self.store)}
        if self.hub:
            where = {"sage_store": "", "hf_repo_id": REPO, "hf_endpoint": self.hub.endpoint, "remote_dir": "sage"}
        return self.machine.job(**{**where, "wheelhouse_dir": self.house, **changes})

    def put(self, *manifests: WheelManifest, latest: bool = False) -> None:
        """The store holds these wheels, as a publish would leave them; with `latest`, as the first installer did."""
        entries = [dict(one.data) for one in manifests]
        for one in manifests:
            self.files[one.wheel_file] = (self.folder / "dist" / one.wheel_file).read_bytes()
        if latest:
            self.files["latest.json"] = json.dumps(entries[-1]).encode()
        else:
            self.files["index.json"] = json.dumps({"schema": 1, "wheels": entries}).encode()
        self.write()

    def damage(self, file: str) -> None:
        """Other bytes of the same length in the store."""
        self.files[file] = bytes(len(self.files[file]))
        self.write()

    def write(self) -> None:
        if self.hub:
            self.hub.create(REPO, {f"sage/{name}": content for name, content in self.files.items()})
        for name, content in self.files.items() if not self.hub else ():
            self.store.mkdir(exist_ok=True)
            (self.store / name).write_bytes(content)

    def make(self, label: str = wheels.LABEL, **changes: Any) -> WheelManifest:
        """A wheel with its manifest, not in the store yet."""
        return wheels.describe(wheels.make(self.folder / "dist", version=VERSION + label), **changes)


@pytest.fixture(params=["directory", "hub"])
def bench(request: pytest.FixtureRequest, shared: Machine, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "directory":
        yield Bench(shared, tmp_path, None)
    else:
        with Hub() as hub:
            yield Bench(shared, tmp_path, hub)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def error(kind: type[SageError], job: Job) -> str:
    with pytest.raises(kind) as caught:
        fetch.fetch(job)
    return str(caught.value)


def arrived(manifest: WheelManifest) -> str:
    """The line that says that the bytes came."""
    size = f"{(manifest.size or 0) / 1e3:.1f} kB"
    return f"[fetch] {manifest.wheel_file}, {size}, sha256 {manifest.wheel_sha256[:12]} as promised"


def test_the_best_that_fits(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Proven here beats newer; what does not fit is not considered however new and proven it is."""
    proven = bench.make("+cu130torch2.11sm120.k1", proofs=[PROOF])
    newer = bench.make("+cu130torch2.11sm120.k2", created_at_utc="2026-06-01T00:00:00Z")
    other = bench.make("+cu128torch2.9sm120", torch_version="2.9.0+cu128", cuda_version="12.8", proofs=[PROOF])
    bench.put(newer, proven, other)
    path, manifest = fetch.fetch(bench.job())
    assert (path, manifest.wheel_file) == (bench.house / proven.wheel_file, proven.wheel_file)
    assert wheel.file_hash(path)[0] == proven.wheel_sha256
    assert lines(capsys) == [
        f"[fetch] {proven.wheel_file} fits, proven on NVIDIA GeForce RTX 5090",
        arrived(proven),
    ]
    assert sorted(path.name for path in bench.house.iterdir()) == [proven.wheel_file, f"{proven.wheel_file}.json"]
    assert json.loads((bench.house / f"{proven.wheel_file}.json").read_text()) == dict(proven.data)


def test_a_candidate_without_proof_is_told_as_such(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.put(bench.make())
    fetch.fetch(bench.job())
    assert lines(capsys)[0] == f"[fetch] {GOOD} fits, a candidate, not proven yet"


def test_a_miss_says_why_for_each_wheel(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    torch = bench.make("+cu130torch2.12sm120", torch_version="2.12.0+cu130")
    cuda = bench.make("+cu128torch2.11sm120", cuda_version="12.8", torch_version="2.11.0+cu128")
    archs = bench.make("+cu130torch2.11sm90", archs=["9.0a"], target_arch="9.0")
    unsigned = bench.make("+cu130torch2.11sm120.k3", wheel_sha256=None)
    bench.put(torch, cuda, archs, unsigned)
    job = bench.job()
    with pytest.raises(NothingCompatible) as caught:
        fetch.fetch(job)
    assert caught.value.code == 3
    assert str(caught.value) == f"{bench.label} holds no wheel for this machine. Run auto or build to make one."
    first, *rejected = lines(capsys)
    tag = job.target.python_tag
    assert first == f"[fetch] wanted: {NAME} {VERSION}, {tag}, torch 2.11.0, CUDA {CUDA}, arch 12.0"
    assert sorted(rejected) == sorted(
        [
            f"[fetch] rejected {torch.wheel_file}: it was built for torch 2.12.0, the target has 2.11.0",
            f"[fetch] rejected {cuda.wheel_file}: it was built for CUDA 12.8, the target's torch has CUDA 13.0",
            f"[fetch] rejected {archs.wheel_file}: it holds code for 9.0a, which does not run on 12.0",
            f"[fetch] rejected {unsigned.wheel_file}: its manifest has no sha256",
        ]
    )
    assert not bench.house.exists()


def test_an_empty_store(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write()
    line = f"{bench.label} holds no wheel for this machine. Run auto or build to make one."
    assert error(NothingCompatible, bench.job()) == line
    missing = "" if bench.hub else ": it does not exist yet"  # a folder is made by the first upload
    assert lines(capsys)[1:] == [f"[fetch] {bench.label} holds no wheels at all{missing}"]


def test_a_wheel_that_is_known_to_be_bad(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """A good one behind it is taken; without one, the list says why. Another arch does not care."""
    first, other = bench.make(proofs=[PROOF]), bench.make("+cu130torch2.11sm120.k2")
    gpu, moment = PROOF["gpu"], "2026-11-22T10:00:00Z"
    mark = {"wheel_sha256": first.wheel_sha256, "arch": "12.0", "gpu": gpu, "at_utc": moment, "reason": "not finite"}
    listed = [dict(first.data), dict(other.data)]
    bench.put(first, other)
    bench.files["index.json"] = json.dumps({"wheels": listed, "known_bad": [mark, "strange"]}).encode()
    bench.write()
    assert fetch.fetch(bench.job())[0].name == other.wheel_file
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == f"[fetch] {other.wheel_file} fits, a candidate, not proven yet"
    assert shown.err == "[store] warning: index.json: 1 mark in known_bad cannot be read\n"
    bench.files["index.json"] = json.dumps({"wheels": listed[:1], "known_bad": [mark]}).encode()
    bench.write()
    error(NothingCompatible, bench.job())
    why = "it is known to be bad on arch 12.0: not finite (NVIDIA GeForce RTX 5090, 2026-11-22)"
    assert lines(capsys)[1:] == [f"[fetch] rejected {GOOD}: {why}"]
    (verdict,) = bench.job(torch_cuda_arch_list="8.9").verdicts()
    assert verdict.reasons == ("it holds code for 12.0, which does not run on 8.9",)


def test_a_long_list_is_cut(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    one = bench.make(torch_version="2.12.0")
    many = [one.updated(wheel_file=one.wheel_file.replace("sm120", f"sm120.k{number}")) for number in range(23)]
    bench.files["index.json"] = json.dumps({"wheels": [dict(item.data) for item in many]}).encode()
    bench.write()
    error(NothingCompatible, bench.job())
    said = lines(capsys)
    assert len(said) == 22
    assert said[-1] == "[fetch] and 3 more; the task list shows all"


def test_bytes_that_are_not_as_promised(bench: Bench) -> None:
    good = bench.make()
    bench.put(good)
    bench.damage(good.wheel_file)
    digest = hashlib.sha256(bytes(good.size or 0)).hexdigest()
    assert error(Refused, bench.job()) == (
        f"{GOOD} has sha256 {digest[:12]}, its manifest says {good.wheel_sha256[:12]}. "
        "It was changed or damaged: fetch it again, and do not install it."
    )
    assert list(bench.house.iterdir()) == []


def test_a_wheel_that_is_listed_but_gone(bench: Bench) -> None:
    bench.put(bench.make())
    del bench.files[GOOD]
    if not bench.hub:
        (bench.store / GOOD).unlink()
    bench.write()
    with pytest.raises(StoreError) as caught:
        fetch.fetch(bench.job())
    assert caught.value.code == 7
    assert list(bench.house.iterdir()) == []


def test_a_proof_that_only_the_wheelhouse_has_is_kept(bench: Bench) -> None:
    """As where the store can only be read: what was proven here must not be forgotten by fetching again."""
    bench.put(bench.make())
    job = bench.job()
    _, found = fetch.fetch(job)
    proof = {"gpu": "NVIDIA H200", "arch": "9.0", "at_utc": "2026-01-01T00:00:00Z"}
    wheelhouse.write_manifest(job.settings, found.updated(proofs=[proof]))
    fetch.fetch(bench.job())
    ((_, kept),) = wheelhouse.wheels(job.settings)
    assert [one.gpu for one in kept.proofs] == ["NVIDIA H200"]


def test_what_is_there_already_is_not_downloaded(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.put(bench.make())
    path, _ = fetch.fetch(bench.job())
    before = path.stat().st_mtime_ns
    bench.damage(GOOD)  # a download would now be refused
    capsys.readouterr()
    if bench.hub:
        bench.hub.requests.clear()
    fetch.fetch(bench.job())
    assert lines(capsys)[1:] == [f"[fetch] {GOOD} is in the wheelhouse already"]
    assert path.stat().st_mtime_ns == before
    assert not bench.hub or not [line for line in bench.hub.requests if ".whl" in line]


def test_damage_in_the_wheelhouse_is_mended(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    good = bench.make()
    bench.put(good)
    path, _ = fetch.fetch(bench.job())
    path.write_bytes(b"half")
    capsys.readouterr()
    fetch.fetch(bench.job())
    assert wheel.file_hash(path)[0] == good.wheel_sha256
    assert lines(capsys)[1:] == [
        f"[fetch] fetching again: {GOOD} has 4 bytes, its manifest says {good.size}",
        arrived(good),
    ]


@pytest.mark.parametrize("kind", ["corrupt", "short", "endless"])
def test_other_bytes_are_asked_for_again(bench: Bench, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Once: what comes twice is what the store holds."""
    if not bench.hub:
        pytest.skip("nothing is altered on the way from a directory")
    good = bench.make()
    bench.put(good)
    bench.hub.misbehave(r"\.whl", kind)
    path, _ = fetch.fetch(bench.job())
    assert wheel.file_hash(path)[0] == good.wheel_sha256
    said = lines(capsys)
    assert said[1].startswith(f"[fetch] fetching again: {GOOD} has ")
    assert said[2:] == [arrived(good)]
    shutil.rmtree(bench.house)
    bench.hub.misbehave(r"\.whl", kind, 99)
    bench.hub.requests.clear()
    line = error(Refused, bench.job())
    promised = f"the {good.size} bytes of its manifest" if kind == "endless" else "its manifest says"
    assert line.startswith(f"{GOOD} has ") and promised in line and line.endswith(("Fetch it again.", "install it."))
    assert (len(bench.hub.requests), list(bench.house.iterdir())) == (4, [])


def test_a_proof_that_came_later_is_brought_too(bench: Bench) -> None:
    good = bench.make()
    bench.put(good)
    fetch.fetch(bench.job())
    bench.put(good.updated(proofs=[PROOF]))
    _, manifest = fetch.fetch(bench.job())
    assert [proof.gpu for proof in manifest.proofs] == ["NVIDIA GeForce RTX 5090"]
    assert json.loads((bench.house / f"{GOOD}.json").read_text())["proofs"] == [PROOF]


def test_a_repository_of_the_first_installer(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Only latest.json, with its keys and no others."""
    path = wheels.make(bench.folder / "dist", version=VERSION)
    digest, _ = wheel.file_hash(path)
    old = {
        "created_at_utc": "2025-08-01T10:00:00Z",
        "wheel_file": path.name,
        "wheel_sha256": digest,
        "hf_wheel_url": f"https://huggingface.co/datasets/{REPO}/resolve/main/sage/{path.name}",
        "sageattention_version": VERSION,
        "torch_version": wheels.TORCH,
        "torchvision_version": None,
        "torch_index_url": "https://download.pytorch.org/whl/nightly/cu130",
        "target_arch": "12.0+PTX",
        "cudaarchs": "120",
        "python_tag": "cp312",
    }
    bench.files = {"latest.json": json.dumps(old).encode(), path.name: path.read_bytes()}
    bench.write()
    got, manifest = fetch.fetch(bench.job())
    assert (got.name, manifest.cuda, dict(manifest.data)) == (path.name, "13.0", old)
    assert lines(capsys)[0] == f"[fetch] {path.name} fits, a candidate, not proven yet"


def test_an_unsigned_wheel_only_when_the_user_allows_it(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    unsigned = bench.make(wheel_sha256=None, size=None)
    bench.put(unsigned)
    error(NothingCompatible, bench.job())
    path, _ = fetch.fetch(bench.job(allow_unsafe_wheel=True))
    assert path.read_bytes() == bench.files[GOOD]
    assert lines(capsys)[-1].endswith(", no sha256 to check")


def test_an_entry_that_cannot_be_read_is_said_and_passed_over(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    good = bench.make()
    bench.put(good)
    listed = [{"wheel_file": "../../evil.whl"}, dict(good.data)]
    bench.files["index.json"] = json.dumps({"wheels": listed}).encode()
    bench.write()
    assert fetch.fetch(bench.job())[0].name == GOOD
    warning = "index.json entry 1: wheel_file '../../evil.whl' is not the name of a wheel"
    assert warning in capsys.readouterr().err


def test_a_store_that_does_not_answer(shared: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_waiting(monkeypatch)
    with Hub() as hub:
        endpoint = hub.endpoint
    job = shared.job(sage_store="", hf_repo_id=REPO, hf_endpoint=endpoint, wheelhouse_dir=tmp_path / "house")
    with pytest.raises(StoreError) as caught:
        fetch.fetch(job)
    assert caught.value.code == 7
    assert not (tmp_path / "house").exists()


# WHEEL_URL: a folder on a USB disk or a plain web server, each with what lies in it.


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(params=["file", "http"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address and the folder behind it."""
    folder = tmp_path / "my site"
    folder.mkdir()
    if request.param == "file":
        yield folder.as_uri(), folder
        return
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def url_job(machine: Machine, tmp_path: Path, url: str, **changes: Any) -> Job:
    return machine.job(wheel_url=url, wheelhouse_dir=tmp_path / "house", **changes)


def in_house(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "house").glob("*"))


def test_a_url_with_its_manifest_beside_it(
    shared: Machine, tmp_path: Path, site: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = site
    path = wheels.make(folder)
    manifest = wheels.describe(path)
    (folder / f"{path.name}.json").write_text(manifest.to_json())
    # As browsers show it: the + of the version is escaped.
    got, found = fetch.fetch(url_job(shared, tmp_path, f"{url}/{path.name.replace('+', '%2B')}"))
    assert (got.read_bytes(), found) == (path.read_bytes(), manifest)
    assert lines(capsys) == [f"[fetch] {GOOD} from WHEEL_URL, as you set it", arrived(manifest)]
    assert in_house(tmp_path) == [GOOD, f"{GOOD}.json"]


def test_a_url_with_its_hash_in_it(shared: Machine, tmp_path: Path, site: tuple[str, Path]) -> None:
    """What it is for is read from the file's own name."""
    url, folder = site
    path = wheels.make(folder)
    digest, _ = wheel.file_hash(path)
    got, found = fetch.fetch(url_job(shared, tmp_path, f"{url}/{path.name}#sha256={digest.upper()}"))
    assert got.read_bytes() == path.read_bytes()
    assert (found.wheel_sha256, found.torch, found.cuda) == (digest, "2.11.0", "13.0")
    assert [str(one) for one in found.archs] == ["12.0"]


@pytest.mark.parametrize("torch", ["2.13.0.dev20260101", "2.14.0rc1"])
def test_a_url_of_a_wheel_for_a_nightly_torch(tmp_path: Path, torch: str) -> None:
    """The default channel is nightly: that is how build labels such a wheel."""
    machine = wheels.machine(tmp_path)
    wheels.put_torch(machine.python, f"{torch}+cu130")
    path = wheels.make(tmp_path / "site", version=f"{VERSION}+cu130torch{torch}sm120.k12345678")
    digest, _ = wheel.file_hash(path)
    _, found = fetch.fetch(url_job(machine, tmp_path, f"{path.as_uri()}#sha256={digest}"))
    assert found.torch == torch


def test_a_url_that_nothing_vouches_for(shared: Machine, tmp_path: Path, site: tuple[str, Path]) -> None:
    url, folder = site
    path = wheels.make(folder)
    address = f"{url}/{path.name}"
    line = f"nothing says what the bytes of {GOOD} should be. Add #sha256=... to WHEEL_URL."
    assert error(Refused, url_job(shared, tmp_path, address)) == line
    assert in_house(tmp_path) == []
    fetch.fetch(url_job(shared, tmp_path, address, allow_unsafe_wheel=True))
    assert in_house(tmp_path) == [GOOD, f"{GOOD}.json"]


def test_a_url_with_the_wrong_hash(shared: Machine, tmp_path: Path, site: tuple[str, Path]) -> None:
    url, folder = site
    path = wheels.make(folder)
    (folder / f"{path.name}.json").write_text(wheels.describe(path).to_json())
    digest, _ = wheel.file_hash(path)
    line = error(Refused, url_job(shared, tmp_path, f"{url}/{path.name}#sha256={'0' * 64}"))
    assert line == (
        f"{GOOD} has sha256 {digest[:12]}, its manifest says 000000000000. "
        "It was changed or damaged: fetch it again, and do not install it."
    )
    assert in_house(tmp_path) == []


def test_a_url_that_does_not_fit(shared: Machine, tmp_path: Path, site: tuple[str, Path]) -> None:
    url, folder = site
    path = wheels.make(folder, version=f"{VERSION}+cu128torch2.8.1sm90")
    digest, _ = wheel.file_hash(path)
    with pytest.raises(NothingCompatible) as caught:
        fetch.fetch(url_job(shared, tmp_path, f"{url}/{path.name}#sha256={digest}"))
    assert caught.value.code == 3
    assert str(caught.value) == (
        "WHEEL_URL does not fit this machine: it was built for torch 2.8.1, the target has 2.11.0; "
        "it was built for CUDA 12.8, the target's torch has CUDA 13.0; "
        "it holds code for 9.0, which does not run on 12.0."
    )
    assert in_house(tmp_path) == []


def test_a_url_with_the_manifest_of_another_wheel(shared: Machine, tmp_path: Path, site: tuple[str, Path]) -> None:
    url, folder = site
    path = wheels.make(folder)
    other = wheels.describe(path, wheel_file=GOOD.replace("sm120", "sm90"))
    (folder / f"{path.name}.json").write_text(other.to_json())
    line = f"{GOOD}.json describes {other.wheel_file}. Publish the wheel with its own manifest."
    assert error(Refused, url_job(shared, tmp_path, f"{url}/{path.name}")) == line


def test_a_url_where_nothing_is(shared: Machine, tmp_path: Path, site: tuple[str, Path]) -> None:
    url, _ = site
    with pytest.raises(StoreError) as caught:
        fetch.fetch(url_job(shared, tmp_path, f"{url}/{GOOD}#sha256={'0' * 64}"))
    assert caught.value.code == 7
    assert in_house(tmp_path) == []


@pytest.mark.parametrize("url", ["ftp://example.invalid/x.whl", "x.whl", "https://example.invalid/x.zip", "https://"])
def test_a_url_that_is_no_address_of_a_wheel(shared: Machine, tmp_path: Path, url: str) -> None:
    line = f"WHEEL_URL={url!r} is not the address of a wheel. Write https://.../name.whl."
    assert error(UsageError, url_job(shared, tmp_path, url)) == line


def test_an_address_is_named_without_what_signs_it(shared: Machine, tmp_path: Path) -> None:
    url = "https://me:secret@example.invalid/x.zip?signature=secret#secret"
    line = "WHEEL_URL='https://example.invalid/x.zip' is not the address of a wheel. Write https://.../name.whl."
    assert error(UsageError, url_job(shared, tmp_path, url)) == line


def test_a_url_from_the_hub(shared: Machine, tmp_path: Path) -> None:
    """No token of the user goes along: WHEEL_URL may point anywhere."""
    path = wheels.make(tmp_path)
    digest, _ = wheel.file_hash(path)
    with Hub() as hub:
        hub.create(REPO, {f"sage/{path.name}": path.read_bytes()})
        url = f"{hub.endpoint}/datasets/{REPO}/resolve/main/sage/{path.name}#sha256={digest}"
        got, _ = fetch.fetch(url_job(shared, tmp_path, url, hf_token="hf_write"))
        assert got.read_bytes() == path.read_bytes()
        assert hub.tokens_seen == {""}


def test_a_url_as_the_button_of_the_hub_gives_it(shared: Machine, tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    digest, _ = wheel.file_hash(path)
    with Hub() as hub:
        hub.create(REPO, {f"sage/{path.name}": path.read_bytes()})
        url = f"{hub.endpoint}/datasets/{REPO}/resolve/main/sage/{path.name}?download=true#sha256={digest}"
        assert fetch.fetch(url_job(shared, tmp_path, url))[0].read_bytes() == path.read_bytes()


def test_a_download_that_breaks_off(shared: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried again, or told as trouble of the network; nothing half is left in either case."""
    path = wheels.make(tmp_path)
    digest, _ = wheel.file_hash(path)
    wheels.without_waiting(monkeypatch)
    with Hub() as hub:
        hub.create(REPO, {f"sage/{path.name}": path.read_bytes()})
        hub.misbehave(r"GET .*\.whl$", "truncate", times=99)
        url = f"{hub.endpoint}/datasets/{REPO}/resolve/main/sage/{path.name}#sha256={digest}"
        with pytest.raises(StoreError) as caught:
            fetch.fetch(url_job(shared, tmp_path, url))
    assert caught.value.code == 7
    assert in_house(tmp_path) == []


def test_a_damaged_wheel_does_not_hide_a_good_one(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    newer = bench.make("+cu130torch2.11sm120.k2", created_at_utc="2030-01-01T00:00:00Z")
    bench.put(bench.make(created_at_utc="2020-01-01T00:00:00Z"), newer)
    bench.damage(newer.wheel_file)
    assert fetch.fetch(bench.job())[1].wheel_file == GOOD
    assert any(line.startswith("[fetch] not that one: ") for line in lines(capsys))
