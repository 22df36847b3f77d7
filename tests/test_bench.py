"""`bench`: what is measured and in which order, what is kept of it, the tables, the file, the chart."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sagewheels import bench, benchfile, chart, extras, proc, smoke
from sagewheels.bench import Plan
from sagewheels.config import Settings
from sagewheels.errors import SmokeFailed, UsageError
from sagewheels.job import Job
from sagewheels.resources import ROOT, probe_source
from tests import wheels
from tests.test_report import told, valid
from tests.wheels import RTX, Machine

FLAGS: dict[str, Any] = {
    "lengths": "",
    "head_dims": "64,128",
    "causal": "both",
    "dtype": "bfloat16",
    "batch": "4",
    "heads": "32",
    "quick": False,
}
RIGHT = {"finite": True, "cosine": 0.9999, "relative_l2": 0.01, "row_relative_l2": 0.02}
BOUNDS = {"min_cosine": 0.999, "max_relative_l2": 0.05}
PNG = b"\x89PNG\r\n\x1a\n"


def plan(**changed: Any) -> Plan:
    return bench.plan(**{**FLAGS, **changed})


def ran(ms: float, result: str = "right", **changed: Any) -> dict[str, Any]:
    return {**RIGHT, "ms": ms, "p20": ms, "p80": ms, "runs": 5, "result": result, **changed}


def point(length: int = 1024, dim: int = 64, causal: bool = False, /, **functions: Any) -> dict[str, Any]:
    """A point of two functions, unless told otherwise; `_` in a name is a blank."""
    given = functions or {"attn": ran(1.0), "SDPA": ran(2.0)}
    named = {name.replace("_", " ", 1): one for name, one in given.items()}
    return {"shape": [4, 32, length, dim, causal], "functions": named}


def found(*points: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "at_utc": "2026-11-25T23:49:48Z",
        "gpu": "NVIDIA H100 80GB HBM3",
        "arch": "9.0",
        "driver": "580.159.04",
        "torch": "2.11.0+cu130",
        "cuda": "13.0",
        "package": "tinyattn",
        "version": "1.0",
        "function": "attn",
        "dtype": "bfloat16",
        "bounds": BOUNDS,
        "points": list(points),
        **changed,
    }


# What is measured


def test_the_points_of_the_flags_in_their_order() -> None:
    assert plan(lengths="2048,1024,1024", head_dims="128, 64", batch="2", heads="8").shapes == (
        (2, 8, 1024, 64, False),
        (2, 8, 2048, 64, False),
        (2, 8, 1024, 128, False),
        (2, 8, 2048, 128, False),
        (2, 8, 1024, 64, True),
        (2, 8, 2048, 64, True),
        (2, 8, 1024, 128, True),
        (2, 8, 2048, 128, True),
    )
    assert (len(plan().shapes), plan().dtype, plan().seconds) == (24, "bfloat16", 0.25)
    quick = plan(quick=True, causal="yes", dtype="float16")
    assert (len(quick.shapes), quick.dtype, quick.seconds) == (6, "float16", 0.05)
    assert {shape[2] for shape in quick.shapes} == {1024, 4096, 16384} and all(shape[4] for shape in quick.shapes)
    assert [shape[4] for shape in plan(lengths="7", head_dims="64", causal="no").shapes] == [False]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"causal": "maybe"}, "--causal 'maybe' is not known. Use one of both, yes, no."),
        ({"dtype": "float32"}, "--dtype 'float32' is not known. Use bfloat16 or float16."),
        ({"batch": "0"}, "--batch '0' is not a number. Write it like 4096."),
        ({"batch": "1,2"}, "--batch '1,2' is not a number. Write it like 4096."),
        ({"heads": ""}, "--heads '' is not a number. Write it like 4096."),
        ({"lengths": "1k"}, "--lengths '1k' is not a list of up to 32 numbers. Write it like 1024,4096."),
        ({"lengths": "1,,2"}, "--lengths '1,,2' is not a list of up to 32 numbers. Write it like 1024,4096."),
        ({"lengths": "12345678"}, "--lengths '12345678' is not a list of up to 32 numbers. Write it like 1024,4096."),
        ({"lengths": "\u0661"}, "--lengths '\u0661' is not a list of up to 32 numbers. Write it like 1024,4096."),
        (
            {"lengths": ",".join("9" * 33)},
            f"--lengths '{','.join('9' * 20)},' is not a list of up to 32 numbers. Write it like 1024,4096.",
        ),
        ({"head_dims": "-64"}, "--head-dims '-64' is not a list of up to 8 numbers. Write it like 1024,4096."),
        (
            {"head_dims": "1,2,3,4,5,6,7,8,9"},
            "--head-dims '1,2,3,4,5,6,7,8,9' is not a list of up to 8 numbers. Write it like 1024,4096.",
        ),
    ],
)
def test_a_flag_that_is_none_is_named(changed: dict[str, str], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**changed)
    assert str(caught.value) == line


# What the figures say


@pytest.mark.parametrize(
    ("shape", "ms", "want"),
    [
        # 4 * 4 * 32 * 1024^2 * 64 = 34359738368 operations
        ((4, 32, 1024, 64, False), 1.0, 34.359738368),
        ((4, 32, 1024, 64, True), 1.0, 17.179869184),
        ((4, 32, 2048, 128, False), 2.0, 137.438953472),
        ((1, 1, 1, 1, False), 0.5, 8e-9),
    ],
)
def test_operations_a_second(shape: tuple[int, ...], ms: float, want: float) -> None:
    assert benchfile.tflops(shape, ms) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("one", "bounds", "result"),
    [
        ({}, {}, "right"),
        ({"cosine": 0.999, "relative_l2": 0.05}, {}, "right"),
        ({"cosine": 0.99899}, {}, "wrong"),
        ({"relative_l2": 0.0501}, {}, "wrong"),
        ({"row_relative_l2": 1.0}, {}, "right"),
        ({"row_relative_l2": 0.5}, {"max_row_relative_l2": 0.5}, "right"),
        ({"row_relative_l2": 0.51}, {"max_row_relative_l2": 0.5}, "wrong"),
        ({"finite": False, "cosine": None, "relative_l2": None, "row_relative_l2": None}, {}, "wrong"),
    ],
)
def test_each_result_is_judged(one: dict[str, Any], bounds: dict[str, float], result: str) -> None:
    """By the bounds of smoke, also that for one row: of 32768 rows one that nobody wrote hardly counts in its head."""
    judged = benchfile.judged(point(attn={**RIGHT, **one}), {**BOUNDS, **bounds})
    assert judged["functions"]["attn"] == {**RIGHT, **one, "result": result}


def test_what_did_not_run_is_neither_right_nor_wrong() -> None:
    one = point(attn={"error": "RuntimeError: no"}, SDPA_MATH={"skipped": "no memory"})
    assert benchfile.judged(one, BOUNDS) == one
    skipped = {"shape": [4, 32, 1024, 64, False], "skipped": "no memory"}
    assert benchfile.judged(skipped, BOUNDS) == skipped


def test_where_the_packages_own_result_is_wrong() -> None:
    """torch's own count too: then the machine is not to be believed. What has no memory is no result."""
    lost = {"shape": [4, 32, 8192, 64, False], "skipped": "no memory"}
    points = [
        point(),
        point(2048, attn=ran(1.0), SDPA=ran(1.0, "wrong")),
        point(4096, 128, True, attn=ran(1.0, "wrong", cosine=0.5, relative_l2=0.9), SDPA=ran(1.0)),
        point(8192, attn={"error": "RuntimeError: no"}),
        point(16384, attn=ran(1.0, "wrong", finite=False)),
        point(32768, attn={"skipped": "no memory"}),
        lost,
    ]
    assert list(benchfile.wrong(found(*points))) == [
        "SDPA at length 2048, head_dim 64: cosine 0.9999, relative L2 0.010, 0.020 in one row",
        "attn at length 4096, head_dim 128, causal: cosine 0.5000, relative L2 0.900, 0.020 in one row",
        "attn at length 8192, head_dim 64: RuntimeError: no",
        "attn at length 16384, head_dim 64: not finite",
    ]


