"""Which wheel fits: every reason in its exact words, and which of those that fit comes first."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest
from packaging import tags

from sagewheels import arch, bad
from sagewheels.arch import Arch
from sagewheels.manifest import WheelManifest, parse
from sagewheels.match import Verdict, Wanted, judge, rank


def python(version: tuple[int, int], *abis: str) -> frozenset[str]:
    """The tags of a CPython on Linux with glibc 2.39, as packaging lists them."""
    places = ["manylinux_2_39_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64", "linux_x86_64"]
    own = tags.cpython_tags(python_version=version, abis=abis, platforms=places)
    return frozenset(map(str, [*own, *tags.compatible_tags(python_version=version, platforms=places)]))


HERE = Wanted(
    name="sageattention",
    version="2.2.0",
    tags=python((3, 12), "cp312"),
    torch="2.11.0",
    cuda="13.0",
    archs=arch.parse_list("12.0"),
    glibc="2.39",
)


def wheel(
    *, file: str = "sageattention-2.2.0+cu130torch2.11sm120-cp312-cp312-linux_x86_64.whl", **changed: Any
) -> WheelManifest:
    """A manifest that fits HERE, apart from what is changed; None leaves a key out."""
    data: dict[str, Any] = {
        "wheel_file": file,
        "wheel_sha256": "ab" * 32,
        "torch_version": "2.11.0+cu130",
        "cuda_version": "13.0",
        "archs": ["12.0"],
        "glibc": "2.34",
        "created_at_utc": "2026-01-01T00:00:00Z",
        **changed,
    }
    return parse(data, "test")


def reasons(candidate: WheelManifest, **changed: Any) -> tuple[str, ...]:
    verdict = judge(candidate, replace(HERE, **changed))
    assert verdict.fits is (verdict.reasons == ())
    assert verdict.candidate is candidate
    return verdict.reasons


def archs(text: str) -> list[str]:
    return text.split(";")


def test_a_wheel_that_fits_has_no_reason_against_it() -> None:
    assert reasons(wheel()) == ()


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (wheel(file="sagedemo-2.2.0-cp312-cp312-linux_x86_64.whl"), "it is sagedemo, not sageattention"),
        (
            wheel(file="sageattention-1.0.6+cu130-cp312-cp312-linux_x86_64.whl"),
            "it is version 1.0.6, 2.2.0 is expected",
        ),
        (
            wheel(file="sageattention-2.2.0-cp313-cp313-linux_x86_64.whl"),
            "its wheel tag cp313-cp313-linux_x86_64 does not suit the target (cp312-cp312-linux_x86_64)",
        ),
        (
            wheel(file="sageattention-2.2.0-cp312-cp312-linux_aarch64.whl"),
            "its wheel tag cp312-cp312-linux_aarch64 does not suit the target (cp312-cp312-linux_x86_64)",
        ),
        (
            wheel(file="sageattention-2.2.0-cp312-cp312-win_amd64.whl"),
            "its wheel tag cp312-cp312-win_amd64 does not suit the target (cp312-cp312-linux_x86_64)",
        ),
        (wheel(torch_version="2.10.0+cu130"), "it was built for torch 2.10.0, the target has 2.11.0"),
        (wheel(torch_version="2.11.1"), "it was built for torch 2.11.1, the target has 2.11.0"),
        (wheel(torch_version="2.11.0a0+git12"), "it was built for torch 2.11.0a0, the target has 2.11.0"),
        (wheel(torch_version="my own"), "it was built for torch my own, the target has 2.11.0"),
        (wheel(torch_version=None), "its manifest does not say which torch it was built for"),
        (wheel(cuda_version="12.8"), "it was built for CUDA 12.8, the target's torch has CUDA 13.0"),
        (
            wheel(file="sageattention-2.2.0-cp312-cp312-linux_x86_64.whl", cuda_version=None, torch_version="2.11.0"),
            "its manifest does not say which CUDA it was built for",
        ),
        (wheel(archs=["8.9"]), "it holds code for 8.9, which does not run on 12.0"),
        (wheel(archs=None), "its manifest does not say for which archs it was built"),
        (wheel(glibc="2.41"), "it needs glibc 2.41, this machine has 2.39"),
        (wheel(wheel_sha256=None), "its manifest has no sha256"),
    ],
)
def test_every_reason_in_its_words(candidate: WheelManifest, reason: str) -> None:
    assert reasons(candidate) == (reason,)


def test_a_target_without_torch_or_cuda_is_named() -> None:
    assert reasons(wheel(), torch="") == ("it was built for torch 2.11.0, the target has no torch",)
    assert reasons(wheel(), cuda="") == ("it was built for CUDA 13.0, the target's torch has no CUDA",)


PINNED, OTHER = "eb615cf6cf4d221338033340ee2de1c37fbdba4a", "93128b972683e52cd382c6731c1f09505e7524b5"


@pytest.mark.parametrize(
    ("commit", "ref", "asked", "reason"),
    [
        (PINNED, "v2.2.0", PINNED, ""),
        (PINNED[:7], "v2.2.0", PINNED, ""),
        (PINNED, None, "", ""),
        (None, None, PINNED, ""),
        (OTHER, "main", "main", ""),
        (OTHER, "main", PINNED, "it was built from main 93128b972683, eb615cf6cf4d is asked for"),
        (OTHER, None, PINNED, "it was built from commit 93128b972683, eb615cf6cf4d is asked for"),
        (OTHER, OTHER, PINNED, "it was built from commit 93128b972683, eb615cf6cf4d is asked for"),
        (PINNED, "v2.2.0", "main", "it was built from v2.2.0 eb615cf6cf4d, main is asked for"),
    ],
)
def test_the_same_version_of_another_source_is_another_thing(
    commit: str | None, ref: str | None, asked: str, reason: str
) -> None:
    candidate = wheel(built_from_commit=commit, built_from_ref=ref)
    assert reasons(candidate, source=asked) == ((reason,) if reason else ())


SERIES = frozenset({"0001-a.patch", "0002-b.patch"})
WITH_ONE = [{"name": "0001-a.patch", "sha256": "ab" * 32}]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"patches": [{"name": name} for name in SERIES]}, ()),
        ({"patches": [{"name": "0003-other.patch"}, *WITH_ONE, {"name": "0002-b.patch"}]}, ()),
        ({"patches": WITH_ONE}, ("it was built without 0002-b.patch, and nothing has proven it",)),
        ({"patches": []}, ("it was built without 0001-a.patch, 0002-b.patch, and nothing has proven it",)),
        ({"patches": [], "proofs": [{"gpu": "a GPU", "arch": "12.0"}]}, ()),
        ({"patches": None}, ()),
    ],
)
def test_an_unproven_wheel_needs_every_patch(changed: dict[str, Any], found: tuple[str, ...]) -> None:
    assert reasons(wheel(**changed), patches=SERIES) == found
    assert reasons(wheel(**changed)) == ()


def test_patches_without_a_name_that_is_text_are_no_patches() -> None:
    odd = wheel(patches=[{"name": ["0001-a.patch"]}, {"sha256": "ab" * 32}, "0002-b.patch"])
    words = "it was built without 0001-a.patch, 0002-b.patch, and nothing has proven it"
    assert reasons(odd, patches=SERIES) == (words,)


def test_all_reasons_are_given_in_one_order_with_the_unknown_last() -> None:
    odd = wheel(
        file="sageattention-1.0-cp39-cp39-linux_x86_64.whl",
        torch_version="2.8.0",
        cuda_version="12.8",
        archs=["8.0", "8.6"],
        glibc="2.40",
        wheel_sha256=None,
    )
    assert reasons(odd) == (
        "it is version 1.0, 2.2.0 is expected",
        "its wheel tag cp39-cp39-linux_x86_64 does not suit the target (cp312-cp312-linux_x86_64)",
        "it was built for torch 2.8.0, the target has 2.11.0",
        "it was built for CUDA 12.8, the target's torch has CUDA 13.0",
        "it holds code for 8.0, 8.6, which does not run on 12.0",
        "it needs glibc 2.40, this machine has 2.39",
        "its manifest has no sha256",
    )


def test_of_another_package_nothing_more_is_said() -> None:
    other = wheel(file="other-1.0-cp39-cp39-linux_x86_64.whl", torch_version="2.8.0")
    assert reasons(other) == ("it is other, not sageattention",)


def test_of_many_missing_patches_the_first_are_named() -> None:
    many = frozenset(f"{number:04}-x.patch" for number in range(1, 14))
    (reason,) = reasons(wheel(patches=[], proofs=[]), patches=many)
    assert reason == "it was built without 0001-x.patch, 0002-x.patch and 11 more patches, and nothing has proven it"


@pytest.mark.parametrize(
    ("have", "gpus", "missing"),
    [
        ("8.0", "8.0", ""),
        ("8.0", "8.6", ""),
        ("8.0", "8.9", ""),
        ("8.0", "9.0", "9.0"),
        ("8.6", "8.0", "8.0"),
        ("8.9", "8.6", "8.6"),
        ("9.0a", "9.0", ""),
        ("9.0a", "10.0", "10.0"),
        ("12.0", "12.1", ""),
        ("12.0a", "12.1", "12.1"),
        ("8.9;12.0", "8.9;12.0", ""),
        ("12.0", "8.9;12.0", "8.9"),
        ("8.0", "9.0;12.0", "9.0, 12.0"),
        ("8.0;9.0a;12.0", "8.6;9.0;12.0", ""),
    ],
)
def test_every_gpu_of_the_machine_needs_code_that_runs_on_it(have: str, gpus: str, missing: str) -> None:
    found = reasons(wheel(archs=archs(have)), archs=arch.parse_list(gpus))
    words = f"it holds code for {have.replace(';', ', ')}, which does not run on {missing}"
    assert found == ((words,) if missing else ())


def test_a_compiler_that_was_asked_for_ptx_has_made_the_binary_too() -> None:
    assert reasons(wheel(archs=None, target_arch="12.0+PTX")) == ()


def test_ptx_alone_in_the_binaries_does_not_count() -> None:
    assert reasons(wheel(archs=["8.9", "12.0+PTX"])) == ("it holds code for 8.9, which does not run on 12.0",)
    assert reasons(wheel(archs=["12.0", "12.0+PTX"])) == ()


@pytest.mark.parametrize(
    ("tag", "version", "abi", "fits"),
    [
        ("cp312-cp312-linux_x86_64", (3, 12), "cp312", True),
        ("cp312-cp312-manylinux_2_28_x86_64", (3, 12), "cp312", True),
        ("cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64", (3, 12), "cp312", True),
        ("cp312-cp312-linux_x86_64.manylinux_2_40_x86_64", (3, 12), "cp312", True),
        ("cp310-abi3-manylinux_2_28_x86_64", (3, 12), "cp312", True),
        ("cp313-abi3-manylinux_2_34_x86_64", (3, 12), "cp312", False),
        ("cp312-cp312-manylinux_2_34_aarch64", (3, 12), "cp312", False),
        ("cp310-abi3-linux_x86_64", (3, 12), "cp312", True),
        ("cp39-abi3-linux_x86_64", (3, 13), "cp313", True),
        ("cp313-abi3-linux_x86_64", (3, 12), "cp312", False),
        ("py3-none-any", (3, 12), "cp312", True),
        ("py3-none-linux_x86_64", (3, 12), "cp312", True),
        ("py2.py3-none-any", (3, 12), "cp312", True),
        ("py2-none-any", (3, 12), "cp312", False),
        ("cp311-none-any", (3, 12), "cp312", False),
        ("cp311.cp312-cp311.cp312-linux_x86_64", (3, 12), "cp312", True),
        ("cp313-cp313t-linux_x86_64", (3, 13), "cp313t", True),
        ("cp313-cp313-linux_x86_64", (3, 13), "cp313t", False),
        ("cp313-cp313t-linux_x86_64", (3, 13), "cp313", False),
        ("cp310-abi3-linux_x86_64", (3, 13), "cp313t", False),
        ("py3-none-any", (3, 13), "cp313t", True),
    ],
)
def test_the_wheel_tag_suits_the_target(tag: str, version: tuple[int, int], abi: str, *, fits: bool) -> None:
    found = reasons(wheel(file=f"sageattention-2.2.0-{tag}.whl"), tags=python(version, abi))
    native = f"cp{version[0]}{version[1]}-{abi}-linux_x86_64"
    assert found == (() if fits else (f"its wheel tag {tag} does not suit the target ({native})",))


@pytest.mark.parametrize(
    ("tag", "symbols", "needs"),
    [
        ("cp312-cp312-manylinux_2_40_x86_64", "2.40", "2.40"),
        ("cp312-cp312-manylinux_2_40_x86_64", "2.38", "2.40"),
        ("cp312-cp312-manylinux_2_40_x86_64", "2.43", "2.43"),
        ("cp312-cp312-manylinux_2_41_x86_64.manylinux_2_40_x86_64", None, "2.40"),
        ("cp310-abi3-manylinux_2_41_x86_64", None, "2.41"),
    ],
)
def test_a_manylinux_that_is_too_new_is_a_matter_of_glibc_and_said_once(
    tag: str, symbols: str | None, needs: str
) -> None:
    """Symbols of libstdc++ count in the tag, and not in the manifest's glibc."""
    found = reasons(wheel(file=f"sageattention-2.2.0-{tag}.whl", glibc=symbols))
    assert found == (f"it needs glibc {needs}, this machine has 2.39",)


