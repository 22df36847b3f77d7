"""The checks of doctor that look at what is installed, and at toolkits before there is a torch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sagewheels import checks_installed, checks_toolkit, doctor, proving, toolkit
from sagewheels.checks import Check
from sagewheels.config import Settings
from sagewheels.errors import SmokeFailed
from sagewheels.job import Job
from sagewheels.recipe import ArchRule
from sagewheels.target import Target, Torch
from sagewheels.toolkit import Toolkit
from tests import wheels
from tests.toolkits import make_toolkit
from tests.wheels import NAME, VERSION, Machine

SYMBOL = "_ZN3c106detail14torchCheckFailEPKcS2_jRKSs"


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return wheels.machine(tmp_path)


def package(job: Job) -> list[Check]:
    return list(checks_installed.package(job))


def put(here: Machine, version: str = VERSION + wheels.LABEL, **modules: bytes) -> None:
    wheels.pip(here.python, "install", wheels.make(here.folder / "dist", wheels.content(**modules), version=version))


def test_the_checks_that_symptoms_may_name(tmp_path: Path) -> None:
    """Each is a line of the screen, where a package is installed."""
    bare = wheels.machine(tmp_path, torch=False)
    put(bare)
    job = bare.job(environ={**bare.settings.environ, "PATH": f"{bare.folder}/bin:/usr/bin:/bin"})
    seen = [check.what for group in doctor._GROUPS for check in doctor._guarded(group, job)]
    assert set(doctor.NAMES) <= set(seen)


# The package


def test_a_package_that_fits(here: Machine) -> None:
    assert [(one.what, one.standing, one.found) for one in package(here.job())] == [(NAME, "ok", "not installed yet")]
    put(here)
    version, loaded = package(here.job())
    assert (version.what, version.standing) == (NAME, "ok")
    assert version.found == (
        f"{VERSION}{wheels.LABEL} is installed, not installed by sagewheels: nothing here has proven it"
    )
    assert (loaded.what, loaded.standing, loaded.found) == ("import", "ok", f"{NAME} and 1 module load")


def test_a_module_of_another_torch(here: Machine) -> None:
    """The import is tried in the target, and the loader's words are explained; smoke says the same in its line."""
    put(here, _fused=wheels.extension(calls=(SYMBOL,)))
    _, loaded = package(here.job())
    assert (loaded.what, loaded.standing) == ("import", "note")
    path = here.site / NAME / "_fused.abi3.so"
    assert loaded.found == f"importing {NAME} failed: ImportError: {path}: undefined symbol: {SYMBOL}"
    assert loaded.remedy == "Take a wheel for the torch that is installed: auto finds or builds one"
    with pytest.raises(SmokeFailed) as caught:
        proving.do_smoke(here.job())
    assert str(caught.value).endswith(f"; the wheel is not proven. {loaded.remedy}.")


def test_an_import_that_nobody_knows(here: Machine) -> None:
    wheels.pip(here.python, "install", wheels.make(here.folder / "dist", python="raise ValueError('of all things')"))
    _, loaded = package(here.job())
    assert (loaded.standing, loaded.found) == ("note", f"importing {NAME} failed: ValueError: of all things")
    assert loaded.remedy == "auto installs one that fits, and proves it"


def test_an_import_that_hangs(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_installed, "_SECONDS", 0.5)
    wheels.pip(here.python, "install", wheels.make(here.folder / "dist", python="import time\ntime.sleep(60)"))
    started = time.monotonic()
    _, loaded = package(here.job())
    assert loaded.found == f"importing {NAME} failed: did not end within 0.5 s"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("0.6", f"{VERSION} is wanted"),
        ("1.0+cu130torch2.9sm120", "it was built for torch 2.9, the target has 2.11.0"),
        ("1.0+cu130torch2.9.1", "it was built for torch 2.9, the target has 2.11.0"),
        ("1.0+cu128torch2.11sm120", "it was built for CUDA 12, torch has 13.0"),
        ("1.0+cu130torch2.9.0andhigher.post4", ""),
        ("1.0+cu13sm120.k057f48aa", ""),
        ("1.0+cu130torch2.11sm120.k057f48aa", ""),
        ("1.0", ""),
    ],
)
def test_what_a_version_says(version: str, told: str) -> None:
    torch = Torch(folder=Path("/torch"), version=wheels.TORCH, cuda=wheels.CUDA)
    wrong = checks_installed._wrong_version(version, VERSION) or checks_installed._of_another_torch(version, torch)
    assert wrong == told


def test_a_version_that_is_not_wanted(here: Machine) -> None:
    """Such as 1.0.6: it is told, with the way on, and no module of ours is looked for in it."""
    put(here, version="0.6", other=wheels.extension("other"))
    version, loaded = package(here.job())
    assert version.found == f"0.6 is installed: {VERSION} is wanted"
    assert (version.standing, version.remedy) == ("note", "auto installs one that fits; rollback brings this one back")
    assert loaded.found == f"{NAME} and 0 modules load"


# Other packages


