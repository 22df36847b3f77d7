"""What a stolen token and a stolen key can do: the whole way, on a directory and on a loopback Hub, with real keys."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagewheels import auto, bad, fetch, listing, manifest, ours, proofs, proving, stack, steps, trust, wheelhouse
from sagewheels import signing as ssh
from sagewheels.bad import Mark
from sagewheels.config import load
from sagewheels.errors import NothingCompatible, Refused, SageError, StoreError, Untrusted, UsageError
from sagewheels.job import Job
from sagewheels.resources import ROOT
from sagewheels.store import index
from sagewheels.store.entries import merge
from sagewheels.wheelhouse import Made
from tests import signers, wheels
from tests.hub import Hub
from tests.signers import FOLDER, REPO, Key, Place, Shop, needs_ssh_keygen
from tests.wheels import NAME, TAG, VERSION, Machine

GOOD = f"{NAME}-{VERSION}{wheels.LABEL}-{TAG}.whl"
OTHER = GOOD.replace("sm120", "sm120.kother")
PROOF = {"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z"}
REMEDY = "Its signers can mend it (init-hf --sign), auto --rebuild does without it."
NO_SIGNATURE = "it has a signature that is no SSH signature"
OF_ANOTHER = "does not match its signature: it was altered, or the signature is of another"

pytestmark = [
    needs_ssh_keygen,
    # huggingface_hub hands LFS uploads to its HTTP client in a way that the latter is about to drop.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: signers.key(folder, name) for name in ("maker", "second", "thief")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine that is only read."""
    return wheels.machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_cuobjdump(monkeypatch)
    wheels.without_waiting(monkeypatch)


