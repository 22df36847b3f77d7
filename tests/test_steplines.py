"""The step lines, the closing panel and the list as people see them, at several widths, without a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from sagewheels import closing, facts, listing, steplines
from sagewheels.listing import Row

WHEEL = "tinyattn-1.0+cu130torch2.11sm120-cp312-cp312-linux_x86_64.whl"
PROOF = {
    "gpu": "NVIDIA GeForce RTX 5090",
    "arch": "12.0",
    "cases": 96,
    "worst_cosine": 0.99971,
    "worst_relative_l2": 0.0213,
    "speedup": {"1x8x512x64": 1.1, "1x8x32768x64": 2.61},
}
REPORT: dict[str, Any] = {
    "package": {"name": "tinyattn", "version": "1.0"},
    "wheel": {"file": WHEEL, "size": 4_100_000, "sha256": "ab" * 32},
    "origin": {"kind": facts.BUILT, "where": None},
    "steps": [{"name": "build", "seconds": 185.0}],
    "target": {"python": "/venv/bin/python", "torch": "2.11.0+cu130", "cuda": "13.0"},
    "proof": [PROOF],
    "standing": "proven",
    "published": "hf://datasets/me/wheels",
    "next": ["start it with --use-it"],
}


def drawn(thing: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as text:
        console.print(thing)
    return [line.rstrip() for line in text.get().splitlines()]


def test_a_step_that_has_ended() -> None:
    line = steplines.finished("fetch", "done", steplines.short(f"{WHEEL}, 4.1 MB"), 3.21, ["it fits"], width=60)
    assert drawn(line, 60) == [
        "✓ fetch    tinyattn-1.0+cu130torch2.11sm120, 4.1 MB    3.2 s",
        "           it fits",
    ]
    plain = steplines.finished("fetch", "failed", "x" * 90, 3.2, width=40, fancy=False)
    assert len(drawn(plain, 40)) == 1 and drawn(plain, 40)[0].startswith("x fetch    xxx")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    row = Row(
        wheel=WHEEL, version="1.0+cu130torch2.11sm120", python="cp312", torch="2.11.0", cuda="13.0", archs="12.0",
        proven="NVIDIA GeForce RTX 5090", signer="", reasons=("it was built for torch 2.11.0, the target has 2.12.0",),
    )  # fmt: skip
    things = [
        closing.drawn(REPORT, width=width),
        listing.drawn([row, row], "tinyattn", width=width),
        steplines.finished("smoke", "done", "proven on all of them " * 9, 9, ["a detail " * 30], width=width),
    ]
    for thing in things:
        # The paragraphs of a narrow list are folded by the terminal's own width, all else by itself.
        lines = drawn(thing, width if thing is things[1] and width < 60 else width * 2)
        assert all(len(line) <= width for line in lines), max(lines, key=len)
    text = " ".join(" ".join(line.strip("│ ") for line in drawn(things[0], width)).split())
    assert "2.61x SDPA at length 32768" in text and "start it with --use-it" in text
    assert "no" in drawn(things[1], width)[1 if width < 60 else 2]


def test_the_closing_lines() -> None:
    assert dict(closing.lines(REPORT)) == {
        "installed": "tinyattn 1.0",
        "wheel": f"{WHEEL}, 4.1 MB",
        "from": "built here in 3 min 05 s, sha256 abababababab",
        "into": "/venv/bin/python, torch 2.11.0+cu130, CUDA 13.0",
        "proof": "NVIDIA GeForce RTX 5090 (arch 12.0): 96 cases right, worst cosine 0.9997, worst relative L2 0.0213",
        "speed": "2.61x SDPA at length 32768 (1x8x32768x64)",
        "published": "in hf://datasets/me/wheels",
        "next": "start it with --use-it",
    }
    alone = {**REPORT, "proof": [], "standing": "loaded only", "published": None}
    lines = dict(closing.lines(alone))
    assert (lines["proof"], lines["published"]) == ("loaded only", "no, it is in the wheelhouse alone")
    assert "not proven" in drawn(closing.drawn(alone, width=80), 80)[0]


def test_no_escape_sequence_of_others_is_drawn() -> None:
    hostile = {**REPORT, "package": {"name": "evil\x1b[31m", "version": "1"}, "next": ["\x1b]0;title\x07"]}
    assert "\x1b" not in "".join(drawn(closing.drawn(hostile, width=80), 80))