def test_panels_are_by_mask_then_head_dim_and_their_points_by_length() -> None:
    points = [point(2048, 128), point(1024, 64, True), point(1024, 128), point(512, 64)]
    panels = benchfile.panels(found(*points))
    assert [(key, [one["shape"][2] for one in group]) for key, group in panels.items()] == [
        ((64, False), [512]),
        ((128, False), [1024, 2048]),
        ((64, True), [1024]),
    ]
    assert benchfile.names([point(), point(b=ran(1.0), c={"error": "x"}, attn=ran(1.0))]) == ["attn", "SDPA", "b"]


def test_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = found(
        point(2048, attn=ran(1.5), SDPA=ran(3.0), SDPA_MATH={"skipped": "no memory"}),
        point(1024, attn=ran(0.25, "wrong"), SDPA=ran(0.5), SDPA_MATH=ran(9.0, "wrong")),
        point(4096, attn={"error": "RuntimeError: no"}, SDPA=ran(4.0)),
        point(8192, attn=ran(20.0), SDPA={"error": "RuntimeError: no"}),
        {"shape": [4, 32, 16384, 64, False], "skipped": "the GPU has not enough memory for it"},
        point(1024, 128, True),
    )
    job = wheels_job(tmp_path, dry_run=True)
    bench.show(job, answer, tmp_path / "out")
    assert re.sub(r"\n\n+", "\n", capsys.readouterr().out) == (
        "NVIDIA H100 80GB HBM3, head_dim 64, full, bfloat16, batch 4, 32 heads; median\n"
        "| length | attn ms | TFLOPS | vs SDPA | SDPA ms | SDPA MATH ms | result                               |\n"
        "|--------|---------|--------|---------|---------|--------------|--------------------------------------|\n"
        "| 1024   | 0.250   | 137    | 2.00x   | 0.500   | 9.000 WRONG  | WRONG                                |\n"
        "| 2048   | 1.500   | 92     | 2.00x   | 3.000   | -            | ok                                   |\n"
        "| 4096   | -       | -      | -       | 4.000   | -            | RuntimeError: no                     |\n"
        "| 8192   | 20.000  | 110    | -       | -       | -            | ok                                   |\n"
        "| 16384  | -       | -      | -       | -       | -            | the GPU has not enough memory for it |\n"
        "NVIDIA H100 80GB HBM3, head_dim 128, causal, bfloat16, batch 4, 32 heads; median\n"
        "| length | attn ms | TFLOPS | vs SDPA | SDPA ms | result |\n"
        "|--------|---------|--------|---------|---------|--------|\n"
        "| 1024   | 1.000   | 34     | 2.00x   | 2.000   | ok     |\n"
        f"[bench] would draw {tmp_path}/out/bench-nvidia-h100-80gb-hbm3.png\n"
    )
    assert job.report["bench"] == answer
    assert not (tmp_path / "out").exists()


