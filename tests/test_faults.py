"""Every task, with the Hub going wrong at each of its requests, once or from then on, in every way there is.

A quick run takes a sample in which each task and each way occurs. The whole table, printed at the end:
pytest tests/test_faults.py --all -s
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from sagewheels.resources import ROOT
from tests import faults, wheels
from tests.faults import ALTERED, KINDS, REFUSALS, REPO, TASKS, TOKEN, Bench, Ended, State, Task
from tests.hub import FOR_EVER, Hub

STOPPING = ("fetch", "upload", "init-hf", "list", "matrix")
"""The tasks that end with the first thing that is refused; the others go on, and ask for other things."""


class Whole(NamedTuple):
    """A task when nothing goes wrong."""

    before: State
    ended: Ended
    after: State


class Case(NamedTuple):
    """One thing that goes wrong: how, how often, and after how many requests."""

    task: Task
    kind: str
    times: int
    at: int

    def __str__(self) -> str:
        return f"{self.task.name}: {self.kind} at request {self.at + 1}{', for ever' if self.times > 1 else ''}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch, Hub(write=(TOKEN,)) as hub:
        yield Bench(tmp_path_factory.mktemp("bench"), hub, patch)


@pytest.fixture(scope="module")
def wholes(bench: Bench) -> dict[str, Whole]:
    """Each task undisturbed, which ends as it should."""
    found = dict[str, Whole]()
    for task in TASKS:
        bench.begin(task)
        before = bench.state()
        ended = bench.run(task)
        assert (ended.code, ended.pauses) == (task.code, ()), (task.name, ended)
        found[task.name] = Whole(before, ended, bench.state())
        assert not before.wrong + found[task.name].after.wrong
    return found


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Counter[str]]]:
    """What became of the runs of each task; printed at the end."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    yield rows
    columns = ("requests", "runs", "as if nothing", "exit 7", "exit 4", "seconds", "pauses", "asked")
    print("\n| task | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for task in TASKS:
        print(f"| {task.name} | " + " | ".join(str(rows[task.name][column]) for column in columns) + " |")


@pytest.fixture(scope="module")
def mended() -> set[tuple[str, str]]:
    """The states from which each task was found to end well again."""
    return set()


def cases(kind: str, wholes: dict[str, Whole], everything: bool) -> list[Case]:
    """All that can be done with this kind; of these, one in a quick run, in which the tasks take turns."""
    found = {
        task: [
            Case(task, kind, times, at)
            for at, line in enumerate(wholes[task.name].ended.requests)
            if faults.applies(kind, line)
            for times in (1, FOR_EVER)
        ]
        for task in TASKS
    }
    if everything:
        return [case for several in found.values() for case in several]
    turn = KINDS.index(kind)
    able = [several for several in found.values() if several]
    several = able[turn % len(able)]
    return [several[(7 * turn + 5) % len(several)]]


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_wrong(
    bench: Bench,
    wholes: dict[str, Whole],
    table: dict[str, Counter[str]],
    mended: set[tuple[str, str]],
    everything: bool,
    kind: str,
) -> None:
    complaints = []
    for case in cases(kind, wholes, everything):
        whole = wholes[case.task.name]
        bench.begin(case.task)
        ended, after = bench.disturbed(*case), bench.state()
        note(table[case.task.name], whole, ended)
        complaints += [
            f"{case}: {text} | {ended.code} {ended.line}" for text in judge(case, whole, ended, after, wholes)
        ]
        # What was tried from the very same state need not be tried again.
        if (case.task.name, repr(after)) not in mended:
            mended.add((case.task.name, repr(after)))
            again = bench.mend(case.task)
            complaints += [f"{case}: and then: {text}" for text in of_mending(case, again, bench.state(), wholes)]
    assert not complaints, "\n".join(complaints)


def note(row: Counter[str], whole: Whole, ended: Ended) -> None:
    row["requests"] = len(whole.ended.requests)
    row["runs"] += 1
    row[{4: "exit 4", 7: "exit 7"}.get(ended.code, "as if nothing")] += 1
    row["seconds"] = max(row["seconds"], round(ended.seconds, 1))  # type: ignore[assignment]
    row["pauses"] = max(row["pauses"], round(sum(ended.pauses)))
    row["asked"] = max(row["asked"], len(ended.requests))


def judge(case: Case, whole: Whole, ended: Ended, after: State, wholes: dict[str, Whole]) -> Iterator[str]:
    """What is wrong with a disturbed run."""
    yield from after.wrong
    done = ended.code == case.task.code
    if not done and ended.code not in ({4, 7} if case.kind in ALTERED else {7}):
        yield f"it ended with {ended.code}"
    if not done:
        yield from of_line(ended.line)
    if TOKEN in ended.out + ended.err + ended.line or "Traceback" in ended.out + ended.err:
        yield f"it said too much: {(ended.out + ended.err)[-1000:]!r}"
    if ended.seconds > faults.SECONDS or sum(ended.pauses) > faults.PAUSES or len(ended.requests) > faults.REQUESTS:
        yield f"{ended.seconds:.1f} s, pauses of {sum(ended.pauses):.0f} s, {len(ended.requests)} requests"
    yield from of_pauses(case, ended)
    if case.kind in REFUSALS and case.task.name.startswith(STOPPING):
        # To a refusal to create, the library asks whether that is there already.
        most = 2 if re.search("/repos/create|/branch/", whole.ended.requests[case.at]) else 1
        if ended.pauses or not 1 <= len(ended.requests) - case.at <= most:
            yield f"a refusal was asked again: {ended.requests[case.at :]}"
    yield from of_store(case, whole.before, after)
    is_ready = done or ended.line.startswith("the machine is ready, but ")
    built = wholes["auto, miss"].after.site if case.task.name.startswith("auto") else None
    if after.site != whole.after.site and (after.site != built if is_ready else after.site != whole.before.site):
        yield "what is installed is neither the old nor the new"
    kept_back = "the proof stays in the wheelhouse" in ended.err or "recorded in the wheelhouse alone" in ended.err
    if done and not kept_back:
        yield from differences(after, whole, wholes)


def of_mending(case: Case, again: list[Ended], after: State, wholes: dict[str, Whole]) -> Iterator[str]:
    """What is wrong when the task is run once more, undisturbed."""
    if [one.code for one in again if one.code] != [case.task.code] * bool(case.task.code):
        yield str([(one.code, one.line) for one in again])
    yield from differences(after, wholes[case.task.name], wholes)


def of_line(line: str) -> Iterator[str]:
    if not line.isprintable() or not line:
        yield "its line cannot be printed"
    if not any(word in line for word in (REPO, "HF_TOKEN", "the store's index.json", "tinyattn-")):
        yield "its line names no store"


def of_pauses(case: Case, ended: Ended) -> Iterator[str]:
    """A Retry-After is waited for, up to 60 s; a turn, where others seem to come between, as long as one may take."""
    longest = max(ended.pauses, default=0.0)
    turns = dict.fromkeys(("409", "412", "lag", "lose"), (0, 60))
    known = {"429": (7, 7), "429 @30": (28.5, 30), "429 3600": (60, 60), **turns}
    least, most = known.get(case.kind, (0, 8))
    if not least <= longest <= most:
        yield f"the longest pause was {longest:.1f} s"


def of_store(case: Case, before: State, after: State) -> Iterator[str]:
    if not before.listed.items() <= after.listed.items():
        yield "the store has lost a wheel"
    if not (before.proofs <= after.proofs and before.marks <= after.marks):
        yield "the store has lost a proof or a mark"
    # Nobody knows the hash of a card: altered bytes of the same length are found on no way but an encrypted one.
    if case.kind not in {"corrupt", "short", "endless"} and before.listed and not before.cards <= after.cards:
        yield f"the card has lost what was written by hand: {after.cards}"


def differences(after: State, whole: Whole, wholes: dict[str, Whole]) -> Iterator[str]:
    """What is not as it is when nothing goes wrong; but auto may have built what it could not fetch."""
    want, built = whole.after, wholes["auto, miss"].after
    made = set(built.house) - set(want.house)
    if made and made <= set(after.house) and after.site == built.site:
        if not want.listed.items() <= after.listed.items():
            yield "a wheel is missing"
        return
    for name in set(State.__dataclass_fields__) - {"work", "cards"}:
        if getattr(after, name) != getattr(want, name):
            yield f"{name} is {getattr(after, name)}, not {getattr(want, name)}"


def as_process(bench: Bench, *arguments: str) -> tuple[int, str, float]:
    """Exit code and stderr of the command, and the seconds that it took, pauses among them."""
    started = time.monotonic()
    argv = [sys.executable, "-m", "sagewheels", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert TOKEN not in done.stdout + done.stderr
    return done.returncode, done.stderr, time.monotonic() - started


LABEL = f"hf://datasets/{REPO}@main/sage"


@pytest.mark.parametrize(
    ("task", "pattern", "kind", "code", "line"),
    [
        (
            "fetch",
            r"index\.json",
            "corrupt",
            7,
            r"the store's index\.json is not JSON \(Expecting value: line 1 column 1 \(char 0\)\)\. Try again later\. "
            r"Mend it by hand or bring back its last good version from the store's history, then publish again\.",
        ),
        (
            "fetch",
            r"\.whl",
            "corrupt",
            4,
            r"tinyattn-\S+\.whl has sha256 \w{12}, its manifest says \w{12}\. It was changed or damaged: fetch it "
            r"again, and do not install it\.",
        ),
        (
            "list",
            "GET",
            "404",
            7,
            rf"{LABEL} does not exist, or HF_TOKEN may not see it \(404\)\. Check HF_REPO_ID, HF_REPO_BRANCH and "
            r"REMOTE_DIR\.",
        ),
        (
            "init-hf",
            "whoami",
            "portal",
            7,
            rf"the owner of HF_TOKEN could not be read from {LABEL}: 127\.0\.0\.1: a web page came instead, as from a "
            r"proxy or a login page \(3 tries\)\. Check the network, or try again later\.",
        ),
    ],
)
def test_the_line_that_people_see(bench: Bench, task: str, pattern: str, kind: str, code: int, line: str) -> None:
    bench.begin(next(one for one in TASKS if one.name == "fetch"))
    bench.hub.misbehave(pattern, kind, FOR_EVER)
    ended, told, seconds = as_process(bench, task)
    assert (ended, bool(re.fullmatch(line + "\n", told))) == (code, True), told
    assert seconds < 30
    assert bench.state().house == {}


def test_verify_asks_nobody(wholes: dict[str, Whole]) -> None:
    assert {name for name, whole in wholes.items() if not whole.ended.requests} == {"verify"}
    assert wheels.NAME in str(wholes["verify"].after.site)
