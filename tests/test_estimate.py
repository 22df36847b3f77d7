"""Time left: no number before there is something to base it on, and then one that comes true."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewheels.arrivals import Arrivals
from sagewheels.estimate import Compiles, Rate


def rate(*seen: tuple[float, int]) -> Rate:
    made = Rate()
    for now, done in seen:
        made.add(now, done)
    return made


def test_a_steady_download_ends_when_it_was_said_to() -> None:
    made = rate(*((100 + second, second * 1_000_000) for second in range(9)))
    assert made.per_second == 1_000_000
    assert made.left(20_000_000) == 12


@pytest.mark.parametrize("seen", [[], [(0.0, 5)], [(0.0, 0), (1.9, 5_000_000)]])
def test_of_the_first_bytes_nothing_is_said(seen: list[tuple[float, int]]) -> None:
    made = rate(*seen)
    assert (made.per_second, made.left(10_000_000)) == (None, None)


def test_what_has_become_slow_is_slow() -> None:
    """Not as fast as it was on average."""
    quick = [(float(second), second * 10_000_000) for second in range(60)]
    slow = [(60.0 + second, 590_000_000 + second * 1000) for second in range(30)]
    made = rate(*quick, *slow)
    assert made.per_second == pytest.approx(1000)


def test_a_new_try_begins_anew() -> None:
    made = rate((0.0, 0), (5.0, 5_000_000), (6.0, 1000))
    assert made.per_second is None
    made.add(8.0, 3000)
    assert made.per_second == 1000


def test_where_nobody_says_how_much_comes_there_is_no_time_left() -> None:
    assert rate((0.0, 0), (4.0, 4000)).left(0) is None
    stalled = rate((0.0, 1000), (4.0, 1000))
    assert (stalled.per_second, stalled.left(2000)) == (0, None)


def compiles(weight: float = 0, seconds: float = 0, running: object = (), waiting: object = ()) -> Compiles:
    return Compiles(weight=weight, seconds=seconds, running=running, waiting=waiting)  # type: ignore[arg-type]


def test_until_a_compile_has_ended_here_nobody_knows() -> None:
    assert compiles(running=[(100, 50)], waiting=[10, 10]).left(2) is None


def test_the_first_that_ended_tells_how_fast_this_machine_is() -> None:
    """Of 30 known seconds it took 60: what waits takes twice as long, too."""
    assert compiles(30, 60, waiting=[30, 10]).left(1) == 80
    assert compiles(30, 60, waiting=[30, 10]).left(2) == 60
    assert compiles(30, 15, running=[(30, 5)], waiting=[10]).left(2) == 10


def test_one_that_takes_longer_than_foreseen_may_end_any_moment() -> None:
    assert compiles(10, 10, running=[(10, 25)]).left(1) == 0
    assert compiles(10, 10).left(4) == 0


@given(
    st.lists(st.floats(1, 100), min_size=1, max_size=20),
    st.integers(1, 8),
    st.floats(0.1, 10),
)
def test_it_is_no_less_than_the_work_and_no_more_than_one_after_the_other(
    waiting: list[float], lanes: int, pace: float
) -> None:
    left = compiles(1, pace, waiting=waiting).left(lanes)
    assert left is not None
    work = sum(waiting) * pace
    assert max(work / lanes, max(waiting) * pace) * 0.999 <= left <= work * 1.001


UV = """Using Python 3.11.7 environment at: v
Resolved 13 packages in 402ms
Downloading cryptography (4.5MiB)
Downloading numpy (16.1MiB)
Downloading torch (782.4MiB)
 Downloaded numpy
 Downloaded cryptography
 Downloaded torch
Prepared 13 packages in 512ms
Installed 13 packages in 63ms
 + numpy==2.4.6"""


def test_what_uv_says_of_an_install() -> None:
    arrivals = Arrivals()
    assert [arrivals.hear(line) for line in UV.splitlines()] == [
        "resolving",
        "getting 13 packages",
        "getting 13 packages, coming: cryptography (4.5MiB)",
        "getting 13 packages, coming: cryptography (4.5MiB), numpy (16.1MiB)",
        "getting 13 packages, coming: cryptography (4.5MiB), numpy (16.1MiB) and 1 more",
        "getting 13 packages, 1 of 3 large ones are here, coming: cryptography (4.5MiB), torch (782.4MiB)",
        "getting 13 packages, 2 of 3 large ones are here, coming: torch (782.4MiB)",
        "getting 13 packages",
        "installing 13 packages",
        "installed 13 packages",
        "installed 13 packages",
    ]
