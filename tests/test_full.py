"""The long checks' verdict: what their probe printed, made by hand, and what follows from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import full, recipe
from sagewheels.blame import Fault
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.recipe import Recipe
from sagewheels.smoke import Crashed, Outcome
from sagewheels.target import Target
from tests.test_smoke import H200, NONE, ONE, RTX, printing, target_in
from tests.test_smoke import settings as settings_in

BOUNDS: dict[str, Any] = {"min_cosine": 0.998, "max_relative_l2": 0.0625}
WHY = "the tensor cores add up in 22 bits"
ITEM = {"check": "long", "call": "sage:attn", "arguments": {"accum": "fp32"}, "archs": ["12.0"], "max_relative_l2": 0.1}
KNOWN = {**BOUNDS, "known": [{**ITEM, "why": WHY}]}
CALLS = [{"call": "sage:attn", "arguments": {}}, {"call": "sage:attn", "arguments": {"accum": "fp32", "smooth": True}}]
BEFORE = Outcome(failures=(), proofs=({"gpu": RTX, "arch": "12.0"},), loaded_only=False)


NAN = {"case": "length 1", "finite": False, "cosine": None, "relative_l2": None}


@pytest.fixture(scope="module")
def sage() -> Recipe:
    return recipe.load("sageattention-2.2.0")


@pytest.fixture
def found(tmp_path: Path) -> Target:
    return target_in(tmp_path)


def case(name: str = "length 17", cosine: float = 0.9999, relative_l2: float = 0.01, **changed: Any) -> dict[str, Any]:
    return {"case": name, "finite": True, "cosine": cosine, "relative_l2": relative_l2, **changed}


def row(check: str, *cases: dict[str, Any], call: int = 0) -> dict[str, Any]:
    return {"check": check, "call": call, "cases": list(cases), "seconds": 1.25}


def gpu(*rows: dict[str, Any], index: int = 0, name: str = RTX, arch: str = "12.0", **changed: Any) -> dict[str, Any]:
    return {"index": index, "name": name, "arch": arch, "checks": list(rows), "calls": CALLS, **changed}


def failures(*gpus: dict[str, Any]) -> list[str]:
    return list(full.failures(json.loads(json.dumps({"gpus": gpus})), BOUNDS))


def faults(*gpus: dict[str, Any]) -> tuple[Fault, ...]:
    return full.faults(json.loads(json.dumps({"gpus": gpus})), BOUNDS)


LOST = {"case": "", "error": "not run: the GPU answers no more"}
ILLEGAL = "AcceleratorError: CUDA error: an illegal memory access was encountered"
GOOD = row("lengths", case(), case("length 18"))
WRONG = row("lengths", case(), case("length 18", 0.5, 0.9))


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (case(), ""),
        (case(cosine=0.998, relative_l2=0.0625), ""),
        (case(cosine=0.9979), "cosine 0.9979, relative L2 0.010"),
        (case(relative_l2=0.0626), "cosine 0.9999, relative L2 0.063"),
        (case(cosine=float("nan")), "cosine nan, relative L2 0.010"),
        (NAN, "not finite"),
        ({"case": "head_dim 64"}, ""),
        ({"case": "", "skipped": "there is one GPU here"}, ""),
        ({"case": "head_dim 64", "wrong": "3 of 64 values differ"}, "3 of 64 values differ"),
        ({"case": "", "error": "RuntimeError: no"}, "RuntimeError: no"),
        (case(error="RuntimeError: no"), "RuntimeError: no"),
    ],
)
def test_why_a_case_is_wrong(one: dict[str, Any], why: str) -> None:
    assert full.fault(one, BOUNDS) == why


def test_all_right_is_no_failure() -> None:
    skipped = row("second-gpu", {"case": "", "skipped": "there is one GPU here"})
    assert failures(gpu(GOOD, skipped), gpu(GOOD, index=1)) == []
    assert faults(gpu(GOOD, skipped)) == ()


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ([WRONG], ["lengths of attn: 1 of 2 cases are wrong, first length 18: cosine 0.5000, relative L2 0.900"]),
        (
            [row("graph-replay", {"case": "head_dim 64", "wrong": "3 of 64 values differ"}, call=1)],
            ["graph-replay of attn(accum=fp32, smooth=True): head_dim 64: 3 of 64 values differ"],
        ),
        ([row("compile", {"case": "", "error": "Unsupported: x"})], ["compile of attn: Unsupported: x"]),
        ([row("cross")], ["cross of attn: no case was run"]),
        ([], ["no check was run"]),
        (
            [GOOD, row("long", case("length 131072 full", 0.9), case("everywhere", wrong="not finite")), WRONG],
            [
                "long of attn: 2 of 2 cases are wrong, first length 131072 full: cosine 0.9000, relative L2 0.010",
                "lengths of attn: 1 of 2 cases are wrong, first length 18: cosine 0.5000, relative L2 0.900",
            ],
        ),
    ],
)
def test_a_failure_is_a_line(rows: list[dict[str, Any]], lines: list[str]) -> None:
    assert failures(gpu(*rows)) == [f"GPU 0 ({RTX}): {line}" for line in lines]


def test_each_gpu_has_its_failures() -> None:
    first, second = failures(gpu(WRONG), gpu(WRONG, index=1, name=H200, arch="9.0"))
    assert first.startswith(f"GPU 0 ({RTX}): lengths of attn: ")
    assert second.startswith(f"GPU 1 ({H200}): lengths of attn: ")
    assert failures() == ["torch sees no GPU"]


def test_whose_fault_it_is() -> None:
    """Each on its arch, with the line that people see; none where a twin passed all of it."""
    text = "lengths of attn: 1 of 2 cases are wrong, first length 18: cosine 0.5000, relative L2 0.900"
    here = Fault(arch="12.0", gpu=RTX, reason=text, full=True)
    hopper = gpu(WRONG, index=1, name=H200, arch="9.0")
    assert faults(gpu(GOOD, WRONG)) == (here,)
    assert faults(gpu(WRONG), hopper) == (here, replace(here, arch="9.0", gpu=H200))
    assert faults(gpu(GOOD), hopper) == (replace(here, arch="9.0", gpu=H200),)
    assert faults(gpu(WRONG), gpu(GOOD, index=1)) == ()


@pytest.mark.parametrize(
    "rows",
    [
        [row("compile", {"case": "", "error": "RuntimeError: Failed to find C compiler. Please specify via CC"})],
        [row("long", {"case": "", "error": "OutOfMemoryError: CUDA out of memory"})],
        [row("lengths", {"case": "afterwards", "error": "uncorrectable ECC error"}), row("cross", LOST)],
        [row("cross", LOST)],
        [row("new", {"case": "", "error": "this sagewheels does not know the check"})],
        [row("cross")],
        [],
    ],
)
def test_what_may_be_the_machines_fault(rows: list[dict[str, Any]]) -> None:
    assert failures(gpu(*rows))
    assert faults(gpu(*rows)) == ()


def test_the_check_that_lost_the_gpu_is_the_one_that_is_named() -> None:
    lost = gpu(GOOD, row("cross", case(), {"case": "afterwards", "error": ILLEGAL}), row("long", LOST))
    (fault,) = faults(lost)
    assert fault.reason == f"cross of attn: 1 of 2 cases are wrong, first afterwards: {ILLEGAL}"
    assert len(failures(lost)) == 2


@pytest.mark.parametrize(
    ("check", "arguments", "one", "why"),
    [
        ("long", {"accum": "fp32"}, case(cosine=0.9), WHY),
        ("long", {"accum": "fp32"}, case(), WHY),
        ("cross", {"accum": "fp32"}, case(cosine=0.9), ""),
        ("long", {}, case(cosine=0.9), ""),
        ("long", {"accum": "fp32", "smooth": True}, case(cosine=0.9), ""),
        ("long", {"accum": "fp32"}, case(relative_l2=0.1), WHY),
        ("long", {"accum": "fp32"}, case(relative_l2=0.11), ""),
        ("long", {"accum": "fp32"}, NAN, ""),
        ("long", {"accum": "fp32"}, {"case": "", "error": "RuntimeError: no"}, ""),
        ("long", {"accum": "fp32"}, {"case": "everywhere", "wrong": "not finite"}, ""),
    ],
)
def test_what_is_known_of_a_function(check: str, arguments: dict[str, Any], one: dict[str, Any], why: str) -> None:
    """Of this check and these arguments, and never a crash or NaN."""
    here = gpu(row(check, one), calls=[{"call": "sage:attn", "arguments": arguments}])
    assert full.known(here, here["checks"][0], KNOWN) == why
    assert full.known(here, here["checks"][0], BOUNDS) == ""
    assert full.known({**here, "arch": "9.0"}, here["checks"][0], KNOWN) == "", "known of another GPU"


def test_what_is_known_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    here = gpu(row("long", case(cosine=0.9)), calls=[{"call": "sage:attn", "arguments": {"accum": "fp32"}}])
    answer = {"gpus": [here]}
    assert (list(full.failures(answer, KNOWN)), full.faults(answer, KNOWN)) == ([], ())
    assert list(full.failures(answer, BOUNDS)) != []
    full.show(here, KNOWN)
    out = capsys.readouterr().out
    assert "| 1 of 1 WRONG, known |" in out
    assert out.splitlines()[-1] == f"[smoke] known, long of attn(accum=fp32): {WHY}"


def test_the_table_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    full.show(
        gpu(
            row("lengths", case(cosine=0.99951, relative_l2=0.02), case(cosine=0.9999, relative_l2=0.03)),
            row("cross", case(), NAN, call=1),
            row("second-gpu", {"case": "", "skipped": "there is one GPU here"}),
            row("side-stream", {"case": "head_dim 64"}),
            row("compile"),
        ),
        BOUNDS,
    )
    lines = capsys.readouterr().out.splitlines()
    assert f"GPU 0, {RTX}, arch 12.0, long checks" in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert rows == [
        ["check", "function", "cases", "worst cosine", "worst rel. L2", "s", "verdict"],
        ["lengths", "attn", "2", "0.9995", "0.0300", "1.2", "ok"],
        ["cross", "attn(accum=fp32, smooth=True)", "2", "0.9999", "0.0100", "1.2", "1 of 2 WRONG"],
        ["second-gpu", "attn", "", "", "", "1.2", "there is one GPU here"],
        ["side-stream", "attn", "1", "", "", "1.2", "ok"],
        ["compile", "attn", "0", "", "", "1.2", "0 of 0 WRONG"],
    ]


def test_a_manifest_without_long_checks_is_refused(found: Target) -> None:
    line = "demo.toml has no table smoke.full. Run smoke without --full."
    with pytest.raises(UsageError) as caught:
        full.run(Settings(), recipe.load("demo"), found, ONE, BEFORE)
    assert str(caught.value) == line


def test_without_a_gpu_nothing_is_run(sage: Recipe, found: Target, capsys: pytest.CaptureFixture[str]) -> None:
    """The target's interpreter is not even there."""
    loaded = Outcome(failures=(), proofs=(), loaded_only=True)
    assert full.run(Settings(), sage, found, NONE, loaded) is loaded
    assert capsys.readouterr().out == "[smoke] the long checks need a GPU: none of them was run\n"


