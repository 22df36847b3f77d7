"""The platform tag says where a wheel loads, and an archive is the same bytes whoever packs it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from sagewheels import buildplan, manylinux, packing, target, wheel
from sagewheels.errors import Refused
from sagewheels.target import Target, Torch
from tests import wheels
from tests.test_build_plan import plan, sage  # noqa: F401  fixtures
from tests.wheels import LABEL, NAME, PACKAGE, VERSION

MACHINE = platform.machine()
INFO = f"{NAME}-{VERSION}{LABEL}.dist-info"
STEM = f"{NAME}-{VERSION}{LABEL}-py3-none"
EPOCH = 1761613217
KEEPS = f"[build] the wheel keeps the tag linux_{MACHINE}, which does not tell installers where it loads: "
OLDEST = {"x86_64": "manylinux_2_5_x86_64", "aarch64": "manylinux_2_17_aarch64"}.get(MACHINE, "")

pytestmark = pytest.mark.skipif(not OLDEST, reason="needs a machine with CUDA")


@pytest.fixture(scope="module")
def this() -> Target:
    """The interpreter that runs the tests, as a target without torch."""
    return replace(target.ask(Path(sys.executable), "the tests'", os.environ), torch=None)


@pytest.fixture
def new(this: Target) -> Target:
    """The same on a machine with a glibc that is newer than any today."""
    every = [f"py3-none-manylinux_2_{minor}_{MACHINE}" for minor in range(5, 90)]
    return replace(this, tags=(*this.tags, *every))


def made(folder: Path, *libraries: tuple[str, str], **options: Any) -> Path:
    """A wheel whose module needs a function of each library, under this symbol version."""
    needs = tuple(wheels.library(soname, f"call_{place}", version) for place, (soname, version) in enumerate(libraries))
    calls = tuple(f"call_{place}" for place in range(len(libraries)))
    return wheels.make(folder, wheels.content(_fused=wheels.extension(needs=needs, calls=calls)), **options)


@pytest.mark.parametrize(
    ("libraries", "tag"),
    [
        pytest.param([], OLDEST, id="what every C program needs"),
        pytest.param([("libm.so.6", "GLIBC_2.34")], f"manylinux_2_34_{MACHINE}", id="glibc"),
        pytest.param([("libm.so.6", "GLIBC_2.32")], f"manylinux_2_34_{MACHINE}", id="the next one that is a policy"),
        pytest.param([("libm.so.6", "GLIBC_2.38")], f"manylinux_2_38_{MACHINE}", id="newer glibc"),
        pytest.param([("libstdc++.so.6", "GLIBCXX_3.4.30")], f"manylinux_2_35_{MACHINE}", id="libstdc++"),
        pytest.param([("libstdc++.so.6", "CXXABI_1.3.15")], f"manylinux_2_39_{MACHINE}", id="its ABI"),
        pytest.param(
            [("libm.so.6", "GLIBC_2.34"), ("libstdc++.so.6", "GLIBCXX_3.4.30")], f"manylinux_2_35_{MACHINE}", id="both"
        ),
        pytest.param([("libmvec.so.1", "")], f"manylinux_2_24_{MACHINE}", id="a library that came later"),
        pytest.param(
            [("libcuda.so.1", ""), ("libcudart.so.13", "libcudart.so.13"), ("libnvrtc.so.12", "")],
            OLDEST,
            id="what the driver and torch's CUDA bring",
        ),
    ],
)
def test_the_tag_is_the_oldest_manylinux_that_is_enough(
    tmp_path: Path, new: Target, libraries: list[tuple[str, str]], tag: str
) -> None:
    assert manylinux.verdict(made(tmp_path, *libraries), new) == (tag, "")


@pytest.mark.parametrize(
    ("libraries", "why"),
    [
        ([("libm.so.6", "GLIBC_2.99")], "it needs newer symbols than any manylinux that auditwheel knows"),
        ([("libstdc++.so.6", "GLIBCXX_3.9.9")], "it needs newer symbols than any manylinux that auditwheel knows"),
        ([("libfoo.so.1", "")], f"it needs libfoo.so.1, which neither torch nor {OLDEST} brings"),
        ([("libgomp.so.1", "")], f"it needs libgomp.so.1, which neither torch nor {OLDEST} brings"),
        ([("libtorch.so", "")], f"it needs libtorch.so, which neither torch nor {OLDEST} brings"),
        (
            [("libfoo.so.1", ""), ("libm.so.6", "GLIBC_2.34")],
            f"it needs libfoo.so.1, which neither torch nor manylinux_2_34_{MACHINE} brings",
        ),
    ],
)
def test_why_a_wheel_has_no_such_tag(tmp_path: Path, new: Target, libraries: list[tuple[str, str]], why: str) -> None:
    assert manylinux.verdict(made(tmp_path, *libraries), new) == ("", why)


def test_what_lies_in_torchs_lib_folder_comes_with_it(tmp_path: Path, new: Target) -> None:
    lib = tmp_path / "torch" / "lib"
    lib.mkdir(parents=True)
    for name in ("libc10.so", "libtorch.so", "libgomp.so.1"):
        (lib / name).touch()
    torch = Torch(folder=lib.parent, version="2.11.0+cu130", cuda="13.0")
    path = made(tmp_path, ("libc10.so", ""), ("libtorch.so", ""), ("libgomp.so.1", ""))
    assert manylinux.verdict(path, replace(new, torch=torch)) == (OLDEST, "")
    (lib / "libgomp.so.1").rename(lib / "libgomp-a34b3233.so.1")
    _, why = manylinux.verdict(path, replace(new, torch=torch))
    assert why == f"it needs libgomp.so.1, which neither torch nor {OLDEST} brings"


def test_a_compiler_with_a_newer_libstdcxx_than_its_machine(tmp_path: Path, this: Target) -> None:
    """The builder itself could not install what it made."""
    old = replace(this, tags=(f"py3-none-manylinux_2_28_{MACHINE}", f"py3-none-linux_{MACHINE}"))
    _, why = manylinux.verdict(made(tmp_path, ("libstdc++.so.6", "GLIBCXX_3.4.30")), old)
    assert why == f"its symbols are those of manylinux_2_35_{MACHINE}, which this machine is not"


@pytest.mark.skipif(MACHINE != "x86_64", reason="levels are of x86-64")
def test_code_for_newer_processors(tmp_path: Path, new: Target) -> None:
    path = wheels.make(tmp_path, wheels.content(_fused=_for_x86_64_v3(tmp_path)))
    assert manylinux.verdict(path, new) == ("", "auditwheel finds unsupported_isa, which no manylinux allows")


def _for_x86_64_v3(folder: Path) -> bytes:
    (folder / "v3.c").write_text("int puts(const char *); void PyInit__fused(void) { puts(0); }")
    argv: list[str | Path] = [
        wheels.compiler(),
        "-shared",
        "-fPIC",
        "-Wl,-z,x86-64-v3",
        "-o",
        folder / "v3.so",
        folder / "v3.c",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode or "unknown" in done.stderr or "ignored" in done.stderr:
        pytest.skip("this linker cannot mark a level")
    return (folder / "v3.so").read_bytes()


@pytest.mark.skipif(MACHINE != "x86_64", reason="turns a binary of x86-64 into one of the other")
def test_a_wheel_for_aarch64(tmp_path: Path, new: Target) -> None:
    libc = wheels.library("libc.so.6", "of_some_glibc", "GLIBC_2.34")
    (tmp_path / "arm.c").write_text("void of_some_glibc(void); void PyInit__fused(void) { of_some_glibc(); }")
    source, made = tmp_path / "arm.c", tmp_path / "arm.so"
    subprocess.run([wheels.compiler(), "-shared", "-fPIC", "-nostdlib", "-o", made, source, libc], check=True)
    module = bytearray(made.read_bytes())
    module[18:20] = b"\xb7\0"  # e_machine: EM_AARCH64
    arm = replace(new, machine="aarch64", tags=("py3-none-manylinux_2_34_aarch64", "py3-none-linux_aarch64"))
    path = wheels.make(tmp_path, wheels.content(_fused=bytes(module)), tag="py3-none-linux_aarch64")
    assert manylinux.sealed(path, arm, EPOCH).name == f"{STEM}-manylinux_2_34_aarch64.whl"


def test_a_wheel_of_musl(tmp_path: Path, new: Target) -> None:
    module = wheels.extension().replace(b"libc.so.6\0", b"ld-musl-x\0")
    path = wheels.make(tmp_path, wheels.content(_fused=module))
    assert manylinux.verdict(path, new) == ("", "it is for musl")


def test_a_wheel_of_python_alone(tmp_path: Path, new: Target) -> None:
    tag, why = manylinux.verdict(wheels.make(tmp_path, {f"{PACKAGE}/__init__.py": b""}), new)
    assert tag == "" and why.startswith("auditwheel cannot judge it (")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "auditwheel cannot judge it (no output, exit code 0)"),
        ("{}", "auditwheel cannot judge it ('version')"),
        ("[]", "auditwheel cannot judge it (list indices must be integers or slices, not str)"),
        ('{"version": 2}', "auditwheel cannot judge it (its answer is of version 2, not 1)"),
        ('{"version": 1, "error": "No way."}', "auditwheel cannot judge it (No way)"),
        ('{"version": 1, "sym_tag": null}', "auditwheel cannot judge it ('unsupported_isa')"),
    ],
)
def test_another_auditwheel_costs_the_tag_and_not_the_build(
    tmp_path: Path, this: Target, monkeypatch: pytest.MonkeyPatch, answer: str, why: str
) -> None:
    other = wheels.script(tmp_path / "python", f"#!/bin/sh\nprintf '%s' '{answer}'\n")
    monkeypatch.setattr(sys, "executable", str(other))
    assert manylinux.verdict(wheels.make(tmp_path), this) == ("", why)


def test_without_auditwheel(
    tmp_path: Path, this: Target, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(wheels.venv(tmp_path / "bare")))
    path = wheels.make(tmp_path)
    assert manylinux.sealed(path, this, EPOCH) == path
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(KEEPS)}auditwheel cannot judge it \(.* No module named auditwheel\)", line)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {item.filename: archive.read(item) for item in archive.infolist()}


def test_nothing_changes_but_the_tag(tmp_path: Path, this: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_cuobjdump(monkeypatch)
    path = made(tmp_path)
    before = members(path)
    sealed = manylinux.sealed(path, this, EPOCH)
    assert sealed.name == f"{STEM}-{OLDEST}.whl" and not path.exists()
    after = members(sealed)
    assert sorted(after) == sorted(before)
    assert {name for name in after if after[name] != before[name]} == {f"{INFO}/WHEEL", f"{INFO}/RECORD"}
    assert after[f"{INFO}/WHEEL"] == before[f"{INFO}/WHEEL"].replace(f"linux_{MACHINE}".encode(), OLDEST.encode())
    found = wheel.inspect(sealed, PACKAGE)
    assert (found.tags, found.size) == ((f"py3-none-{OLDEST}",), sealed.stat().st_size)


def test_what_keeps_its_tag_is_packed_all_the_same(
    tmp_path: Path, this: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path, ("libfoo.so.1", ""))
    before = members(path)
    assert manylinux.sealed(path, this, EPOCH) == path
    why = f"it needs libfoo.so.1, which neither torch nor {OLDEST} brings"
    assert capsys.readouterr().out.splitlines() == [KEEPS + why]
    after = members(path)
    assert {name for name in after if after[name] != before[name]} <= {f"{INFO}/RECORD"}
    assert sorted(after[f"{INFO}/RECORD"].splitlines()) == sorted(before[f"{INFO}/RECORD"].splitlines())


@pytest.mark.parametrize("tag", ["py3-none-any", f"py3-none-manylinux_2_17_{MACHINE}.manylinux2014_{MACHINE}"])
def test_a_tag_that_is_none_of_this_machine_is_not_judged(
    tmp_path: Path, this: Target, capsys: pytest.CaptureFixture[str], tag: str
) -> None:
    path = wheels.make(tmp_path, tag=tag)
    before = members(path)[f"{INFO}/WHEEL"]
    assert manylinux.sealed(path, this, EPOCH) == path
    assert (capsys.readouterr().out, members(path)[f"{INFO}/WHEEL"]) == ("", before)


def test_every_tag_of_the_stable_abi_follows(tmp_path: Path, this: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_cuobjdump(monkeypatch)
    path = wheels.make(tmp_path, tag=f"cp39.cp310-abi3-linux_{MACHINE}")
    found = wheel.inspect(manylinux.sealed(path, this, EPOCH), PACKAGE)
    assert found.path.name == f"{NAME}-{VERSION}{LABEL}-cp39.cp310-abi3-{OLDEST}.whl"
    assert found.tags == (f"cp310-abi3-{OLDEST}", f"cp39-abi3-{OLDEST}")


def test_a_record_that_lies_is_still_refused(tmp_path: Path, this: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_cuobjdump(monkeypatch)

    def lie(rows: list[list[str]]) -> list[list[str]]:
        return [wheels.row(row[0], b"other") if row[0].endswith("__init__.py") else row for row in rows]

    sealed = manylinux.sealed(wheels.make(tmp_path, record=lie), this, EPOCH)
    with pytest.raises(Refused) as caught:
        wheel.inspect(sealed, PACKAGE)
    assert str(caught.value) == f"{sealed.name}: {PACKAGE}/__init__.py is not what RECORD says."


def test_what_cannot_be_read_is_left_to_be_refused(
    tmp_path: Path, this: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{STEM}-linux_{MACHINE}.whl"
    path.write_bytes(b"no zip")
    assert manylinux.sealed(path, this, EPOCH) == path
    assert path.read_bytes() == b"no zip"
    name = re.escape(path.name)
    said = rf"\[build\] warning: {name} stays as the build backend packed it \(File is not a zip file\)\n"
    assert re.fullmatch(said, capsys.readouterr().err)


Pack = Callable[[zipfile.ZipFile, list[tuple[str, bytes]]], None]


def plainly(archive: zipfile.ZipFile, files: list[tuple[str, bytes]]) -> None:
    for name, data in files:
        archive.writestr(zipfile.ZipInfo(name), data)


def backwards(archive: zipfile.ZipFile, files: list[tuple[str, bytes]]) -> None:
    plainly(archive, files[::-1])


def otherwise(archive: zipfile.ZipFile, files: list[tuple[str, bytes]]) -> None:
    """With folders, other dates and modes, a comment, extra fields, packed less."""
    archive.comment = b"by another"
    archive.writestr(zipfile.ZipInfo(f"{PACKAGE}/"), b"")
    for place, (name, data) in enumerate(files):
        item = zipfile.ZipInfo(name, (2001 + place, 1, 1, 0, 0, 1))
        item.external_attr = (0o100600 + place) << 16
        item.extra = b"\xfe\xca\x02\x00ab"
        archive.writestr(item, data, zipfile.ZIP_DEFLATED, 1)


_PACK = f"""
import sys; from pathlib import Path; from sagewheels import packing
packing.repack(*map(Path, sys.argv[1:]), epoch={EPOCH})
"""


@pytest.mark.parametrize("pack", [plainly, backwards, otherwise])
def test_the_same_members_give_the_same_bytes(tmp_path: Path, pack: Pack) -> None:
    """In whatever order, with whatever dates and modes they come, and under another umask, time zone and language."""
    first = wheels.make(tmp_path, tag=f"py3-none-linux_{MACHINE}")
    inside = list(members(first).items())
    packing.repack(first, tmp_path / "first.whl", epoch=EPOCH)
    other = tmp_path / "elsewhere" / "deep" / "other.whl"
    other.parent.mkdir(parents=True)
    with zipfile.ZipFile(other, "w") as archive:
        rows = [(name, data if not name.endswith("RECORD") else _turned(data)) for name, data in inside]
        pack(archive, rows)
    env = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "SOURCE_DATE_EPOCH": "1", "PYTHONHASHSEED": "7"}
    env["PYTHONPATH"] = str(Path(packing.__file__).parent.parent)
    again = other.with_name("again.whl")
    argv = [sys.executable, "-c", _PACK, str(other), str(again)]
    subprocess.run(argv, env=env, cwd=other.parent, umask=0o077, check=True)
    assert again.read_bytes() == (tmp_path / "first.whl").read_bytes()


def _turned(record: bytes) -> bytes:
    return b"".join(record.splitlines(keepends=True)[::-1])


@pytest.mark.parametrize(
    ("epoch", "date"),
    [
        (EPOCH, (2025, 10, 28, 1, 0, 16)),
        (0, (1980, 1, 1, 0, 0, 0)),
        (9_999_999_999, (2107, 12, 31, 23, 59, 58)),
    ],
)
def test_how_an_archive_lies_there(tmp_path: Path, epoch: int, date: tuple[int, ...]) -> None:
    path = wheels.make(tmp_path)
    packing.repack(path, path, epoch=epoch)
    with zipfile.ZipFile(path) as archive:
        found = archive.infolist()
    assert [item.filename for item in found] == [
        f"{PACKAGE}/__init__.py",
        f"{PACKAGE}/_fused.abi3.so",
        f"{INFO}/METADATA",
        f"{INFO}/WHEEL",
        f"{INFO}/RECORD",
    ]
    assert {(item.date_time, item.external_attr >> 16, item.compress_type, item.extra) for item in found} == {
        (date, 0o100644, zipfile.ZIP_DEFLATED, b"")
    }
    assert [path.name for path in tmp_path.iterdir()] == [f"{STEM}-linux_{MACHINE}.whl"], "nothing half-done is left"


def test_what_packs_is_an_input_of_the_build_key(
    plan: buildplan.Plan,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another zlib makes other bytes of the same members, another auditwheel perhaps another name."""
    assert re.fullmatch(r"auditwheel-[\d.]+ zlib-[\w.-]+ level-9", packing.made_with())
    before = buildplan.build_key(plan, "ab" * 20, [])
    monkeypatch.setattr(zlib, "ZLIB_RUNTIME_VERSION", "1.3.1.zlib-ng")
    assert buildplan.build_key(plan, "ab" * 20, []) != before


