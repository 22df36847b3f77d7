"""`smoke --full`: the long checks on every GPU, judged by the manifest's bounds, as one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sagewheels import blame, smoke, ui
from sagewheels.blame import Fault
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.host import Host
from sagewheels.recipe import Recipe
from sagewheels.smoke import Outcome
from sagewheels.target import Target

_SECONDS = 1800
"""On an H200 all of it takes about two minutes, most of which is compiling Triton kernels for the first time."""


def run(settings: Settings, recipe: Recipe, found: Target, host: Host, before: Outcome) -> Outcome:
    """Runs the checks that the manifest names, shows the table, and returns what they leave of the outcome `before`.

    Raises Crashed when the probe gave no answer, UsageError as `table` does.
    """
    full = table(recipe)
    if not host.gpus:
        ui.say("smoke", "the long checks need a GPU: none of them was run")
        return before
    checks, calls = full["checks"], full["call"]
    ui.say("smoke", f"{ui.count(len(checks), 'long check')} of {ui.count(len(calls), 'function')} on each GPU")
    order = {"calls": calls, "head_dims": recipe.smoke["head_dims"], "full": full}
    answer = smoke.ask(settings, found, "full", order, _SECONDS)
    for gpu in answer["gpus"]:
        show(gpu, full)
    wrong = list(failures(answer, full))
    if len(answer["gpus"]) < len(before.proofs):
        wrong.append(f"the long checks saw {len(answer['gpus'])} of {len(before.proofs)} GPUs")
    return before.after(wrong, faults(answer, full), ran(answer, checks))


def ran(answer: Mapping[str, Any], checks: Sequence[str]) -> tuple[str, ...]:
    """The checks of which each GPU ran a case: a proof names no other. Pure."""
    done = [
        {row["check"] for row in gpu["checks"] if any(not case.get("skipped") for case in row["cases"])}
        for gpu in answer["gpus"]
    ]
    return tuple(check for check in checks if done and all(check in names for names in done))


def table(recipe: Recipe) -> Mapping[str, Any]:
    """The manifest's smoke.full. Raises UsageError where it has none."""
    full: Mapping[str, Any] = recipe.smoke.get("full", {})
    if not full:
        raise UsageError(f"{recipe.file.name} has no table smoke.full", "Run smoke without --full")
    return full


def failures(answer: Mapping[str, Any], full: Mapping[str, Any]) -> Iterator[str]:
    """One line for each check of a function that failed, with the first case that did. Pure."""
    if not answer["gpus"]:
        yield "torch sees no GPU"
    for gpu in answer["gpus"]:
        yield from (f"GPU {gpu['index']} ({gpu['name']}): {text}" for text, _ in _wrong(gpu, full))


def faults(answer: Mapping[str, Any], full: Mapping[str, Any]) -> tuple[Fault, ...]:
    """What of these failures speaks against the wheel itself. Pure."""
    found, right_on = [], []
    for gpu in answer["gpus"]:
        wrong = list(_wrong(gpu, full))
        own = [text for text, cases in wrong if blame.of_cases(cases)]
        found += [Fault(arch=gpu["arch"], gpu=gpu["name"], reason=text, full=True) for text in own]
        right_on += [] if wrong else [gpu["arch"]]
    return blame.settled(found, right_on)


def _wrong(gpu: Mapping[str, Any], full: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """A line for each check of a function that failed on one GPU, and the cases that did."""
    if not gpu["checks"]:
        yield "no check was run", []
    for row in gpu["checks"]:
        cases = [case for case in row["cases"] if fault(case, full)]
        if (cases and not known(gpu, row, full)) or not row["cases"]:
            first, why = (cases[0]["case"], fault(cases[0], full)) if cases else ("", "no case was run")
            many = f"{len(cases)} of {len(row['cases'])} cases are wrong, first " if len(row["cases"]) > 1 else ""
            what = f"{row['check']} of {_name(gpu['calls'][row['call']])}"
            yield f"{what}: {many}{first}{': ' if first else ''}{why}", cases


def fault(case: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """Why a case is wrong, or nothing."""
    if said := _said(case):
        return said
    if "finite" not in case:
        return ""
    return "" if case["finite"] and smoke.within(case, full) else smoke.how(case)


def known(gpu: Mapping[str, Any], row: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """Why this check of this function fails, if the manifest says that it does; numbers only, never a crash or NaN."""
    call = gpu["calls"][row["call"]]
    for item in full.get("known", ()):
        same = item["check"] == row["check"] and item["call"] == call["call"] and gpu["arch"] in item["archs"]
        as_known = all(
            case.get("finite", True) and not _said(case) and case.get("relative_l2", 0) <= item["max_relative_l2"]
            for case in row["cases"]
        )
        if same and as_known and item.get("arguments", {}) == call["arguments"]:
            return str(item["why"])
    return ""


def _said(case: Mapping[str, Any]) -> str:
    """What the probe itself found wrong, or what kept it from finding out."""
    return str(case.get("error") or case.get("wrong") or "")


def _name(call: Mapping[str, Any]) -> str:
    """`attention(causal=True)`."""
    options = ", ".join(f"{key}={value}" for key, value in call["arguments"].items())
    name = str(call["call"]).partition(":")[2]
    return f"{name}({options})" if options else name


def show(gpu: Mapping[str, Any], full: Mapping[str, Any]) -> None:
    """The table of one GPU: a row for each check of each function."""
    rows = []
    for row in gpu["checks"]:
        cases = row["cases"]
        numbers = [case for case in cases if case.get("finite")]
        cosine = f"{min(case['cosine'] for case in numbers):.4f}" if numbers else ""
        l2 = f"{max(case['relative_l2'] for case in numbers):.4f}" if numbers else ""
        skipped = next((case["skipped"] for case in cases if case.get("skipped")), "")
        bad = sum(bool(fault(case, full)) for case in cases)
        expected = ", known" if known(gpu, row, full) else ""
        verdict = skipped or (f"{bad} of {len(cases)} WRONG{expected}" if bad or not cases else "ok")
        count = "" if skipped else str(len(cases))
        name = _name(gpu["calls"][row["call"]])
        rows.append((row["check"], name, count, cosine, l2, f"{row['seconds']:.1f}", verdict))
    columns = ("check", "function", "cases", "worst cosine", "worst rel. L2", "s", "verdict")
    ui.table(f"GPU {gpu['index']}, {gpu['name']}, arch {gpu['arch']}, long checks", columns, rows)
    for row in gpu["checks"]:
        if any(fault(case, full) for case in row["cases"]) and (why := known(gpu, row, full)):
            ui.say("smoke", f"known, {row['check']} of {_name(gpu['calls'][row['call']])}: {why}")