def test_a_manylinux_where_the_machines_glibc_is_not_known_keeps_the_words_of_a_tag() -> None:
    tag = "cp312-cp312-manylinux_2_40_x86_64"
    found = reasons(wheel(file=f"sageattention-2.2.0-{tag}.whl", glibc=None), glibc="")
    assert found == (f"its wheel tag {tag} does not suit the target (cp312-cp312-linux_x86_64)",)


@pytest.mark.parametrize(
    ("needs", "has", "fits"),
    [
        ("2.34", "2.34", True),
        ("2.9", "2.36", True),
        ("2.38", "2.36", False),
        ("2.38", "", True),
        ("", "2.36", True),
        ("3.0", "2.39", False),
        ("unknown", "2.36", True),
    ],
)
def test_glibc_is_compared_by_number(needs: str, has: str, *, fits: bool) -> None:
    assert reasons(wheel(glibc=needs), glibc=has) == (
        () if fits else (f"it needs glibc {needs}, this machine has {has}",)
    )


@pytest.mark.parametrize(
    ("built_for", "target", "fits"),
    [
        ("2.11.0+cu130", "2.11.0", True),
        ("2.11.0", "2.11.0+cu130", True),
        ("2.11", "2.11.0", True),
        ("2.11.0.dev20260101+cu130", "2.11.0.dev20260101", True),
        ("2.11.0.dev20260101+cu130", "2.11.0", False),
        ("2.11.0rc1", "2.11.0", False),
        ("2.1.0", "2.11.0", False),
        ("my own", "my own", True),
    ],
)
def test_torch_is_the_very_same_release(built_for: str, target: str, *, fits: bool) -> None:
    assert judge(wheel(torch_version=built_for), replace(HERE, torch=target)).fits is fits


