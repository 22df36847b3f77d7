"""Claims: pure merging and expiry, then machines that want the same build, on a folder and on a loopback Hub."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewheels import auto, build, buildplan, claim, proving, source, steps
from sagewheels.buildplan import Plan
from sagewheels.config import Settings
from sagewheels.errors import BuildFailed
from sagewheels.job import Job
from sagewheels.store import Conflict, Snapshot, Store, claims, contention, index
from sagewheels.store.claims import CLAIMS, Claim, Watch
from sagewheels.store.directory import DirectoryStore
from sagewheels.store.guarded import GuardedStore
from sagewheels.wheelhouse import Made
from tests import fleet, signers, wheels
from tests.hub import Hub
from tests.wheels import Machine

REPO = "me/wheels"
NOON = datetime(2026, 6, 1, 12, 3, tzinfo=timezone.utc)
OTHER = Claim(
    build_key="a" * 64,
    wheel="tinyattn-1.0+cu130torch2.11sm120.kaaaaaaaa",
    who="a3f9 (NVIDIA GeForce RTX 5090, 16 cores)",
    since_utc="2026-06-01T12:03:00Z",
    until_utc="2026-06-01T12:09:00Z",
    renewals=0,
    nonce="other",
)

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def held(*listed: object, **more: object) -> bytes:
    items = [asdict(one) if isinstance(one, Claim) else one for one in listed]
    return json.dumps({"schema": 1, "claims": items, **more}).encode()


def snapshot(content: bytes | None) -> Snapshot:
    return Snapshot(revision="1", files={} if content is None else {CLAIMS: content})


# the file


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "claims.json is not JSON"),
        (b"[]", "claims.json is not a list of claims"),
        (b'{"claims": {}}', "claims.json is not a list of claims"),
        (b"\xff\xfe", "claims.json is not"),
        (b"[" * 9999, "claims.json is not"),
        (held(OTHER, more="x" * 1_000_000), "claims.json is larger than 1.0 MB"),
    ],
)
def test_a_file_that_cannot_be_read_holds_no_claims(
    content: bytes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claims.read(snapshot(content)) == []
    warning = capsys.readouterr().err
    assert warning.startswith(f"[claim] warning: {why}")
    assert warning.endswith(", so no claim counts; the next one begins it anew\n") and warning.count("\n") == 1
    assert claims.read(snapshot(claims.placed(content, OTHER, NOON))) == [OTHER]


def test_what_is_not_ours_is_kept() -> None:
    strange: list[Any] = [7, {"nonce": None}, {"build_key": "b" * 64, "who": "x\x1b[2J"}]
    theirs = {**asdict(replace(OTHER, build_key="c" * 64, nonce="theirs")), "their_own": [1]}
    content = held(*strange, theirs, replace(OTHER, nonce="dead"), x=1)
    assert [one.nonce for one in claims.read(snapshot(content))] == ["theirs", "dead"]
    after = claims.placed(content, OTHER, NOON)
    assert json.loads(after) == {"schema": 1, "x": 1, "claims": [*strange, theirs, asdict(OTHER)]}
    assert json.loads(claims.without(after, "other") or b"") == {"schema": 1, "x": 1, "claims": [*strange, theirs]}
    assert claims.without(after, "dead") is None
    assert claims.without(None, "other") is None


def test_what_died_a_day_ago_is_forgotten() -> None:
    day = timedelta(days=1)
    old = replace(OTHER, build_key="b" * 64, nonce="old", until_utc=claims.stamp(NOON - day - timedelta(seconds=1)))
    recent = replace(OTHER, build_key="c" * 64, nonce="recent", until_utc=claims.stamp(NOON - timedelta(hours=23)))
    after = claims.placed(held(old, recent), OTHER, NOON)
    assert [one.nonce for one in claims.read(snapshot(after))] == ["recent", "other"]


@given(st.lists(st.tuples(st.sampled_from("pwr"), st.sampled_from("abc"), st.sampled_from("12"))))
def test_nobody_loses_another_ones_claim(steps_: list[tuple[str, str, str]]) -> None:
    """Against a model: one claim to each build, whatever is placed, renewed and removed in whatever order."""
    content: bytes | None = held("kept", x=1)
    model = dict[str, Claim]()
    for what, key, nonce in steps_:
        mine = replace(OTHER, build_key=key, nonce=key + nonce)
        if what == "w":
            content = claims.without(content, mine.nonce) or content
            if model.get(key, OTHER).nonce == mine.nonce:
                del model[key]
        else:
            model[key] = mine.renewed(NOON) if what == "r" else mine
            content = claims.placed(content, model[key], NOON)
    assert content is not None
    assert {one.build_key: one for one in claims.read(snapshot(content))} == model
    assert json.loads(content)["claims"].count("kept") == json.loads(content)["x"] == 1


# who is dead


class Clocks:
    """A watch on clocks that a test sets: its own, and what it takes for UTC."""

    def __init__(self, skew: float = 0.0) -> None:
        self.passed = 0.0
        self.watch = Watch(lambda: 1000 + self.passed, lambda: NOON + timedelta(seconds=self.passed + skew))

    def left(self, seconds: float, one: Claim) -> float:
        self.passed = seconds
        return self.watch.left(one)


def until(seconds: float) -> Claim:
    return replace(OTHER, until_utc=claims.stamp(NOON + timedelta(seconds=seconds)))


def test_a_claim_lives_for_a_lease_after_each_sign() -> None:
    clocks, one = Clocks(), until(claims.LEASE)
    assert clocks.left(0, one) == 360
    assert clocks.left(359, one) == 1
    renewed = one.renewed(NOON + timedelta(seconds=359))
    assert clocks.left(359, renewed) == 360
    assert clocks.left(719, renewed) == 0


@pytest.mark.parametrize("said", ["2026-06-01T13:00:00Z", "2999-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_a_time_far_ahead_counts_for_a_lease(said: str) -> None:
    clocks, one = Clocks(), replace(OTHER, until_utc=said)
    assert [clocks.left(seconds, one) for seconds in (0, 359, 360)] == [360, 1, 0]


@pytest.mark.parametrize("skew", [-7200.0, -300.0, 300.0, 470.0])
def test_clocks_that_differ_cost_no_live_claim(skew: float) -> None:
    """Ours is behind, however far, or ahead by less than lease and grace together."""
    assert Clocks(skew).left(0, until(claims.LEASE)) > 0


def test_what_was_dead_before_we_came_is_dead_at_once() -> None:
    assert Clocks().left(0, until(-claims.GRACE - 1)) < 0
    assert Clocks().left(0, until(-claims.GRACE + 1)) == 1
    assert Clocks().left(0, replace(OTHER, until_utc="yesterday")) == 0


@given(
    st.lists(st.floats(1, 150), min_size=1, max_size=20), st.floats(-3600, 325), st.lists(st.floats(5, 60), min_size=1)
)
def test_who_gives_signs_in_time_is_never_taken_for_dead(gaps: list[float], skew: float, polls: list[float]) -> None:
    """Signs at most 150 s apart, looks at most 60 s apart, a waiter whose clock is up to 325 s ahead."""
    clocks, at, one = Clocks(skew), 0.0, until(claims.LEASE)
    signs, now = [one], 0.0
    times = [0.0]
    for gap in gaps:
        at += gap
        one = one.renewed(NOON + timedelta(seconds=at))
        signs.append(one)
        times.append(at)
    for poll in polls * 5:
        now += poll
        if now > times[-1] + 150:
            break
        seen = signs[max(place for place, moment in enumerate(times) if moment <= now)]
        assert clocks.left(now, seen) > 0


# the store


@pytest.fixture(params=["directory", "hub"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "directory":
        yield DirectoryStore(tmp_path / "claims")
    else:
        with Hub() as hub:
            yield Job(Settings(**on(hub))).store


def on(hub: Hub, token: str = "hf_write") -> dict[str, Any]:
    if ("dataset", REPO) not in hub.repos:
        hub.create(REPO)
    return {"sage_store": "", "hf_repo_id": REPO, "hf_endpoint": hub.endpoint, "remote_dir": "sage", "hf_token": token}


def fresh(nonce: str = "mine", key: str = OTHER.build_key) -> Claim:
    return claims.begun(replace(OTHER, nonce=nonce, build_key=key), datetime.now(timezone.utc))


def test_taken_renewed_and_released(store: Store) -> None:
    mine = fresh()
    claims.take(store, store.read(CLAIMS), mine)
    assert claims.of(store.read(CLAIMS), mine.build_key) == mine
    renewed = claims.renew(store, mine)
    assert claims.of(store.read(CLAIMS), mine.build_key) == renewed
    assert (renewed.renewals, renewed.since_utc) == (1, mine.since_utc)
    claims.release(store, renewed)
    assert claims.read(store.read(CLAIMS)) == []
    revision = store.read().revision
    claims.release(store, renewed)
    assert store.read().revision == revision, "what is gone already is no commit"


def test_of_those_that_saw_the_same_state_one_gets_it(store: Store) -> None:
    """Also where what they saw is a dead claim."""
    dead = replace(OTHER, until_utc="2026-01-01T00:00:00Z")
    store.commit("", {CLAIMS: held(dead)}, "killed")
    seen = store.read(CLAIMS)
    claims.take(store, seen, fresh("first"))
    for nonce in ("second", "third"):
        with pytest.raises(Conflict):
            claims.take(store, seen, fresh(nonce))
    assert [one.nonce for one in claims.read(store.read(CLAIMS))] == ["first"]


def test_who_was_taken_for_dead_learns_it(store: Store) -> None:
    mine = fresh()
    claims.take(store, store.read(CLAIMS), mine)
    store.commit(store.read(CLAIMS).revision, {CLAIMS: held(fresh("other"))}, "taken over")
    with pytest.raises(claims.TakenOver, match=r"^a3f9 \(NVIDIA GeForce RTX 5090, 16 cores\) builds it too\.$"):
        claims.renew(store, mine, pause=lambda _: None)
    claims.release(store, mine)
    assert [one.nonce for one in claims.read(store.read(CLAIMS))] == ["other"], "it is not ours to release"


@given(st.permutations([0, 0, 1, 1, 2, 2]))
def test_one_machine_wins_in_every_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    """Three machines read and then take, in every order of these six steps; what they lose, they see and respect."""
    store, seen, won = DirectoryStore(tmp_path_factory.mktemp("s") / "s"), dict[int, Snapshot](), list[int]()
    for at in order:
        if at not in seen:
            seen[at] = store.read(CLAIMS)
        elif claims.of(seen[at], OTHER.build_key) is None:
            try:
                claims.take(store, seen[at], fresh(str(at)))
                won.append(at)
            except Conflict:
                pass
    assert len(won) == 1
    assert [one.nonce for one in claims.read(store.read(CLAIMS))] == [str(won[0])]


# machines


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build and a wait take no minutes; leases stay as long as they are."""
    wheels.without_cuobjdump(monkeypatch)
    monkeypatch.setattr(claim, "POLL", (0.05, 0.1))
    wait = contention.wait_after
    monkeypatch.setattr(contention, "wait_after", lambda conflicts: wait(conflicts) / 20)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return wheels.machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def here(environment: Machine, tmp_path: Path) -> Machine:
    """The one machine of these tests, with folders of this test."""
    folders: dict[str, Any] = {key: tmp_path / key for key in ("work_dir", "wheelhouse_dir", "log_dir")}
    settings = replace(environment.settings, sage_store=str(tmp_path / "store"), **folders)
    return Machine(tmp_path, environment.python, settings)


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What auto would verify, install and smoke in the end, which is not tried here: the text of the package."""
    found = list[str]()

    def verify(job: Job, made: Made) -> None:
        with zipfile.ZipFile(made[0]) as archive:
            found.append(archive.read(f"{wheels.PACKAGE}/__init__.py").decode().strip())

    monkeypatch.setattr(steps, "do_verify", verify)
    monkeypatch.setattr(proving, "do_smoke", lambda job: None)
    return found


class Builds:
    """The builds of a test: their keys, what happens during one, and which packages were `ready` in the end."""

    def __init__(self, ready: list[str]) -> None:
        self.ready, self.keys = ready, list[str]()
        self.during: Callable[[], object] = lambda: None

    def __call__(self, key: str) -> str:
        self.keys.append(key)
        number = len(self.keys)
        self.during()
        return f"build = {number}\n"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, ready: list[str]) -> Builds:
    found = Builds(ready)
    fleet.with_build(monkeypatch.setattr, found)
    return found


def plan_of(job: Job) -> Plan:
    return buildplan.prepare(job.settings, job.recipe, job.archs, job.target, job.host, fleet.KIT)


def key_of(job: Job) -> str:
    return build.known_key(job.settings, plan_of(job))


def folder(machine: Machine) -> DirectoryStore:
    return DirectoryStore(Path(machine.settings.sage_store))


def claimed_by_other(machine: Machine, where: Store, **changes: Any) -> Claim:
    """Another machine builds what this one wants."""
    other = fresh("other", key_of(machine.job()))
    other = replace(other, **changes)
    seen = where.read(CLAIMS)
    where.commit(seen.revision, {CLAIMS: held(other)}, "claimed")
    return other


def publish(machine: Machine, where: Store, key: str) -> None:
    """The other machine is done, and its claim goes in the same commit."""
    label = f"{wheels.LABEL}.k{key[:8]}"
    path = wheels.make(machine.folder / "dist", version=wheels.VERSION + label, python="build = 'theirs'\n")
    gone = {CLAIMS: lambda content: claims.without(content, "other")}
    index.publish(where, path, wheels.describe(path, build_key=key), along=gone)


def later(seconds: float, act: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def test_a_build_is_claimed_and_the_claim_goes_with_the_wheel(
    here: Machine, builds: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    during = list[Claim]()
    builds.during = lambda: during.extend(claims.read(folder(here).read(CLAIMS)))
    auto.auto(here.job())
    (mine,) = during
    assert (len(builds.keys), mine.build_key) == (1, builds.keys[0])
    assert mine.wheel == f"tinyattn-1.0+cu130torch2.11sm120.k{mine.build_key[:8]}"
    cores = here.job().host.cores
    assert re.fullmatch(rf"[0-9a-f]{{4}} \(no GPU, {cores} cores?\)", mine.who)
    assert socket.gethostname() not in json.dumps(asdict(mine))
    assert json.loads(folder(here).read(CLAIMS).files[CLAIMS]) == {"schema": 1, "claims": []}
    said = capsys.readouterr().out
    assert f"[claim] this machine, {mine.who}, builds k{mine.build_key[:8]}; others wait for it\n" in said
    assert said.index("[claim]") < said.index("[upload]")


def test_what_it_costs_on_a_hub(here: Machine, builds: Builds) -> None:
    """One commit before the compile and none after it; three requests for it, and one more read in the publish."""
    asked = list[tuple[int, int]]()
    for at, no_wait in enumerate((True, False)):
        with Hub() as hub:
            job = here.job(wheelhouse_dir=here.folder / str(at), **on(hub))
            marks = list[tuple[int, int]]()
            builds.during = partial(_count, hub, marks)
            auto.auto(job, no_wait=no_wait)
            asked += [marks[0], (hub.commits, len(hub.requests))]
    (none_before, none_all), (one_before, one_all) = (asked[0], asked[1]), (asked[2], asked[3])
    assert (none_before[0], none_all[0], one_before[0], one_all[0]) == (0, 1, 1, 2)
    assert (one_before[1] - none_before[1], one_all[1] - none_all[1]) == (3, 4)


def _count(hub: Hub, into: list[tuple[int, int]]) -> None:
    into.append((hub.commits, len(hub.requests)))


def test_another_ones_build_is_waited_for_and_fetched(
    here: Machine, builds: Builds, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = claimed_by_other(here, folder(here))
    monkeypatch.setattr("sagewheels.ui.time.monotonic", _quick_clock(400.0))
    timer = later(1.0, lambda: publish(here, folder(here), other.build_key))
    auto.auto(here.job())
    timer.join()
    assert (builds.keys, builds.ready) == ([], ["build = 'theirs'"])
    said = capsys.readouterr().out.splitlines()
    since = other.since_utc[11:16]
    words = f"{other.who}, which builds k{other.build_key[:8]} since {since} UTC"
    mine = [line for line in said if line.startswith("[claim]")]
    assert mine[0] == f"[claim] waiting for {words}; auto --no-wait would build at once"
    assert re.fullmatch(
        rf"\[claim\] waiting for {re.escape(words)}, taken for dead in [56] min \d\d s without a sign, .*", mine[1]
    )
    assert len(mine) > 2, "and again once a minute"
    assert any(line.startswith(f"[fetch] tinyattn-1.0+cu130torch2.11sm120.k{other.build_key[:8]}") for line in said)
    assert not any(line.startswith("[upload]") for line in said)


def _quick_clock(times: float) -> Callable[[], float]:
    real, start = time.monotonic, time.monotonic()
    return lambda: start + (real() - start) * times


def test_a_claim_that_goes_without_a_wheel_is_contended_for(here: Machine, builds: Builds) -> None:
    other = claimed_by_other(here, folder(here))
    timer = later(0.5, lambda: claims.release(folder(here), other))
    auto.auto(here.job())
    timer.join()
    assert (len(builds.keys), builds.ready) == (1, ["build = 1"])


def test_a_dead_claim_is_taken_over(here: Machine, builds: Builds) -> None:
    claimed_by_other(here, folder(here), until_utc="2026-01-01T00:00:00Z")
    auto.auto(here.job())
    assert (len(builds.keys), claims.read(folder(here).read(CLAIMS))) == (1, [])


def test_what_a_killed_run_here_claimed_is_not_waited_for(
    here: Machine, builds: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    claimed_by_other(here, folder(here))
    note = here.settings.work_dir / "state" / "claim"
    note.parent.mkdir(parents=True)
    note.write_text("other")
    auto.auto(here.job())
    assert (len(builds.keys), claims.read(folder(here).read(CLAIMS)), note.exists()) == (1, [], False)
    assert "waiting for" not in capsys.readouterr().out


def test_while_it_builds_a_claim_is_noted(here: Machine, builds: Builds) -> None:
    note = here.settings.work_dir / "state" / "claim"
    builds.during = lambda: kept.append(note.read_text())
    kept: list[str] = []
    auto.auto(here.job())
    assert (len(kept), len(kept[0]), note.exists()) == (1, 16, False)


def test_who_may_not_sign_claims_nothing(
    here: Machine, builds: Builds, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others would wait for a wheel that cannot be published."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtQUDZWhs8k/cZcykMkaoX7ZE7DXld8TP79HyddVVTS"
    (tmp_path / "signers").write_text(f"somebody {key}\n")
    builds.during = lambda: seen.append(folder(here).read(CLAIMS).files)
    seen: list[object] = []
    auto.auto(here.job(trusted_signers=str(tmp_path / "signers")))
    assert (builds.ready, seen) == (["build = 1"], [{}])
    assert "[upload] nothing was published: " in capsys.readouterr().out


def test_without_a_sign_for_a_lease_it_is_taken_over(
    here: Machine, builds: Builds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However far ahead it says that it lives."""
    monkeypatch.setattr(claims, "LEASE", 0.6)
    other = claimed_by_other(here, folder(here), until_utc="2999-01-01T00:00:00Z")
    started = time.monotonic()
    auto.auto(here.job())
    assert time.monotonic() - started > 0.6
    assert len(builds.keys) == 1
    assert f"[claim] no sign of {other.who}, which builds " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["no_wait", "rebuild"])