def wheels_job(tmp_path: Path, *, dry_run: bool = False) -> Job:
    """A job of which only the report is used."""
    return Job(Settings(log_dir=tmp_path / "logs", environ={}), dry_run=dry_run)


# The file


def loaded(tmp_path: Path, text: str | bytes) -> str:
    """The line that says why this is not from bench, without the path."""
    file = tmp_path / "figures.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return refused(file)


def refused(file: Path) -> str:
    with pytest.raises(UsageError) as caught:
        benchfile.load(file)
    line = str(caught.value)
    assert line.startswith(f"{file} ") and line.endswith(". Name a file that bench wrote.")
    return line[len(str(file)) + 1 : -len(". Name a file that bench wrote.")]


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    lost = {"shape": [4, 32, 8192, 64, False], "skipped": "no memory"}
    answer = found(point(), point(2048, attn={"error": "RuntimeError: \u00fc"}), lost, driver="")
    benchfile.save(tmp_path / "deep" / "figures.json", answer)
    assert benchfile.load(tmp_path / "deep" / "figures.json") == answer
    assert benchfile.load(ROOT / "benchmarks" / "bench-h100.json")["function"] == "sageattn"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff\xfe", "is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("[]", "is not from bench: its schema is not 1"),
        ('{"schema": 2}', "is not from bench: its schema is not 1"),
        ('{"schema": 1}', "is not from bench: at_utc is no text of up to 400 letters"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, text: str | bytes, why: str) -> None:
    assert loaded(tmp_path, text) == why


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema":' * 5000])
def test_a_file_of_nothing_but_depth(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, text).startswith("is not JSON: maximum recursion depth exceeded")


def test_each_truncation_is_refused(tmp_path: Path) -> None:
    text = json.dumps(found(point()))
    for end in range(0, len(text), 17):
        assert loaded(tmp_path, text[:end]).startswith("is not JSON: ")