def test_cuda_is_the_same_major() -> None:
    assert reasons(wheel(cuda_version="13.2")) == ()
    assert reasons(wheel(cuda_version="12.8"), cuda="12.6") == ()


def test_an_empty_version_takes_any_of_the_package() -> None:
    newer = wheel(file="sageattention-3.0.0-cp312-cp312-linux_x86_64.whl")
    assert reasons(newer, version="") == ()
    assert reasons(newer) == ("it is version 3.0.0, 2.2.0 is expected",)


def test_what_is_unknown_may_be_allowed_and_what_contradicts_may_not() -> None:
    silent = parse({"wheel_file": "sageattention-2.2.0-cp312-cp312-linux_x86_64.whl"}, "test")
    assert reasons(silent) == (
        "its manifest does not say which torch it was built for",
        "its manifest does not say which CUDA it was built for",
        "its manifest does not say for which archs it was built",
        "its manifest has no sha256",
    )
    assert reasons(silent, allow_unknown=True) == ()
    wrong = wheel(archs=["8.9"], torch_version=None, wheel_sha256=None)
    assert reasons(wrong, allow_unknown=True) == ("it holds code for 8.9, which does not run on 12.0",)


def proof(gpu_arch: str) -> dict[str, str]:
    return {"gpu": "a GPU", "arch": gpu_arch, "at_utc": "2026-01-02T00:00:00Z"}


