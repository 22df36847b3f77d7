"""CUDA toolkits: found and identified, with a compiler that answers as nvcc does, and ruled out for a reason."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from sagewheels import recipe, toolkit
from sagewheels.arch import parse_list
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.recipe import Recipe
from sagewheels.target import Target, Torch
from tests.toolkits import THING, calls, make_target, make_toolkit


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "cuda"


@pytest.fixture
def found(tmp_path: Path) -> Target:
    return make_target(tmp_path / "target")


@pytest.fixture
def thing() -> Recipe:
    return recipe.parse(THING, Path("thing.toml"))


def settings(**environ: str) -> Settings:
    return Settings(environ={"PATH": "/usr/bin:/bin", **environ})


def ruled_out(home: Path, found: Target, thing: Recipe, archs: str = "12.0") -> str:
    """Why the survey says no to the toolkit that CUDA_HOME names."""
    told = toolkit.survey(settings(CUDA_HOME=str(home), PATH="/bin"), found, thing.rules(parse_list(archs)))
    return next(problem for kit, problem in told if kit.home == home)


@pytest.mark.parametrize(
    ("version", "archs", "problem"),
    [
        ("12.8", "12.0", "its nvcc is CUDA 12.8, torch has CUDA 13.0"),
        ("14.0", "12.0", "its nvcc is CUDA 14.0, torch has CUDA 13.0"),
        ("13.2", "12.0", ""),
    ],
)
def test_the_major_of_nvcc_is_torchs(
    home: Path, found: Target, thing: Recipe, version: str, archs: str, problem: str
) -> None:
    make_toolkit(home, version=version)
    assert ruled_out(home, found, thing, archs) == problem


@pytest.mark.parametrize(
    ("version", "archs", "problem"),
    [
        ("12.4", "12.0", "its nvcc is CUDA 12.4, arch 12.0 needs 12.8"),
        ("12.4", "9.0;12.0", "its nvcc is CUDA 12.4, arch 12.0 needs 12.8"),
        ("12.2", "9.0", "its nvcc is CUDA 12.2, arch 9.0 needs 12.3"),
        ("12.10", "9.0;12.0", ""),
        ("12.4", "9.0", ""),
    ],
)
def test_nvcc_knows_every_arch(
    home: Path, found: Target, thing: Recipe, version: str, archs: str, problem: str
) -> None:
    make_toolkit(home, version=version)
    assert found.torch
    old = replace(found, torch=replace(found.torch, cuda="12.8"))
    assert ruled_out(home, old, thing, archs) == problem


def test_a_toolkit_without_a_compiler_or_its_headers(home: Path, found: Target, thing: Recipe) -> None:
    make_toolkit(home)
    (home / "include" / "cuda_runtime.h").unlink()
    assert ruled_out(home, found, thing) == f"{home}/include has no cuda_runtime.h"
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho 'nvcc: not here' >&2\n", encoding="utf-8")
    assert ruled_out(home, found, thing) == f"{home}/bin/nvcc does not say its version (nvcc: not here)"
    (home / "bin" / "nvcc").chmod(0o644)
    assert ruled_out(home, found, thing) == f"{home}/bin/nvcc cannot be run (Permission denied)"


def test_an_nvcc_that_hangs_is_not_waited_for(home: Path, found: Target, thing: Recipe) -> None:
    make_toolkit(home)
    (home / "bin" / "nvcc").write_text("#!/bin/sh\ntrap '' TERM\nsleep 60\n", encoding="utf-8")
    started = time.monotonic()
    assert ruled_out(home, found, thing) == f"{home}/bin/nvcc does not say its version (did not end within 3 s)"
    assert time.monotonic() - started < 5


def test_where_nvcc_says_its_files_are(tmp_path: Path) -> None:
    real = make_toolkit(tmp_path / "real")
    wrapper = make_toolkit(tmp_path / "wrapper", top=str(real / "bin" / ".."))
    assert toolkit._home_of(settings(), wrapper / "bin" / "nvcc") == real
    (call,) = calls(wrapper)
    assert call == "--dryrun -E -x cu /dev/null"


def test_an_nvcc_that_does_not_say_is_taken_by_its_real_place(tmp_path: Path) -> None:
    real = make_toolkit(tmp_path / "real")
    link = tmp_path / "bin" / "nvcc"
    link.parent.mkdir()
    link.symlink_to(real / "bin" / "nvcc")
    assert toolkit._home_of(settings(), link) == real


def test_the_order_of_toolkits_is_how_much_the_user_meant_them(tmp_path: Path, found: Target) -> None:
    first, second, third = (make_toolkit(tmp_path / name) for name in ("first", "second", "third"))
    (tmp_path / "link").symlink_to(first)
    assert found.torch
    environ = {"CUDA_HOME": str(second), "CUDA_PATH": str(tmp_path / "gone"), "PATH": f"{third}/bin:/bin"}
    homes = list(toolkit._homes(settings(**environ), found.torch))
    assert homes[:2] == [(second, "CUDA_HOME"), (third, "nvcc on PATH")]
    assert all(origin == "/usr/local" for _, origin in homes[2:])
    environ = {"CUDA_HOME": str(first), "CUDA_PATH": str(tmp_path / "link"), "PATH": f"{first}/bin:/bin"}
    homes = list(toolkit._homes(settings(**environ), found.torch))
    assert [item for item in homes if item[1] != "/usr/local"] == [(first, "CUDA_HOME")], "each once"


def test_a_relative_cuda_home_is_where_the_user_stands(
    tmp_path: Path, found: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is run elsewhere; a link stays a link."""
    make_toolkit(tmp_path / "cuda-13.0")
    (tmp_path / "cuda").symlink_to("cuda-13.0")
    monkeypatch.chdir(tmp_path)
    kits = toolkit.candidates(settings(CUDA_HOME="cuda"), found)
    assert (kits[0].home, kits[0].origin) == (tmp_path / "cuda", "CUDA_HOME")


