"""What a wheel contains: true facts from real ones, and the exact reason for each that must not be installed."""

from __future__ import annotations

import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sagewheels import archive, wheel
from sagewheels.arch import parse, parse_list
from sagewheels.errors import Refused, UsageError
from tests import wheels
from tests.wheels import NAME, PACKAGE, TAG, VERSION

FULL = wheels.VERSION + wheels.LABEL
FILE = f"{NAME}-{FULL}-{TAG}.whl"
INFO = f"{NAME}-{FULL}.dist-info"


@pytest.fixture(autouse=True)
def _marks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real_tools" not in request.fixturenames:
        wheels.without_cuobjdump(monkeypatch)


@pytest.fixture
def real_tools() -> None:
    """The cuobjdump that the tool's environment has, or none: then the test is skipped."""
    try:
        wheel.cuobjdump()
    except UsageError:
        pytest.skip("needs cuobjdump")


def refused(path: Path) -> str:
    """The line for the user when this wheel is refused."""
    with pytest.raises(Refused) as caught:
        wheel.inspect(path, PACKAGE)
    assert caught.value.code == 4
    return str(caught.value)


def test_facts(tmp_path: Path) -> None:
    files = wheels.content(
        _fused=wheels.extension("_fused", archs="9.0a;12.0"), _attn=wheels.extension("_attn", archs="12.0")
    )
    path = wheels.make(tmp_path, files)
    found = wheel.inspect(path, PACKAGE)
    assert (found.path, found.name, found.version, found.tags) == (path, NAME, FULL, (TAG,))
    assert (found.sha256, found.size) == wheel.file_hash(path)
    assert {name: item.archs for name, item in found.extensions.items()} == {
        "_fused": parse_list("9.0a;12.0"),
        "_attn": (parse("12.0"),),
    }
    assert found.held["_attn"] == (parse("12.0"),)


def test_hash_and_size_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert wheel.file_hash(tmp_path / "x") == ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3)


def test_an_extension_without_cuda_code_holds_no_archs(tmp_path: Path) -> None:
    files = wheels.content(_fused=wheels.extension("_fused"), _plain=wheels.extension("_plain", archs=""))
    assert wheel.inspect(wheels.make(tmp_path, files), PACKAGE).held["_fused"] == (parse("12.0"),)


def test_a_wheel_of_python_alone_has_no_archs_and_needs_no_glibc(tmp_path: Path) -> None:
    found = wheel.inspect(wheels.make(tmp_path, {f"{PACKAGE}/__init__.py": b""}), PACKAGE)
    assert (found.held, found.glibc, dict(found.extensions)) == ({}, "", {})


def test_libraries_glibc_and_abi_come_from_the_binary(tmp_path: Path) -> None:
    newest = wheels.library("libm.so.6", "from_the_future", "GLIBC_2.99")
    older = wheels.library("libdl.so.2", "from_the_past", "GLIBC_2.5")
    runtime = wheels.library("libcudart.so.13", "cuda_call")
    module = wheels.extension(
        needs=(newest, older, runtime),
        calls=("from_the_future", "from_the_past", "cuda_call"),
        extra="void _ZNSt7__cxx1112basic_stringE(void) {}",
    )
    found = wheel.inspect(wheels.make(tmp_path, wheels.content(_fused=module)), PACKAGE)
    assert set(found.extensions["_fused"].needed) >= {"libcudart.so.13", "libm.so.6", "libdl.so.2"}
    assert (found.glibc, found.extensions["_fused"].abi) == ("2.99", "cxx11")
    plain = wheel.inspect(wheels.make(tmp_path / "plain"), PACKAGE)
    assert plain.extensions["_fused"].abi == "" and "libcudart.so.13" not in plain.extensions["_fused"].needed


def test_a_compressed_tag_set_is_every_tag_of_it(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, tag="py2.py3-none-any")
    assert wheel.inspect(path, PACKAGE).tags == ("py2-none-any", "py3-none-any")


def test_signatures_need_no_line_in_record(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, late=[(f"{INFO}/RECORD.jws", b"{}")])
    assert wheel.inspect(path, PACKAGE).name == NAME


def test_not_a_zip(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"<html>404</html>")
    assert refused(tmp_path / FILE) == f"{FILE} is not a readable zip archive (File is not a zip file)."