def own(**changed: Any) -> dict[str, Any]:
    return found(point(attn={**ran(1.0), **changed}))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (found(gpu=3), "gpu is no text of up to 400 letters"),
        (found(gpu="x" * 401), "gpu is no text of up to 400 letters"),
        (found(driver=["x"]), "driver is no text of up to 400 letters"),
        (found(points={}), "points is no list of 1 to 512"),
        (found(*[point()] * 513), "points is no list of 1 to 512"),
        (found(point(), 3), "point 2 has no shape"),  # type: ignore[arg-type]
        (found({"shape": [1, 2, 3, 4]}), "point 1 has no shape"),
        (found({"shape": [1, 2, 3.0, 4, False]}), "point 1 has a shape that no tensor has"),
        (found({"shape": [1, 2, 0, 4, False]}), "point 1 has a shape that no tensor has"),
        (found({"shape": [True, 2, 3, 4, False]}), "point 1 has a shape that no tensor has"),
        (found({"shape": [1, 2, 10**7, 4, False]}), "point 1 has a shape that no tensor has"),
        (found({"shape": [1, 2, 3, 4, 0]}), "point 1 does not say whether it is causal"),
        (found({"shape": [1, 2, 3, 4, False]}), "point 1 has functions that are no table"),
        (found({"shape": [1, 2, 3, 4, False], "skipped": {}}), "point 1 does not say why it was skipped"),
        (found({**point(), "functions": []}), "point 1 has functions that are no table"),
        (found({**point(), "functions": {"attn": 3}}), "point 1 has functions that are no table"),
        (
            found(point(**{f"f{number}": ran(1.0) for number in range(17)})),
            "point 1 has more than 16 functions, or one with a name that none has",
        ),
        (
            found(point(attn=ran(1.0), **{"x" * 401: ran(1.0)})),
            "point 1 has more than 16 functions, or one with a name that none has",
        ),
        (found(point(SDPA=ran(1.0))), "point 1 has no 'attn' among its functions"),
        (own(result="fine"), "point 1 has no result of 'attn'"),
        (own(ms="1"), "point 1 has no time of 'attn'"),
        (own(ms=0), "point 1 has no time of 'attn'"),
        (own(ms=-1.0), "point 1 has no time of 'attn'"),
        (own(ms=1e-300), "point 1 has no time of 'attn'"),
        (own(ms=10**400), "point 1 has no time of 'attn'"),
        (own(error="RuntimeError: no"), "point 1 does not say why there is no time of 'attn'"),
        (found(point(attn={"error": 3})), "point 1 does not say why there is no time of 'attn'"),
        (found(point(attn={"skipped": "x" * 401})), "point 1 does not say why there is no time of 'attn'"),
    ],
)
def test_a_damaged_file(tmp_path: Path, answer: dict[str, Any], why: str) -> None:
    assert loaded(tmp_path, json.dumps(answer)) == f"is not from bench: {why}"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_json_has_not(tmp_path: Path, number: str) -> None:
    """Else the report of --json would hold it."""
    text = json.dumps(own(cosine=17.25)).replace("17.25", number)
    assert loaded(tmp_path, text).startswith("is not JSON: Out of range float values are not JSON compliant")


def test_a_file_that_is_no_small_plain_file(tmp_path: Path) -> None:
    """A pipe nobody writes to, and a device that has no end, are not waited for."""
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate((16 << 20) + 1)
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "huge") == "is too large to be from bench"
    assert refused(tmp_path / "none") == "cannot be read (No such file or directory)"
    assert refused(tmp_path) == "cannot be read (Is a directory)"
    assert refused(tmp_path / "pipe") == "cannot be read (it is no plain file)"
    assert refused(Path("/dev/zero")) == "cannot be read (it is no plain file)"


# The chart


def drawn(answer: dict[str, Any], folder: Path) -> Any:
    """The figure as it was drawn; its file is a PNG 1600 pixels wide."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures = []
    savefig = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:

        def kept_and_saved(self: Figure, *given: Any, **more: Any) -> None:
            figures.append(self)
            savefig(self, *given, **more)

        patch.setattr(Figure, "savefig", kept_and_saved)
        chart.draw(answer, folder / "chart.png")
    data = (folder / "chart.png").read_bytes()
    assert data.startswith(PNG) and struct.unpack(">I", data[16:20]) == (1600,)
    (figure,) = figures
    return figure


def ticks(axes: Any) -> list[str]:
    return [tick.get_text() for tick in axes.get_xticklabels()]


def test_the_chart(tmp_path: Path) -> None:
    """Panels by mask and head_dim; what can do one head_dim alone is in the legend; what is wrong is crossed."""
    answer = found(
        point(1024, 64),
        point(1500, 64, attn=ran(1.0, "wrong"), SDPA=ran(2.5)),
        point(1024, 128, attn=ran(1.0), SDPA=ran(2.0), SDPA_FLASH_ATTENTION=ran(3.0)),
        point(1024, 64, True),
        point(1500, 64, True),
    )
    figure = drawn(answer, tmp_path)
    first, second, third, _fourth = figure.axes
    assert [axes.get_title(loc="left") for axes in (first, second, third)] == [
        "head_dim 64, full",
        "head_dim 128, full",
        "head_dim 64, causal",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "attn (this wheel)",
        "SDPA (torch's choice)",
        "SDPA FlashAttention",
    ]
    assert [text.get_text() for text in first.texts] == ["2.00x", "2.50x"]
    assert [len(axes.collections) for axes in (first, second, third)] == [1, 0, 0], "crosses"
    assert list(first.lines[0].get_ydata()) == [pytest.approx(34.359738368), pytest.approx(73.7280)]
    assert ticks(third) == ["1k", "1500"]


def test_a_panel_that_was_not_ended_leaves_the_others_their_ticks(tmp_path: Path) -> None:
    """As after a crash: they share one axis."""
    figure = drawn(found(point(1024, 64), point(2048, 64), point(4096, 64), point(2048, 128)), tmp_path)
    first, second = figure.axes
    assert ticks(first) == ticks(second) == ["1k", "2k", "4k"]
    assert list(second.lines[0].get_xdata()) == [1]


@pytest.mark.parametrize(
    "answer",
    [
        found(point(attn={"error": "RuntimeError: no"}, SDPA={"skipped": "no"})),
        found({"shape": [4, 32, 1024, 64, False], "skipped": "no memory"}),
        found(point(), gpu=r"$\frac$", version="$$", driver="\x1b[31m"),
        found(point(**{r"$\bad$": ran(1.0), "_": ran(1.0), "attn": ran(1.0)})),
        found(*(point(7, dim) for dim in range(8, 72, 8))),
    ],
)
def test_a_chart_of_little_or_of_odd_names(tmp_path: Path, answer: dict[str, Any]) -> None:
    drawn(answer, tmp_path)


# All of it, with a torch that computes nothing and whose GPU keeps a clock of its own


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A target with the package and a torch that sees an RTX 5090."""
    machine = wheels.machine(tmp_path_factory.mktemp("machine"), gpu=RTX)
    wheels.put_distribution(machine.python, wheels.NAME, wheels.VERSION)
    (machine.site / wheels.PACKAGE).mkdir()
    (machine.site / "torch" / "__init__.py").write_text(TORCH)
    for name, text in (("nn", FUNCTIONAL), ("nn/attention", BACKENDS)):
        (machine.site / "torch" / name).mkdir(parents=True)
        (machine.site / "torch" / name / "__init__.py").write_text(text)
    return machine