def install(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [wheels.uv(), "pip", "install", "--no-config", "--no-index", "--no-deps", "--python", python, *arguments]
    return subprocess.run([str(one) for one in argv], capture_output=True, text=True, check=False)


def with_pip(python: Path, path: Path) -> subprocess.CompletedProcess[str]:
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", "--no-cache-dir"]
    argv = [python, "-m", "pip", "install", *options, path]
    return subprocess.run([str(one) for one in argv], capture_output=True, text=True, check=False)


def test_uv_and_pip_install_it_here_and_refuse_it_where_glibc_is_older(tmp_path: Path, this: Target) -> None:
    python = wheels.venv(tmp_path / "env")
    wheels.lend_pip(python)
    good = manylinux.sealed(made(tmp_path), this, EPOCH)
    assert (done := install(python, good)).returncode == 0, done.stderr
    site = wheels.site(python)
    assert (site / PACKAGE / "_fused.abi3.so").read_bytes() == members(good)[f"{PACKAGE}/_fused.abi3.so"]
    assert f"Tag: py3-none-{OLDEST}\n" in (site / INFO / "WHEEL").read_text()
    wheels.pip(python, "uninstall", NAME)
    assert (done := with_pip(python, good)).returncode == 0, done.stderr

    far = tmp_path / f"{STEM}-manylinux_2_99_{MACHINE}.whl"
    packing.repack(good, far, epoch=EPOCH, platform=f"manylinux_2_99_{MACHINE}")
    wheels.pip(python, "uninstall", NAME)  # with --reinstall, uv looks at no tag
    done = install(python, far)
    assert done.returncode and "is incompatible with the current platform" in done.stderr
    done = with_pip(python, far)
    line = f"ERROR: {far.name} is not a supported wheel on this platform."
    assert done.returncode and line in done.stderr.splitlines()


@pytest.mark.parametrize(("glibc", "installs"), [("2_40", True), ("2_35", True), ("2_34", False), ("2_28", False)])
def test_uv_for_another_machine(tmp_path: Path, glibc: str, *, installs: bool) -> None:
    path = wheels.make(tmp_path, tag=f"py3-none-manylinux_2_35_{MACHINE}")
    argv = ("--dry-run", "--target", tmp_path / "there", "--python-platform", f"{MACHINE}-manylinux_{glibc}", path)
    done = install(Path(sys.executable), *argv)
    assert (done.returncode == 0) is installs, done.stderr


def test_the_verdict_does_not_depend_on_what_lies_on_this_machine(
    tmp_path: Path, new: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library found here would lend its own symbols to the wheel."""
    path = made(tmp_path, ("libcudart.so.13", ""))
    newer = wheels.library("libm.so.6", "much_newer", "GLIBC_2.99")
    found = tmp_path / "lib" / "libcudart.so.13"
    found.parent.mkdir()
    found.write_bytes(wheels.extension(needs=(newer,), calls=("much_newer",)))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(found.parent))
    assert manylinux.verdict(path, new) == (OLDEST, "")


def test_auditwheel_is_asked_through_its_versioned_answer() -> None:
    """Its schema is what the code reads; a change of it is to be seen here."""
    schema = json.loads((files("auditwheel") / "show-schema.json").read_text())
    required = set(schema["$defs"]["result_platform"]["required"])
    assert {"version", "sym_tag", "overall_tag", "policy_upgrades", "unsupported_isa", "pyfpe", "ucs2"} <= required
    assert schema["$defs"]["result_platform"]["properties"]["version"]["const"] == 1