def whole(here: Machine, name: str, version: str) -> Path:
    """A distribution that is whole, as uv sees it; its METADATA."""
    folder = here.site / f"{name}-{version}.dist-info"
    if not folder.exists():
        wheels.put_distribution(here.python, name, version)
    (folder / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    return folder / "METADATA"


def test_packages_that_contradict(here: Machine) -> None:
    whole(here, "triton", wheels.TRITON)
    (fine,) = checks_installed.packages(here.job())
    assert (fine.what, fine.standing) == ("packages", "ok")
    whole(here, "setuptools", "75.8.2")
    for name, need in (("needy", "setuptools>=77"), ("other", "something>=2")):
        with whole(here, name, "1.0").open("a") as stream:
            stream.write(f"Requires-Dist: {need}\n")
    (check,) = checks_installed.packages(here.job())
    assert (check.standing, check.found) == (
        "note",
        "The package needy requires setuptools>=77, but 75.8.2 is installed",
    )


# Triton's cache


def cached(folder: Path, name: str, age: float = 0.0) -> Path:
    path = folder / "ABCDEF" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_the_cache_of_triton(here: Machine) -> None:
    folder = here.folder / "cache"
    job = here.job(environ={**here.settings.environ, "TRITON_CACHE_DIR": str(folder)})
    (none,) = checks_installed.triton_cache(job)
    assert (none.what, none.standing, none.found) == ("Triton cache", "ok", f"{folder} is not there")
    cached(folder, f"cuda_utils.{job.target.soabi}.so")
    cached(folder, "cuda_utils.so", age=-60)
    (fine,) = checks_installed.triton_cache(job)
    assert (fine.standing, fine.found) == ("ok", f"nothing stale in {folder}")
    other = cached(folder, "launcher.cpython-36-x86_64-linux-gnu.so")
    (stale,) = checks_installed.triton_cache(job)
    assert stale.standing == "note"
    assert stale.found == f"1 module in {folder} made for another Python or Triton: {other.name}"
    assert stale.remedy == f"If a call fails with PY_SSIZE_T_CLEAN or undefined symbols: rm -r {folder}"
    other.unlink()
    cached(folder, "cuda_utils.so", age=3600)
    (older,) = checks_installed.triton_cache(job)
    assert older.found.endswith(": cuda_utils.so")


def test_the_cache_of_triton_is_in_the_home(here: Machine) -> None:
    cached(Path(os.environ["HOME"]) / ".triton" / "cache", "x.cpython-36-x86_64-linux-gnu.so")
    (stale,) = checks_installed.triton_cache(here.job(environ={**here.settings.environ, "HOME": os.environ["HOME"]}))
    assert stale.standing == "note"


# Toolkits before there is a torch


def ahead(here: Machine, home: Path | None, **settings: Any) -> Check:
    named = {"CUDA_HOME": str(home)} if home else {}
    environ = {**here.settings.environ, **named, "PATH": f"{here.folder}/bin:/usr/bin:/bin"}
    job = here.job(environ=environ, torch_channel="stable", **settings)
    return checks_toolkit.ahead(job, job.recipe.cubins_for(job.archs))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Without a torch, and with an old libc, which suits every toolkit."""
    here = wheels.machine(tmp_path, torch=False)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    return here


def test_no_toolkit_and_no_torch(bare: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def none(_: Settings, found: Target, rules: Sequence[ArchRule]) -> list[tuple[Toolkit, str]]:
        asked.append(toolkit.torch_of(found).cuda + "".join(f" {rule.arch}" for rule in rules))
        return []

    monkeypatch.setattr(toolkit, "survey", none)
    check = ahead(bare, None)
    assert check.found == (
        "cannot be tried without a CUDA torch; stack would install one with CUDA 12.8: there is no toolkit"
    )
    assert check.remedy == "To compile: install the CUDA 12.8 toolkit and set CUDA_HOME to it, or take a CUDA 13 torch"
    made = ahead(bare, None, cuda_index_variant="cu130")
    assert made.remedy == "Run stack first: a build then makes one from the package index"
    assert asked == ["12.8 12.0", "13.0 12.0"]


def test_a_toolkit_for_the_torch_to_come(bare: Machine) -> None:
    home = make_toolkit(bare.folder / "cuda", version="12.8")
    good = ahead(bare, home)
    assert good.found == f"cannot be tried without a CUDA torch; CUDA 12.8 in {home} (CUDA_HOME)"
    assert good.remedy == "Run stack first"


def test_a_toolkit_of_another_cuda(bare: Machine) -> None:
    home = make_toolkit(bare.folder / "cuda", version="11.8")
    check = ahead(bare, home)
    assert f"{home} (CUDA_HOME): its nvcc is CUDA 11.8, torch has CUDA 12.8" in check.found


def kit(home: Path, version: str, compiler: str) -> Toolkit:
    return Toolkit(home=home, version=version, build="V1", origin="CUDA_HOME", compiler=compiler)


def test_what_is_known_of_a_toolkit(tmp_path: Path) -> None:
    header = tmp_path / "include" / "crt" / "host_config.h"
    header.parent.mkdir(parents=True)
    new, old = "g++ (Debian 14.2.0-19) 14.2.0", "c++ (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0"
    assert checks_toolkit.trouble(kit(tmp_path, "12.4", new), "2.40") == ""
    header.write_text("#error -- unsupported GNU version! gcc versions later than 13 are not supported!\n")
    told = "it takes g++ 13 at most, the host compiler is 14"
    assert checks_toolkit.trouble(kit(tmp_path, "12.4", new), "2.40") == told
    assert checks_toolkit.trouble(kit(tmp_path, "12.4", old), "2.40") == ""
    assert checks_toolkit.trouble(kit(tmp_path, "12.8", old), "2.41") == (
        "its headers contradict glibc 2.41, which declares cospi and rsqrt otherwise"
    )
    assert checks_toolkit.trouble(kit(tmp_path, "13.0", old), "2.41") == ""
    assert checks_toolkit.trouble(kit(tmp_path, "12.8", old), "") == ""


def test_a_toolkit_that_cannot_work_here(bare: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.41"))
    home = make_toolkit(bare.folder / "cuda", version="12.8")
    assert f"{home} (CUDA_HOME): its headers contradict glibc 2.41" in ahead(bare, home).found
