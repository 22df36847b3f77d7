"""Archs: every spelling that people use, and which binary runs on which GPU."""

from __future__ import annotations

import pytest

from sagewheels.arch import Arch, join, parse, parse_list
from sagewheels.errors import UsageError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("12.0", Arch(12, 0)),
        (" 12.0 ", Arch(12, 0)),
        ("120", Arch(12, 0)),
        ("sm_120", Arch(12, 0)),
        ("sm120", Arch(12, 0)),
        ("SM_120", Arch(12, 0)),
        ("compute_120", Arch(12, 0)),
        ("89", Arch(8, 9)),
        ("8.0", Arch(8, 0)),
        ("sm_90a", Arch(9, 0, "a")),
        ("9.0A", Arch(9, 0, "a")),
        ("compute_90a", Arch(9, 0, "a")),
        ("10.3f", Arch(10, 3, "f")),
        ("8.0+PTX", Arch(8, 0, ptx=True)),
        ("9.0a+ptx", Arch(9, 0, "a", ptx=True)),
        ("sm_120+PTX", Arch(12, 0, ptx=True)),
    ],
)
def test_every_common_spelling_is_read(text: str, want: Arch) -> None:
    assert parse(text) == want


@pytest.mark.parametrize(
    "text", ["", "12.", ".0", "12.00", "12.0b", "sm_", "Hopper", "native", "1200", "12.0+", "8.0;9.0", "-8.0", "8 .0"]
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == f"{text!r} is not a compute capability. Write it as 12.0, 120 or sm_120."


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("12.0", "12.0"),
        ("8.9;12.0", "8.9;12.0"),
        ("12.0;8.9", "8.9;12.0"),
        ("8.6 8.9", "8.6;8.9"),
        ("sm_80, sm_86,\tsm_80", "8.0;8.6"),
        (";;12.0;", "12.0"),
        ("120 12.0 sm_120", "12.0"),
        ("9.0a;9.0", "9.0;9.0a"),
        ("8.0+PTX 12.0", "8.0+PTX;12.0"),
    ],
)
def test_lists_are_sorted_by_number_and_hold_each_once(text: str, want: str) -> None:
    assert join(parse_list(text)) == want


@pytest.mark.parametrize("text", ["", "  ", ";,;"])
def test_a_list_without_an_arch_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^the list of archs is empty\. Name at least one, such as 12\.0\.$"):
        parse_list(text)


def test_a_list_with_one_wrong_word_names_that_word() -> None:
    with pytest.raises(UsageError, match=r"^'nonsense' is not a compute capability"):
        parse_list("8.9;nonsense;12.0")


@pytest.mark.parametrize(
    ("arch", "text", "number", "plain"),
    [
        (Arch(12, 0), "12.0", "120", "12.0"),
        (Arch(9, 0, "a"), "9.0a", "90a", "9.0"),
        (Arch(8, 0, ptx=True), "8.0+PTX", "80", "8.0"),
        (Arch(10, 3, "f", ptx=True), "10.3f+PTX", "103f", "10.3"),
    ],
)
def test_how_an_arch_is_written(arch: Arch, text: str, number: str, plain: str) -> None:
    assert (str(arch), arch.number, str(arch.plain)) == (text, number, plain)
    assert parse(text) == arch
    assert parse(f"sm_{number}").plain == arch.plain


def test_archs_are_in_the_order_of_their_numbers_not_of_their_text() -> None:
    assert sorted(map(parse, ["12.0", "8.9", "10.0", "8.0", "9.0"])) == [
        *map(parse, ["8.0", "8.9", "9.0", "10.0", "12.0"])
    ]


@pytest.mark.parametrize(
    ("cubin", "gpu", "runs"),
    [
        ("8.0", "8.0", True),
        ("8.0", "8.6", True),
        ("8.0", "8.9", True),
        ("8.6", "8.9", True),
        ("8.6", "8.0", False),
        ("8.9", "8.6", False),
        ("8.9", "9.0", False),
        ("8.0", "9.0", False),
        ("9.0", "9.0", True),
        ("9.0a", "9.0", True),
        ("9.0a", "10.0", False),
        ("10.0a", "10.3", False),
        ("10.0f", "10.3", True),
        ("10.0f", "12.0", False),
        ("12.0", "12.0", True),
        ("12.0", "12.1", True),
        ("12.0a", "12.1", False),
        ("12.1", "12.0", False),
        ("8.0+PTX", "12.0", False),
    ],
)
def test_which_binary_runs_where(cubin: str, gpu: str, *, runs: bool) -> None:
    assert parse(cubin).runs_on(parse(gpu)) is runs
