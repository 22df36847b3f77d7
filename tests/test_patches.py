"""The patches that are shipped: each is named, only inserts, says why it is there, and does what its head says.

The source itself is not here: that the lines go where they belong is checked by their blob ids, in every build.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from sagewheels import recipe, source
from sagewheels.recipe import Patch
from sagewheels.resources import ROOT

MANIFESTS = sorted((ROOT / "manifests").glob("*.toml"))
PATCHES = [patch for path in MANIFESTS for patch in recipe.load(str(path)).patches]
HEADS = ("Symptom", "Cause", "Reference", "Proof")


def inserted(patch: Patch, file: str) -> str:
    """The lines that a patch adds to a file, without their common indent."""
    part = patch.path.read_text().split(f"diff --git a/{file} ", 1)[1].split("diff --git ", 1)[0]
    lines = [line[1:] for line in part.splitlines() if line.startswith("+") and not line.startswith("+++ ")]
    return textwrap.dedent("\n".join(lines))


def named(part: str) -> Patch:
    """The one shipped patch with this in its name."""
    (found,) = [patch for patch in PATCHES if part in patch.file]
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
    (file,) = [file for file, _, _ in source.anchors(named("every-kernel"))]
    assert file == "setup.py"
    asked: list[str] = []
    module: dict[str, Any] = {
        "has_capability": lambda target: any(one.startswith(target) for one in asked),
        "get_nvcc_flags": lambda allowed: [one for one in asked if one in allowed],
    }
    exec(inserted(named("every-kernel"), file), module)
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


def test_an_extension_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = [file for file, _, _ in source.anchors(named("cannot-be-loaded"))]
    assert file == "sageattention/core.py"
    helper, *calls = inserted(named("cannot-be-loaded"), file).split("    _warn_if_broken(")
    assert [call.strip() for call in calls] == ['"_qattn_sm80")', '"_qattn_sm89")', '"_qattn_sm90")']
    package = tmp_path / "patched"
    package.mkdir()
    (package / "_qattn_sm90.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    each = "\n".join(
        f"try:\n    from . import _qattn_{one}\nexcept:\n    pass\n    _warn_if_broken('_qattn_{one}')"
        for one in ("sm80", "sm89", "sm90")
    )
    (package / "_qattn_sm80.py").write_text("")
    (package / "__init__.py").write_text(f"{helper}\n{each}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning) as caught:
        importlib.import_module("patched")
    assert [str(one.message) for one in caught] == [
        "patched._qattn_sm90 cannot be loaded, its kernels are not available: "
        "libcuda.so.1: cannot open shared object file"
    ]


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
