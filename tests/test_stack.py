"""PyTorch and Triton: what is wrong with what is there, and what is tried, in which order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import arch, installer, stack, target
from sagewheels.config import Settings
from sagewheels.errors import SageError, StoreError, UsageError
from sagewheels.manifest import WheelManifest, parse
from sagewheels.match import Wanted
from sagewheels.stack import Attempt, Need
from sagewheels.target import Target, Torch

STABLE = "https://download.pytorch.org/whl"
TAGS = ("cp312-cp312-linux_x86_64", "py3-none-any")


def found(torch: str = "2.11.0+cu130", cuda: str = "13.0", triton: str = "3.6.0", **versions: str) -> Target:
    """A target with this stack; an empty torch or triton is not there."""
    prefix = Path("/target")
    site = prefix / "lib/python3.12/site-packages"
    return Target(
        python=prefix / "bin/python",
        prefix=prefix,
        version="3.12.3",
        soabi="cpython-312-x86_64-linux-gnu",
        machine="x86_64",
        site=site,
        include=prefix / "include",
        has_python_h=True,
        externally_managed=False,
        writable=True,
        torch=Torch(folder=site / "torch", version=torch, cuda=cuda) if torch else None,
        versions={**({"torch": torch} if torch else {}), **({"triton": triton} if triton else {}), **versions},
        dist_info={},
        tags=TAGS,
    )


def need(archs: str = "12.0", driver_cuda: str = "13.0", min_torch: str = "2.4") -> Need:
    return Need(archs=arch.parse_list(archs), driver_cuda=driver_cuda, min_torch=min_torch)


def settings(**changed: Any) -> Settings:
    return Settings(**changed)


@pytest.mark.parametrize(
    ("have", "want", "set_", "faults"),
    [
        (found(), need(), {}, []),
        (found(), need(driver_cuda=""), {}, []),
        (found("2.8.0+cu128", "12.8", "3.4.0"), need(), {}, []),
        (found(triton="3.6.0+git1234"), need(), {}, []),
        (found(""), need(), {}, ["there is no torch"]),
        (found("", triton=""), need(), {}, ["there is no torch"]),
        (found("2.11.0+cpu", ""), need(), {}, ["torch 2.11.0+cpu is built without CUDA"]),
        (found("2.6.0+cu126", "12.6"), need(), {}, ["torch 2.6.0+cu126 has CUDA 12.6, arch 12.0 needs 12.8"]),
        (found("2.6.0+cu126", "12.6"), need("8.9;9.0"), {}, []),
        (found("2.8.0+cu128", "12.8"), need("12.1"), {}, ["torch 2.8.0+cu128 has CUDA 12.8, arch 12.1 needs 12.9"]),
        (
            found("2.6.0+cu118", "11.8"),
            need("8.9;9.0;12.0", driver_cuda="12.8"),
            {},
            [
                "torch 2.6.0+cu118 has CUDA 11.8, arch 9.0 needs 12.0",
                "torch 2.6.0+cu118 has CUDA 11.8, arch 12.0 needs 12.8",
            ],
        ),
        (
            found("2.8.0+cu128", "12.8"),
            need(),
            {"min_cuda_for_sm120": "12.9"},
            ["torch 2.8.0+cu128 has CUDA 12.8, arch 12.0 needs 12.9"],
        ),
        (
            found(),
            need(driver_cuda="12.8"),
            {},
            ["its CUDA 13.0 needs a newer driver: this one runs CUDA up to 12.8"],
        ),
        (found("2.9.0+cu129", "12.9"), need(driver_cuda="12.8"), {}, []),
        (found("2.3.1+cu121", "12.1"), need("8.0"), {}, ["torch 2.3.1+cu121 is older than 2.4"]),
        (found(triton=""), need(), {}, ["there is no triton"]),
        (found(triton="3.2.0"), need("8.9"), {}, ["triton is 3.2.0, TRITON_SPEC asks for triton>=3.3,<4.0"]),
        (found(triton="4.0.0"), need(), {}, ["triton is 4.0.0, TRITON_SPEC asks for triton>=3.3,<4.0"]),
        (found(triton="3.9.0.dev1"), need(), {}, []),
        (
            found(triton="3.2.0"),
            need(),
            {"triton_spec": "triton"},
            ["triton 3.2.0 is older than 3.3, which RTX 50xx needs"],
        ),
        (found(triton="3.2.0"), need("9.0"), {"triton_spec": "triton"}, []),
        (found(triton="3.2.0"), need("9.0"), {"triton_version": "3.2.0"}, []),
        (found(), need(), {"torch_version": "2.11.0"}, []),
        (found(), need(), {"torch_version": "2.11.0+cu130"}, []),
        (found(), need(), {"torch_version": "2.10.0"}, ["torch is 2.11.0+cu130, TORCH_VERSION pins 2.10.0"]),
        (
            found(),
            need(),
            {"torch_version": "2.11.0+cu128"},
            ["torch is 2.11.0+cu130, TORCH_VERSION pins 2.11.0+cu128"],
        ),
        (
            found(torchvision="0.25.0"),
            need(),
            {"torchvision_version": "0.26.0", "torchaudio_version": "2.11.0", "triton_version": "3.5.0"},
            [
                "torchvision is 0.25.0, TORCHVISION_VERSION pins 0.26.0",
                "torchaudio is nothing, TORCHAUDIO_VERSION pins 2.11.0",
                "triton is 3.6.0, TRITON_VERSION pins 3.5.0",
            ],
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_stack(have: Target, want: Need, set_: dict[str, str], faults: list[str]) -> None:
    assert stack.faults(have, want, settings(**set_)) == faults


def test_a_pin_without_its_last_zero_is_met() -> None:
    assert stack.faults(found(), need(), settings(torch_version="2.11")) == []


@pytest.mark.parametrize("spec", ["torch>=2", ">=3.3", "triton>=", "", "triton >=3.3, <4.0; nonsense"])
def test_a_triton_spec_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        stack.triton_range(settings(triton_spec=spec))
    assert str(caught.value) == f"TRITON_SPEC={spec!r} is no requirement. Write it like triton>=3.3,<4.0."


@pytest.mark.parametrize(
    ("want", "asked", "variant", "why"),
    [
        (need(), "cu128", "cu128", "CUDA_INDEX_VARIANT"),
        (need(), "cu130", "cu130", "CUDA_INDEX_VARIANT"),
        (need(driver_cuda=""), "cu130", "cu130", "CUDA_INDEX_VARIANT"),
        (need("8.9", driver_cuda="12.4"), "cu128", "cu128", "CUDA_INDEX_VARIANT"),
        (need(), "cu126", "cu128", "not cu126: arch needs CUDA 12.8"),
        (need("12.1"), "cu128", "cu129", "not cu128: arch needs CUDA 12.9"),
        (need("8.0;12.0", driver_cuda=""), "cu118", "cu128", "not cu118: arch needs CUDA 12.8"),
        (need("8.0", driver_cuda="11.8"), "cu128", "cu118", "not cu128: the driver runs CUDA up to 11.8"),
    ],
)
def test_the_variant_that_archs_and_driver_allow(want: Need, asked: str, variant: str, why: str) -> None:
    found_variant, reason = stack.variant(want, settings(cuda_index_variant=asked))
    assert found_variant == variant
    if why != "not cu128: the driver runs CUDA up to 11.8":
        assert reason == why


def test_the_driver_is_named_when_it_is_the_driver() -> None:
    want = ("cu118", "not cu128: the driver runs CUDA up to 11.8")
    assert stack.variant(need("8.0", driver_cuda="11.8"), settings()) == want


@pytest.mark.parametrize(("archs", "driver"), [("12.0", "12.8"), ("8.9", "12.8"), ("8.9", "12.6")])
def test_no_variant_is_chosen_that_is_newer_than_the_driver(archs: str, driver: str) -> None:
    chosen, _ = stack.variant(need(archs, driver_cuda=driver), settings(cuda_index_variant="cu130"))
    assert chosen == {"12.8": "cu128", "12.6": "cu126"}[driver]


def test_a_driver_too_old_for_the_gpu_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        stack.variant(need("9.0;12.0", driver_cuda="11.8"), settings())
    line = "the driver runs CUDA up to 11.8, arch 9.0, 12.0 needs 12.8. Update the driver."
    assert str(caught.value) == line


def test_a_cuda_that_no_index_has_is_not_blamed_on_a_missing_driver() -> None:
    with pytest.raises(UsageError) as caught:
        stack.variant(need(driver_cuda=""), settings(min_cuda_for_sm120="14.0"))
    assert "driver" not in str(caught.value)


def plan(have: Target, want: Need, *proven: WheelManifest, **set_: Any) -> list[str]:
    return [str(attempt) for attempt in stack.attempts(have, want, settings(**set_), proven)]


NOTHING = found("", triton="")


@pytest.mark.parametrize(
    ("have", "want", "set_", "attempts"),
    [
        pytest.param(
            *(NOTHING, need(), {}),
            [
                f"torch from {STABLE}/nightly/cu128 (channel nightly, cu128 by CUDA_INDEX_VARIANT)",
                f"torch from {STABLE}/cu128 (channel stable, cu128 by CUDA_INDEX_VARIANT)",
                "torch from the default package index (channel pypi)",
            ],
            id="nightly, stable, pypi",
        ),
        pytest.param(
            *(NOTHING, need(), {"torch_channel": "stable", "cuda_index_variant": "cu130"}),
            [
                f"torch from {STABLE}/cu130 (channel stable, cu130 by CUDA_INDEX_VARIANT)",
                "torch from the default package index (channel pypi)",
            ],
            id="stable, pypi",
        ),
        pytest.param(
            *(NOTHING, need(), {"torch_channel": "pypi"}),
            ["torch from the default package index (channel pypi)"],
            id="pypi alone",
        ),
        pytest.param(
            *(NOTHING, need(driver_cuda="12.8"), {"torch_channel": "pypi"}),
            ["torch<2.11 from the default package index (channel pypi)"],
            id="pypi with a 570 driver",
        ),
        pytest.param(
            *(NOTHING, need(driver_cuda=""), {"torch_channel": "pypi"}),
            ["torch from the default package index (channel pypi)"],
            id="pypi without a driver",
        ),
        pytest.param(
            *(NOTHING, need(driver_cuda="12.8"), {"torch_channel": "pypi", "torch_version": "2.9.1"}),
            ["torch==2.9.1 from the default package index (channel pypi)"],
            id="a pin is a pin",
        ),
        pytest.param(
            *(NOTHING, need(), {"torch_index_url": "https://example.invalid/simple"}),
            [
                "torch from https://example.invalid/simple (TORCH_INDEX_URL)",
                f"torch from {STABLE}/cu128 (channel stable, cu128 by CUDA_INDEX_VARIANT)",
                "torch from the default package index (channel pypi)",
            ],
            id="an index of one's own comes first",
        ),
        pytest.param(
            *(NOTHING, need(), {"cuda_index_variant": "cu126", "torch_channel": "stable"}),
            [
                f"torch from {STABLE}/cu128 (channel stable, cu128 by not cu126: arch needs CUDA 12.8)",
                "torch from the default package index (channel pypi)",
            ],
            id="another variant, and why",
        ),
        pytest.param(
            found("2.6.0+cpu", "", torchvision="0.21.0"), need(), {"torch_channel": "pypi"},
            ["torch torchvision from the default package index (channel pypi)"],
            id="torchvision follows where it is",
        ),
        pytest.param(
            found("2.6.0+cpu", "", torchvision="0.21.0", torchaudio="2.6.0"), need(),
            {"torch_channel": "pypi", "torch_version": "2.10.0", "torchvision_version": "0.25.0"},
            ["torch==2.10.0 torchvision==0.25.0 torchaudio from the default package index (channel pypi)"],
            id="pins of each",
        ),
        pytest.param(
            *(NOTHING, need(), {"torch_channel": "pypi", "torchaudio_version": "2.10.0", "triton_version": "3.5.0"}),
            ["torch torchaudio==2.10.0 triton==3.5.0 from the default package index (channel pypi)"],
            id="what is pinned is installed",
        ),
        pytest.param(
            *(found(triton="", torchvision="0.26.0"), need(), {}),
            ["triton>=3.3,<4.0 from the default package index (torch is good and is kept)"],
            id="triton alone is missing",
        ),
        pytest.param(
            *(found(triton="3.2.0"), need(), {"triton_spec": "triton >= 3.3"}),
            ["triton>=3.3 from the default package index (torch is good and is kept)"],
            id="triton alone is too old",
        ),
        pytest.param(
            *(found(), need(), {"triton_version": "3.5.0"}),
            ["triton==3.5.0 from the default package index (torch is good and is kept)"],
            id="triton alone is pinned",
        ),
        pytest.param(
            *(found("2.6.0+cu126", "12.6", ""), need(), {"torch_channel": "pypi"}),
            ["torch from the default package index (channel pypi)"],
            id="triton and torch",
        ),
    ],
)  # fmt: skip
def test_what_is_tried(have: Target, want: Need, set_: dict[str, str], attempts: list[str]) -> None:
    assert plan(have, want, **set_) == attempts


def test_only_nightly_takes_prereleases() -> None:
    tried = list(stack.attempts(NOTHING, need(), settings()))
    assert [attempt.prerelease for attempt in tried] == [True, False, False]


WANTED = Wanted(
    name="sageattention",
    version="2.2.0",
    tags=frozenset(TAGS),
    torch="",
    cuda="",
    archs=arch.parse_list("12.0"),
    glibc="2.39",
)
PROOF = {"gpu": "a GPU", "arch": "12.0", "at_utc": "2026-01-01T00:00:00Z"}


def wheel(label: str, torch: str, cuda: str, **changed: Any) -> WheelManifest:
    """A proven wheel for this stack."""
    data: dict[str, Any] = {
        "wheel_file": f"sageattention-2.2.0+{label}-cp312-cp312-linux_x86_64.whl",
        "wheel_sha256": "ab" * 32,
        "torch_version": torch,
        "cuda_version": cuda,
        "archs": ["12.0"],
        "created_at_utc": "2026-01-01T00:00:00Z",
        "proofs": [PROOF],
        **changed,
    }
    return parse(data, "test")


def test_the_stacks_that_a_proven_wheel_would_fit() -> None:
    store = [
        wheel("older", "2.10.0+cu128", "12.8"),
        wheel("newest", "2.11.0+cu130", "13.0"),
        wheel("older.again", "2.10.0+cu128", "12.8", created_at_utc="2026-02-01T00:00:00Z"),
        wheel("unproven", "2.12.0+cu130", "13.0", proofs=[]),
        wheel("arch", "2.12.0+cu130", "13.0", archs=["9.0a"]),
        wheel("glibc", "2.12.0+cu130", "13.0", glibc="2.41"),
        wheel("silent", "2.12.0+cu130", "13.0", torch_version=None),
        wheel("nine", "2.9.0+cu128", "12.8"),
    ]

    def labels(driver_cuda: str) -> list[str]:
        return [one.version.partition("+")[2] for one in stack.proven_stacks(store, WANTED, driver_cuda)]

    assert labels("13.0") == labels("") == ["newest", "older.again", "older", "nine"]
    assert labels("12.8") == ["older.again", "older", "nine"]


def test_a_proven_wheels_stack_is_tried_first() -> None:
    nightly = "2.12.0.dev20260101+cu130"
    index = f"{STABLE}/nightly/cu130"
    proven = [
        wheel("one", "2.11.0+cu130", "13.0", torchvision_version="0.26.0+cu130", torchaudio_version="2.11.0"),
        wheel("two", nightly, "13.0", torch_index_url=index),
    ]
    have = replace(NOTHING, versions={"torchvision": "0.21.0"})
    tried = list(stack.attempts(have, need(), settings(torch_channel="pypi"), proven))
    assert list(map(str, tried)) == [
        "torch==2.11.0 torchvision==0.26.0 from the default package index "
        "(the store holds sageattention-2.2.0+one-cp312-cp312-linux_x86_64.whl, proven with it)",
        f"torch==2.12.0.dev20260101 from {index} "
        "(the store holds sageattention-2.2.0+two-cp312-cp312-linux_x86_64.whl, proven with it)",
        "torch==2.12.0.dev20260101 from the default package index "
        "(the store holds sageattention-2.2.0+two-cp312-cp312-linux_x86_64.whl, proven with it)",
        "torch torchvision from the default package index (channel pypi)",
    ]
    assert [attempt.prerelease for attempt in tried] == [False, True, True, False]


def test_a_pinned_torch_beats_the_proven_one() -> None:
    tried = plan(NOTHING, need(), wheel("one", "2.11.0+cu130", "13.0"), torch_version="2.10.0", torch_channel="pypi")
    assert tried == ["torch==2.10.0 from the default package index (channel pypi)"]


def test_a_good_torch_is_kept_though_a_proven_wheel_wants_another() -> None:
    tried = plan(found(triton=""), need(), wheel("one", "2.10.0+cu128", "12.8"))
    assert tried == ["triton>=3.3,<4.0 from the default package index (torch is good and is kept)"]


class Index:
    """Stands for installer and target: each install leaves the next of these stacks, an error fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: Target | StoreError) -> None:
        self.left, self.asked = list(outcomes), list[list[str]]()
        self.now = NOTHING
        monkeypatch.setattr(installer, "pip", self.pip)
        monkeypatch.setattr(target, "ask", self.ask)
        monkeypatch.setattr(stack, "import_faults", self.import_faults)

    def import_faults(self, settings: Settings, found: Target) -> list[str]:
        assert found == self.now
        return []

    def pip(
        self, settings: Settings, found: Target, verb: str, arguments: list[str], *, error: type[SageError]
    ) -> None:
        assert verb == "install" and found.python == NOTHING.python
        self.asked.append(arguments)
        outcome = self.left.pop(0)
        if isinstance(outcome, StoreError):
            assert error is StoreError
            raise outcome
        self.now = outcome

    def ask(self, path: Path, why: str, environ: dict[str, str], packages: tuple[str, ...] = ()) -> Target:
        assert path == NOTHING.python
        return self.now