@pytest.fixture(params=["directory", "hub"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    if request.param == "directory":
        yield Shop(folder=tmp_path / "store")
        return
    with Hub() as hub:
        yield Shop(hub=hub)


@pytest.fixture
def folder(tmp_path: Path) -> Shop:
    return Shop(folder=tmp_path / "store")


class Cast:
    """The publishers and readers of one store: `maker` and `second` are trusted, `thief` is not."""

    def __init__(self, machine: Machine, keys: dict[str, Key], shop: Shop, root: Path, *, same: bool = True) -> None:
        self.machine, self.keys, self.shop, self.root, self.same = machine, keys, shop, root, same
        self.trusted = signers.trusted(root / "trusted", keys["maker"], keys["second"])

    def publisher(self, name: str = "maker", *, trusting: bool = True) -> Place:
        """A machine with a key of its own."""
        trusted = {"trusted_signers": str(self.trusted)} if trusting else {}
        changes = {**self.shop.settings, "signing_key": str(self.keys[name].path), **trusted}
        return Place(self.machine, self.root / f"of-{name}", changes, self.same)

    def reader(self, name: str = "reader", **changes: Any) -> Place:
        """A machine that only knows whom to trust."""
        return Place(
            self.machine,
            self.root / name,
            {**self.shop.settings, "hf_token": "hf_read", "trusted_signers": str(self.trusted), **changes},
            self.same,
        )

    def stranger(self, name: str = "stranger", **changes: Any) -> Place:
        """A machine that never heard of signatures."""
        return Place(self.machine, self.root / name, {**self.shop.settings, **changes}, self.same)


@pytest.fixture
def cast(shared: Machine, keys: dict[str, Key], shop: Shop, tmp_path: Path) -> Cast:
    return Cast(shared, keys, shop, tmp_path)


@pytest.fixture
def local(shared: Machine, keys: dict[str, Key], folder: Shop, tmp_path: Path) -> Cast:
    """The same with a directory alone, for what does not depend on the kind of store."""
    return Cast(shared, keys, folder, tmp_path)


def failing(kind: type[SageError], run: Callable[..., object], *arguments: Any, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        run(*arguments, **more)
    assert type(caught.value) is kind
    return str(caught.value)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


# What is published and taken


def test_what_a_signer_published_is_taken_and_nothing_of_the_key_is_published(
    cast: Cast, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cast.publisher().publish() == GOOD
    assert said(capsys)[-2:] == [
        f"[upload] {GOOD} is in {cast.shop.label}, a candidate until it is proven",
        "[upload] index serial 1, signed by maker",
    ]
    path, _ = fetch.fetch(cast.reader().job())
    assert f"[fetch] {GOOD} fits, a candidate, not proven yet, signed by maker" in said(capsys)
    assert path.is_file()
    listing.show(cast.reader().job())
    told = capsys.readouterr().out
    assert "[list] index serial 1, signed by maker" in told
    assert "| signed by | " in told and "| maker " in told
    private = cast.keys["maker"].path
    secret = private.read_text().splitlines()[1].encode()
    for name, content in cast.shop.files().items():
        assert str(private).encode() not in content and secret not in content, name


def test_the_serial_counts_the_commits_of_the_index(cast: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    place = cast.publisher()
    made = place.build()
    assert steps.do_upload(place.job(), made)
    before = cast.shop.files()
    capsys.readouterr()
    assert steps.do_upload(place.job(), made)
    assert said(capsys) == [
        f"[upload] {GOOD} is in {cast.shop.label} already, nothing changed",
        "[upload] index serial 1, signed by maker",
    ]
    assert cast.shop.files() == before
    place.publish("+cu130torch2.11sm120.kother")
    assert cast.shop.index["serial"] == 2
    assert len(fetch_verdicts(cast.reader())) == 2


def fetch_verdicts(place: Place) -> dict[str, str]:
    """The store's wheels, and what speaks against each."""
    return {one.candidate.wheel_file: "; ".join(one.reasons) for one in place.job().verdicts()}


# A stolen token: whoever has it writes to the store, and has no key


def alter(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    document = shop.index
    document["wheels"][0]["torch_version"] = "2.11.0+cu130.mine"
    shop.write_index(document)


def swap(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    shop.write_index(shop.index, by=keys["thief"])


def add_proof(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    document = shop.index
    document["wheels"][0]["proofs"] = [PROOF]
    shop.write_index(document)


def remove_mark(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    document = shop.index
    assert document.pop(bad.KEY)
    shop.write_index(document)


def raise_serial(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    shop.write_index({**shop.index, "serial": 99})


def replay(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    shop.put({"index.json": before["index.json"]})


def strip(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    document = shop.index
    del document["signature"], document["serial"]
    document["wheels"] = [{**one, "signature": None} for one in document["wheels"]]
    shop.write_index(document)


def add_wheel(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    document = shop.index
    better = {**document["wheels"][0], "wheel_file": OTHER, "proofs": [PROOF], "created_at_utc": "2027-01-01T00:00:00Z"}
    document["wheels"].append(better)
    shop.write_index(document)
    shop.put({OTHER: b"mine"})


def of_a_wheel(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    document = shop.index
    shop.write_index({**document, "signature": document["wheels"][0]["signature"]})


def scribble(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    shop.write_index({**shop.index, "signature": "trust me"})


def damage(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    shop.put({"index.json": b"\xff{"})


def take_away(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    shop.put({}, gone=[name for name in ("index.json", "latest.json") if name in shop.files()])


def infinite(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    shop.put({"index.json": shop.files()["index.json"].replace(b'"size": ', b'"size_": 1e999, "size": ')})


def only_latest(shop: Shop, keys: dict[str, Key], before: dict[str, bytes]) -> None:
    shop.put({"latest.json": json.dumps(shop.index["wheels"][0]).encode()}, gone=["index.json"])


THEFTS: list[tuple[Callable[[Shop, dict[str, Key], dict[str, bytes]], None], str]] = [
    (alter, f"index.json of STORE {OF_ANOTHER}"),
    (swap, "index.json of STORE is signed by a key that is not in TRUSTED_SIGNERS (THIEF)"),
    (add_proof, f"index.json of STORE {OF_ANOTHER}"),
    (remove_mark, f"index.json of STORE {OF_ANOTHER}"),
    (raise_serial, f"index.json of STORE {OF_ANOTHER}"),
    (
        replay,
        "index.json of STORE has serial 1, and 2 is the least that is believed here: an older state was put back",
    ),
    (strip, "index.json of STORE is not signed"),
    (add_wheel, f"index.json of STORE {OF_ANOTHER}"),
    (of_a_wheel, f"index.json of STORE {OF_ANOTHER}"),
    (scribble, "index.json of STORE has a signature that is no SSH signature"),
    (damage, "index.json of STORE is not signed"),
    (take_away, "STORE holds no index.json, and serial 2 was seen before"),
    (infinite, "index.json of STORE is not signed"),
    (only_latest, "index.json of STORE is not signed"),
]


QUICK = (alter, swap, replay, strip, take_away)


@pytest.mark.parametrize(("theft", "line"), THEFTS, ids=[theft.__name__ for theft, _ in THEFTS])
def test_what_a_stolen_token_does_is_refused(
    cast: Cast, theft: Callable[..., None], line: str, everything: bool
) -> None:
    """By all that read, by the publisher, and without a trace: nothing is fetched, installed or written."""
    if not everything and theft not in ((replay,) if cast.shop.hub else QUICK):
        pytest.skip("a quick run takes five of them on a directory, one on the Hub")
    place, reader = cast.publisher(), cast.reader()
    place.publish()
    before = cast.shop.files()
    index.add_mark(place.job().store, mark(cast.shop.entry(GOOD)["wheel_sha256"]))
    fetch_verdicts(reader)
    theft(cast.shop, cast.keys, before)
    stolen, site = cast.shop.files(), wheels.tree(cast.machine.site)
    expected = line.replace("STORE", cast.shop.label).replace("THIEF", cast.keys["thief"].fingerprint)
    readers = (fetch.fetch, auto.auto, auto.install, listing.show, steps.plan_fetch)
    for run in readers if everything or theft is alter else readers[:2]:
        assert failing(Untrusted, run, reader.job()) == f"{expected}. {REMEDY}"
    made = place.build("+cu130torch2.11sm120.kother")
    assert failing(Untrusted, steps.do_upload, place.job(), made) == f"{expected}. {REMEDY}"
    assert not (reader.folder / "wheelhouse").exists()
    assert (wheels.tree(cast.machine.site), cast.shop.files()) == (site, stolen)


def mark(sha256: str) -> Mark:
    found = bad.read({"wheel_file": GOOD, "wheel_sha256": sha256, "arch": "9.0", "reason": "3 of 128 cases are wrong"})
    assert found
    return found


def test_other_bytes_under_the_same_name_are_refused(cast: Cast) -> None:
    cast.publisher().publish()
    cast.shop.put({GOOD: b"mine" * 100})
    reader = cast.reader()
    line = failing(Refused, fetch.fetch, reader.job())
    assert line.startswith(f"{GOOD} has 400 bytes, its manifest says ")
    assert list((reader.folder / "wheelhouse").iterdir()) == []


def test_what_nobody_signs_says_nothing(local: Cast) -> None:
    """latest.json and the JSON beside the wheel: a thief may write there what he likes."""
    place = local.publisher()
    place.publish(proofs=[])
    forged = {**local.shop.entry(GOOD), "proofs": [PROOF]}
    local.shop.put({"latest.json": json.dumps(forged).encode(), f"{GOOD}.json": json.dumps(forged).encode()})
    assert [one.proofs for one in local.reader().job().published] == [()]
    local.shop.put({"latest.json": json.dumps({**forged, "wheel_file": OTHER}).encode()})
    assert list(fetch_verdicts(local.reader("second-reader"))) == [GOOD]
    place.publish("+cu130torch2.11sm120.kother")
    assert [len(one["proofs"]) for one in local.shop.index["wheels"]] == [0, 0]


def test_what_nobody_signs_is_not_signed_over(local: Cast) -> None:
    """Nor by a machine that only has a key, and takes all that it reads."""
    place = local.publisher(trusting=False)
    place.publish()
    entry = local.shop.entry(GOOD)
    for forged in ({**entry, "proofs": [PROOF]}, {**entry, "wheel_file": OTHER, "signature": None}):
        local.shop.put({"latest.json": json.dumps(forged).encode()})
        place.publish(f"+cu130torch2.11sm120.k{len(forged['proofs'])}")
    assert [one["proofs"] for one in local.shop.index["wheels"]] == [[], [], []]
    assert OTHER not in fetch_verdicts(local.reader())


def test_a_stolen_token_cannot_make_a_key_sign_what_it_wrote(local: Cast) -> None:
    """Also where nothing is enforced on reading: what is signed was verified first."""
    place = local.publisher(trusting=False)
    place.publish()
    before = local.shop.files()
    for theft in (alter, add_proof, strip, swap, of_a_wheel):
        theft(local.shop, local.keys, {})
        stolen = local.shop.files()
        line = failing(StoreError, steps.do_upload, place.job(), place.build("+cu130torch2.11sm120.kother"))
        assert line.startswith(f"nothing was published: index.json of {local.shop.label} ")
        assert local.shop.files() == stolen
        local.shop.put({"index.json": before["index.json"]})
    place.publish("+cu130torch2.11sm120.kother")
    replay(local.shop, local.keys, before)
    line = failing(StoreError, steps.do_upload, place.job(), place.build("+cu130torch2.11sm120.kthird"))
    assert "has serial 1, and 2 is the least that is believed here" in line


# A stolen or careless key of a signer of the index: each wheel still has to be signed by its maker


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"signature": None}, "it is not signed"),
        ({"torch_version": "2.11.0"}, f"it {OF_ANOTHER}"),
        ({"wheel_sha256": "e" * 64}, f"it {OF_ANOTHER}"),
        ({"signature": "of another wheel"}, f"it {OF_ANOTHER}"),
        ({"signature": "of the thief"}, "it is signed by a key that is not in TRUSTED_SIGNERS (THIEF)"),
        ({"signature": {"by": "me"}}, NO_SIGNATURE),
        ({"signature": "-----BEGIN SSH SIGNATURE-----\n\u2003AA==\n-----END SSH SIGNATURE-----\n"}, NO_SIGNATURE),
        ({"wheel_sha256": None}, "it has no sha256 that a signature could vouch for"),
    ],
)
def test_a_wheel_that_its_maker_did_not_sign_is_rejected(
    local: Cast, change: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = local.publisher()
    place.publish()
    place.publish("+cu130torch2.11sm120.kother")
    document = local.shop.index
    (one,) = [item for item in document["wheels"] if item["wheel_file"] == GOOD]
    if change.get("signature") == "of another wheel":
        change = {"signature": local.shop.entry(OTHER)["signature"]}
    if change.get("signature") == "of the thief":
        payload = trust.canonical(manifest.parse(one, "x").signed_part)
        change = {"signature": local.keys["thief"].sign(payload, ssh.WHEEL)}
    one.update(change)
    document["wheels"] = [one]
    local.shop.write_index(document, by=local.keys["second"])
    reason = reason.replace("THIEF", local.keys["thief"].fingerprint)
    reader = local.reader(allow_unsafe_wheel=True)
    line = failing(NothingCompatible, fetch.fetch, reader.job())
    assert line == f"{local.shop.label} holds no wheel for this machine. Run auto or build to make one."
    assert f"[fetch] rejected {GOOD}: {reason}" in said(capsys)
    listing.show(reader.job())
    assert reason in capsys.readouterr().out
    assert not (reader.folder / "wheelhouse").exists()


def test_only_what_fits_is_asked_who_signed_it_and_once(local: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    place = local.publisher()
    place.publish()
    place.publish("+cu130torch2.12sm120", torch_version="2.12.0+cu130")
    asked = list[str]()
    verify = ssh.verify

    def counted(payload: str, signature: object, namespace: str, *more: Any) -> ssh.Answer:
        asked.append(namespace)
        return verify(payload, signature, namespace, *more)

    monkeypatch.setattr(ssh, "verify", counted)
    job = local.reader().job()
    job.verdicts()
    made = fetch.fetch(job)
    steps.choose(job)
    assert made[0].name == GOOD
    assert asked == [ssh.INDEX, ssh.WHEEL]


def test_without_signers_nothing_is_asked(local: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unsigned store is read, written and proven as ever, also a signed one is read."""
    monkeypatch.setattr(ssh, "sign", None)
    monkeypatch.setattr(ssh, "verify", None)
    monkeypatch.setattr(trust, "canonical", None)
    place = local.stranger()
    place.publish()
    assert "serial" not in local.shop.index and "signature" not in local.shop.index
    assert fetch.fetch(local.stranger("other").job())[0].name == GOOD
    local.shop.write_index({**local.shop.index, "serial": 4, "signature": "of somebody"})
    assert list(fetch_verdicts(place)) == [GOOD]


# Nothing is laundered


def test_a_signed_store_is_not_written_without_a_key(cast: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    cast.publisher().publish()
    before, place = cast.shop.files(), cast.stranger()
    made = place.build("+cu130torch2.11sm120.kother")
    line = f"{cast.shop.label} is signed, and SIGNING_KEY is not set. " + (
        "Set it to the key of a signer, or publish from a machine that has one."
    )
    assert failing(StoreError, steps.do_upload, place.job(), made) == line
    job = place.job()
    assert failing(StoreError, index.add_mark, job.store, mark(cast.shop.entry(GOOD)["wheel_sha256"])) == line
    proven = made[1].updated(wheel_file=GOOD, wheel_sha256=cast.shop.entry(GOOD)["wheel_sha256"], proofs=[PROOF])
    proofs.publish(place.job(), proven)
    assert capsys.readouterr().err == f"[smoke] warning: the proof stays in the wheelhouse: {line}\n"
    assert cast.shop.files() == before


def test_whoever_trusts_signers_begins_no_unsigned_store(local: Cast) -> None:
    place = local.reader()
    line = failing(StoreError, steps.do_upload, place.job(), place.build(), asked=True)
    assert line == (
        f"{local.shop.label} has to be signed (TRUSTED_SIGNERS), and SIGNING_KEY is not set. "
        "Set it to the key of a signer, or publish from a machine that has one."
    )
    assert not any(name.endswith(".json") for name in (local.shop.files() if local.shop.folder.exists() else []))


@pytest.mark.parametrize("trusting", [True, False])
def test_an_unsigned_store_is_adopted_before_it_is_signed(local: Cast, trusting: bool) -> None:
    local.stranger().publish(proofs=[PROOF])
    before, place = local.shop.files(), local.publisher(trusting=trusting)
    made = place.build("+cu130torch2.11sm120.kother")
    what = f"index.json of {local.shop.label} is not signed"
    if trusting:
        assert failing(Untrusted, steps.do_upload, place.job(), made) == f"{what}. {REMEDY}"
    else:
        line = failing(StoreError, steps.do_upload, place.job(), made)
        assert line == f"nothing was published: {what}. init-hf --sign adopts what is there."
    assert local.shop.files() == before


def test_an_index_of_another_signer_is_not_signed_over(local: Cast) -> None:
    local.publisher("thief", trusting=False).publish()
    before, place = local.shop.files(), local.publisher(trusting=False)
    line = failing(StoreError, steps.do_upload, place.job(), place.build("+cu130torch2.11sm120.kother"))
    assert line == (
        f"nothing was published: index.json of {local.shop.label} is signed by a key that is not SIGNING_KEY "
        f"({local.keys['thief'].fingerprint}). init-hf --sign adopts what is there."
    )
    assert local.shop.files() == before


def test_a_key_that_is_not_trusted_here_publishes_nothing(local: Cast) -> None:
    place = local.publisher("thief")
    line = failing(UsageError, steps.do_upload, place.job(), place.build())
    assert line == (
        f"what SIGNING_KEY {local.keys['thief'].path} signs would not be trusted here: it is signed by a key that is "
        f"not in TRUSTED_SIGNERS ({local.keys['thief'].fingerprint}). "
        "Add its public key to TRUSTED_SIGNERS (init-hf --sign does), or use another key."
    )
    assert not local.shop.folder.exists() or not any(local.shop.folder.glob("*.json"))


def test_only_what_is_known_is_signed(local: Cast) -> None:
    """A wheel that lies in the wheelhouse, from wherever, is not signed by accident; named by the user, it is."""
    place = local.publisher()
    path = wheels.make(place.folder / "dist")
    made = wheelhouse.keep(place.settings, path, wheels.describe(path)), wheels.describe(path)
    line = failing(Refused, steps.do_upload, place.job(), made)
    remedy = f"If you know where it is from: upload --wheel {GOOD}."
    assert line == f"{GOOD} is not signed and was not built here. {remedy}"
    signed_by_thief = local.publisher("thief", trusting=False)
    assert signed_by_thief.publish() == GOOD
    ((_, theirs),) = [(path, manifest.parse(local.shop.entry(GOOD), GOOD))]
    line = failing(Refused, steps.do_upload, place.job(), (made[0], theirs), named=True)
    thief = local.keys["thief"].fingerprint
    assert line == f"{GOOD} is signed by a key that is not in TRUSTED_SIGNERS ({thief}). Build it again to publish it."
    shutil.rmtree(local.shop.folder)
    (place.folder / "work" / "state" / "serials.json").unlink(missing_ok=True)
    assert steps.do_upload(place.job(), made, named=True)
    assert fetch_verdicts(local.reader()) == {GOOD: ""}


def test_a_proof_of_somebody_else_is_not_signed(local: Cast) -> None:
    """What the wheelhouse says of proofs may come from anywhere: only those that were found here are vouched for."""
    place = local.publisher()
    mine = {**PROOF, "at_utc": "2026-02-02T00:00:00Z"}
    ours.note(place.settings, ours.of_proof(mine))
    made = place.build(proofs=[PROOF, mine])
    steps.do_upload(place.job(), made)
    assert local.shop.entry(GOOD)["proofs"] == [mine]
    proofs.publish(place.job(), made[1])
    assert local.shop.entry(GOOD)["proofs"] == [mine]


def test_the_signature_of_the_maker_stays(local: Cast) -> None:
    """When another signer publishes the same wheel, or proves it; vouched proofs stay too."""
    maker, second = local.publisher(), local.publisher("second")
    proofs = [PROOF, {**PROOF, "gpu": "NVIDIA H100"}]
    for place, proof in zip((maker, second), proofs, strict=True):
        ours.note(place.settings, ours.of_proof(proof))
    maker.publish(proofs=[proofs[0]])
    before = local.shop.entry(GOOD)
    second.publish(proofs=[proofs[1]], created_at_utc="2026-03-03T00:00:00Z")
    after = local.shop.entry(GOOD)
    assert after["signature"] == before["signature"]
    assert after["created_at_utc"] == before["created_at_utc"]
    assert sorted(one["gpu"] for one in after["proofs"]) == ["NVIDIA GeForce RTX 5090", "NVIDIA H100"]
    assert local.shop.index["serial"] == 2
    job = local.reader().job()
    job.verdicts()
    assert job.store.standing == "index serial 2, signed by second"
    assert job.trust.of_wheel(manifest.parse(after, GOOD)).signer == "maker"


def test_what_this_machine_knows_besides_does_not_break_a_signature(local: Cast) -> None:
    """Its wheelhouse has the same wheel, not signed, with a key of its own and a proof: the proof is kept."""
    local.publisher().publish()
    reader = local.reader()
    path = wheels.make(reader.folder / "dist")
    wheelhouse.keep(reader.settings, path, wheels.describe(path, proofs=[PROOF], their_own_key={"kept": False}))
    fetch.fetch(reader.job())
    ((_, kept),) = reader.job().in_wheelhouse()
    assert (reader.job().trust.of_wheel(kept).signer, len(kept.proofs)) == ("maker", 1)
    assert "their_own_key" not in kept.data
    older = kept.updated(proofs=[{**PROOF, "gpu": "NVIDIA H100"}])
    for both in (merge(older, wheels.describe(path)), merge(wheels.describe(path, more=1), older), merge(older, kept)):
        assert reader.job().trust.of_wheel(both).signer == "maker"


def test_two_signers_publish_at_once(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second commits between what the first read and its commit: nothing is lost, and the serial counts both."""
    first, second = cast.publisher(), cast.publisher("second")
    mine, theirs = (place.build(f"+cu130torch2.11sm120.k{at}") for at, place in enumerate((first, second)))
    job = first.job()
    inner = job.store._inner
    commit, quicker = inner.commit, [lambda: steps.do_upload(second.job(), theirs)]

    def late(*arguments: Any) -> str:
        while quicker:
            quicker.pop()()
        return commit(*arguments)

    monkeypatch.setattr(inner, "commit", late)
    steps.do_upload(job, mine)
    assert fetch_verdicts(cast.reader()) == {mine[0].name: "", theirs[0].name: ""}
    assert (cast.shop.index["serial"], job.store.standing) == (2, "index serial 2, signed by maker")


def test_a_proof_is_signed_where_it_is_found(
    mine: Cast, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the machine that found it, though the wheelhouse holds one of the same occasion that nobody vouches for."""
    wheels.with_gpu_answers(monkeypatch)
    wheels.script(mine.machine.folder / "bin" / "nvidia-smi", f"#!/bin/sh\necho '{wheels.RTX}'\n")
    place = mine.publisher()
    made = place.build(proofs=[{**PROOF, "driver": "580.65.06", "torch_version": "2.11.0+cu130"}])
    steps.do_upload(place.job(), made)
    assert mine.shop.entry(GOOD)["proofs"] == []
    steps.do_verify(place.job(), made)
    proving.do_smoke(place.job())
    assert f"[smoke] the proof is in {mine.shop.label}" in said(capsys)
    (proof,) = mine.shop.entry(GOOD)["proofs"]
    assert proof["at_utc"] != PROOF["at_utc"]
    assert (mine.shop.index["serial"], fetch_verdicts(mine.reader())) == (2, {GOOD: ""})
    proving.do_smoke(place.job())
    assert mine.shop.index["serial"] == 2, "nothing new was found"


# Rollback


def test_a_hub_that_lags_behind_our_own_commit_is_asked_again(
    shared: Machine, keys: dict[str, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = list[float]()

    def drawn(shortest: float, longest: float) -> float:
        waits.append(longest)
        return 0.0

    monkeypatch.setattr(random, "uniform", drawn)
    with Hub() as hub:
        cast = Cast(shared, keys, Shop(hub=hub), tmp_path)
        place = cast.publisher()
        place.publish()
        hub.misbehave(r"GET /datasets/.*/resolve/main/sage/index.json", "lag", times=1)
        place.publish("+cu130torch2.11sm120.kother")
        assert cast.shop.index["serial"] == 2
        hub.misbehave(r"GET /datasets/.*/resolve/main/sage/index.json", "lag", times=2)
        assert len(fetch_verdicts(place)) == 2
        hub.misbehave(r"GET /datasets/.*/resolve/main/sage/index.json", "lag", times=99)
        waits.clear()
        line = failing(Untrusted, place.job().verdicts)
    assert line.startswith(f"index.json of hf://datasets/{REPO}@main/{FOLDER} has serial 1, and 2 is the least")
    assert len(waits) == 3


def test_a_fresh_machine_is_told_the_least_serial(local: Cast) -> None:
    place = local.publisher()
    place.publish()
    old = local.shop.files()["index.json"]
    place.publish("+cu130torch2.11sm120.kother")
    local.shop.put({"index.json": old})
    assert list(fetch_verdicts(local.reader("fresh"))) == [GOOD], "which it cannot know to be old"
    line = failing(Untrusted, fetch.fetch, local.reader("told", min_index_serial=2).job())
    assert line == (
        f"index.json of {local.shop.label} has serial 1, and 2 is the least that is believed here: "
        f"an older state was put back. {REMEDY}"
    )


def test_a_damaged_memory_is_said_and_no_reason_to_stop(local: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    local.publisher().publish()
    reader = local.reader()
    memory = reader.folder / "work" / "state" / "serials.json"
    for content in ("{", "[]", '{"a": "b"}', "[" * 100000):
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(content)
        capsys.readouterr()
        assert list(fetch_verdicts(reader)) == [GOOD]
        warning = f"[store] warning: {memory} cannot be read: which states of a store were seen before is not known"
        assert set(capsys.readouterr().err.splitlines()) == {warning}
        assert json.loads(memory.read_text()) == {local.shop.label: 1}


def test_a_memory_that_cannot_be_written_is_said_and_no_reason_to_stop(
    local: Cast, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither for who reads, nor for who has published by then."""
    place, reader = local.publisher(), local.reader()
    for one in (place, reader):
        (one.folder / "work" / "state" / "serials.json").mkdir(parents=True)
    assert place.publish() == GOOD
    assert list(fetch_verdicts(reader)) == [GOOD]
    memory = reader.folder / "work" / "state" / "serials.json"
    warning = f"that serial 1 was seen is not remembered: {memory} cannot be used: Is a directory"
    assert f"[store] warning: {warning}" in capsys.readouterr().err.splitlines()


def test_settings_that_would_enforce_nothing_are_refused(local: Cast, tmp_path: Path) -> None:
    gone = signers.revoked(tmp_path / "gone", local.keys["thief"])
    for key, changes in (
        ("REVOKED_SIGNERS", {"revoked_signers": str(gone)}),
        ("MIN_INDEX_SERIAL", {"min_index_serial": 3}),
    ):
        line = failing(UsageError, fetch.fetch, local.stranger(**changes).job())
        assert line == f"{key} is set and TRUSTED_SIGNERS is not, so nothing would be refused. Set both."
    local.stranger().publish()
    empty = tmp_path / "nobody"
    for run in (fetch.fetch, auto.auto, auto.install):
        line = failing(UsageError, run, local.reader(trusted_signers=str(empty)).job())
        assert line == f"TRUSTED_SIGNERS {empty} cannot be read (No such file or directory). Correct it, or unset it."


def test_the_settings_are_paths_and_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    given = {"SIGNING_KEY": "~/k", "TRUSTED_SIGNERS": "signers", "REVOKED_SIGNERS": "/r", "MIN_INDEX_SERIAL": "0017"}
    found = load(given, cwd=tmp_path)
    assert (found.signing_key, found.trusted_signers) == ("/home/someone/k", str(tmp_path / "signers"))
    assert (found.revoked_signers, found.min_index_serial) == ("/r", 17)
    for value in ("-1", "many", "1.5", "9" * 13):
        line = failing(UsageError, load, {"MIN_INDEX_SERIAL": value}, cwd=tmp_path)
        remedy = "Write a whole number, as init-hf prints it."
        assert line == f"MIN_INDEX_SERIAL={value!r} in the environment is not a serial. {remedy}"


# Revoking and rotating


def test_a_revoked_makers_wheels_come_back_by_no_way(local: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    """Not from the store, not from the wheelhouse, not by name."""
    local.publisher().publish()
    reader = local.reader()
    fetch.fetch(reader.job())
    index.add_mark(local.publisher("second").job().store, mark(local.shop.entry(GOOD)["wheel_sha256"]))
    gone = signers.revoked(local.root / "gone", local.keys["maker"])
    later = reader.with_(revoked_signers=str(gone))
    why = f"is signed by a key that was revoked ({local.keys['maker'].fingerprint})"
    assert fetch_verdicts(later) == {GOOD: f"it {why}"}
    assert later.job().in_wheelhouse() == []
    house = reader.folder / "wheelhouse"
    assert failing(Refused, steps.choose, later.job()) == (
        f"no wheel of {house} fits, the nearest is {GOOD}: it {why}. Run fetch or build."
    )
    named = steps.choose(later.job(), GOOD)
    before = wheels.tree(local.machine.site)
    assert failing(Refused, steps.do_verify, later.job(), named) == f"{GOOD} {why}. Fetch or build another one."
    assert wheels.tree(local.machine.site) == before


def test_what_was_built_here_needs_no_signature_and_what_lies_there_does(local: Cast) -> None:
    place = local.reader()
    place.build()
    path = wheels.make(place.folder / "dist", version=VERSION + "+cu130torch2.11sm120.kother")
    wheelhouse.keep(place.settings, path, wheels.describe(path, created_at_utc="2027-01-01T00:00:00Z"))
    assert [found.name for found, _ in place.job().in_wheelhouse()] == [GOOD]
    assert steps.choose(place.job())[0].name == GOOD
    line = failing(Refused, steps.do_verify, place.job(), steps.choose(place.job(), path.name))
    assert line == f"{path.name} is not signed. Fetch or build another one."


def test_a_build_does_not_take_a_strangers_wheel_for_its_own(local: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    from sagewheels import build

    place = local.reader()
    path = wheels.make(place.folder / "dist")
    kept = wheelhouse.keep(place.settings, path, wheels.describe(path, build_key="a" * 64))
    assert build._kept(place.settings, "a" * 64) is None
    assert said(capsys) == [
        f"[build] {kept.name} is in the wheelhouse with that build key, but is not signed: building anew"
    ]
    ours.note(place.settings, wheels.describe(path).wheel_sha256)
    assert build._kept(place.settings, "a" * 64)


def test_keys_are_rotated_without_a_gap(local: Cast) -> None:
    """Old wheels stay while the old key is listed; once it is not, the new signer's index needs no adoption."""
    local.publisher().publish()
    local.publisher("second").publish("+cu130torch2.11sm120.kother")
    assert set(fetch_verdicts(local.reader()).values()) == {""}
    signers.trusted(local.trusted, local.keys["second"])
    maker = local.keys["maker"].fingerprint
    assert fetch_verdicts(local.reader()) == {
        OTHER: "",
        GOOD: f"it is signed by a key that is not in TRUSTED_SIGNERS ({maker})",
    }
    # Built and published again, it is the new key's.
    local.publisher("second").publish()
    assert set(fetch_verdicts(local.reader()).values()) == {""}


# The graph


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    """A machine that is installed into."""
    return wheels.machine(tmp_path / "machine")


@pytest.fixture
def mine(here: Machine, keys: dict[str, Key], folder: Shop, tmp_path: Path) -> Cast:
    return Cast(here, keys, folder, tmp_path, same=False)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, mine: Cast) -> list[bool]:
    """Stands in for the build step, which needs nvcc; whether each call was forced."""
    asked = list[bool]()

    def build(job: Job, *, force: bool = False, turn: Any = None) -> Made:
        asked.append(force)
        place = Place(mine.machine, job.settings.work_dir.parent, mine.shop.settings, same=False)
        return place.build("+cu130torch2.11sm120.kbuilt", python="mark = 'built'\n")

    monkeypatch.setattr(steps, "do_build", build)
    return asked


def test_a_change_of_trust_makes_auto_look_again(
    mine: Cast, compiler: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    mine.publisher().publish()
    plain, reader = mine.stranger("reader"), mine.reader()
    auto.auto(plain.job())
    assert auto.in_place(plain.job()), "which must not have become different"
    assert not auto.in_place(reader.job())
    auto.auto(reader.job())
    assert auto.in_place(reader.job()) and compiler == []
    index.add_mark(mine.publisher("second").job().store, mark(mine.shop.entry(GOOD)["wheel_sha256"]))
    gone = signers.revoked(mine.root / "gone", mine.keys["maker"])
    later = reader.with_(revoked_signers=str(gone))
    assert not auto.in_place(later.job())
    capsys.readouterr()
    auto.auto(later.job())
    kept = f"[upload] nothing was published: {mine.shop.label} takes what is signed (SIGNING_KEY is not set). "
    assert [line for line in said(capsys) if line.startswith(kept)], "as without a token"
    assert (compiler, mine.machine.import_version()) == ([False], "built")
    assert auto.in_place(later.job())


def test_settings_that_cannot_be_used_are_told_before_anything_is_done(mine: Cast, compiler: list[bool]) -> None:
    mine.publisher().publish()
    (mine.root / "empty").mkdir()
    none, bare = str(mine.root / "none"), {**mine.machine.settings.environ, "PATH": str(mine.root / "empty")}
    told: dict[str, dict[str, Any]] = {
        f"TRUSTED_SIGNERS {none} cannot be read (No such file or directory). Correct it, or unset it.": {
            "trusted_signers": none
        },
        f"SIGNING_KEY {none} cannot be read (No such file or directory). Correct it, or unset it.": {
            "signing_key": none
        },
        "ssh-keygen cannot be run (No such file or directory). Install it (apt-get install openssh-client).": {
            "environ": bare
        },
    }
    for line, changes in told.items():
        for run in (auto.auto, auto.install):
            assert failing(UsageError, run, mine.reader(**changes).job()) == line
    assert (compiler, mine.machine.import_version()) == ([], "none")


def test_a_smoke_that_passes_makes_nobody_trusted(mine: Cast, compiler: list[bool]) -> None:
    """After a key was revoked, what it made still computes; the next auto looks again all the same."""
    mine.publisher().publish()
    reader = mine.reader()
    auto.auto(reader.job())
    gone = signers.revoked(mine.root / "gone", mine.keys["maker"])
    later = reader.with_(revoked_signers=str(gone))
    proving.do_smoke(later.job())
    assert not auto.in_place(later.job())
    proving.do_smoke(reader.job())
    assert auto.in_place(reader.job()), "where it is trusted, a pass is remembered"


def test_auto_refuses_before_a_stack_is_installed_and_rebuild_does_without(
    mine: Cast, compiler: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.publisher().publish()
    strip(mine.shop, mine.keys, {})
    with monkeypatch.context() as patch:
        patch.setattr(steps, "do_stack", None)  # which also installs what the package needs besides
        for run in (auto.auto, auto.install):
            assert failing(Untrusted, run, mine.reader().job())
    torch = mine.machine.site / "torch"
    shutil.move(torch, mine.root / "aside")
    monkeypatch.setattr(stack, "install", lambda *_, **__: shutil.move(mine.root / "aside", torch))
    reader, stolen = mine.reader(), mine.shop.files()
    untrusted = f"index.json of {mine.shop.label} is not signed"
    for run in (auto.auto, auto.install, steps.do_stack):
        assert failing(Untrusted, run, reader.job()) == f"{untrusted}. {REMEDY}"
    assert (compiler, torch.exists(), mine.machine.import_version()) == ([], False, "none")
    with pytest.raises(StoreError) as caught:
        auto.auto(mine.publisher().with_(work_dir=reader.folder / "work").job(), rebuild=True)
    mends = "One of its signers mends it with init-hf --sign. Then upload publishes the wheel."
    assert str(caught.value) == f"the machine is ready, but {untrusted}. {mends}"
    assert f"[stack] warning: the store is not believed: {untrusted}\n" in capsys.readouterr().err
    assert (compiler, mine.machine.import_version(), mine.shop.files()) == ([True], "built", stolen)


def test_a_wheel_of_an_address_needs_its_makers_signature(local: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    place = local.publisher()
    ours.note(place.settings, ours.of_proof(PROOF))
    place.publish(proofs=[PROOF])
    url = (local.shop.folder / GOOD).as_uri()
    reader = local.reader(wheel_url=url)
    _, found = fetch.fetch(reader.job())
    assert f"[fetch] the proofs in {GOOD}.json are dropped: no index vouches for them" in said(capsys)
    assert found.proofs == () and found.data["signature"]
    beside = local.shop.folder / f"{GOOD}.json"
    data = json.loads(beside.read_text())
    remedy = "Take one that a signer of TRUSTED_SIGNERS made."
    for change, why in (
        ({"signature": None}, "is not signed"),
        ({"triton_version": "0"}, OF_ANOTHER),
    ):
        beside.write_text(json.dumps({**data, **change}))
        line = failing(Refused, fetch.fetch, local.reader("fresh", wheel_url=url).job())
        assert line == f"{GOOD} of WHEEL_URL {why}. {remedy}"
    beside.unlink()
    given = f"{url}#sha256={data['wheel_sha256']}"
    line = failing(Refused, fetch.fetch, local.reader("bare", wheel_url=given).job())
    assert line == f"{GOOD} of WHEEL_URL is not signed. {remedy}"
    assert not (local.root / "fresh" / "wheelhouse").exists()


# Setting it up


def set_up(place: Place, **more: Any) -> None:
    steps.do_init(place.job(), sign=True, **more)


def test_init_makes_a_key_a_list_and_a_signed_index(cast: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    place = cast.stranger()
    folder = Path(place.job().settings.variable("HOME")) / ".config" / "sagewheels"
    folder = Path(place.job().settings.variable("XDG_CONFIG_HOME") or folder.parent) / "sagewheels"
    shutil.rmtree(folder, ignore_errors=True)
    key, listed = folder / "signing_key", folder / "trusted_signers"
    steps.do_init(place.job(dry_run=True), sign=True)
    assert said(capsys) == [
        f"[init-hf] would create {cast.shop.label} if it is not there, with card and index",
        f"[init-hf] would make the key {key}; keep it, and let nobody read it",
        f"[init-hf] would list the key in {listed}, unless it is there",
        f"[init-hf] would sign the index of {cast.shop.label}",
    ]
    assert not folder.exists()
    set_up(place)
    assert said(capsys)[1:] == [
        f"[init-hf] making the key {key}; keep it, and let nobody read it",
        f"[init-hf] the key is in {listed} now, as sagewheels",
        "[init-hf] put these lines into .env; machines that only fetch need the second one, and that file:",
        f"SIGNING_KEY={key}",
        f"TRUSTED_SIGNERS={listed}",
        f"[init-hf] {cast.shop.label} is set up",
        "[init-hf] index serial 1, signed by sagewheels",
    ]
    assert (key.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert listed.read_text().startswith('sagewheels namespaces="wheel-manifest@sagewheels,index@sagewheels" ssh-ed25')
    before = cast.shop.files()
    set_up(place.with_(signing_key=str(key), trusted_signers=str(listed)))
    assert said(capsys)[1:] == [
        f"[init-hf] the key {key} is kept",
        f"[init-hf] the key is in {listed} already",
        f"[init-hf] {cast.shop.label} was set up already",
        "[init-hf] index serial 1, signed by sagewheels",
    ]
    assert (cast.shop.files(), len(listed.read_text().splitlines())) == (before, 1)
    signer = place.with_(signing_key=str(key), trusted_signers=str(listed))
    signer.publish()
    assert fetch_verdicts(cast.reader(trusted_signers=str(listed))) == {GOOD: ""}


def test_adopting_keeps_the_wheels_and_vouches_for_nothing_else(cast: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = cast.stranger()
    stranger.publish(proofs=[PROOF])
    sha256 = cast.shop.entry(GOOD)["wheel_sha256"]
    index.add_mark(stranger.job().store, mark(sha256))
    capsys.readouterr()
    place = cast.publisher()
    set_up(place)
    assert said(capsys)[1:] == [
        f"[init-hf] the key {cast.keys['maker'].path} is kept",
        f"[init-hf] the key is in {cast.trusted} already",
        f"[init-hf] adopted all the same, its wheels only: index.json of {cast.shop.label} is not signed",
        "[init-hf] 1 wheel with proofs that nobody vouched for: smoke proves them anew",
        f"[init-hf] {GOOD} is {mark(sha256).words}: nobody vouched for that, smoke decides",
        f"[init-hf] {GOOD} is not signed: upload --wheel {GOOD} signs it, from a machine that has it in its wheelhouse",
        f"[init-hf] {cast.shop.label} is set up",
        "[init-hf] index serial 1, signed by maker",
    ]
    entry = cast.shop.entry(GOOD)
    assert (entry["proofs"], entry["unvouched_proofs"]) == ([], [PROOF])
    assert bad.KEY not in cast.shop.index, "a thief may have written it: a good wheel would be bad in our name"
    assert cast.shop.index[index.UNVOUCHED_MARKS] == [mark(sha256).raw], "and nothing is lost"
    assert fetch_verdicts(cast.reader()) == {GOOD: "it is not signed"}
    # The machine that has the wheel signs it; the proof comes back when it is found here.
    shutil.copytree(stranger.folder / "wheelhouse", place.folder / "wheelhouse")
    assert steps.do_upload(place.job(), steps.choose(place.job(), GOOD), named=True)
    assert fetch_verdicts(cast.reader()) == {GOOD: ""}
    entry = cast.shop.entry(GOOD)
    assert (entry["proofs"], entry["unvouched_proofs"], cast.shop.index["serial"]) == ([], [PROOF], 2)
    capsys.readouterr()
    assert steps.do_upload(place.job(), steps.choose(place.job(), GOOD), named=True)
    assert said(capsys)[0] == f"[upload] {GOOD} is in {cast.shop.label} already, nothing changed"


def test_the_way_back_after_a_key_was_revoked(local: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    """A new signer adopts; what the revoked key made stays refused, and its proofs count no more."""
    maker = local.publisher()
    ours.note(maker.settings, ours.of_proof(PROOF))
    maker.publish(proofs=[PROOF])
    gone = signers.revoked(local.root / "gone", local.keys["maker"])
    second = local.publisher("second").with_(revoked_signers=str(gone))
    reader = local.reader(revoked_signers=str(gone))
    why = f"is signed by a key that was revoked ({local.keys['maker'].fingerprint})"
    assert failing(Untrusted, fetch.fetch, reader.job()) == f"index.json of {local.shop.label} {why}. {REMEDY}"
    capsys.readouterr()
    set_up(second)
    told = said(capsys)
    assert f"[init-hf] adopted all the same, its wheels only: index.json of {local.shop.label} {why}" in told
    assert f"[init-hf] {GOOD} {why}: build it again" in told
    assert told[-1] == "[init-hf] index serial 2, signed by second"
    assert fetch_verdicts(reader) == {GOOD: f"it {why}"}
    assert local.shop.entry(GOOD)["proofs"] == []
    # The old key publishes nothing where it is known to be revoked, also no wheel of its own.
    old = maker.with_(revoked_signers=str(gone))
    line = failing(UsageError, steps.do_upload, old.job(), old.build("+cu130torch2.11sm120.kother"))
    assert line == (
        f"what SIGNING_KEY {local.keys['maker'].path} signs would not be trusted here: it {why}. "
        "Add its public key to TRUSTED_SIGNERS (init-hf --sign does), or use another key."
    )
    # Built again by the new signer, it is good again.
    second.publish()
    assert fetch_verdicts(reader) == {GOOD: ""}


def test_adopting_after_a_rollback_goes_on_counting(local: Cast) -> None:
    place = local.publisher()
    place.publish()
    old = local.shop.files()["index.json"]
    place.publish("+cu130torch2.11sm120.kother")
    local.shop.put({"index.json": old})
    set_up(place)
    assert local.shop.index["serial"] == 3
    assert fetch_verdicts(local.reader(min_index_serial=3)) == {GOOD: ""}


def test_no_serial_leaves_no_room_to_count_on(local: Cast) -> None:
    """Before it was signed, a thief wrote there what he liked."""
    local.stranger().publish()
    local.shop.write_index({**local.shop.index, "serial": 10**12 - 1})
    set_up(local.publisher())
    assert local.shop.index["serial"] == 1
    assert fetch_verdicts(local.reader()) == {GOOD: "it is not signed"}


def test_a_stolen_key_does_not_use_up_the_serials(local: Cast) -> None:
    """Nobody could ever sign a newer index for the machines that had believed this one."""
    place, reader = local.publisher(), local.reader()
    place.publish()
    assert fetch_verdicts(reader) == {GOOD: ""}
    honest = local.shop.index
    local.shop.write_index({**honest, "serial": 10**12 - 1}, by=local.keys["maker"])
    assert failing(Untrusted, fetch.fetch, reader.job()) == (
        f"index.json of {local.shop.label} has serial {10**12 - 1}, more than a million beyond the 1 known here. "
        f"Set MIN_INDEX_SERIAL={10**12 - 1} if that is right, else init-hf --sign mends it."
    )
    gone = str(signers.revoked(local.root / "gone", local.keys["maker"]))
    second = local.publisher("second").with_(revoked_signers=gone)
    set_up(second)
    second.publish("+cu130torch2.11sm120.kother")
    assert fetch_verdicts(reader.with_(revoked_signers=gone))[OTHER] == ""
    # As far as one index may lead, the next one is believed.
    local.shop.write_index({**local.shop.index, "serial": 10**6}, by=local.keys["second"])
    assert fetch_verdicts(reader.with_(revoked_signers=gone))[OTHER] == ""
    third = local.publisher().with_(revoked_signers=str(signers.revoked(local.root / "also", local.keys["second"])))
    set_up(third)
    assert local.shop.index["serial"] == 10**6 + 1


def test_what_only_latest_names_is_adopted_too(local: Cast) -> None:
    """As the first installer published it: no index at all."""
    path = wheels.make(local.root / "dist")
    local.shop.folder.mkdir()
    legacy = {**wheels.describe(path).data, "proofs": [PROOF]}
    local.shop.put({"latest.json": json.dumps(legacy).encode(), GOOD: path.read_bytes()})
    place = local.publisher()
    line = failing(Untrusted, steps.do_upload, place.job(), place.build("+cu130torch2.11sm120.kother"))
    assert line == f"index.json of {local.shop.label} is not signed. {REMEDY}"
    set_up(place)
    assert local.shop.entry(GOOD)["unvouched_proofs"] == [PROOF]
    assert fetch_verdicts(local.reader()) == {GOOD: "it is not signed"}


def test_init_adds_to_a_list_of_others(local: Cast, capsys: pytest.CaptureFixture[str]) -> None:
    listed = local.root / "others"
    listed.write_text(f"boss {local.keys['second'].public}")
    place = local.publisher().with_(trusted_signers=str(listed))
    set_up(place)
    assert f"[init-hf] the key is in {listed} now, as maker" in said(capsys)
    assert [line.split()[0] for line in listed.read_text().splitlines()] == ["boss", "maker"]
    missing = local.root / "none.pub"
    line = failing(UsageError, set_up, place.with_(signing_key=str(missing)))
    assert line == f"SIGNING_KEY {missing} does not exist. Name the .pub of a key that is in your agent."


def test_the_commands(local: Cast, tmp_path: Path) -> None:
    """Set up, stolen, refused: as people run them, with their exit codes."""
    machine = local.machine
    env = {
        **signers.bare(),
        "PATH": machine.settings.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHON_BIN": str(machine.python),
        "SAGE_MANIFEST": machine.settings.sage_manifest,
        "SAGE_STORE": str(local.shop.folder),
        "TORCH_CUDA_ARCH_LIST": "12.0",
        "TRUSTED_SIGNERS": "list",
        "SIGNING_KEY": "key",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "sagewheels", *words]
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)

    done = run("init-hf", "--sign")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[init-hf] index serial 1, signed by sagewheels"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    local.shop.write_index({**local.shop.index, "serial": 2})
    for words in (("list",), ("auto",), ("install", "--dry-run")):
        done = run(*words)
        assert done.returncode == 4, done.stdout
        assert done.stderr == f"index.json of {local.shop.folder} {OF_ANOTHER}. {REMEDY}\n"