def test_the_best_comes_first() -> None:
    """Each entry beats those below it, whatever the order in which the store lists them."""
    old, new = "2025-01-01T00:00:00Z", "2026-06-01T00:00:00Z"
    name = "sageattention-2.2.0+{}-cp312-cp312-linux_x86_64.whl"
    best = [
        wheel(file=name.format("a"), proofs=[proof("12.0")], created_at_utc=old, archs=["8.9", "12.0"]),
        wheel(file=name.format("b"), proofs=[proof("8.9")], created_at_utc=new),
        wheel(file=name.format("c"), proofs=[proof("8.9")], created_at_utc=old),
        wheel(file=name.format("d"), created_at_utc=old),
        wheel(file=name.format("e"), created_at_utc=new, archs=["8.9", "12.0"]),
        wheel(file=name.format("g"), created_at_utc=old, archs=["8.9", "12.0"]),
        wheel(file=name.format("f"), created_at_utc=old, archs=["8.9", "12.0"]),
        wheel(file=name.format("h"), proofs=[proof("12.0")], created_at_utc=new, torch_version="2.10.0"),
        wheel(file=name.format("i"), created_at_utc=new, torch_version="2.10.0"),
    ]
    for seed in range(10):
        mixed = random.Random(seed).sample(best, len(best))
        verdicts = rank(mixed, HERE)
        assert [verdict.candidate.wheel_file for verdict in verdicts] == [one.wheel_file for one in best]
        assert [verdict.fits for verdict in verdicts] == [True] * 7 + [False] * 2


