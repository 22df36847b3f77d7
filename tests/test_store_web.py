"""Reading over HTTP for WHEEL_URL, against the loopback Hub, which serves as any other server."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sagewheels import web
from sagewheels.errors import StoreError, UsageError
from sagewheels.store import tries
from sagewheels.store.tries import Trouble, busy, insist
from tests.hub import Hub

REPO, WHEEL = "me/wheels", "a-1-py3-none-any.whl"
PASSING = ["truncate", "hang", "stall", "drop", "408", "429", "500", "503"]
TOLD = {
    "truncate": "the connection broke off",
    "drop": "the connection broke off",
    "hang": "no answer in time",
    "stall": "no answer in time",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.create(REPO, {WHEEL: b"w" * 300_000, f"{WHEEL}.json": b"{}" * 500})
        yield hub


@pytest.fixture
def options() -> dict[str, Any]:
    """For `small` and `download`; the pauses that they make are counted, not slept."""
    pauses: list[float] = []
    return {"pause": pauses.append, "timeout": (2.0, 0.2)}


def address(hub: Hub, name: str = WHEEL, user: str = "") -> str:
    return f"{hub.endpoint}/datasets/{REPO}/resolve/main/{name}".replace("://", f"://{user}")


def refusal(ask: Callable[[], object]) -> str:
    """The one line of the StoreError, which ends the program with exit code 7."""
    with pytest.raises(StoreError) as caught:
        ask()
    assert caught.value.code == 7
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_survived(hub: Hub, options: dict[str, Any], tmp_path: Path, kind: str) -> None:
    hub.misbehave("json", kind, 2)
    assert web.small(address(hub, f"{WHEEL}.json"), **options) == b"{}" * 500
    hub.misbehave("GET", kind, 2)
    seen: list[tuple[int, int]] = []
    web.download(address(hub), tmp_path / WHEEL, lambda done, total: seen.append((done, total)), **options)
    assert (tmp_path / WHEEL).read_bytes() == b"w" * 300_000
    assert (seen[-1], len(hub.requests)) == ((300_000, 300_000), 6)
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL]
    pauses = options["pause"].__self__
    assert all(pause == 7 if kind == "429" else 0.5 <= pause <= 3 for pause in pauses)
    assert len(pauses) == 4


@pytest.mark.parametrize("kind", PASSING)
def test_what_does_not_pass_ends(hub: Hub, options: dict[str, Any], tmp_path: Path, kind: str) -> None:
    (tmp_path / WHEEL).write_bytes(b"what was there")
    hub.misbehave("GET", kind, 99)
    for ask in (
        lambda: web.small(address(hub), **options),
        lambda: web.download(address(hub), tmp_path / WHEEL, **options),
    ):
        line = refusal(ask)
        assert line.startswith(f"WHEEL_URL: {address(hub)} could not be ")
        assert TOLD.get(kind, kind) in line
        assert line.endswith("(3 tries). Check the network, or try again later.")
    assert len(hub.requests) == 6
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(WHEEL, b"what was there")]


@pytest.mark.parametrize("kind", ["400", "401", "403", "404", "409", "410", "412"])
def test_refusals_are_not_asked_again(hub: Hub, options: dict[str, Any], tmp_path: Path, kind: str) -> None:
    hub.misbehave("GET", kind, 99)
    if kind in {"403", "404", "410"}:
        assert web.small(address(hub), **options) is None
    else:
        assert f"answered {kind}" in refusal(lambda: web.small(address(hub), **options))
    line = refusal(lambda: web.download(address(hub), tmp_path / WHEEL, **options))
    assert line.startswith(f"WHEEL_URL: {address(hub)} answered {kind} ")
    assert (len(hub.requests), list(tmp_path.iterdir())) == (2, [])


def test_no_token_goes_along(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login hf_ambient password hf_ambient\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", "hf_ambient")
    with Hub() as other:
        other.create(REPO, {WHEEL: b"elsewhere"})
        hub.misbehave("GET", other.endpoint)
        web.download(address(hub), tmp_path / WHEEL)
        assert (tmp_path / WHEEL).read_bytes() == b"elsewhere"
        assert web.small(address(hub))
        assert hub.tokens_seen | other.tokens_seen == {""}


def test_credentials_in_the_address_stay_with_its_host_and_out_of_errors(tmp_path: Path) -> None:
    basic = "Basic " + base64.b64encode(b"me:s@cret").decode()
    with Hub(read=(basic,)) as hub, Hub() as other:
        hub.create(REPO, {WHEEL: b"w"}, private=True)
        other.create(REPO, {WHEEL: b"w"})
        url = address(hub, user="me:s%40cret@") + "?signature=s3cret#sha256=0"
        assert web.small(url) == b"w"
        hub.misbehave("GET", other.endpoint)
        web.download(url, tmp_path / WHEEL)
        assert (hub.tokens_seen, other.tokens_seen) == ({basic}, {""})
        hub.misbehave("GET", "400", 99)
        line = refusal(lambda: web.download(url, tmp_path / WHEEL))
        assert line == f"WHEEL_URL: {address(hub)} answered 400 Bad Request. Check WHEEL_URL."


@pytest.mark.parametrize("to", ["ftp://127.0.0.1", "http://127.0.0.1:port", "http://["])
def test_addresses_that_cannot_be_used_are_not_asked_again(hub: Hub, tmp_path: Path, to: str) -> None:
    hub.misbehave("GET", to, 99)
    line = refusal(lambda: web.download(address(hub, user="me:secret@"), tmp_path / WHEEL))
    assert line.startswith(f"WHEEL_URL: {address(hub)} could not be downloaded: 127.0.0.1: the address, or one that it")
    assert len(hub.requests) == 1


def test_redirects_without_end_do_end(hub: Hub) -> None:
    hub.misbehave("GET", hub.endpoint, 99)
    assert "or one that it redirects to, cannot be used" in refusal(lambda: web.small(address(hub)))
    assert len(hub.requests) < 40


def test_a_small_file_that_is_large(hub: Hub) -> None:
    hub.create(REPO, {WHEEL: bytes(5 << 20)})
    assert "the answer is larger than 4 MiB" in refusal(lambda: web.small(address(hub)))
    assert len(hub.requests) == 1


def test_certificates_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert "none.pem" in refusal(lambda: web.small("https://127.0.0.1:1/a.json"))


def test_files(tmp_path: Path) -> None:
    source, to = tmp_path / "a b.whl", tmp_path / "to" / WHEEL
    source.write_bytes(b"w" * 2_000_000)
    seen: list[tuple[int, int]] = []
    assert web.small(source.as_uri()) == source.read_bytes()
    web.download(source.as_uri(), to, lambda done, total: seen.append((done, total)))
    assert (to.read_bytes(), seen[-1]) == (source.read_bytes(), (2_000_000, 2_000_000))
    assert web.small(f"{source.as_uri()}.json") is None
    line = refusal(lambda: web.download(f"{source.as_uri()}x", to))
    assert line == f"WHEEL_URL: {source.as_uri()}x cannot be read (No such file or directory). Check WHEEL_URL."
    assert [path.name for path in to.parent.iterdir()] == [WHEEL]


def test_where_nothing_can_be_written(hub: Hub, tmp_path: Path) -> None:
    """A fact of this machine, not of the store: `auto` must not take it for a store that is away, and compile."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="it is not a folder"):
        web.download(address(hub), tmp_path / "file" / WHEEL)


