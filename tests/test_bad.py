"""Known-bad wheels: which marks stand, what they say, and how lists of them are merged. All of it pure."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from sagewheels import arch, bad
from sagewheels.bad import Mark
from sagewheels.manifest import WheelManifest, parse

FILE = "sageattention-2.2.0+cu130torch2.11sm120-cp312-cp312-linux_x86_64.whl"
SHA, KEY = "ab" * 32, "cd" * 32
RTX = "NVIDIA GeForce RTX 5090"
RAW: dict[str, Any] = {
    "wheel_file": FILE,
    "wheel_sha256": SHA,
    "build_key": KEY,
    "arch": "12.0",
    "gpu": RTX,
    "driver": "580.65.06",
    "torch_version": "2.11.0+cu130",
    "reason": "3 of 128 cases are wrong",
    "at_utc": "2026-11-22T10:00:00Z",
    "sagewheels": "0.1.0",
}
HERE, HOPPER = arch.parse_list("12.0"), arch.parse_list("9.0")
WORDS = f"known to be bad on arch 12.0: 3 of 128 cases are wrong ({RTX}, 2026-11-22)"


def mark(**changed: Any) -> Mark:
    found = bad.read({**RAW, **changed})
    assert found
    return found


def wheel(*proofs: tuple[str, str], **changed: Any) -> WheelManifest:
    """A wheel with these proofs, each an arch and a moment."""
    listed = [{"gpu": RTX, "arch": place, "at_utc": moment} for place, moment in proofs]
    data = {"wheel_file": FILE, "wheel_sha256": SHA, "build_key": KEY, "archs": ["9.0a", "12.0"], "proofs": listed}
    return parse({**data, **changed}, "test")


def against(candidate: WheelManifest, *marks: Mark, archs: Any = HERE) -> list[str]:
    return bad.against(candidate, archs, bad.by_name(marks))


def test_a_mark_speaks_of_its_arch_alone() -> None:
    assert against(wheel(), mark()) == [f"it is {WORDS}"]
    assert against(wheel(), mark(), archs=HOPPER) == []
    assert against(wheel(), mark(), archs=(*HOPPER, *HERE)) == [f"it is {WORDS}"]
    assert against(wheel(wheel_sha256="ef" * 32), mark()) == [], "another build of the same key has its own numbers"


def test_a_mark_by_people() -> None:
    everywhere, here = Mark(reason="leaks memory", build_key=KEY), Mark(reason="slow", wheel_sha256=SHA, arch="12.0")
    late = ("12.0", "2030-01-01T00:00:00Z")
    assert against(wheel(late, ("9.0", late[1])), everywhere) == ["it is known to be bad: leaks memory"]
    assert against(wheel(late), here) == ["it is known to be bad on arch 12.0: slow"], "no proof overrules it"
    assert against(wheel(), here, archs=HOPPER) == []
    assert against(wheel(build_key=None), everywhere) == []


@pytest.mark.parametrize(
    ("proofs", "stands"),
    [
        ([], True),
        ([("12.0", "2026-11-22T09:59:59Z")], True),
        ([("12.0", "2026-11-22T10:00:00Z")], False),
        ([("12.0", "2026-11-22T12:30:00+02:00")], False),
        ([("9.0", "2027-01-01T00:00:00Z")], True),
        ([("12.0", "some day")], True),
        ([("12.0", "9999-12-31T23:59:59Z")], True),
    ],
)
def test_a_newer_proof_on_the_same_arch_overrules_it(proofs: list[tuple[str, str]], *, stands: bool) -> None:
    assert bool(against(wheel(*proofs), mark())) is stands
    assert (bad.without_overruled([RAW], wheel(*proofs)) == [RAW]) is stands
    assert against(wheel(*proofs), mark(at_utc="then")), "a mark without a readable date stays"


def test_a_newer_proof_takes_back_a_mark_on_its_build_key() -> None:
    """Else the wheel would be taken, and the same build refused."""
    of_key = {key: value for key, value in RAW.items() if key not in {"wheel_sha256", "wheel_file"}}
    proven = wheel(("12.0", "2026-11-23T00:00:00Z"))
    assert bad.without_overruled([of_key], proven) == []
    assert bad.without_overruled([of_key], wheel(("12.0", "2026-11-23T00:00:00Z"), build_key=None)) == [of_key]


def test_proven_where_nothing_stands_against_it() -> None:
    marks = bad.by_name([mark()])
    assert not bad.is_proven(wheel(("12.0", "2026-01-01T00:00:00Z")), marks)
    assert bad.is_proven(wheel(("12.0", "2026-01-01T00:00:00Z"), ("9.0", "2026-01-01T00:00:00Z")), marks)
    assert bad.is_proven(wheel(("12.0", "2027-01-01T00:00:00Z")), marks)
    assert not bad.is_proven(wheel(), marks)
    assert not bad.is_proven(wheel(("9.0", "2027-01-01T00:00:00Z")), bad.by_name([mark(arch=None)]))


def test_a_wheel_without_a_sha256_is_known_by_its_name() -> None:
    assert against(wheel(wheel_sha256=None), mark()) == [f"it is {WORDS}"]


def test_of_two_marks_the_newer_speaks() -> None:
    newer = mark(at_utc="2026-11-23T00:00:00Z", reason="not finite", gpu=None)
    for order in ((mark(), newer), (newer, mark())):
        assert against(wheel(), *order) == ["it is known to be bad on arch 12.0: not finite (2026-11-23)"]


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "text",
        {},
        {"reason": "nothing is named"},
        {**RAW, "wheel_sha256": "abc"},
        {**RAW, "build_key": "x" * 64},
        {**RAW, "arch": "blackwell"},
        {**RAW, "arch": 12.0},
        {**RAW, "reason": "\x1b[2J"},
        {**RAW, "reason": ["a"]},
        {**RAW, "gpu": "\ud800"},
        {**RAW, "at_utc": 7},
    ],
)
def test_what_is_no_mark_is_passed_over_and_kept(data: Any) -> None:
    assert bad.read(data) is None
    assert bad.added([data], mark()) == [data, RAW]
    assert bad.without_overruled([data], wheel(("12.0", "2027-01-01T00:00:00Z"))) == [data]


def test_marks_are_read_leniently() -> None:
    found = bad.read({"wheel_sha256": SHA.upper(), "arch": "sm_120", "their_key": 1})
    assert found and (found.wheel_sha256, found.arch, found.reason) == (SHA, "12.0", "no reason is given")
    assert len(mark(reason="x" * 5000).reason) == 300


def test_one_mark_for_each_wheel_and_arch() -> None:
    newer = {**RAW, "at_utc": "2026-11-23T00:00:00Z", "reason": "again"}
    assert bad.added([RAW], mark()) == [RAW]
    assert bad.added([{**RAW, "theirs": 1}], mark(**newer)) == [{**newer, "theirs": 1}]
    assert bad.added([newer], mark()) == [newer], "what was said later stays"
    hopper, other = {**RAW, "arch": "9.0"}, {**RAW, "wheel_sha256": "ef" * 32}
    assert bad.added([hopper, other], mark()) == [hopper, other, RAW]


def test_only_the_marks_of_this_wheel_are_taken_back() -> None:
    others = [{**RAW, "wheel_sha256": "ef" * 32}, {**RAW, "arch": "9.0"}, {"wheel_sha256": SHA, "arch": "12.0"}]
    assert bad.without_overruled([RAW, *others], wheel(("12.0", "2027-01-01T00:00:00Z"))) == others


@pytest.mark.parametrize(
    ("than", "moment"),
    [
        ([], "2026-11-22T10:00:00Z"),
        (["2026-11-22T09:00:00Z", "some day"], "2026-11-22T10:00:00Z"),
        (["2026-11-22T10:00:00Z"], "2026-11-22T10:00:01Z"),
        (["2026-11-22T13:00:00+02:00", "2026-01-01T00:00:00Z"], "2026-11-22T11:00:01Z"),
        (["9999-12-31T23:59:59Z"], "2026-11-22T10:00:00Z"),
    ],
)
def test_a_slow_clock_has_the_last_word_too(than: list[str], moment: str) -> None:
    assert bad.later(datetime(2026, 11, 22, 10, tzinfo=timezone.utc), than) == moment


def test_a_build_that_comes_to_no_good() -> None:
    marks = bad.by_name([mark()])
    assert bad.of_build(KEY, HERE, marks) == mark()
    assert bad.of_build(KEY, HOPPER, marks) is None
    assert bad.of_build("ef" * 32, HERE, marks) is None
    assert bad.of_build(KEY, HOPPER, bad.by_name([Mark(reason="x", build_key=KEY)])) is not None


def test_what_the_long_checks_found_they_alone_take_back() -> None:
    """The short ones passed before, and say nothing of it."""
    late, found = "2026-11-23T10:00:00Z", mark(full=True)
    short = wheel(("12.0", late))
    long = wheel(proofs=[{"gpu": RTX, "arch": "12.0", "at_utc": late, "full": ["lengths"]}])
    assert (against(short, found), against(long, found)) == ([f"it is {WORDS}"], [])
    assert (against(short, mark()), against(long, mark())) == ([], [])
    assert bad.without_overruled([found.raw], short) == [found.raw]
    assert bad.without_overruled([found.raw], long) == []
    newer = mark(at_utc="2026-11-22T11:00:00Z")
    assert bad.added([found.raw], newer) == [{**newer.raw, "full": True}], "a wheel that fails both owes both"