ATTEMPTS = [
    Attempt(requirements=("torch", "torchvision"), index_url="https://example.invalid/n", prerelease=True, why="one"),
    Attempt(requirements=("torch",), index_url="", prerelease=False, why="two"),
]


def test_attempts_are_made_until_one_is_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Index(monkeypatch, StoreError("uv pip failed (exit code 1): no answer"), found())
    assert stack.install(settings(), need(), NOTHING, ATTEMPTS) == found()
    assert index.asked == [["--index-url", "https://example.invalid/n", "--pre", "torch", "torchvision"], ["torch"]]
    assert capsys.readouterr().out.splitlines() == [
        "[stack] trying torch torchvision from https://example.invalid/n (one)",
        "[stack] that failed: uv pip failed (exit code 1): no answer",
        "[stack] trying torch from the default package index (two)",
    ]


def test_the_first_good_one_is_the_last_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(monkeypatch, found())
    assert stack.install(settings(), need(), NOTHING, ATTEMPTS) == found()
    assert len(index.asked) == 1


def test_nothing_good_is_an_error_that_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Index(monkeypatch, found("2.11.0+cpu", ""), StoreError("no answer"))
    with pytest.raises(UsageError) as caught:
        stack.install(settings(), need(), NOTHING, ATTEMPTS)
    remedy = "Check the network, TORCH_CHANNEL and the pins."
    assert str(caught.value) == f"no stack could be installed (no answer). {remedy}"
    assert "[stack] that is not good: torch 2.11.0+cpu is built without CUDA\n" in capsys.readouterr().out
    Index(monkeypatch, StoreError("no answer"), StoreError("no route"))
    with pytest.raises(StoreError) as network:
        stack.install(settings(), need(), NOTHING, ATTEMPTS)
    assert str(network.value) == f"no stack could be installed (no route). {remedy}"
    with pytest.raises(StoreError, match=r"^no stack could be installed \(nothing to try\)\."):
        stack.install(settings(), need(), NOTHING, [])