def test_truncated(tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(path).startswith(f"{FILE} is not a readable zip archive (")


def test_truncated_in_the_middle_with_its_directory_kept(tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data = path.read_bytes()
    path.write_bytes(data[:100] + data[start:])
    assert refused(path).startswith(f"{FILE} is not a readable zip archive (")


@pytest.mark.parametrize(
    "name", ["../evil.py", f"{PACKAGE}/../../evil.py", "/etc/evil", f"{PACKAGE}\\..\\evil.py", f"{PACKAGE}/.."]
)
def test_a_member_that_leads_out(tmp_path: Path, name: str) -> None:
    files = {**wheels.content(), name: b"evil"}
    assert refused(wheels.make(tmp_path, files)) == f"{FILE} holds {name!r}, which lies outside of it."


def test_a_symbolic_link(tmp_path: Path) -> None:
    link = zipfile.ZipInfo(f"{PACKAGE}/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = wheels.make(tmp_path, late=[(link, b"/etc/passwd")])
    assert refused(path) == f"{FILE} holds the symbolic link {PACKAGE}/link."


def test_a_module_twice(tmp_path: Path) -> None:
    """Which of the two Python imports is for its version to say: the other one alone would have been looked at."""
    files = wheels.content(_fused=wheels.extension("_fused"))
    (name,) = [name for name in files if name.endswith(".so")]
    path = wheels.make(tmp_path, {**files, f"{PACKAGE}/_fused.cpython-312-x86_64-linux-gnu.so": files[name]})
    assert refused(path) == f"{FILE} holds the module _fused twice."


def test_a_member_twice(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, late=[(f"{PACKAGE}/__init__.py", b"import evil\n")])
    assert refused(path) == f"{FILE} holds {PACKAGE}/__init__.py twice."


@pytest.mark.parametrize("name", [f"./{PACKAGE}/__init__.py", f"{PACKAGE}//__init__.py", f"{PACKAGE}/./__init__.py"])
def test_a_member_twice_in_another_spelling(tmp_path: Path, name: str) -> None:
    refused(wheels.make(tmp_path, {**wheels.content(), name: b"import evil\n"}))


@pytest.mark.parametrize(
    "name", ["evil.pth", f"{PACKAGE}.pth", f"{PACKAGE}.py", f"{NAME}-{FULL}.data/scripts/run", "torch/version.py"]
)
def test_a_file_outside_of_the_package(tmp_path: Path, name: str) -> None:
    path = wheels.make(tmp_path, {**wheels.content(), name: b"import evil\n"})
    assert refused(path) == f"{FILE} would install {name}, outside of the package {PACKAGE}."


def test_one_that_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MOST_BYTES", 1000)
    path = wheels.make(tmp_path, {**wheels.content(), f"{PACKAGE}/zeros": bytes(2000)})
    assert refused(path) == f"{FILE} would unpack to more than 1000 bytes."


def _wrong_hash(rows: list[list[str]]) -> list[list[str]]:
    return [[name, "sha256=AAAA" if name.endswith("__init__.py") else digest, size] for name, digest, size in rows]


def _wrong_size(rows: list[list[str]]) -> list[list[str]]:
    return [[name, digest, "7" if name.endswith("__init__.py") else size] for name, digest, size in rows]


def _no_hash(rows: list[list[str]]) -> list[list[str]]:
    return [[name, "" if name.endswith("__init__.py") else digest, size] for name, digest, size in rows]


@pytest.mark.parametrize("lie", [_wrong_hash, _wrong_size, _no_hash])
def test_a_record_that_lies(tmp_path: Path, lie: Callable[[list[list[str]]], list[list[str]]]) -> None:
    assert refused(wheels.make(tmp_path, record=lie)) == f"{FILE}: {PACKAGE}/__init__.py is not what RECORD says."


def test_a_file_that_record_does_not_list(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, late=[(f"{PACKAGE}/extra.py", b"import evil\n")])
    assert refused(path) == f"{FILE}: RECORD and content differ in {PACKAGE}/extra.py."


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, record=lambda rows: [*rows, wheels.row(f"{PACKAGE}/gone.py", b"")])
    assert refused(path) == f"{FILE}: RECORD and content differ in {PACKAGE}/gone.py."


@pytest.mark.parametrize("name", ["RECORD", "METADATA", "WHEEL"])
def test_a_missing_file_of_dist_info(tmp_path: Path, name: str) -> None:
    assert refused(wheels.make(tmp_path, info={name: None})) == f"{FILE} has no readable {name}."


@pytest.mark.parametrize("name", ["METADATA", "WHEEL", "RECORD"])
def test_a_file_of_dist_info_that_is_no_text(tmp_path: Path, name: str) -> None:
    assert refused(wheels.make(tmp_path, info={name: b"\xff\xfe\xff"})) == f"{FILE} has no readable {name}."


def test_no_dist_info(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{PACKAGE}/__init__.py", b"")
    assert refused(path) == f"{FILE} has no dist-info, not {INFO}."


def test_two_dist_infos(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, {**wheels.content(), "torch-1.0.dist-info/METADATA": b"Name: torch\n"})
    assert refused(path) == f"{FILE} has {INFO}, torch-1.0.dist-info, not {INFO}."


def test_a_wheel_under_another_name(tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    other = path.rename(tmp_path / FILE.replace(VERSION, "9.9"))
    assert refused(other) == f"{other.name} has {INFO}, not {INFO.replace(VERSION, '9.9')}."


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (f"Name: other\nVersion: {FULL}\n", f"other {FULL}"),
        (f"Name: {NAME}\nVersion: 9.9\n", f"{NAME} 9.9"),
        ("Summary: nothing\n", "nothing"),
    ],
)
def test_metadata_of_another_package(tmp_path: Path, metadata: str, said: str) -> None:
    path = wheels.make(tmp_path, info={"METADATA": metadata.encode()})
    assert refused(path) == f"{FILE}: METADATA is of {said}."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Tag: py3-none-any\n", "py3-none-any"),
        (f"Tag: {TAG}\nTag: py2-none-any\n", f"py2-none-any, {TAG}"),
        ("", "none"),
    ],
)
def test_tags_that_differ_from_the_name(tmp_path: Path, text: str, said: str) -> None:
    path = wheels.make(tmp_path, info={"WHEEL": f"Wheel-Version: 1.0\n{text}".encode()})
    assert refused(path) == f"{FILE}: WHEEL has the tags {said}."