def test_who_does_not_want_to_wait_claims_nothing(here: Machine, builds: Builds, kind: str) -> None:
    other = claimed_by_other(here, folder(here))
    auto.auto(here.job(), **{kind: True})
    assert len(builds.keys) == 1
    assert claims.read(folder(here).read(CLAIMS)) == [other], "it is not ours to take away"


def test_a_build_that_fails_releases_its_claim(here: Machine, builds: Builds) -> None:
    def fail() -> None:
        assert len(claims.read(folder(here).read(CLAIMS))) == 1
        raise BuildFailed("the compile failed")

    builds.during = fail
    with pytest.raises(BuildFailed):
        auto.auto(here.job())
    assert claims.read(folder(here).read(CLAIMS)) == []


@pytest.fixture
def _heeded() -> Iterator[None]:
    """Ctrl-C is an exception, also where a script that was put into the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeded")
def test_ctrl_c_releases_the_claim_of_a_build(here: Machine, builds: Builds) -> None:
    builds.during = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        auto.auto(here.job())
    assert (len(builds.keys), claims.read(folder(here).read(CLAIMS))) == (1, [])


@pytest.mark.usefixtures("_heeded")
def test_ctrl_c_ends_a_wait_at_once_and_leaves_nothing(
    here: Machine, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "POLL", (50.0, 60.0))
    claimed_by_other(here, folder(here))
    before = folder(here).read(CLAIMS)
    job, pressed = here.job(), list[float]()
    job.published  # noqa: B018 # as fetch leaves it

    def press() -> None:
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = later(0.7, press)
    with pytest.raises(KeyboardInterrupt), claim.Turn(job, shared=True) as turn:
        turn(plan_of(job))
    assert time.monotonic() - pressed[0] < 5
    timer.join()
    assert (folder(here).read(CLAIMS), builds.keys) == (before, [])


def test_a_claim_is_renewed_while_it_builds(here: Machine, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEW", 0.05)
    seen = list[int]()

    def during() -> None:
        deadline = time.monotonic() + 20
        while (not seen or seen[-1] < 3) and time.monotonic() < deadline:
            seen.append(claims.read(folder(here).read(CLAIMS))[0].renewals)

    builds.during = during
    auto.auto(here.job())
    assert seen[-1] >= 3
    after = folder(here).read(CLAIMS)
    assert claims.read(after) == []
    time.sleep(0.2)
    assert folder(here).read(CLAIMS) == after, "and no longer than that"


def test_a_renewal_that_fails_is_told_once_and_costs_nothing(
    here: Machine, builds: Builds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claims, "RENEW", 0.05)
    with Hub() as hub:
        job = here.job(**on(hub))

        def during() -> None:
            hub.misbehave("/commit/", "403", 99)
            before = len(hub.requests)
            while sum("/commit/" in line for line in hub.requests[before:]) < 3:
                time.sleep(0.02)
            hub._troubles.clear()

        builds.during = during
        auto.auto(job)
        assert f"{wheels.VERSION}{wheels.LABEL}" in " ".join(hub.files(REPO))
    warned = [line for line in capsys.readouterr().err.splitlines() if "[claim]" in line]
    assert len(warned) == 1
    why = f"HF_TOKEN has no right to write in {REPO} (403)"
    assert warned[0].startswith(f"[claim] warning: it was not renewed, so that another machine may build it too: {why}")


def test_who_is_taken_for_dead_says_so_and_goes_on(
    here: Machine, builds: Builds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claims, "RENEW", 0.05)

    def during() -> None:
        while True:
            seen = folder(here).read(CLAIMS)
            try:
                folder(here).commit(seen.revision, {CLAIMS: held(fresh("other", builds.keys[0]))}, "taken over")
                break
            except Conflict:
                continue
        deadline = time.monotonic() + 20
        while "taken for dead" not in "".join(said) and time.monotonic() < deadline:
            time.sleep(0.05)
            said.append(capsys.readouterr().out)

    said = list[str]()
    builds.during = during
    auto.auto(here.job())
    line = f"[claim] this machine was taken for dead: {OTHER.who} builds it too. It goes on here, nearly done\n"
    assert line in "".join(said)
    assert builds.ready == ["build = 1"]
    assert [one.nonce for one in claims.read(folder(here).read(CLAIMS))] == ["other"]


def test_a_store_that_can_only_be_read_is_waited_for_and_not_written(
    here: Machine, builds: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    with Hub() as hub:
        writer = here.job(**on(hub)).store
        other = claimed_by_other(here, writer)
        commits = hub.commits
        job = here.job(**on(hub, token=""))
        timer = later(0.7, lambda: publish(here, writer, other.build_key))
        auto.auto(job)
        timer.join()
        assert (builds.keys, hub.commits, builds.ready) == ([], commits + 1, ["build = 'theirs'"])


def test_a_store_that_can_only_be_read_and_holds_no_claim(here: Machine, builds: Builds) -> None:
    with Hub() as hub:
        auto.auto(here.job(**on(hub, token="")))
        assert (len(builds.keys), hub.commits) == (1, 0)


def test_trouble_with_the_claim_costs_no_build(
    here: Machine, builds: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    with Hub() as hub:
        hub.misbehave("/commit/", "403", 1)
        auto.auto(here.job(**on(hub)))
        assert (len(builds.keys), hub.commits) == (1, 1)
    warning = f"[claim] warning: building without a claim: HF_TOKEN has no right to write in {REPO} (403). "
    assert warning in capsys.readouterr().err


def test_a_wait_bears_a_store_that_fails_for_a_while(here: Machine, builds: Builds) -> None:
    with Hub() as hub:
        job = here.job(**on(hub))
        other = claimed_by_other(here, job.store)
        job.published  # noqa: B018 # as fetch leaves it
        writer = here.job(**on(hub)).store
        hub.requests.clear()

        def away() -> None:
            """The first looks succeed; then two do not."""
            while sum(CLAIMS in line for line in hub.requests) < 2:
                time.sleep(0.02)
            hub.misbehave("GET .*claims.json", "404", 2)
            deadline = time.monotonic() + 10
            while any(one.times for one in hub._troubles) and time.monotonic() < deadline:
                time.sleep(0.02)
            publish(here, writer, other.build_key)

        timer = later(0.3, away)
        with claim.Turn(job, shared=True) as turn:
            assert turn(plan_of(job))
        timer.join()
        assert turn.fetched


def test_an_index_that_lags_behind_the_claims_starts_no_second_build(here: Machine, builds: Builds) -> None:
    """The claim is gone, since the wheel is there; the index that is read then is still the one before."""
    with Hub() as hub:
        job = here.job(**on(hub))
        other = claimed_by_other(here, job.store)
        job.published  # noqa: B018 # as fetch leaves it
        publish(here, here.job(**on(hub)).store, other.build_key)
        hub.misbehave(r"GET .*resolve/main/sage/index\.json", "lag", 2)
        commits = hub.commits
        with claim.Turn(job, shared=True) as turn:
            assert turn(plan_of(job))
        assert (hub.commits, turn.fetched) == (commits, True)


def test_a_claim_whose_answer_was_lost_is_ours(here: Machine, builds: Builds) -> None:
    with Hub() as hub:
        hub.misbehave("/commit/", "lose", 1)
        auto.auto(here.job(**on(hub)))
        assert (len(builds.keys), hub.commits) == (1, 2)
        assert json.loads(hub.files(REPO)[f"sage/{CLAIMS}"])["claims"] == []


def test_nobody_is_waited_for_without_end(
    here: Machine, builds: Builds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claim, "LONGEST_WAIT", 0.4)
    claimed_by_other(here, folder(here))
    auto.auto(here.job())
    assert len(builds.keys) == 1
    assert "[claim] nothing came in 0.4 s, so it is built here\n" in capsys.readouterr().out


def test_a_source_whose_commit_is_not_known_is_not_claimed(
    here: Machine, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = here.job()
    job.published  # noqa: B018 # as fetch leaves it
    plan = plan_of(job)
    monkeypatch.setattr(source, "known", lambda *_: "")
    with claim.Turn(job, shared=True) as turn:
        assert turn(plan) is None
        assert folder(here).read(CLAIMS).files == {}


def test_what_a_dry_run_would_do(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    def said(**more: bool) -> str:
        capsys.readouterr()
        auto.auto(here.job(dry_run=True), **more)
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("[claim]"))

    where = here.settings.sage_store
    assert said() == f"[claim] would claim it in {where}, so that other machines wait for it"
    assert said(no_wait=True) == "[claim] would not be claimed in the store, and would wait for nobody"
    store = folder(here)
    store.commit("", {CLAIMS: held(fresh("other"))}, "claimed")
    since = claims.read(store.read(CLAIMS))[0].since_utc[11:16]
    words = f"{OTHER.who}, which builds kaaaaaaaa since {since} UTC"
    assert said() == f"[claim] if it is the same build, would wait for {words}"


@signers.needs_ssh_keygen
def test_a_dry_run_where_an_index_of_ours_would_not_be_taken(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """As the run itself: without SIGNING_KEY, who sets TRUSTED_SIGNERS neither claims nor publishes."""
    people = signers.trusted(here.folder / "signers", signers.key(here.folder, "me"))
    auto.auto(here.job(dry_run=True, trusted_signers=str(people)))
    said = capsys.readouterr().out.splitlines()
    where = here.settings.sage_store
    assert f"[claim] would not claim it: nothing can be published in {where} from here" in said
    assert "[upload] would publish nothing" in said


def test_machines_in_threads(here: Machine, store: Store, builds: Builds, everything: bool) -> None:
    """All want the same at the same moment: one builds, and all have its wheel."""
    count = 12 if everything else 4
    folders = [here.folder / f"machine{at}" for at in range(count)]
    jobs = [here.job(work_dir=one / "work", wheelhouse_dir=one / "wheelhouse") for one in folders]
    start, got, failed = threading.Barrier(count), list[str](), list[BaseException]()
    builds.during = lambda: time.sleep(0.5)
    for job in jobs:
        vars(job)["store"] = GuardedStore(store, job.trust, job.settings.work_dir / "state" / "serials.json")
        job.published  # noqa: B018 # as fetch leaves it
        plan_of(job)
    store.initialise()

    def live(job: Job) -> None:
        try:
            plan = plan_of(job)
            start.wait()
            with claim.Turn(job, shared=True) as turn:
                made = turn(plan)
                if made is None:
                    made = build.run(job.settings, plan)
                    steps.do_upload(job, made, along=turn.along())
                    turn.published()
            got.append(made[1].wheel_sha256)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=live, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (len(builds.keys), len(got), len({*got})) == (1, count, 1)
    assert claims.read(store.read(CLAIMS)) == []


@pytest.mark.parametrize("kind", ["directory", "hub"])
def test_a_fleet_whose_first_builder_is_killed(kind: str, everything: bool) -> None:
    """As processes (benchmarks/fleet.py): one more builds, and all that are left run the same wheel."""
    wheels.compiler()
    if kind == "hub" and not everything:
        pytest.skip("twenty machines on a Hub: with --all")
    script = Path(__file__).parent.parent / "benchmarks" / "fleet.py"
    size = "--machines 20 --build 8 --lease 30" if everything else "--machines 5 --build 1 --lease 6"
    argv = [sys.executable, str(script), "--store", kind, *size.split()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