@pytest.mark.parametrize(
    ("versions", "lacking"),
    [
        ({}, ["einops>=0.6", "other"]),
        ({"einops": "0.8.1"}, ["other"]),
        ({"einops": "0.5", "other": "1"}, ["einops>=0.6"]),
        ({"einops": "0.9rc1", "other": "1"}, []),
    ],
)
def test_what_a_package_needs_besides_the_stack(versions: dict[str, str], lacking: list[str]) -> None:
    needs = ("einops>=0.6", "other")
    assert stack.names(needs) == ["einops", "other"]
    assert stack.missing(found(**versions), needs) == lacking
    assert stack.missing(found(), ()) == []


def test_a_torch_that_cannot_be_loaded_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    Index(monkeypatch, found())
    said = (
        "import torch failed: ImportError: libcudart.so.13: cannot open shared object file: No such file or directory"
    )
    monkeypatch.setattr(stack, "import_faults", lambda *_: [said])
    with pytest.raises(UsageError) as caught:
        stack.install(settings(), need(), NOTHING, ATTEMPTS[1:])
    remedy = "torch is not whole: stack installs it again, with the libraries that it brings"
    assert str(caught.value) == f"no stack could be installed ({said}). {remedy}."


def test_a_need_is_installed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own requirements could bring another torch."""
    index = Index(monkeypatch, found(einops="0.8.1"))
    stack.add(settings(), NOTHING, ["einops>=0.6"])
    assert index.asked == [["--no-deps", "einops>=0.6"]]