def test_a_proof_names_what_every_gpu_ran() -> None:
    skipped = row("second-gpu", {"case": "", "skipped": "there is one GPU here"})
    one, two = gpu(GOOD, row("long", case()), skipped), gpu(GOOD, skipped)
    names = (GOOD["check"], "long", "second-gpu")
    assert full.ran({"gpus": [one]}, names) == (GOOD["check"], "long")
    assert full.ran({"gpus": [one, two]}, names) == (GOOD["check"],)
    assert full.ran({"gpus": []}, names) == ()


def test_what_passed_is_in_the_proof(
    sage: Recipe, found: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "said"
    target = printing(found, f'echo "$3" >{tmp_path}/order; ls "$(dirname "$2")" >{tmp_path}/there; cat {said}')
    said.write_text(json.dumps({"gpus": [gpu(GOOD)]}))
    outcome = full.run(settings_in(tmp_path), sage, target, ONE, BEFORE)
    checks = [one["check"] for one in gpu(GOOD)["checks"]]
    assert checks and set(checks) < set(sage.smoke["full"]["checks"])
    assert outcome == replace(BEFORE, proofs=({"gpu": RTX, "arch": "12.0", "full": checks},))
    order = json.loads((tmp_path / "order").read_text())
    assert order == {"calls": sage.smoke["full"]["call"], "head_dims": [64, 128], "full": sage.smoke["full"]}
    assert (tmp_path / "there").read_text().split() == ["empty", "sagewheels_full.py", "sagewheels_smoke.py"]
    shown = capsys.readouterr().out
    assert shown.startswith("[smoke] 10 long checks of 7 functions on each GPU\n")
    assert f"GPU 0, {RTX}, arch 12.0, long checks" in shown


def test_what_failed_leaves_no_proof(sage: Recipe, found: Target, tmp_path: Path) -> None:
    target = printing(found, f"cat {tmp_path}/said")
    (tmp_path / "said").write_text(json.dumps({"gpus": [gpu(WRONG)]}))
    outcome = full.run(settings_in(tmp_path), sage, target, ONE, BEFORE)
    text = "lengths of attn: 1 of 2 cases are wrong, first length 18: cosine 0.5000, relative L2 0.900"
    assert (outcome.failures, outcome.proofs, outcome.loaded_only) == ((f"GPU 0 ({RTX}): {text}",), (), False)
    assert outcome.faults == (Fault(arch="12.0", gpu=RTX, reason=text, full=True),)


def test_a_crash_says_which_checks_it_was_in(sage: Recipe, found: Target, tmp_path: Path) -> None:
    with pytest.raises(Crashed, match=r"^the kernels brought the interpreter down \(killed by SIGSEGV\): ") as caught:
        full.run(settings_in(tmp_path), sage, printing(found, "kill -11 $$"), ONE, BEFORE)
    assert (caught.value.probe, caught.value.ended) == ("full", -11)
