"""Verify: the first thing that is wrong with a wheel is the reason why it is refused, and nothing is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagewheels import verify, wheel
from sagewheels.arch import parse, parse_list
from sagewheels.errors import Refused
from sagewheels.manifest import WheelManifest
from sagewheels.recipe import Recipe
from sagewheels.wheel import Wheel
from tests import wheels

FILE = f"{wheels.NAME}-{wheels.VERSION}{wheels.LABEL}-{wheels.TAG}.whl"


@pytest.fixture(autouse=True)
def _marks(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_cuobjdump(monkeypatch)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return wheels.load_recipe(tmp_path)


def check(recipe: Recipe, path: Path, manifest: WheelManifest | None = None, **wanted: Any) -> Wheel:
    """verify.check with a true manifest for a machine that the wheel fits, unless said otherwise."""
    return verify.check(path, manifest or wheels.describe(path), wheels.wanted(**wanted), recipe)


def refused(recipe: Recipe, path: Path, manifest: WheelManifest | None = None, **wanted: Any) -> str:
    """The line for the user when verify says no."""
    with pytest.raises(Refused) as caught:
        check(recipe, path, manifest, **wanted)
    assert caught.value.code == 4
    return str(caught.value)


def test_a_good_wheel_comes_back_with_its_facts(recipe: Recipe, tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    found = check(recipe, path)
    assert found == wheel.inspect(path, wheels.PACKAGE)
    assert recipe.archs_of(found.held) == (parse("12.0"),)


def test_a_manifest_of_the_first_installer_is_enough(recipe: Recipe, tmp_path: Path) -> None:
    """It says nothing of size, extensions or glibc."""
    path = wheels.make(tmp_path)
    old = wheels.describe(path, size=None, extensions=None, archs=None, schema=None, target_arch="12.0+PTX")
    assert check(recipe, path, old).name == wheels.NAME


def test_another_file_than_the_manifest_describes(recipe: Recipe, tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    other = wheels.describe(path, wheel_file=FILE.replace("1.0", "1.1"))
    assert refused(recipe, path, other) == f"{FILE} is not {other.wheel_file}, which its manifest describes."


def test_the_size_is_looked_at_first(recipe: Recipe, tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    size = path.stat().st_size
    manifest = wheels.describe(path, size=size + 1, wheel_sha256="0" * 64, torch_version="2.8.0")
    assert refused(recipe, path, manifest) == f"{FILE} has {size} bytes, its manifest says {size + 1}. Fetch it again."


def test_the_hash_is_looked_at_before_anything_reads_the_bytes(recipe: Recipe, tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    manifest = wheels.describe(path)
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    assert refused(recipe, path, manifest) == (
        f"{FILE} has sha256 {wheel.file_hash(path)[0][:12]}, its manifest says {manifest.wheel_sha256[:12]}. "
        "It was changed or damaged: fetch it again, and do not install it."
    )


def test_one_changed_byte_is_seen(tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    manifest = wheels.describe(path)
    verify.bytes_as_promised(path, manifest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Refused, match="has sha256"):
        verify.bytes_as_promised(path, manifest)


def test_a_wheel_for_another_machine(recipe: Recipe, tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    assert refused(recipe, path, torch="2.8.0", archs=parse_list("9.0")) == (
        f"{FILE} was not made for this machine: it was built for torch 2.11.0, the target has 2.8.0; "
        "it holds code for 12.0, which does not run on 9.0."
    )


def test_a_manifest_without_a_hash(recipe: Recipe, tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    unsigned = wheels.describe(path, wheel_sha256=None)
    line = f"{FILE} was not made for this machine: its manifest has no sha256."
    assert refused(recipe, path, unsigned) == line
    assert check(recipe, path, unsigned, allow_unknown=True).name == wheels.NAME


def test_what_inspect_finds_is_a_refusal(recipe: Recipe, tmp_path: Path) -> None:
    path = wheels.make(tmp_path, {**wheels.content(), "evil.pth": b"import evil\n"})
    assert refused(recipe, path) == f"{FILE} would install evil.pth, outside of the package {wheels.PACKAGE}."


@pytest.mark.parametrize(
    ("claimed", "reason"),
    [
        ({"_fused": ["9.0a", "12.0"]}, "_fused holds ['12.0'], its manifest says ['9.0a', '12.0']"),
        ({"_fused": ["12.0"], "_attn": ["12.0"]}, "_attn holds nothing, its manifest says ['12.0']"),
        ({}, "_fused holds ['12.0'], its manifest says nothing"),
    ],
)
def test_archs_that_differ_from_the_manifest(
    recipe: Recipe, tmp_path: Path, claimed: dict[str, list[str]], reason: str
) -> None:
    path = wheels.make(tmp_path)
    assert refused(recipe, path, wheels.describe(path, extensions=claimed)) == f"{FILE}: {reason}."


@pytest.mark.parametrize(
    ("modules", "holds"),
    [
        ({"_fused": "9.0a"}, "9.0a"),
        ({"_fused": "12.0+PTX"}, "12.0+PTX"),
        ({"_fused": ""}, "no CUDA code"),
        ({"_attn": "12.0"}, "no CUDA code"),
    ],
)
def test_archs_that_the_binaries_do_not_hold(
    recipe: Recipe, tmp_path: Path, modules: dict[str, str], holds: str
) -> None:
    """The manifest says nothing of extensions, so only the binaries can tell."""
    binaries = {name: wheels.extension(name, archs=archs) for name, archs in modules.items()}
    path = wheels.make(tmp_path, wheels.content(**binaries))
    silent = wheels.describe(path, extensions=None)
    assert refused(recipe, path, silent) == f"{FILE}: _fused holds {holds}, which does not run on 12.0."


def test_each_wanted_arch_must_be_covered(recipe: Recipe, tmp_path: Path) -> None:
    path = wheels.make(tmp_path, wheels.content(_fused=wheels.extension(archs="8.9;12.0")))
    both = wheels.describe(path, archs=["8.9", "12.0", "9.0a"], extensions=None)
    assert check(recipe, path, both, archs=parse_list("8.9;12.0")).held == {"_fused": parse_list("8.9;12.0")}
    line = f"{FILE}: _fused holds 8.9;12.0, which does not run on 9.0."
    assert refused(recipe, path, both, archs=parse_list("8.9;9.0;12.0")) == line


def test_code_of_a_lower_minor_runs(recipe: Recipe, tmp_path: Path) -> None:
    """A plain 12.0 cubin also runs on 12.1."""
    path = wheels.make(tmp_path)
    assert check(recipe, path, archs=parse_list("12.1")).held == {"_fused": (parse("12.0"),)}


def _needing(tmp_path: Path, *libraries: Path) -> Path:
    return wheels.make(tmp_path, wheels.content(_fused=wheels.extension(needs=libraries)))


def test_a_library_that_nobody_brings(recipe: Recipe, tmp_path: Path) -> None:
    path = _needing(tmp_path, wheels.library("libforeign.so.3", "foreign"))
    assert refused(recipe, path) == f"{FILE}: _fused needs libforeign.so.3, which torch does not bring."


@pytest.mark.parametrize("name", ["libc10.so", "libtorch_python.so", "libstdc++.so.6", "libcuda.so.1", "libgcc_s.so.1"])
def test_libraries_that_torch_and_the_system_bring(recipe: Recipe, tmp_path: Path, name: str) -> None:
    path = _needing(tmp_path, wheels.library(name, "brought"))
    assert name in check(recipe, path).extensions["_fused"].needed


@pytest.mark.parametrize("name", ["libcudart.so.12", "libcudart.so.12.8.90"])
def test_a_cuda_runtime_of_another_major(recipe: Recipe, tmp_path: Path, name: str) -> None:
    path = _needing(tmp_path, wheels.library(name, "cuda_call"))
    assert refused(recipe, path) == f"{FILE}: _fused needs {name}, torch has CUDA 13.0."


def test_the_cuda_runtime_of_torch(recipe: Recipe, tmp_path: Path) -> None:
    path = _needing(tmp_path, wheels.library("libcudart.so.13", "cuda_call"))
    assert "libcudart.so.13" in check(recipe, path, cuda="13.2").extensions["_fused"].needed


def test_a_glibc_that_is_too_old(recipe: Recipe, tmp_path: Path) -> None:
    """The manifest need not say it: the binary does, and 2.100 is newer than 2.99."""
    newest = wheels.library("libm.so.6", "from_the_future", "GLIBC_2.99")
    module = wheels.extension(needs=(newest,), calls=("from_the_future",))
    path = wheels.make(tmp_path, wheels.content(_fused=module))
    assert refused(recipe, path, glibc="2.36") == f"{FILE} needs GLIBC_2.99, this machine has 2.36."
    assert check(recipe, path, glibc="2.100").glibc == "2.99"
    assert check(recipe, path, glibc="").glibc == "2.99"