@pytest.mark.parametrize(("said", "least", "most"), [("900", 60, 60), ("7", 7, 7), ("0", 0.5, 1.5), ("soon", 0.5, 1.5)])
def test_retry_after_is_honoured_and_capped(said: str, least: float, most: float) -> None:
    pauses: list[float] = []

    def once() -> None:
        trouble = busy(503, said)
        assert trouble
        raise trouble

    assert refusal(lambda: insist("it", once, pauses.append)).startswith("it: 503 Service Unavailable (3 tries)")
    assert least <= pauses[0] <= most
    assert len(pauses) == 2


def test_who_asks_for_more_patience_than_we_have_is_named() -> None:
    def once() -> None:
        trouble = busy(429, "3600")
        assert trouble
        raise trouble

    pauses: list[float] = []
    line = refusal(lambda: insist("it", once, pauses.append))
    assert line == "it: 429 Too Many Requests (3 tries). It asks to be left alone for 3600 s: try again after that."
    assert pauses == [60, 60]


@pytest.mark.parametrize("content", [b"", b"w", b"w" * 3_000_000, os.urandom(3_000_000)], ids=len)
def test_what_was_compressed_on_the_way(hub: Hub, tmp_path: Path, content: bytes) -> None:
    hub.create(REPO, {WHEEL: content})
    hub.misbehave("GET", "gzip", 2)
    assert web.small(address(hub)) == content
    web.download(address(hub), tmp_path / WHEEL)
    assert ((tmp_path / WHEEL).read_bytes() == content, len(hub.requests)) == (True, 2)


@pytest.mark.parametrize("kind", ["trickle", "endless"])
def test_a_body_that_does_not_come_to_an_end(
    hub: Hub, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The trickle never is silent for long, and the other one is quick: neither would end by itself."""
    monkeypatch.setattr(tries, "GRACE", 0.2)
    monkeypatch.setattr(web, "_LARGEST_FILE", 5 << 20)
    hub.misbehave("GET", kind, 99)
    told = {"trickle": "it sends less than 10 kB a second (3 tries)", "endless": "the answer is larger than 5 MiB. "}
    started = time.monotonic()
    line = refusal(lambda: web.download(address(hub), tmp_path / WHEEL, **options))
    assert f"could not be downloaded: 127.0.0.1: {told[kind]}" in line
    told["endless"] = "the answer is larger than 4 MiB. "
    assert told[kind] in refusal(lambda: web.small(address(hub), **options))
    assert time.monotonic() - started < 5
    assert (len(hub.requests), list(tmp_path.iterdir())) == (6 if kind == "trickle" else 2, [])


def test_slow_is_not_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large wheel may take its time, as long as it comes."""
    clock = [0.0]
    monkeypatch.setattr(tries, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    pace = tries.Pace()
    for _ in range(1000):
        clock[0] += 1.0
        pace.arrived(tries.SLOWEST)
    with pytest.raises(Trouble, match="it sends less than 10 kB a second"):
        for _ in range(100):
            clock[0] += 1.0
            pace.arrived(1)
    assert 1060 <= clock[0] <= 1062


def test_retry_after_may_be_a_date() -> None:
    now = datetime.now(timezone.utc)
    waits = [busy(429, format_datetime(now + timedelta(seconds=seconds))) for seconds in (30, -30)]
    assert [trouble and round(trouble.wait, -1) for trouble in waits] == [30, 0]
    assert (busy(404, "7"), busy(302, None)) == (None, None)
    assert isinstance(busy(408, None), Trouble)