TORCH = """
from torch.version import __version__
from torch import version
from types import SimpleNamespace as Names

bfloat16, float16, int8 = "bfloat16", "float16", "int8"
clock, seen = [0.0], []
backends = Names(cuda=Names(matmul=Names(allow_tf32=True)))

class Event:
    def __init__(self, enable_timing):
        assert enable_timing
    def record(self):
        self.at = clock[0]
    def elapsed_time(self, end):
        return end.at - self.at

class OutOfMemoryError(RuntimeError):
    pass

class Flush:
    def zero_(self):
        clock[0] += 1000

def empty(size, dtype, device):
    assert (size, dtype, device) == (1 << 28, int8, "cuda")
    return Flush()

cuda = Names(
    is_available=lambda: True,
    device_count=lambda: 1,
    get_device_name=lambda index: "NVIDIA GeForce RTX 5090",
    get_device_capability=lambda index: (12, 0),
    empty_cache=lambda: None,
    synchronize=lambda: None,
    mem_get_info=lambda: (2 << 30, 32 << 30),
    Event=Event,
    OutOfMemoryError=OutOfMemoryError,
)
import torch.nn as nn
"""
FUNCTIONAL = """
from types import SimpleNamespace as Names
import torch
backend = [""]

def sdpa(q, k, v, is_causal):
    if backend[0] == "EFFICIENT_ATTENTION":
        raise RuntimeError("No available kernel. Aborting execution.")
    torch.seen.append("SDPA " + backend[0])
    torch.clock[0] += 4 if backend[0] == "MATH" else 2
    return {"finite": True, "cosine": 1.0, "relative_l2": 0.0, "row_relative_l2": 0.0}

functional = Names(scaled_dot_product_attention=sdpa)
"""
BACKENDS = """
from contextlib import contextmanager
import torch

class SDPBackend:
    FLASH_ATTENTION, EFFICIENT_ATTENTION, MATH = "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"

@contextmanager
def sdpa_kernel(which):
    torch.nn.backend[0] = which
    yield
    torch.nn.backend[0] = ""
"""
SMOKE = """
class Tensor:
    def __init__(self, length):
        self.length = length
    def element_size(self):
        return 2

def short(error):
    return "%s: %s" % (type(error).__name__, error)

def poison(torch, like):
    assert isinstance(like, Tensor)

def draw(torch, device, dtype, heads, length, dim, seed, batch):
    assert (device, dtype, heads, dim, batch) == ("cuda", "bfloat16", [32, 32], 64, 4)
    assert torch.backends.cuda.matmul.allow_tf32 is False
    return [Tensor(length), Tensor(length), Tensor(length)]

def reference(torch, q, k, v, causal):
    return "wanted"

def compare(torch, out, want):
    assert want == "wanted"
    return dict(out)
"""
ATTN = """
import os, signal, sys, time
import torch

def attn(q, k, v, tensor_layout, is_causal):
    assert tensor_layout == "HND" and is_causal is False
    result = {"finite": True, "cosine": 0.9999, "relative_l2": 0.01, "row_relative_l2": 0.02}
    if q.length == 2048:
        pass  # HERE
    torch.seen.append("attn")
    torch.clock[0] += 1
    return result
"""

