"""A file for `bench --from` may be anybody's: what bench did not write is refused in one line, and nothing waits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sagewheels import bench, benchfile, chart
from sagewheels.errors import UsageError

SHAPE = [1, 32, 1024, 128, False]
TIMED = {"ms": 1.5, "result": "right"}


def measured(**changes: Any) -> dict[str, Any]:
    texts = {name: name for name in benchfile._TEXTS}
    return {"schema": 1, **texts, "function": "f", "points": [{"shape": SHAPE, "functions": {"f": TIMED}}], **changes}


def point(**functions: Any) -> dict[str, Any]:
    return {"points": [{"shape": SHAPE, "functions": functions}]}


def load(tmp_path: Path, found: object) -> dict[str, Any]:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(found))
    return benchfile.load(path)


@pytest.mark.parametrize(
    "points",
    [
        [{"shape": SHAPE, "functions": {"f": TIMED, "SDPA": {"error": "no kernel"}}}],
        [{"shape": SHAPE, "functions": {"f": {"skipped": "too large"}, "SDPA": TIMED}}],
        [{"shape": SHAPE, "skipped": "too large"}],
    ],
)
def test_what_bench_writes_is_shown(tmp_path: Path, points: list[Any]) -> None:
    assert list(bench.tables(load(tmp_path, measured(points=points))))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"points": []}, "points is no list of 1 to 512"),
        ({"points": [{"shape": SHAPE}]}, "point 1 has functions that are no table"),
        (point(g=TIMED), "point 1 has no 'f' among its functions"),
        (point(f={"ms": 10**400, "result": "right"}), "point 1 has no time of 'f'"),
        (point(f={"ms": 5e-324, "result": "right"}), "point 1 has no time of 'f'"),
        (point(f={"ms": True, "result": "right"}), "point 1 has no time of 'f'"),
        (point(f={"ms": "x", "error": "x"}), "point 1 does not say why there is no time of 'f'"),
        (point(f=TIMED, SDPA={"ms": "x", "error": "x"}), "point 1 does not say why there is no time of 'SDPA'"),
        (
            {"points": [{"shape": [1, 1, 64, dim, False], "functions": {"f": TIMED}} for dim in range(1, 99)]},
            "it has more than 8 head_dims",
        ),
        (
            point(**dict.fromkeys(["f", *map(str, range(99))], TIMED)),
            "point 1 has more than 16 functions, or one with a name that none has",
        ),
    ],
)
def test_what_bench_never_writes_is_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match="is not from bench: ") as refused:
        load(tmp_path, measured(**changes))
    assert fault in str(refused.value)


def test_no_number_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not JSON: "):
        load(tmp_path, measured(**point(f={"ms": float("nan"), "result": "right"})))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="it is no plain file"):
            benchfile.load(path)


def test_a_dollar_in_a_name_begins_no_formula(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chart.draw(measured(gpu="$\\frac{$", function="f"), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