def test_an_extension_that_is_no_elf(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, wheels.content(_fused=b"MZ\x90\x00 not for Linux"))
    assert refused(path) == "_fused.abi3.so is not a readable ELF file (Magic number does not match)."


def test_an_extension_cut_short(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, wheels.content(_fused=wheels.extension()[:200]))
    assert refused(path).startswith("_fused.abi3.so is not a readable ELF file (")


def test_compressed_bytes_that_cannot_be_unpacked(tmp_path: Path) -> None:
    path = wheels.make(tmp_path)
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    data = bytearray(path.read_bytes())
    data[first.header_offset + 30 + len(first.filename)] |= 0b110  # a block type that deflate does not have
    path.write_bytes(data)
    assert refused(path).startswith(f"{FILE} is not a readable zip archive (")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_wrong_with_the_bytes_it_is_refused(tmp_path: Path, seed: int) -> None:
    """Flipped bytes anywhere either change nothing that matters, or are refused: never another exception."""
    path, dice = wheels.make(tmp_path), random.Random(seed)
    good = path.read_bytes()
    outcomes = set()
    for _ in range(100):
        data = bytearray(good)
        for _ in range(dice.choice((1, 1, 4))):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        try:
            wheel.inspect(path, PACKAGE)
            outcomes.add("as good as before")
        except Refused:
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_wrong_with_a_binary_it_is_refused(tmp_path: Path, seed: int) -> None:
    """The same for an ELF file whose RECORD is true: headers of sections and symbols that make no sense."""
    dice, good = random.Random(seed), wheels.extension()
    mark = good.index(b"archs of this module")
    outcomes = set()
    for _ in range(60):
        data = bytearray(good)
        for _ in range(8):
            # Half of the damage in the headers at both ends, where the structure is; the mark stays.
            place = dice.choice((dice.randrange(64), len(good) - 1 - dice.randrange(1800), dice.randrange(len(good))))
            if not mark <= place < mark + 40:
                data[place] = dice.randrange(256)
        path = wheels.make(tmp_path, wheels.content(_fused=bytes(data)))
        try:
            wheel.inspect(path, PACKAGE)
            outcomes.add("readable")
        except Refused:
            outcomes.add("refused")
        except AssertionError as error:  # marked_archs, where the magic number itself was hit
            assert "module.so" not in str(error)
    assert "refused" in outcomes


def test_archs_of_a_real_fatbin(tmp_path: Path, real_tools: None) -> None:
    binary = wheels.extension(archs="not read", fatbin=wheels.fatbin("sm_120", "sm_90a", "compute_80"))
    files = wheels.content(_fused=binary, _plain=wheels.extension("_plain"))
    found = wheel.inspect(wheels.make(tmp_path, files), PACKAGE)
    assert found.extensions["_fused"].archs == parse_list("8.0+PTX;9.0a;12.0")
    assert found.extensions["_plain"].archs == ()
    assert found.held == {"_fused": parse_list("8.0+PTX;9.0a;12.0"), "_plain": ()}


def test_cuobjdump_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_tools: None) -> None:
    broken = wheels.script(tmp_path / "cuobjdump", "#!/bin/sh\necho 'fatal : Memory allocation failure' >&2; exit 3\n")
    monkeypatch.setattr(wheel, "cuobjdump", lambda: broken)
    with pytest.raises(Refused) as caught:
        wheel.cubins(tmp_path / "x.so")
    assert str(caught.value) == "x.so cannot be read by cuobjdump: fatal   : Memory allocation failure.".replace(
        "   ", " "
    )


def test_no_cuobjdump_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real_tools: None) -> None:
    def nothing(name: str) -> None:
        assert name == "nvidia"

    monkeypatch.setattr(wheel, "find_spec", nothing)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        wheel.cuobjdump()
    assert str(caught.value) == "cuobjdump is missing. Install the package nvidia-cuda-cuobjdump beside sagewheels."


@pytest.mark.parametrize("group", ["console_scripts", "gui_scripts"])
def test_one_that_would_install_programs(tmp_path: Path, group: str) -> None:
    """They would land in bin/, over pip and torchrun."""
    path = wheels.make(tmp_path, info={"entry_points.txt": f"[{group}]\npip = {PACKAGE}:main\n".encode()})
    assert refused(path) == f"{FILE} would install programs, which a package of kernels has no use for."