def test_a_wheel_for_the_arch_specific_cubin_counts_as_exactly_the_wanted_arch() -> None:
    h200 = replace(HERE, archs=arch.parse_list("9.0"))
    exact = wheel(file="sageattention-2.2.0+a-cp312-cp312-linux_x86_64.whl", archs=["9.0a"])
    wide = wheel(file="sageattention-2.2.0+b-cp312-cp312-linux_x86_64.whl", archs=["8.0", "9.0a"])
    assert [verdict.candidate for verdict in rank([wide, exact], h200)] == [exact, wide]


def test_nothing_to_rank() -> None:
    assert rank([], HERE) == []


def test_a_verdict_cannot_be_both() -> None:
    assert Verdict(candidate=wheel(), reasons=()).fits
    assert not Verdict(candidate=wheel(), reasons=("why",)).fits


def test_a_store_of_ten_thousand_wheels_is_ranked_rightly() -> None:
    """One of them is proven here, five fit; everything else differs in torch, CUDA, Python or arch."""
    name = "sageattention-2.2.0+cu{}torch{}sm{}.{}-cp3{}-cp3{}-linux_x86_64.whl"
    torches = [f"2.{minor}.{patch}" for minor in range(6, 16) for patch in range(5)]
    store = [
        wheel(
            file=name.format(cuda.replace(".", ""), torch, number, build, python_minor, python_minor),
            torch_version=torch,
            cuda_version=cuda,
            archs=[f"{number[:-1]}.{number[-1]}"],
            created_at_utc=f"2026-01-0{build}T00:00:00Z",
        )
        for torch in torches
        for cuda in ("12.8", "13.0")
        for number in ("80", "86", "89", "90", "120")
        for python_minor in (10, 11, 12, 13)
        for build in (1, 2, 3, 4, 5)
    ]
    assert len({one.wheel_file for one in store}) == len(store) == 10_000
    chosen = "sageattention-2.2.0+cu130torch2.11.0sm120.2-cp312-cp312-linux_x86_64.whl"
    store = [one.updated(proofs=[proof("12.0")]) if one.wheel_file == chosen else one for one in store]
    verdicts = rank(store, HERE)
    assert verdicts[0].candidate.wheel_file == chosen
    assert [verdict.fits for verdict in verdicts] == [True] * 5 + [False] * 9_995
    assert [verdict.candidate.created_at_utc[:10] for verdict in verdicts[1:5]] == [
        f"2026-01-0{build}" for build in (5, 4, 3, 1)
    ]
    assert all(verdict.reasons for verdict in verdicts[5:])


