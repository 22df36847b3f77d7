"""Turns: the heaviest first, never more than cores and memory hold, and always one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagewheels.schedule import Appetite, Closed, Pool


class Site:
    """Compiles that wait for their turn in threads of their own, and end when they are told to."""

    def __init__(self, pool: Pool, threads: ThreadPoolExecutor) -> None:
        self.pool, self.threads = pool, threads
        self.started: list[str] = []
        self.ends: dict[str, threading.Event] = {}
        self.done: dict[str, Future[None]] = {}

    def add(self, name: str, seconds: float = 1, memory: int = 1, *, alone: bool = False) -> None:
        self.ends[name] = threading.Event()

        def work() -> None:
            with self.pool.turn(name, Appetite(seconds=seconds, memory=memory), alone=alone):
                self.started.append(name)
                assert self.ends[name].wait(10)

        before = len(self.pool._waiting) + len(self.started)
        self.done[name] = self.threads.submit(work)
        until(lambda: len(self.pool._waiting) + len(self.started) > before)

    def end(self, name: str) -> None:
        self.ends[name].set()
        self.done[name].result(10)

    def runs(self, *names: str) -> None:
        """These run now, and soon after still no others."""
        until(lambda: sorted(self.pool.running()) == sorted(names))
        time.sleep(0.03)
        assert sorted(self.pool.running()) == sorted(names)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)


@contextmanager
def site(cores: int, memory: int, settle: float = 0.0) -> Iterator[Site]:
    with ThreadPoolExecutor(32) as threads:
        made = Site(Pool(cores, memory, settle=settle), threads)
        try:
            yield made
        finally:
            made.pool.close()
            for event in made.ends.values():
                event.set()


def test_the_heaviest_goes_first_whoever_came_first() -> None:
    with site(1, 10, settle=0.2) as here:
        for name, seconds in (("light", 1.0), ("heavy", 60.0), ("middle", 30.0)):
            here.add(name, seconds)
        here.runs("heavy")
        here.end("heavy")
        here.runs("middle")
        here.end("middle")
        here.runs("light")
        assert here.started == ["heavy", "middle", "light"]


def test_nothing_starts_before_the_others_have_come() -> None:
    with site(4, 10, settle=0.2) as here:
        here.add("a")
        assert here.started == []
        here.runs("a")
        started = time.monotonic()
        here.add("b")
        here.runs("a", "b")
        assert time.monotonic() - started < 0.2, "this is waited for once in a build"


def test_as_many_as_there_are_cores() -> None:
    with site(2, 100) as here:
        for name in "abc":
            here.add(name)
        here.runs("a", "b")
        here.end("b")
        here.runs("a", "c")


def test_what_does_not_fit_into_memory_waits_while_something_smaller_runs() -> None:
    with site(4, 10) as here:
        here.add("first", memory=6)
        here.runs("first")
        here.add("big", seconds=60, memory=6)
        here.add("small", seconds=1, memory=4)
        here.runs("first", "small")
        here.end("first")
        here.runs("big", "small")


@pytest.mark.parametrize("memory", [0, 1])
def test_one_may_always_run(memory: int) -> None:
    with site(4, memory) as here:
        here.add("big", memory=1000)
        here.runs("big")
        here.add("other", memory=1000)
        here.runs("big")
        here.end("big")
        here.runs("other")


def test_one_that_must_be_alone_runs_after_all_others() -> None:
    with site(4, 100) as here:
        here.add("a")
        here.add("alone", seconds=99, alone=True)
        here.add("alone too", seconds=999, alone=True)
        here.runs("a")
        here.add("b")
        here.runs("a", "b")
        here.end("a")
        here.runs("b")
        here.end("b")
        here.runs("alone")
        here.add("c")
        here.runs("alone")
        here.end("alone")
        here.runs("c")
        here.end("c")
        here.runs("alone too")


def test_closed() -> None:
    """Who waits and who comes later gets Closed; what runs goes on."""
    with site(1, 10) as here:
        here.add("runs")
        here.runs("runs")
        here.add("waits")
        here.add("waits alone", alone=True)
        here.pool.close()
        for name in ("waits", "waits alone"):
            with pytest.raises(Closed):
                here.done[name].result(10)
        here.runs("runs")
        with pytest.raises(Closed), here.pool.turn("late", Appetite(seconds=1, memory=1)):
            pytest.fail("it was started")
        here.end("runs")
        assert here.pool.running() == []


def test_closed_while_the_first_ones_come() -> None:
    with site(4, 10, settle=60) as here:
        here.add("a")
        here.pool.close()
        with pytest.raises(Closed):
            here.done["a"].result(10)


def test_a_compile_that_breaks_gives_its_turn_back() -> None:
    pool = Pool(1, 10, settle=0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), pool.turn("a", Appetite(seconds=1, memory=1)):
            raise ZeroDivisionError
    assert pool.running() == []


def test_a_turn_comes_even_where_nobody_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settling may end between two looks at the clock: whoever waits then looks again."""
    pool = Pool(1, 10, settle=0.05)
    looks = iter([True])
    monkeypatch.setattr(pool, "_is_settling", lambda: next(looks, False))
    pool._opens = time.monotonic() - 1
    with pool.turn("a", Appetite(seconds=1, memory=1)):
        pass


TURNS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.booleans()), max_size=14)


@settings(max_examples=40, deadline=None)
@given(cores=st.integers(1, 5), memory=st.integers(0, 20), turns=TURNS)
def test_never_more_than_there_is(cores: int, memory: int, turns: list[tuple[int, int, bool]]) -> None:
    pool = Pool(cores, memory, settle=0)
    lock, running, wrong = threading.Lock(), list[tuple[int, int, bool]](), list[object]()

    def work(turn: tuple[int, int, bool]) -> None:
        seconds, wanted, alone = turn
        with pool.turn("x", Appetite(seconds=seconds, memory=wanted), alone=alone):
            with lock:
                running.append(turn)
                if len(running) > 1 and (
                    len(running) > cores or sum(one[1] for one in running) > memory or any(one[2] for one in running)
                ):
                    wrong.append(list(running))
            time.sleep(0.0005)
            with lock:
                running.remove(turn)

    with ThreadPoolExecutor(max(len(turns), 1)) as threads:
        done = [threads.submit(work, turn) for turn in turns]
        for one in done:
            one.result(10)
    assert wrong == []
    assert pool.running() == []