Benches = Callable[..., Job]


@pytest.fixture
def benches(ready: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benches:
    """Measures three lengths into `out`; the package does `here` at 2048."""
    plain = probe_source
    monkeypatch.setattr(smoke, "probe_source", lambda name: SMOKE if name == "smoke" else plain(name))

    def measured(here: str = "pass", *, wish: Plan | None = None, job: Job | None = None, **changed: Any) -> Job:
        package = ready.site / wheels.PACKAGE / "__init__.py"
        package.write_text(ATTN.replace("pass  # HERE", here) + "\n" * len(list(tmp_path.iterdir())))
        job = job or ready.job(log_dir=tmp_path / "logs", **changed)
        jobs.append(job)
        bench.measure(job, wish or THREE, tmp_path / "out")
        return job

    jobs.clear()
    return measured


jobs: list[Job] = []
"""Those of a test, for one whose measuring raises."""
THREE = plan(lengths="1024,2048,4096", head_dims="64", causal="no", quick=True)
FILE = "bench-nvidia-geforce-rtx-5090"


def test_the_probe_measures_all_in_turns(
    benches: Benches, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    asked: list[Any] = []
    ask = smoke.ask

    def asks(*given: Any) -> Any:
        asked.append(given[2:])
        return ask(*given)

    monkeypatch.setattr(smoke, "ask", asks)
    job = benches()
    ((probe, order, seconds),) = asked
    assert (probe, seconds, order.pop("out").endswith("/points.jsonl")) == ("bench", 3600, True)
    assert order == {
        "package": wheels.PACKAGE,
        "call": f"{wheels.PACKAGE}:attn",
        "arguments": {},
        "shapes": [[4, 32, length, 64, False] for length in (1024, 2048, 4096)],
        "dtype": "bfloat16",
        "seconds": 0.05,
        "rounds": 5,
    }
    answer = json.loads((tmp_path / "out" / f"{FILE}.json").read_text())
    assert answer == job.report["bench"]
    valid({"exit_code": 0, "error": None, "seconds": 1, "bench": answer})
    points = answer.pop("points")
    assert len(answer.pop("at_utc")) == 20
    assert answer == {
        "schema": 1,
        "gpu": "NVIDIA GeForce RTX 5090",
        "arch": "12.0",
        "driver": "580.65.06",
        "torch": wheels.TORCH,
        "cuda": wheels.CUDA,
        "package": wheels.NAME,
        "version": wheels.VERSION,
        "function": "attn",
        "dtype": "bfloat16",
        "bounds": BOUNDS,
    }
    # Of 50 ms in 5 turns, 10 calls of 1 ms each, 5 of 2 ms, 2 of 4 ms; the flush before each counts for none.
    times = {name: (one.get("ms"), one.get("runs")) for name, one in points[0]["functions"].items()}
    assert times == {
        "attn": (1.0, 50),
        "SDPA": (2.0, 25),
        "SDPA FLASH_ATTENTION": (2.0, 25),
        "SDPA EFFICIENT_ATTENTION": (None, None),
        # 4 * 32 * 1024^2 * 2 * 3 = 768 MiB are less than half of 2 GiB; those of 2048 are not.
        "SDPA MATH": (4.0, 10),
    }
    assert points[0]["functions"]["SDPA EFFICIENT_ATTENTION"] == {
        "error": "RuntimeError: No available kernel. Aborting execution."
    }
    why = {"skipped": "its scores would take more than half of the free memory"}
    assert [one["functions"]["SDPA MATH"] for one in points[1:]] == [why, why]
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"[bench] {wheels.NAME} {wheels.VERSION} on NVIDIA GeForce RTX 5090: 3 points"
    assert lines[-2:] == [
        f"[bench] the figures are in {tmp_path}/out/{FILE}.json",
        f"[bench] the chart is in {tmp_path}/out/{FILE}.png",
    ]
    (log,) = (tmp_path / "logs").iterdir()
    said = [line for line in log.read_text().splitlines() if line.startswith("at: ")]
    assert said == [f"at: point {n} of 3: length {1024 << n - 1}, head_dim 64" for n in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{FILE}.json", f"{FILE}.png"]


def kept(tmp_path: Path) -> list[tuple[int, str]]:
    """The points of the file, each by its length and what came out of the package's own function."""
    points = json.loads((tmp_path / "out" / f"{FILE}.json").read_text())["points"]
    return [
        (one["shape"][2], one.get("skipped") or (own := one["functions"]["attn"]).get("result") or str(own))
        for one in points
    ]


@pytest.fixture
def no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second."""

    def missing(*_: Any) -> None:
        raise ImportError("matplotlib")

    monkeypatch.setattr(chart, "draw", missing)


NO_CHART = f"[bench] no chart: matplotlib is missing. {extras.remedy('matplotlib')}, then bench --from draws it"


@pytest.mark.usefixtures("no_chart")
def test_a_wrong_result_is_exit_6_and_changes_nothing(
    benches: Benches, ready: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ready.site / wheels.PACKAGE / "__init__.py").write_text("")
    names = sorted(wheels.tree(ready.folder))
    with pytest.raises(SmokeFailed) as caught:
        benches("result['cosine'] = 0.5")
    what = "1 result wrong, first attn at length 2048, head_dim 64: cosine 0.5000, relative L2 0.010, 0.020 in one row"
    assert str(caught.value) == f"{what}. Nothing was changed: smoke says whether the wheel is to blame."
    assert caught.value.exit_code == 6
    assert kept(tmp_path) == [(1024, "right"), (2048, "wrong"), (4096, "right")]
    out = capsys.readouterr().out
    assert "| WRONG  |" in out and out.splitlines()[-1] == NO_CHART
    assert sorted(wheels.tree(ready.folder)) == names


@pytest.mark.usefixtures("no_chart")
def test_a_result_wrong_in_one_row_is_wrong(benches: Benches, ready: Machine, tmp_path: Path) -> None:
    recipe = ready.folder / "manifests" / "rows.toml"
    text = (ready.folder / "manifests" / "tiny.toml").read_text()
    recipe.write_text(text.replace("[smoke]", "[smoke]\nmax_row_relative_l2 = 0.5"))
    with pytest.raises(SmokeFailed, match="1 result wrong, first attn at length 2048"):
        benches("result['row_relative_l2'] = 1.0", sage_manifest=str(recipe))


@pytest.mark.usefixtures("no_chart")
@pytest.mark.parametrize(
    ("here", "what"),
    [
        ("os.kill(os.getpid(), 11)", "killed by SIGSEGV): in point 2 of 3: length 2048, head_dim 64"),
        (
            "raise RuntimeError('CUDA error: an illegal memory access was encountered')",
            "exit code 1): in point 2 of 3: length 2048, head_dim 64",
        ),
    ],
)
def test_what_was_measured_before_a_crash_is_kept(
    benches: Benches, tmp_path: Path, capsys: pytest.CaptureFixture[str], here: str, what: str
) -> None:
    with pytest.raises(smoke.Crashed) as caught:
        benches(here)
    assert caught.value.what == f"the kernels brought the interpreter down ({what}"
    assert (caught.value.probe, caught.value.exit_code) == ("bench", 6)
    assert kept(tmp_path) == [(1024, "right")]
    assert "| 1024   | 1.000   |" in capsys.readouterr().out


@pytest.mark.usefixtures("no_chart")
def test_what_was_measured_before_ctrl_c_is_kept(
    benches: Benches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = proc.wait

    def interrupted(process: Any, seconds: float) -> None:
        wait(process, 0.02)
        if (tmp_path / "reached").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(proc, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benches(f"open({str(tmp_path / 'reached')!r}, 'w').close(); time.sleep(60)")
    assert kept(tmp_path) == [(1024, "right")]


def test_a_crash_at_the_first_point_leaves_no_file(benches: Benches, tmp_path: Path) -> None:
    with pytest.raises(smoke.Crashed):
        benches("os.kill(os.getpid(), 11)", wish=plan(lengths="2048", head_dims="64", causal="no"))
    assert "bench" not in jobs[-1].report and list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("no_chart")
def test_a_point_that_was_half_written_is_left_out(
    benches: Benches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*given: Any) -> Any:
        head = {"torch": "2.11.0", "cuda": "13.0", "gpus": [{"name": "NVIDIA GeForce RTX 5090", "arch": "12.0"}]}
        lines = [
            json.dumps(head),
            json.dumps(point(attn=RIGHT | {"ms": 1.0})),
            '{"shape": [4], "functions": {"attn": {}',
        ]
        Path(given[3]["out"]).write_text("\n".join(lines))
        raise SmokeFailed("gone")

    monkeypatch.setattr(smoke, "ask", ended)
    with pytest.raises(SmokeFailed, match="gone"):
        benches()
    assert kept(tmp_path) == [(1024, "right")]


@pytest.mark.usefixtures("no_chart")
@pytest.mark.parametrize(
    "here", ["raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')", "result = None"]
)
def test_a_lack_of_memory_is_no_wrong_result(benches: Benches, tmp_path: Path, here: str) -> None:
    """What the package raises itself is one."""
    if "Memory" in here:
        benches(here)
        assert kept(tmp_path)[1] == (2048, "{'skipped': 'the GPU has not enough memory for it'}")
    else:
        with pytest.raises(SmokeFailed, match="first attn at length 2048, head_dim 64: TypeError: "):
            benches(here)
    assert [result for _, result in kept(tmp_path)[::2]] == ["right", "right"]


@pytest.mark.usefixtures("no_chart")
def test_a_point_at_which_nothing_runs_is_a_point(benches: Benches, ready: Machine, tmp_path: Path) -> None:
    attention = ready.site / "torch" / "nn" / "__init__.py"
    attention.write_text(
        FUNCTIONAL.replace("def sdpa(q, k, v, is_causal):", "def sdpa(q, k, v, is_causal):\n    1 / 0")
    )
    try:
        with pytest.raises(SmokeFailed, match=r"1 result wrong, first attn at length 2048, .*: OSError: no"):
            benches("raise OSError('no')", wish=plan(lengths="2048", head_dims="64", causal="no"))
    finally:
        attention.write_text(FUNCTIONAL + "\n")
    assert kept(tmp_path)[0][1].startswith("{'error': 'OSError: no'")


# What is refused before anything is measured


def test_a_torch_that_sees_no_gpu(benches: Benches, ready: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "ask", lambda *_: {"gpus": []})
    with pytest.raises(UsageError) as caught:
        benches()
    where = ready.folder / "env"
    assert str(caught.value) == f"torch in {where} sees no GPU, nvidia-smi lists 1. Run doctor."


def test_an_out_that_is_no_folder_is_refused_first(
    benches: Benches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour later all would be lost."""
    monkeypatch.setattr(smoke, "ask", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "out").touch()
    with pytest.raises(UsageError) as caught:
        benches()
    assert str(caught.value).startswith(f"{tmp_path}/out cannot be used: ")


def test_a_dry_run_measures_nothing(
    benches: Benches,
    ready: Machine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smoke, "ask", lambda *_: pytest.fail("it was measured"))
    benches(job=ready.job(dry_run=True))
    line = f"[bench] would measure {wheels.NAME} {wheels.VERSION} at 3 points\n"
    assert capsys.readouterr().out == line
    assert not (tmp_path / "out").exists()


def test_without_gpu_or_package_nothing_can_be_measured(tmp_path: Path) -> None:
    machine = wheels.machine(tmp_path)
    given = machine.settings
    report, said = told(machine, "bench", "--json", code=2)
    what = f"{wheels.NAME} is not installed in {machine.folder / 'env'}"
    assert report["error"] == {"what": what, "remedy": "Run install or auto first"}
    assert said == f"{what}. Run install or auto first.\n" and "bench" not in report
    wheels.put_distribution(machine.python, wheels.NAME, wheels.VERSION)
    with pytest.raises(UsageError, match=r"^bench needs an NVIDIA GPU: .+\. Run it where the kernels shall run\.$"):
        bench.measure(machine.job(), THREE, tmp_path / "out")
    assert given.log_dir == tmp_path / "logs" and not (tmp_path / "out").exists()


# From a file


def command(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sagewheels", "bench", *map(str, words)]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(argv, env=given, capture_output=True, text=True, check=False, timeout=60)


def test_from_a_file_table_and_chart_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    benchfile.save(tmp_path / "figures.json", found(point()))
    done = command("--from", "figures.json", "--out", "here", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    valid(report)
    assert report["bench"] == found(point())
    png = "here/bench-nvidia-h100-80gb-hbm3.png"
    assert "| 1024   |" in done.stderr and done.stderr.endswith(f"[bench] the chart is in {png}\n")
    assert Path(png).read_bytes().startswith(PNG)
    assert [path.name for path in Path("here").iterdir()] == [Path(png).name], "the figures stay where they are"


def test_without_matplotlib_one_line_says_so(tmp_path: Path) -> None:
    benchfile.save(tmp_path / "figures.json", found(point()))
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "matplotlib.py").write_text("raise ImportError('no')\n")
    done = command("--from", "figures.json", PYTHONPATH=f"{tmp_path / 'without'}:{ROOT}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == NO_CHART
    assert list(Path("bench").iterdir()) == []


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """The installed package, for real: a quick run whose results are right."""
    if not shutil.which("nvidia-smi"):
        pytest.skip("needs a GPU, and the package in the active environment")
    done = command("--quick", "--lengths", "1024,4096", "--json")
    report = json.loads(done.stdout)
    valid(report)
    assert done.returncode == 0, done.stderr
    points = report["bench"]["points"]
    assert len(points) == 4
    for one in points:
        mine = one["functions"][report["bench"]["function"]]
        assert mine["result"] == "right" and 0 < mine["p20"] <= mine["ms"] <= mine["p80"]
