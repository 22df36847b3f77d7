"""The patches that are shipped: each is named, only inserts, says why it is there, and does what its head says.

The source itself is not here: that the lines go where they belong is checked by their blob ids, in every build.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import os
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagewheels import recipe, source
from sagewheels.recipe import Patch
from sagewheels.resources import ROOT

MANIFESTS = sorted(ROOT / "manifests" / f"{name}.toml" for name in recipe.names())
PATCHES = [patch for path in MANIFESTS for patch in recipe.load(str(path)).patches]
ABI3 = "sageattention-2.2.0-abi3"
HEADS = ("Symptom", "Cause", "Reference", "Proof")


def inserted(patch: Patch, file: str) -> str:
    """The lines that a patch adds to a file, without their common indent."""
    part = patch.path.read_text().split(f"diff --git a/{file} ", 1)[1].split("diff --git ", 1)[0]
    lines = [line[1:] for line in part.splitlines() if line.startswith("+") and not line.startswith("+++ ")]
    return textwrap.dedent("\n".join(lines))


def named(part: str, of: str = "sageattention-2.2.0") -> Patch:
    """The one patch of this manifest with this in its name."""
    (found,) = [patch for patch in recipe.load(of).patches if part in patch.file]
    return found


def test_there_are_manifests_and_patches() -> None:
    assert {path.stem for path in MANIFESTS} >= {"demo", "sageattention-2.2.0"}
    assert PATCHES


def test_every_file_in_patches_is_named_by_a_manifest() -> None:
    """Traps in such repositories: patches that nobody applies."""
    there = sorted(path for path in (ROOT / "patches").rglob("*") if path.is_file())
    assert there == sorted(patch.path.resolve() for patch in PATCHES)


def test_a_series_is_applied_in_the_order_of_its_numbers() -> None:
    for path in MANIFESTS:
        names = [patch.file for patch in recipe.load(str(path)).patches]
        assert names == sorted(names)
        assert [name[:4] for name in names] == [f"{place:04}" for place in range(1, len(names) + 1)]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.file)
def test_a_patch_only_inserts(patch: Patch) -> None:
    body = patch.path.read_text().split("diff --git ", 1)[1].splitlines()
    hunks = [line for line in body if line.startswith("@@")]
    assert hunks
    for hunk in hunks:
        assert re.fullmatch(r"@@ -\d+,0 \+\d+(,\d+)? @@", hunk), hunk
    heads = ("index ", "--- a/", "+++ b/", "@@ ", "+", "diff --git ", "a/")
    assert [line for line in body if not line.startswith(heads)] == []


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.file)
def test_a_patch_has_full_blob_ids(patch: Patch) -> None:
    text = patch.path.read_text()
    anchors = source.anchors(patch)
    assert len(anchors) == text.count("diff --git ") == len(re.findall(r"^index .+ 100(?:644|755)$", text, re.M))
    for file, old, new in anchors:
        assert re.fullmatch("[0-9a-f]{40}", old) and re.fullmatch("[0-9a-f]{40}", new) and old != new, file


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.file)
def test_a_patch_says_why_it_is_there(patch: Patch) -> None:
    head = patch.path.read_text().split("diff --git ", 1)[0]
    found = re.findall(r"^(\w+): (\S.+)$", head, re.M)
    assert tuple(name for name, _ in found) == HEADS
    assert all(len(text) > 20 for _, text in found)
    assert max(map(len, head.splitlines())) <= 120


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.file)
def test_the_files_that_a_head_speaks_of_exist(patch: Patch) -> None:
    head = patch.path.read_text().split("diff --git ", 1)[0]
    for place in re.findall(r"\b(?:tests|benchmarks)/[\w./-]*\w", head):
        assert (ROOT / place).exists(), place


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.file)
def test_a_patch_lies_within_what_is_checked_out(patch: Patch) -> None:
    paths = next(found for path in MANIFESTS if patch in (found := recipe.load(str(path))).patches).source.paths
    for file, _, _ in source.anchors(patch):
        assert any(f"/{file}" == path or (path.endswith("/") and f"/{file}".startswith(path)) for path in paths)


def test_sm90_the_name_is_the_operator() -> None:
    """After the inserted lines, what core.py imports is no longer the function that computes nothing."""
    (file,) = [file for file, _, _ in source.anchors(named("sm90"))]
    assert file == "sageattention/sm90_compile.py"
    name = "qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf"
    operator = object()
    torch = types.SimpleNamespace(
        ops=types.SimpleNamespace(sageattention_sm90=types.SimpleNamespace(**{name: operator}))
    )
    module = {"torch": torch, name: lambda *tensors: tensors[0]}
    exec(inserted(named("sm90"), file), module)
    assert module[name] is operator


def test_cxx_standard_the_flag_lists_name_none() -> None:
    (file,) = [file for file, _, _ in source.anchors(named("standard"))]
    assert file == "setup.py"
    flags = {
        "CXX_FLAGS": ["-g", "-O3", "-fopenmp", "-lgomp", "-std=c++17", "-DENABLE_BF16"],
        "NVCC_FLAGS": ["-O3", "-std=c++17", "-U__CUDA_NO_HALF_OPERATORS__", "--use_fast_math"],
    }
    exec(inserted(named("standard"), file), flags)
    assert flags["CXX_FLAGS"] == ["-g", "-O3", "-fopenmp", "-lgomp", "-DENABLE_BF16"]
    assert flags["NVCC_FLAGS"] == ["-O3", "-U__CUDA_NO_HALF_OPERATORS__", "--use_fast_math"]


def test_every_kernel_is_built_for_every_arch_that_has_it() -> None:
    """setup.py asks for extensions by their lowest arch, and gives each a list of archs to compile for."""
    (file,) = [file for file, _, _ in source.anchors(named("every-kernel", ABI3))]
    assert file == "setup.py"
    asked: list[str] = []
    module: dict[str, Any] = {
        "has_capability": lambda target: any(one.startswith(target) for one in asked),
        "get_nvcc_flags": lambda allowed: [one for one in asked if one in allowed],
    }
    exec(inserted(named("every-kernel", ABI3), file), module)
    has, flags = module["has_capability"], module["get_nvcc_flags"]
    sm80, sm89, sm90 = ("8.0", "8.6", "8.7"), ("8.9", "10.0", "12.0", "12.1"), "9.0"
    for archs, made in {
        "8.0": (True, False, False),
        "8.6": (True, False, False),
        "8.7": (True, False, False),
        "8.9": (True, True, False),
        "9.0": (True, True, True),
        "10.0": (True, True, False),
        "12.0": (True, True, False),
        "12.0+PTX": (True, True, False),
        "12.1": (True, True, False),
        "8.0 9.0": (True, True, True),
        "7.5": (False, False, False),
    }.items():
        asked[:] = archs.split()
        assert (has(sm80), has(sm89), has(sm90)) == made, archs
    asked[:] = "8.0 8.6 8.9 9.0 12.0+PTX".split()
    assert flags(["8.0"]) == flags(["8.0", "8.9", "9.0", "10.0", "12.0", "12.1"]) == asked
    assert flags(["8.9", "10.0", "12.0", "12.1"]) == ["8.9", "9.0", "12.0+PTX"]
    assert flags(["9.0"]) == ["9.0"]


@pytest.mark.parametrize(
    ("patch", "package", "category", "words"),
    [
        (named("module-is-broken"), "patched", RuntimeWarning, "_qattn_sm90 is installed and cannot be used: "),
        (
            named("cannot-be-loaded", ABI3),
            "stable",
            UserWarning,
            "stable._qattn_sm90 cannot be loaded, its kernels are not available: ",
        ),
    ],
)
def test_an_extension_that_cannot_be_loaded_says_why(
    patch: Patch, package: str, category: type[Warning], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is absent (8.9 here) is no news."""
    (file,) = [file for file, _, _ in source.anchors(patch)]
    assert file == "sageattention/core.py"
    helper, *calls = inserted(patch, file).split("    _warn_if_broken(")
    assert [call.strip() for call in calls] == ['"_qattn_sm80")', '"_qattn_sm89")', '"_qattn_sm90")']
    folder = tmp_path / package
    folder.mkdir()
    (folder / "_qattn_sm90.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    each = "\n".join(
        f"try:\n    from . import _qattn_{one}\nexcept:\n    pass\n    _warn_if_broken('_qattn_{one}')"
        for one in ("sm80", "sm89", "sm90")
    )
    (folder / "_qattn_sm80.py").write_text("")
    (folder / "__init__.py").write_text(f"{helper}\n{each}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(category) as caught:
        importlib.import_module(package)
    assert [str(one.message) for one in caught] == [f"{words}libcuda.so.1: cannot open shared object file"]


def test_a_patch_is_known_by_its_bytes(tmp_path: Path) -> None:
    """The sha256 that goes into the build key is that of the file."""
    patch = named("sm90")
    copy = tmp_path / "manifests" / "x.toml"
    copy.parent.mkdir()
    copy.write_text((ROOT / "manifests" / "sageattention-2.2.0.toml").read_text())
    folder = tmp_path / "patches" / "x"
    folder.mkdir(parents=True)
    for one in recipe.load("sageattention-2.2.0").patches:
        (folder / one.file).write_bytes(one.path.read_bytes())
    assert recipe.load(str(copy)).patches[0].sha256 == patch.sha256
    (folder / patch.file).write_bytes(patch.path.read_bytes() + b"\n")
    assert recipe.load(str(copy)).patches[0].sha256 != patch.sha256


SAGE = recipe.load("sageattention-2.2.0").patches
DEFECTS = {
    "1: the fake in place of the operator of 9.0": "0001-sm90-keep-the-real-operator.patch",
    "2: the C++ standard that torch's headers want": "0002-let-torch-choose-the-cxx-standard.patch",
    "3: launches on the legacy default stream": "0003-launch-on-the-current-stream.patch",
    "4: no device guard": "0004-stay-on-the-device-of-the-tensors.patch",
    "5: NaN behind the last key": "0005-fill-the-last-tile-with-zeros.patch",
    "6: heads counted on the wrong axis": "0006-count-heads-by-the-layout.patch",
    "8: 9.0 together with another arch": "0007-each-module-for-its-own-archs.patch",
    "9: 8.7, 10.x and 12.1 raise": "0008-serve-the-neighbours-of-known-archs.patch",
    "10: torch.compile breaks": "0011-one-operator-for-torch-compile.patch",
    "11: launch errors unchecked": "0009-check-every-launch.patch",
    "12: a bare except hides the cause": "0010-say-why-a-module-is-broken.patch",
    "an infinite scale of a constant channel": "0012-quantise-constant-channels.patch",
    "scales read from behind their tensor": "0013-end-the-causal-loop-at-the-last-key.patch",
}
"""What is wrong with SageAttention 2.2.0, and what mends it. Defect 7, how archs are spelled, is mended elsewhere."""
PARTS = "0014-compile-one-unit-in-parts.patch"
"""What mends nothing: it lets the largest unit be compiled on four cores."""
CORE = "sageattention/core.py"


def hunks(patch: Patch, file: str) -> list[str]:
    """What a patch inserts into a file, place by place, each without its common indent."""
    part = patch.path.read_text().split(f"diff --git a/{file} ", 1)[1].split("diff --git ", 1)[0]
    places = re.split(r"^@@ .+ @@\n", part, flags=re.M)[1:]
    return [textwrap.dedent("".join(line[1:] for line in place.splitlines(keepends=True))) for place in places]


def test_every_defect_has_its_patch() -> None:
    """Dropping one, from the folder or from the manifest, is no oversight that passes."""
    files = sorted(path.name for path in (ROOT / "patches" / "sageattention-2.2.0").iterdir())
    assert [patch.file for patch in SAGE] == files == sorted([*DEFECTS.values(), PARTS])
    assert len(set(DEFECTS.values())) == len(DEFECTS)
    assert [int(text.partition(":")[0]) for text in DEFECTS if text[0].isdigit()] == [*range(1, 7), *range(8, 13)]


def test_each_function_is_in_one_part() -> None:
    """However many parts; without the macros, all functions are in the one that there is."""
    patch = named("in-parts")
    (file,) = [file for file, _, _ in source.anchors(patch)]
    lines = [line for place in hunks(patch, file) for line in place.splitlines()]
    guards = [line.removeprefix("#if ") for line in lines if line.startswith("#if ")]
    assert lines.count("#endif") == len(guards) + 1  # and one of #ifndef
    assert [int(guard.split()[0]) for guard in guards] == [0, 1, 2, 3]
    assert {guard.partition(" ")[2] for guard in guards} == {"% SAGE_PARTS == SAGE_PART"}
    assert lines[lines.index("#ifndef SAGE_PARTS") :][1:4] == ["#define SAGE_PARTS 1", "#define SAGE_PART 0", "#endif"]


@pytest.mark.parametrize("given", [None, ["-lcuda"]])
def test_launches_go_through_our_own_function(given: list[str] | None) -> None:
    extensions = [types.SimpleNamespace(extra_link_args=given), types.SimpleNamespace(extra_link_args=["-s"])]
    exec(inserted(named("current-stream"), "setup.py"), {"ext_modules": extensions})
    wrap = "-Wl,--wrap=__cudaPushCallConfiguration"
    assert [one.extra_link_args for one in extensions] == [[*(given or []), wrap], ["-s", wrap]]
    function = inserted(named("current-stream"), "csrc/utils.cuh")
    assert re.findall(r"\b(__(?:real|wrap)___\w+)\(", function) == [
        "__real___cudaPushCallConfiguration",
        "__wrap___cudaPushCallConfiguration",
        "__real___cudaPushCallConfiguration",
    ]


class Cuda:
    """torch.cuda as far as it selects a GPU."""

    def __init__(self, current: int, *, initialized: bool = True) -> None:
        self.current, self.initialized = current, initialized

    def is_initialized(self) -> bool:
        return self.initialized

    def current_device(self) -> int:
        assert self.initialized, "this would initialise CUDA"
        return self.current

    @contextlib.contextmanager
    def device(self, wanted: Any) -> Iterator[None]:
        before, self.current = self.current, getattr(wanted, "index", wanted)
        try:
            yield
        finally:
            self.current = before


def kept(cuda: Cuda, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as 0004 decorates it."""
    definition, *decorated = inserted(named("device-of-the-tensors"), CORE).split("@_device_kept")
    assert [text.strip() for text in decorated] == [""] * 5
    module: dict[str, Any] = {"torch": types.SimpleNamespace(cuda=cuda)}
    exec(definition, module)
    found: Callable[..., Any] = module["_device_kept"](function)
    return found


def test_the_callers_device_comes_back() -> None:
    cuda = Cuda(0)

    def attention(x: int, *, fails: bool = False) -> int:
        """Selects the GPU of its tensors."""
        cuda.current = 1
        if fails:
            raise ValueError("head_dim")
        return x + 1

    call = kept(cuda, attention)
    assert (call(1), cuda.current, call.__name__, call.__doc__) == (2, 0, "attention", attention.__doc__)
    with pytest.raises(ValueError, match=r"^head_dim$"):
        call(1, fails=True)
    assert cuda.current == 0


def test_cuda_is_not_initialised_to_keep_a_device() -> None:
    assert kept(Cuda(0, initialized=False), lambda x: x + 1)(1) == 2


@pytest.mark.parametrize(
    ("here", "place", "traces", "runs_on"),
    [(0, 1, False, 1), (1, 1, False, 1), (0, 1, True, 0), (0, None, False, 0)],
)
def test_triton_launches_on_the_device_of_the_tensors(
    here: int, place: int | None, runs_on: int, *, traces: bool
) -> None:
    """On the stable ABI the C++ entries see to themselves; while torch.compile traces, nothing is launched."""
    cuda, seen = Cuda(here), list[int]()
    compiler = types.SimpleNamespace(is_compiling=lambda: traces)
    definition, *decorated = inserted(named("device-of-the-tensors", ABI3), CORE).split("@_on_its_device")
    assert [text.strip() for text in decorated] == [""] * 5
    module: dict[str, Any] = {"torch": types.SimpleNamespace(cuda=cuda, compiler=compiler)}
    exec(definition, module)
    device = types.SimpleNamespace(index=place)
    q = types.SimpleNamespace(is_cuda=place is not None, device=device)
    call = module["_on_its_device"](lambda q, *others: seen.append(cuda.current))
    call(q, "k", "v")
    call(q=q)
    assert (seen, cuda.current) == ([runs_on] * 2, here)


def test_rows_that_are_not_loaded_are_zero_in_one_file_only() -> None:
    patch = named("last-tile")
    assert [file for file, _, _ in source.anchors(patch)] == ["csrc/qattn/qk_int_sv_f16_cuda_sm80.cu"]
    before, after = hunks(patch, "csrc/qattn/qk_int_sv_f16_cuda_sm80.cu")
    assert before.splitlines()[-1] == "#define kNoFill kFillZero"
    assert after == "#undef kNoFill\n", "after the one include between them"


@pytest.mark.parametrize(("layout", "axis"), [("HND", 1), ("NHD", 2)])
def test_heads_are_counted_by_the_layout(layout: str, axis: int) -> None:
    shape = {"HND": (1, 8, 300, 64), "NHD": (1, 300, 8, 64)}[layout]
    fewer = {"HND": (1, 2, 77, 64), "NHD": (1, 77, 2, 64)}[layout]
    q, k = (types.SimpleNamespace(size=sizes.__getitem__) for sizes in (shape, fewer))
    places = hunks(named("count-heads"), CORE)
    assert len(places) == 4
    for place in places:
        module: dict[str, Any] = {"tensor_layout": layout, "q": q, "k": k}
        exec(place, module)
        assert (module["nh_dim"], module["q_per_kv_heads"]) == (axis, 4)


def flags_of_modules(*codes: str) -> dict[str, list[str]]:
    """The nvcc flags of each extension module when setup.py was asked for these -gencode options."""
    flags = ["-O3", "--use_fast_math", "-Xptxas=-v"]
    for code in codes:
        flags += ["-gencode", code]
    names = ("_qattn_sm80", "_qattn_sm89", "_qattn_sm90", "_fused")
    options = {"cxx": ["-O3"], "nvcc": flags}
    modules = [types.SimpleNamespace(name=f"sageattention.{name}", extra_compile_args=options) for name in names]
    exec(inserted(named("its-own-archs"), "setup.py"), {"NVCC_FLAGS": flags, "ext_modules": modules})
    assert all(one.extra_compile_args["cxx"] == ["-O3"] for one in modules)
    return {name: one.extra_compile_args["nvcc"] for name, one in zip(names, modules, strict=True)}


def gencode(number: str, *, ptx: bool = False) -> str:
    return f"arch=compute_{number},code={'compute' if ptx else 'sm'}_{number}"


def codes(flags: list[str]) -> list[str]:
    assert flags[:3] == ["-O3", "--use_fast_math", "-Xptxas=-v"]
    assert set(flags[3::2]) <= {"-gencode"}
    return flags[4::2]


@pytest.mark.parametrize(
    ("number", "modules"),
    [
        ("80", ("_qattn_sm80", "_fused")),
        ("89", ("_qattn_sm80", "_qattn_sm89", "_fused")),
        ("90a", ("_qattn_sm80", "_qattn_sm89", "_qattn_sm90", "_fused")),
        ("120", ("_qattn_sm80", "_qattn_sm89", "_fused")),
    ],
)
def test_the_flags_of_one_arch_stay_as_they_were(number: str, modules: tuple[str, ...]) -> None:
    listed = ["-O3", "--use_fast_math", "-Xptxas=-v", "-gencode", gencode(number)]
    found = flags_of_modules(gencode(number))
    assert {name: found[name] for name in modules} == dict.fromkeys(modules, listed)


def test_each_module_is_compiled_for_the_archs_that_can_run_it() -> None:
    both = [gencode("90a"), gencode("120")]
    found = {name: codes(flags) for name, flags in flags_of_modules(*both).items()}
    assert found == {"_qattn_sm80": both, "_qattn_sm89": both, "_qattn_sm90": both[:1], "_fused": both}
    ampere = [gencode("80"), gencode("89")]
    found = {name: codes(flags) for name, flags in flags_of_modules(*ampere).items()}
    assert (found["_qattn_sm80"], found["_fused"], found["_qattn_sm89"]) == (ampere, ampere, ampere[1:])


def test_ptx_goes_where_its_arch_goes() -> None:
    asked = [gencode("80"), gencode("80", ptx=True), gencode("90a"), gencode("120"), gencode("120", ptx=True)]
    found = {name: codes(flags) for name, flags in flags_of_modules(*asked).items()}
    assert (found["_fused"], found["_qattn_sm89"], found["_qattn_sm90"]) == (asked, asked[2:], asked[2:3])


@pytest.mark.parametrize(
    ("arch", "runs"),
    [
        ("sm80", "sm80"),
        ("sm86", "sm86"),
        ("sm87", "sm80"),
        ("sm89", "sm89"),
        ("sm90", "sm90"),
        ("sm100", "sm120"),
        ("sm103", "sm120"),
        ("sm120", "sm120"),
        ("sm121", "sm120"),
        ("sm75", "sm75"),
    ],
)
def test_the_neighbours_of_known_archs(arch: str, runs: str) -> None:
    """What the chain of names behind these lines is asked for; what nobody knows still raises there."""
    module = {"arch": arch}
    exec(inserted(named("neighbours"), CORE), module)
    assert module["arch"] == runs


@pytest.mark.parametrize(
    ("capability", "found"),
    [
        ("8.7", (True, False, "87")),
        ("8.7+PTX", (True, False, "87")),
        ("10.0", (False, True, "100")),
        ("8.6", (False, False, "before")),
    ],
)
def test_setup_knows_the_neighbours(capability: str, found: tuple[bool, bool, str]) -> None:
    module = {"capability": capability, "HAS_SM80": False, "HAS_SM89": False, "num": "before"}
    exec(f"if False:\n    pass\n{inserted(named('neighbours'), 'setup.py')}", module)
    assert (module["HAS_SM80"], module["HAS_SM89"], module["num"]) == found


@pytest.mark.parametrize(
    ("of", "check", "needs"),
    [
        ("sageattention-2.2.0", "C10_CUDA_KERNEL_LAUNCH_CHECK();\n", "#include <c10/cuda/CUDAException.h>"),
        (ABI3, "check_launch();\n", "inline void check_launch() {"),
    ],
)
def test_every_launch_is_checked(of: str, check: str, needs: str) -> None:
    """There are as many launches, and the one other insertion is what the checks are made of."""
    patch = named("every-launch", of)
    places = {file: hunks(patch, file) for file, _, _ in source.anchors(patch)}
    (made_of,) = places.pop("csrc/utils.cuh")
    assert needs in made_of.splitlines()
    assert list(itertools.chain(*places.values())) == [check] * 21


class Tensor(types.SimpleNamespace):
    """Of a tensor, what 0011 looks at; `is_contiguous` once it was made so."""

    def contiguous(self) -> Tensor:
        return Tensor(**{**vars(self), "is_contiguous": True})


class Text(str):
    """A tensor that is its own name; one that was detached says so."""

    def detach(self) -> str:
        return f"{self} detached"


Q, K, V = Text("q"), Text("k"), Text("v")
DETACHED = ("q detached", "k detached", "v detached")


class Operator:
    """A custom operator: the function, and the fake that torch.compile calls in its place."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.asked = function, list[tuple[Any, ...]]()
        self.fake: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        self.asked.append(args)
        return self.function(*args)

    def register_fake(self, fake: Callable[..., Any]) -> None:
        self.fake = fake


class Compiling:
    """The lines of 0011 in a module with two functions, one with a logsumexp, that note how they were called."""

    def __init__(self) -> None:
        self.traces, self.calls = False, list[tuple[str, tuple[Any, ...], dict[str, Any]]]()
        imports, imports_types, definitions, *rest = hunks(named("torch-compile"), CORE)
        assert rest == ["@_one_operator\n"] * 5
        definitions, decorator, end = definitions.rpartition("@_one_operator\n")
        assert (decorator, end) == ("@_one_operator\n", "")
        self.registered: dict[str, Operator] = {}
        module: dict[str, Any] = {"functools": functools, "torch": self._torch()}
        exec(imports + imports_types + definitions, module)

        def attention(q: Any, k: Any, v: Any, tensor_layout: str = "HND", is_causal: bool = False,
                      sm_scale: Any = None, return_lse: bool = False, **kwargs: Any) -> Any:  # fmt: skip
            given = {**kwargs, "tensor_layout": tensor_layout, "is_causal": is_causal, "sm_scale": sm_scale}
            self.calls.append(("attention", (q, k, v), {**given, "return_lse": return_lse}))
            return (Tensor(name="out"), Tensor(name="lse")) if return_lse else Tensor(name="out")

        def varlen(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int,
                   max_seqlen_k: int, is_causal: bool = False, **kwargs: Any) -> Any:  # fmt: skip
            lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
            self.calls.append(("varlen", (q, k, v, *lengths), {**kwargs, "is_causal": is_causal}))
            return Tensor(name="out")

        self.attention = module["_one_operator"](attention)
        self.varlen = module["_one_operator"](varlen)
        self.operator = self.registered["sageattention::attention"]

    def _torch(self) -> types.SimpleNamespace:
        def custom_op(name: str, *, mutates_args: tuple[str, ...], device_types: str) -> Callable[..., Operator]:
            assert (mutates_args, device_types) == ((), "cuda")
            return lambda function: self.registered.setdefault(name, Operator(function))

        def attention(*args: Any) -> Any:
            return self.registered["sageattention::attention"](*args)

        return types.SimpleNamespace(
            Tensor=Tensor,
            float32="float32",
            library=types.SimpleNamespace(custom_op=custom_op),
            ops=types.SimpleNamespace(sageattention=types.SimpleNamespace(attention=attention)),
            compiler=types.SimpleNamespace(is_compiling=lambda: self.traces),
            empty=lambda shape, **options: Tensor(shape=tuple(shape), **options),
        )


def test_an_eager_call_does_not_pass_through_the_operator() -> None:
    module = Compiling()
    assert module.attention("q", "k", "v", is_causal=True).name == "out"
    assert module.operator.asked == []
    assert module.attention.__name__ == "attention"
    ((name, args, given),) = module.calls
    assert (name, args, given["is_causal"], given["return_lse"]) == ("attention", ("q", "k", "v"), True, False)


def test_a_traced_call_is_one_operator() -> None:
    """What was not given is not given on, so that each function keeps its defaults; and no gradient is asked for."""
    module = Compiling()
    module.traces = True
    out = module.attention(Q, K, V, "NHD", sm_scale=0.5, smooth_k=False)
    (asked,) = module.operator.asked
    names = [*inspect.signature(module.operator.function).parameters]
    assert {name: value for name, value in zip(names, asked, strict=True) if value is not None} == {
        "function": "attention",
        "q": "q detached",
        "k": "k detached",
        "v": "v detached",
        "tensor_layout": "NHD",
        "sm_scale": 0.5,
        "smooth_k": False,
        "return_lse": False,
    }
    given = {"tensor_layout": "NHD", "is_causal": False, "sm_scale": 0.5, "smooth_k": False, "return_lse": False}
    assert module.calls == [("attention", DETACHED, given)]
    assert (out.name, out.is_contiguous) == ("out", True)


def test_a_traced_call_returns_the_logsumexp_where_there_is_one() -> None:
    module = Compiling()
    module.traces = True
    out, lse = module.attention(Q, K, V, return_lse=True)
    assert [(one.name, one.is_contiguous) for one in (out, lse)] == [("out", True), ("lse", True)]
    assert module.varlen(Q, K, V, "a", "b", 3, 4, return_lse=True).name == "out"
    assert [asked[-1] for asked in module.operator.asked] == [True, False], "varlen never asks for a logsumexp"
    lengths = {"cu_seqlens_q": "a", "cu_seqlens_k": "b", "max_seqlen_q": 3, "max_seqlen_k": 4}
    assert module.calls[-1] == ("varlen", (*DETACHED, *lengths.values()), {"is_causal": False})


@pytest.mark.parametrize(
    ("layout", "shape"), [("HND", (2, 8, 300, 64)), ("NHD", (2, 300, 8, 64)), (None, (2, 8, 9, 1))]
)
def test_the_fake_has_the_shapes_of_the_operator(layout: str | None, shape: tuple[int, ...]) -> None:
    module = Compiling()
    assert module.operator.fake
    q = Tensor(shape=shape, dtype="float16", device="cuda:0")
    names = [*inspect.signature(module.operator.function).parameters]
    given = {"function": "attention", "q": q, "k": q, "v": q, "tensor_layout": layout, "return_lse": False}
    (out,) = module.operator.fake(*(given.get(name) for name in names))
    assert out == Tensor(shape=shape, dtype="float16", device="cuda:0")
    out, lse = module.operator.fake(*({**given, "return_lse": True}.get(name) for name in names))
    rows = (2, 8, 300) if layout else (2, 8, 9)
    assert (out.shape, lse) == (shape, Tensor(shape=rows, dtype="float32", device="cuda:0"))


@pytest.mark.parametrize("of", ["sageattention-2.2.0", ABI3])
@pytest.mark.parametrize("file", ["attn_qk_int8_per_block_causal", "attn_qk_int8_per_block_causal_varlen"])
@pytest.mark.parametrize(("hi", "kv_len", "end"), [(128, 49, 49), (128, 128, 128), (256, 1000, 256)])
def test_the_causal_loop_ends_at_the_last_key(of: str, file: str, hi: int, kv_len: int, end: int) -> None:
    module = {"tl": types.SimpleNamespace(minimum=min), "hi": hi, "kv_len": kv_len}
    exec(inserted(named("causal-loop", of), f"sageattention/triton/{file}.py"), module)
    assert module["hi"] == end


SPARGE = recipe.load("spargeattn-0.1.0").patches


def of_setup(place: int, **module: object) -> dict[str, object]:
    """What the names of setup.py are after the lines that this patch inserts."""
    exec(inserted(SPARGE[place - 1], "setup.py"), module)
    return module


def test_every_sparge_patch_is_of_setup_alone() -> None:
    assert {file for patch in SPARGE for file, _, _ in source.anchors(patch)} == {"setup.py"}
    steps = [blobs[1:] for patch in SPARGE for blobs in source.anchors(patch)]
    assert all(after == before for (_, after), (before, _) in itertools.pairwise(steps)), "each begins where one ends"


def test_sparge_knows_every_arch_of_its_manifest() -> None:
    known = of_setup(1, SUPPORTED_ARCHS={"8.0", "8.6", "8.7", "8.9", "9.0"})["SUPPORTED_ARCHS"]
    assert isinstance(known, set)
    assert known >= {str(one) for one in recipe.load("spargeattn-0.1.0").archs}


def test_sparge_takes_the_flags_of_torch_and_of_the_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX_APPEND_FLAGS", "-g0 -DX")
    cxx, nvcc = ["-g", "-O3", "-std=c++17"], ["-O3", "-std=c++17", "--threads=8"]
    flags = of_setup(2, CXX_FLAGS=cxx, NVCC_FLAGS=nvcc, os=os)
    assert (flags["CXX_FLAGS"], flags["NVCC_FLAGS"]) == (["-g", "-O3", "-g0", "-DX"], ["-O3", "--threads=8"])


def test_sparge_generates_with_the_python_that_builds(tmp_path: Path) -> None:
    said = tmp_path / "said"
    (tmp_path / "a.py").write_text(f"import sys; open({str(said)!r}, 'a').write(sys.executable)")
    run = of_setup(3, Path=Path, subprocess=subprocess)["run_instantiations"]
    assert callable(run)
    run(str(tmp_path))
    assert said.read_text() == sys.executable
    (tmp_path / "b.py").write_text("raise SystemExit(3)")
    with pytest.raises(subprocess.CalledProcessError):
        run(str(tmp_path))


def test_sparge_includes_cassert_once() -> None:
    before = ["-O3", "-diag-suppress=174", "-Xcompiler", "-include,cassert", "-DX"]
    assert of_setup(4, NVCC_FLAGS=before)["NVCC_FLAGS"] == ["-O3", "-diag-suppress=174", "-DX", "-include=cassert"]


def test_sparge_puts_every_kernel_into_one_unit(tmp_path: Path) -> None:
    names = [f"inst_{place:02}.cu" for place in range(20)]
    for name in names:
        (tmp_path / name).touch()
    gather = of_setup(5, Path=Path, List=list)["get_instantiations"]
    assert callable(gather)
    for _ in range(2):  # the second time its own files are there
        units = [Path(unit) for unit in gather(str(tmp_path))]
        assert [unit.name for unit in units] == ["nine_000.cu", "nine_009.cu", "nine_018.cu"]
        included = re.findall(r'^#include "(.+)"$', "".join(unit.read_text() for unit in units), re.M)
        assert included == names