@pytest.fixture
def nothing_in_usr_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toolkits of the machine that runs the tests are out of sight."""
    homes = toolkit._homes
    monkeypatch.setattr(toolkit, "_homes", lambda *args: [item for item in homes(*args) if item[1] != "/usr/local"])


@pytest.mark.usefixtures("nothing_in_usr_local")
def test_candidates_are_those_of_torchs_major_in_order(tmp_path: Path, found: Target) -> None:
    old, good = make_toolkit(tmp_path / "old", version="12.4"), make_toolkit(tmp_path / "good")
    environ = replace(settings(CUDA_HOME=str(old), CUDA_PATH=str(good)), work_dir=tmp_path / "work")
    (kit,) = toolkit.candidates(environ, found)
    assert (kit.home, kit.version, kit.build, kit.origin) == (good, "13.0", "V13.0.88", "CUDA_PATH")
    assert kit.compiler.startswith("c++ ")
    assert calls(good) == ["--version"], "nothing is compiled"
    assert found.torch
    own = found.torch.folder.parent / "nvidia" / "cu13"
    made = make_toolkit(tmp_path / "work" / "toolkit" / "cuda-13.0-cp312", version="13.1")
    assert len(toolkit.candidates(environ, found)) == 1, "half made"
    (made / "complete").write_text(str(own), encoding="utf-8")
    assert [kit.home for kit in toolkit.candidates(environ, found)] == [good, made]
    (made / "complete").write_text("another torch", encoding="utf-8")
    assert [kit.home for kit in toolkit.candidates(environ, found)] == [good]


@pytest.mark.usefixtures("nothing_in_usr_local")
def test_candidates_without_a_host_compiler(home: Path, found: Target) -> None:
    """That is for preflight to complain of, together with all else."""
    make_toolkit(home)
    (kit,) = toolkit.candidates(settings(CUDA_HOME=str(home), CXX="/nowhere/g++"), found)
    assert kit.compiler == ""


@pytest.mark.parametrize("torch", [None, Torch(folder=Path("/t"), version="2.11.0+cpu", cuda="")])
def test_what_a_target_needs_to_be_compiled_for(found: Target, torch: Torch | None) -> None:
    with pytest.raises(UsageError) as caught:
        toolkit.candidates(settings(), replace(found, torch=torch))
    remedy = "Run stack, or name another Python with --python."
    assert str(caught.value) == f"{found.python} has no CUDA torch to compile against. {remedy}"


def test_the_environment_of_a_compiler() -> None:
    env = toolkit.environment(settings(CUDA_HOME="/old", OTHER="kept"), Path("/cuda"))
    want = {"CUDA_HOME": "/cuda", "CUDA_PATH": "/cuda", "PATH": "/cuda/bin:/usr/bin:/bin", "OTHER": "kept"}
    assert env == want


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ({"CXX": "g++-12 -O1"}, "g++-12"),
        ({"CXX": "ccache g++-12"}, "g++-12"),
        ({"CC": "gcc-11", "CXX": "g++-12"}, "gcc-11"),
        ({}, None),
    ],
)
def test_nvcc_gets_the_host_compiler_of_the_user(given: dict[str, str], host: str | None) -> None:
    """torch hands it CC alone: with CXX set, nvcc would take the compiler that the user did not want."""
    assert toolkit.environment(settings(**given), Path("/cuda")).get("CC") == host


def test_a_toolkit_of_links_has_what_torchs_packages_lack(tmp_path: Path) -> None:
    """The folder that the package index gives becomes a CUDA_HOME, with torch's library headers in it."""
    home, made, own = (tmp_path / name for name in ("home", "made", "own"))
    for path in ("made/bin/nvcc", "made/include/cuda_runtime.h", "made/lib/libcudart.so.13", "own/include/cusparse.h"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path, encoding="utf-8")
    (own / "include" / "cuda_runtime.h").write_text("torch's own, which is not the compiler's", encoding="utf-8")
    home.mkdir()
    toolkit._link(home, made, own)
    assert (home / "bin" / "nvcc").read_text(encoding="utf-8") == "made/bin/nvcc"
    assert (home / "include" / "cuda_runtime.h").read_text(encoding="utf-8") == "made/include/cuda_runtime.h"
    assert (home / "include" / "cusparse.h").read_text(encoding="utf-8") == "own/include/cusparse.h"
    assert (home / "lib64" / "libcudart.so").read_text(encoding="utf-8") == "made/lib/libcudart.so.13"
