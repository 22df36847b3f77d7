"""How bench's probe times: each call behind a cold cache, the functions in turns, and what it tells of the times."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sagewheels import probe_smoke

SHAPE = [1, 1, 8, 8, False]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The probe as it lies in the target: beside the short checks, here of tensors that hold nothing."""
    monkeypatch.setitem(sys.modules, "sagewheels_smoke", probe_smoke)
    module = importlib.import_module("sagewheels.probe_bench")
    checks = SimpleNamespace(
        draw=lambda *_: [SimpleNamespace(element_size=lambda: 2)] * 3,
        reference=lambda *_: None,
        poison=lambda *_: None,
        compare=lambda *_: {"finite": True},
    )
    monkeypatch.setattr(module, "smoke", checks)
    yield module
    sys.modules.pop("sagewheels.probe_bench", None)


class Gpu:
    """A torch whose clock goes on only by what runs; `did` is all that ran, in its order."""

    def __init__(self) -> None:
        self.now, self.did = 0.0, list[str]()
        self.bfloat16 = "bfloat16"
        self.cuda = SimpleNamespace(
            Event=self._event, synchronize=lambda: None, empty_cache=lambda: None, OutOfMemoryError=MemoryError
        )

    def _event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        event: Any = SimpleNamespace(at=0.0, elapsed_time=lambda end: end.at - event.at)

        def record() -> None:
            event.at = self.now
            self.did.append("event")

        event.record = record
        return event

    def zero_(self) -> None:
        self.now += 1000
        self.did.append("flush")

    def function(self, name: str, *times: float) -> Callable[..., None]:
        """One whose first calls take the first time, of checking and warming up; then one after the other, again."""
        calls = iter([times[0]] * 4 + [*times[1:]] * 100)

        def run(*_: Any) -> None:
            self.now += next(calls)
            self.did.append(name)

        return run


def test_each_call_has_a_cold_cache_and_is_timed_alone(probe: ModuleType) -> None:
    gpu = Gpu()
    assert probe.once(gpu, gpu.function("own", 3.0, 3.0), [], False, gpu) == 3.0
    assert gpu.did == ["flush", "event", "own", "event"]


def test_each_turn_begins_with_another_function(probe: ModuleType) -> None:
    gpu = Gpu()
    functions = {name: gpu.function(name, 1.0, 1.0) for name in ("own", "first", "second")}
    # 4 ms in 4 turns: one call of each in each turn.
    probe.timed(gpu, functions, [], False, {"seconds": 0.004, "rounds": 4}, gpu)
    ran = [name for name in gpu.did if name in functions]
    warm, turns = ran[:9], ran[9:]
    assert warm == ["own"] * 3 + ["first"] * 3 + ["second"] * 3
    assert turns == [
        *("own", "first", "second"),
        *("first", "second", "own"),
        *("second", "own", "first"),
        *("own", "first", "second"),
    ]


def test_the_median_and_the_fifths_of_unsorted_times(probe: ModuleType) -> None:
    gpu = Gpu()
    # 10 calls, as their time when warm says.
    own = gpu.function("own", 1.0, 1.0, 9.0, 3.0, 2.0, 8.0, 5.0, 7.0, 4.0, 6.0, 40.0)
    point = probe.measure(gpu, {"own": own}, SHAPE, {"dtype": "bfloat16", "seconds": 0.01, "rounds": 1}, gpu)
    assert point == {
        "shape": SHAPE,
        # Of 1, 2, 3, 4, 5, 6, 7, 8, 9, 40: the upper of the two in the middle; the mean would be 8.5.
        "functions": {"own": {"finite": True, "ms": 6.0, "p20": 3.0, "p80": 9.0, "runs": 10}},
    }