def test_a_wheel_that_is_known_to_be_bad() -> None:
    raw = {"arch": "12.0", "gpu": "NVIDIA GeForce RTX 5090", "at_utc": "2026-11-22T10:00:00Z", "reason": "not finite"}
    found = bad.read({"wheel_sha256": "ab" * 32, **raw})
    assert found
    known = bad.by_name([found])
    why = "it is known to be bad on arch 12.0: not finite (NVIDIA GeForce RTX 5090, 2026-11-22)"
    assert reasons(wheel(), known_bad=known) == (why,)
    assert reasons(wheel(archs=["9.0"]), known_bad=known, archs=arch.parse_list("9.0")) == ()
    other = wheel(wheel_sha256="cd" * 32)
    assert [one.candidate for one in rank([wheel(), other], replace(HERE, known_bad=known))] == [other, wheel()]


def test_many_marks_cost_little() -> None:
    marks = [bad.Mark(reason="x", wheel_sha256=f"{at:064x}", arch="12.0") for at in range(2_000)]
    wanted = replace(HERE, known_bad=bad.by_name(marks))
    candidates = [wheel(wheel_sha256=f"{at:064x}") for at in range(2_000)]
    started = time.monotonic()
    assert not any(judge(one, wanted).fits for one in candidates)
    assert time.monotonic() - started < 1


def test_a_wheel_without_the_module_of_this_gpu_is_rejected() -> None:
    """A cubin of 8.0 runs on 8.9, where the source's kernels are in another module."""
    held = {"_fused": ["8.0"], "_qattn_sm80": ["8.0"]}
    candidate = wheel(archs=["8.0"], extensions=held)
    needs = {Arch(8, 0): ("_fused", "_qattn_sm80"), Arch(8, 9): ("_fused", "_qattn_sm80", "_qattn_sm89")}
    ada = replace(HERE, archs=(Arch(8, 9),), modules=needs)
    assert judge(candidate, ada).reasons == ("its _qattn_sm89 holds no code for 8.9",)
    assert judge(candidate, replace(ada, archs=(Arch(8, 0),))).fits
    assert judge(wheel(archs=["8.0"], extensions=None), ada).fits, "an old manifest does not say: verify will look"


@pytest.mark.parametrize("odd", [None, "8.9", [1], ["x"], [], {"8.9": 1}])
def test_odd_lists_of_archs_of_a_module_are_no_code(odd: object) -> None:
    ada = replace(HERE, archs=(Arch(8, 9),), modules={Arch(8, 9): ("_fused",)})
    assert judge(wheel(archs=["8.9"], extensions={"_fused": odd}), ada).reasons == ("its _fused holds no code for 8.9",)
