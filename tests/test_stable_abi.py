"""Wheels on the stable ABIs of Python and libtorch: how they are named, when they fit, and that none of them lies."""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging import tags

from sagewheels import arch, build, fetch, match, proving, recipe, stableabi, steps, verify, wheel, wheelhouse
from sagewheels.errors import BuildFailed, NothingCompatible, Refused, UsageError
from sagewheels.manifest import WheelManifest, parse
from sagewheels.match import Origin, Wanted, judge, rank
from sagewheels.resources import ROOT
from sagewheels.wheelhouse import Made
from tests import wheels
from tests.wheels import RTX, VERSION, Machine

TAG = f"cp310-abi3-linux_{platform.machine()}"
OURS, THEIRS = "a" * 40, "b" * 40
PROOF = {"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z", "full": ["lengths"]}
STABLE: dict[str, Any] = {
    "stable_abi": {"torch": "2.10"},
    "built_from_commit": THEIRS,
    "torch_version": "2.11.0+cu130",
    "proofs": [PROOF],
}


@pytest.fixture(autouse=True)
def _marks(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_cuobjdump(monkeypatch)


# the build manifest


def test_what_the_shipped_manifest_pins() -> None:
    found = recipe.load("sageattention-2.2.0-abi3")
    assert (found.name, found.version, found.package) == ("sageattention", "2.2.0", "sageattention")
    assert found.source.repo == "https://github.com/woct0rdho/SageAttention.git"
    assert (found.source.ref, found.source.commit) == (
        "v2.2.0-windows.post6",
        "93128b972683e52cd382c6731c1f09505e7524b5",
    )
    assert (found.stable_torch, found.min_torch, found.also) == ("2.10", "2.10", ())
    for flags in (found.cxx_flags, found.nvcc("12.0")):
        assert {"-DUSE_CUDA=1", "-DTORCH_TARGET_VERSION=0x020a000000000000"} <= set(flags)
    assert all("_qattn_sm80" in rule.extensions for rule in found.archs.values()), "what 2.2.0 has everywhere"
    assert [str(rule.cubin) for rule in found.rules(arch.parse_list("9.0 10.0 12.0 12.1"))] == [
        "9.0a",
        "10.0a",
        "12.0a",
        "12.1a",
    ]


def test_the_default_builds_2_2_0_and_takes_the_other_too() -> None:
    found = recipe.load("sageattention-2.2.0")
    assert (found.stable_torch, found.also) == ("", ("sageattention-2.2.0-abi3",))
    assert (recipe.load("demo").stable_torch, recipe.load("demo").also) == ("", ())


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("[stable_abi]", "stable_abi.torch is missing"),
        ('[stable_abi]\ntorch = ""', "stable_abi.torch is empty"),
        ("[stable_abi]\ntorch = 2.10", "stable_abi.torch must be str, not float"),
        ('[stable_abi]\ntorch = "new"', "stable_abi.torch: 'new' is not a version such as 12.8"),
        ('[stable_abi]\ntorch = "2.10"\npython = "3.10"', "stable_abi.python is not a key that build manifests have"),
    ],
)
def test_a_stable_abi_that_cannot_be_meant(tmp_path: Path, table: str, line: str) -> None:
    path = wheels.write_recipe(tmp_path)
    path.write_text(path.read_text() + table)
    with pytest.raises(UsageError) as caught:
        recipe.load(str(path))
    remedy = 'Correct it there; the README says what each key is, under "Another package"'
    assert str(caught.value) == f"{path}: {line}. {remedy}."


# the wheel manifest


def manifest(**changes: Any) -> WheelManifest:
    file = changes.pop("file", "sageattention-2.2.0+cu13sm120.k01234567-cp310-abi3-linux_x86_64.whl")
    facts = {
        "wheel_file": file,
        "wheel_sha256": "ab" * 32,
        "cuda_version": "13.0",
        "archs": ["12.0a"],
        "glibc": "2.34",
        "created_at_utc": "2026-01-01T00:00:00Z",
    }
    return parse({**facts, **STABLE, **changes}, "x.json")


def test_the_oldest_torch_is_read() -> None:
    assert (manifest().stable_torch, manifest().needs_torch, manifest().torch) == ("2.10", "2.10 or newer", "2.11.0")
    assert (manifest(stable_abi=None).stable_torch, manifest(stable_abi=None).needs_torch) == ("", "2.11.0")


@pytest.mark.parametrize(
    ("claim", "line"),
    [
        ("2.10", "stable_abi does not name its oldest torch"),
        (True, "stable_abi does not name its oldest torch"),
        ({}, "stable_abi does not name its oldest torch"),
        ({"torch": 2.1}, "stable_abi does not name its oldest torch"),
        ({"torch": ""}, "stable_abi does not name its oldest torch"),
        ({"torch": "2.10\x1b[2J"}, "stable_abi '2.10\\x1b[2J' is not a version in numbers"),
    ],
)
def test_a_claim_that_cannot_be_read(claim: object, line: str) -> None:
    with pytest.raises(Refused) as caught:
        manifest(stable_abi=claim)
    assert str(caught.value) == f"x.json: {line}."


# which wheel fits


def python(minor: int, *, free_threaded: bool = False) -> frozenset[str]:
    """The tags of a CPython 3.x on Linux, as packaging lists them."""
    abi = f"cp3{minor}{'t' if free_threaded else ''}"
    return frozenset(map(str, tags.cpython_tags(python_version=(3, minor), abis=[abi], platforms=["linux_x86_64"])))


HERE = Wanted(
    name="sageattention",
    version="2.2.0",
    tags=python(12),
    torch="2.15.0",
    cuda="13.2",
    archs=arch.parse_list("12.0"),
    glibc="2.36",
    source=OURS,
    patches=frozenset({"0001-ours.patch"}),
    also=(Origin(source=THEIRS, version="2.2.0", patches=frozenset({"0001-theirs.patch"})),),
)
MENDED = {"patches": [{"name": "0001-theirs.patch", "sha256": "c" * 64}]}


@pytest.mark.parametrize(
    "torch", ["2.10.0", "2.10", "2.11.0", "2.15.0", "2.15.0.dev20261101", "3.0.0", "2.11.0.dev1+cu130", "2.10.0.post1"]
)
def test_it_fits_that_torch_and_any_newer(torch: str) -> None:
    assert judge(manifest(**MENDED), replace(HERE, torch=torch)).reasons == ()


@pytest.mark.parametrize("torch", ["2.9.1", "2.10.0.dev20250901", "2.10.0a0", "2.10.0rc1", "1.13.1", "my own", ""])
def test_an_older_torch_is_told_which_it_needs(torch: str) -> None:
    (reason,) = judge(manifest(**MENDED), replace(HERE, torch=torch)).reasons
    assert reason == f"it needs torch 2.10 or newer, the target has {torch or 'no torch'}"


@pytest.mark.parametrize("minor", [10, 11, 12, 13, 14])
def test_it_fits_that_python_and_any_newer(minor: int) -> None:
    assert judge(manifest(**MENDED), replace(HERE, tags=python(minor))).reasons == ()


@pytest.mark.parametrize(("minor", "free_threaded", "native"), [(9, False, "cp39-cp39"), (13, True, "cp313-cp313t")])
def test_a_python_without_that_abi(minor: int, free_threaded: bool, native: str) -> None:
    found = judge(manifest(**MENDED), replace(HERE, tags=python(minor, free_threaded=free_threaded)))
    reason = f"its wheel tag cp310-abi3-linux_x86_64 does not suit the target ({native}-linux_x86_64)"
    assert found.reasons == (reason,)


def test_everything_else_is_held_against_it_as_against_any() -> None:
    wrong = manifest(cuda_version="12.8", archs=["9.0a"], glibc="2.41", patches=[])
    assert judge(wrong.updated(proofs=[]), HERE).reasons == (
        "it was built for CUDA 12.8, the target's torch has CUDA 13.2",
        "it holds code for 9.0a, which does not run on 12.0",
        "it needs glibc 2.41, this machine has 2.36",
        "it was built without 0001-theirs.patch, and nothing has proven it",
        "it is from another source, and smoke --full has not proven it on arch 12.0",
    )


def test_nobody_is_handed_another_source_that_only_the_short_checks_have_proven() -> None:
    """They call one function; a wheel of that very source, which the user built, needs no more than they say."""
    reason = "it is from another source, and smoke --full has not proven it on arch 12.0"
    short = {key: value for key, value in PROOF.items() if key != "full"}
    for proofs in ([], [short], [{**PROOF, "arch": "9.0"}], [{**PROOF, "full": []}]):
        assert judge(manifest(**MENDED, proofs=proofs), HERE).reasons == (reason,)
    asked = replace(HERE, source=THEIRS, patches=frozenset({"0001-theirs.patch"}), also=())
    assert judge(manifest(**MENDED, proofs=[]), asked).fits
    assert judge(manifest(**MENDED, proofs=[]), replace(HERE, named=True)).fits, "the user named this very wheel"
    two = replace(HERE, archs=arch.parse_list("8.9;12.0"))
    both = manifest(**MENDED, archs=["8.9", "12.0a"])
    assert judge(both, two).reasons == (reason.replace("12.0", "8.9"),)


def test_each_source_has_its_own_patches() -> None:
    asked = replace(HERE, source=THEIRS, patches=frozenset({"0001-theirs.patch"}), also=())
    reason = "it was built without 0001-theirs.patch, and nothing has proven it"
    assert judge(manifest(patches=[], proofs=[]), asked).reasons == (reason,)
    assert judge(manifest(patches=[], proofs=[PROOF]), HERE).reasons == ()


def test_who_asks_for_one_source_gets_no_other() -> None:
    (reason,) = judge(manifest(**MENDED, built_from_ref="post6"), replace(HERE, also=())).reasons[:1]
    assert reason == f"it was built from post6 {THEIRS[:12]}, {OURS[:12]} is asked for"
    (reason,) = judge(manifest(**MENDED, built_from_commit="c" * 40, built_from_ref="fork"), HERE).reasons[:1]
    assert reason == f"it was built from fork {'c' * 12}, {OURS[:12]} is asked for"


def test_the_order_of_those_that_fit() -> None:
    """Proven before not proven; among equals the wheel for this very torch before the one for many."""
    exact: dict[str, Any] = {
        "file": "sageattention-2.2.0+cu132torch2.15sm120-cp312-cp312-linux_x86_64.whl",
        "stable_abi": None,
        "torch_version": "2.15.0+cu132",
        "built_from_commit": OURS,
        "archs": ["8.9", "12.0"],
        "created_at_utc": "2020-01-01T00:00:00Z",
        "patches": [{"name": "0001-ours.patch", "sha256": "c" * 64}],
    }
    order = [
        manifest(**{**exact, "proofs": [PROOF]}),
        manifest(**MENDED, proofs=[PROOF]),
        manifest(**{**exact, "proofs": []}),
    ]
    assert [verdict.candidate for verdict in rank(reversed(order), HERE)] == order
    assert all(verdict.fits for verdict in rank(order, HERE))


# what the binaries say


@pytest.mark.parametrize(
    ("tag", "python"),
    [
        ("cp310-abi3-linux_x86_64", "3.10"),
        ("cp39.cp310-abi3-linux_x86_64", "3.9"),
        ("py3-abi3-linux_x86_64", "3.2"),
        ("cp312-cp312-linux_x86_64", ""),
        ("py3-none-any", ""),
    ],
)
def test_the_python_that_a_tag_promises(tag: str, python: str) -> None:
    pythons, abi, place = tag.split("-")
    assert stableabi.oldest_python([f"{one}-{abi}-{place}" for one in pythons.split(".")]) == python


@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("PyModule_Create2", "3.2"),
        ("Py_BuildValue", "3.2"),
        ("PyExc_ValueError", "3.2"),
        ("_Py_NoneStruct", "3.2"),
        ("PyUnicode_AsUTF8AndSize", "3.10"),
        ("PyType_GetName", "3.11"),
    ],
)
def test_the_limited_api_grows(name: str, since: str) -> None:
    before = f"3.{int(since.partition('.')[2]) - 1}"
    assert stableabi.beyond_python([name], since) == stableabi.beyond_python([name], "3.14") == ()
    assert stableabi.beyond_python([name, "cudaMalloc"], before) == (name,)


@pytest.mark.parametrize(
    ("name", "stable"),
    [
        ("aoti_torch_get_current_cuda_stream", True),
        ("torch_call_dispatcher", True),
        ("cudaLaunchKernel", True),
        ("_ZNSt6vectorIlSaIlEE17_M_realloc_insertEv", True),
        ("_ZSt20__throw_length_errorPKc", True),
        ("_ZN2at4cuda20getCurrentCUDAStreamEa", False),
        ("_ZN3c105ErrorC1ENS_14SourceLocationESs", False),
        ("_ZNK3c1010TensorImpl4sizeEl", False),
        ("_ZTIN3c105ErrorE", False),
        ("_ZN5torch7LibraryD1Ev", False),
        ("_Z16THPVariable_WrapN2at10TensorBaseE", False),
        ("THPVariableClass", False),
        ("_ZN12at_once5queueEv", True),
    ],
)
def test_what_the_stable_abi_of_libtorch_has(name: str, stable: bool) -> None:
    assert stableabi.beyond_torch([name]) == (() if stable else (name,))


def made(folder: Path, *calls: str, tag: str = TAG, label: str = "+cu13sm120.k1", **changes: Any) -> Made:
    """A wheel whose one extension needs these symbols, and a manifest that claims the stable ABIs."""
    files = wheels.content(_fused=wheels.extension(calls=calls))
    path = wheels.make(folder / "dist", files, version=VERSION + label, tag=tag)
    return path, wheels.describe(path, **{**STABLE, **changes})


def test_a_wheel_that_keeps_its_word(tmp_path: Path) -> None:
    path, claim = made(tmp_path, "PyUnicode_AsUTF8AndSize", "aoti_torch_get_dim", "cudaMalloc")
    found = verify.check(path, claim, wheels.wanted(tags=frozenset({TAG})), wheels.load_recipe(tmp_path))
    assert {"PyModule_Create2", "PyUnicode_AsUTF8AndSize", "aoti_torch_get_dim"} <= set(
        found.extensions["_fused"].undefined
    )


def test_a_wheel_that_needs_more_of_python_than_its_tag_says(tmp_path: Path) -> None:
    path, _ = made(tmp_path, "PyType_GetName")
    with pytest.raises(Refused) as caught:
        wheel.inspect(path, wheels.PACKAGE)
    what = "_fused needs PyType_GetName, which is not in the limited API of Python 3.10"
    assert str(caught.value) == f"{path.name} is tagged abi3, but {what}."


def test_a_wheel_for_one_python_may_use_all_of_it(tmp_path: Path) -> None:
    path, claim = made(tmp_path, "PyType_GetName", tag=wheels.TAG)
    verify.stable(wheel.inspect(path, wheels.PACKAGE), claim)


def test_a_wheel_that_needs_one_libtorch(tmp_path: Path) -> None:
    symbol = "_ZN3c104cuda20getCurrentCUDAStreamEa"
    path, claim = made(tmp_path, symbol)
    with pytest.raises(Refused) as caught:
        verify.check(path, claim, wheels.wanted(tags=frozenset({TAG})), wheels.load_recipe(tmp_path))
    what = f"_fused needs {symbol}, which is not in the stable ABI of libtorch"
    assert str(caught.value) == f"{path.name} claims torch 2.10 or newer, but {what}."
    # One that claims nothing needs the very torch, and may do so.
    verify.stable(wheel.inspect(path, wheels.PACKAGE), claim.updated(stable_abi=None))


def test_a_build_that_promises_too_much_has_failed(tmp_path: Path) -> None:
    build._as_stable(wheel.inspect(made(tmp_path, "aoti_torch_get_dim")[0], wheels.PACKAGE))
    one_python, _ = made(tmp_path, "aoti_torch_get_dim", tag=wheels.TAG)
    with pytest.raises(BuildFailed) as caught:
        build._as_stable(wheel.inspect(one_python, wheels.PACKAGE))
    what = "is not tagged abi3, though its build manifest has [stable_abi]"
    assert str(caught.value) == f"{one_python.name} {what}."
    one_torch, _ = made(tmp_path, "THPVariable_Check")
    with pytest.raises(BuildFailed) as caught:
        build._as_stable(wheel.inspect(one_torch, wheels.PACKAGE))
    what = "_fused needs THPVariable_Check, which is not in the stable ABI of libtorch"
    assert str(caught.value) == f"{what}."


# choosing, with the rules of each source


def machine(folder: Path, **settings: Any) -> Machine:
    """A machine whose build manifest takes wheels of another one too; the two differ in the kernel that must run."""
    here = wheels.machine(folder, **settings)
    source = 'repo = "https://example.invalid/{0}.git"\nref = "{0}"\ncommit = "{1}"'
    main = wheels.write_recipe(folder, source.format("ours", OURS))
    text = main.read_text()
    other = text.replace(OURS, THEIRS).replace('ref = "ours"', 'ref = "theirs"')
    main.with_name("tiny-abi3.toml").write_text(f'{other}[stable_abi]\ntorch = "2.10"\n')
    also = f'version = "{VERSION}"\nalso = ["tiny-abi3"]'
    main.write_text(text.replace(f'version = "{VERSION}"', also).replace("tiny_kernel", "our_kernel"))
    return here


def publish(here: Machine, one: Made) -> WheelManifest:
    assert steps.do_upload(here.job(), one)
    return one[1]


def exact(here: Machine, **changes: Any) -> Made:
    path = wheels.make(here.folder / "dist")
    return path, wheels.describe(path, **{"built_from_commit": OURS, **changes})


def test_fetch_takes_an_exact_wheel_first(tmp_path: Path) -> None:
    here = machine(tmp_path)
    publish(here, made(tmp_path))
    best = publish(here, exact(here, proofs=[PROOF]))
    assert fetch.fetch(here.job())[1] == best


def test_fetch_takes_a_stable_one_where_nothing_is_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = machine(tmp_path)
    wheels.put_torch(here.python, "2.15.0+cu132", "13.2")
    only = publish(here, made(tmp_path))
    publish(here, exact(here))
    capsys.readouterr()
    job = here.job()
    assert fetch.fetch(job)[1] == only
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"[fetch] {only.wheel_file} fits, proven on {PROOF['gpu']}; made by tiny-abi3"
    assert job.recipe.file.stem == "tiny", "what would be built"
    assert job.recipe_of(only).file.stem == "tiny-abi3"
    assert fetch.fetch(here.job(sage_manifest=str(job.recipe_of(only).file)))[1] == only


def test_fetch_takes_a_proven_stable_one_before_an_exact_one_that_is_not(tmp_path: Path) -> None:
    here = machine(tmp_path)
    publish(here, exact(here))
    best = publish(here, made(tmp_path, proofs=[PROOF]))
    assert fetch.fetch(here.job())[1] == best


def test_a_source_that_was_asked_for_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = machine(tmp_path)
    only = publish(here, made(tmp_path))
    capsys.readouterr()
    with pytest.raises(NothingCompatible):
        fetch.fetch(here.job(sage_source_ref="main"))
    assert f"[fetch] rejected {only.wheel_file}: it was built from commit {THEIRS[:12]}, main is asked for" in (
        capsys.readouterr().out.splitlines()
    )


def test_a_copy_of_a_manifest_finds_the_others_where_they_are_shipped(tmp_path: Path) -> None:
    copy = tmp_path / "manifests" / "sageattention-2.2.0.toml"
    copy.parent.mkdir()
    copy.write_text((ROOT / "manifests" / copy.name).read_text())
    shutil.copytree(ROOT / "patches" / copy.stem, tmp_path / "patches" / copy.stem)
    assert recipe.also(recipe.load(str(copy))) == (recipe.load("sageattention-2.2.0-abi3"),)


def test_a_manifest_may_only_stand_in_for_its_own_package(tmp_path: Path) -> None:
    here = machine(tmp_path)
    other = tmp_path / "manifests" / "tiny-abi3.toml"
    other.write_text(other.read_text().replace(f'name = "{wheels.NAME}"', 'name = "else"'))
    with pytest.raises(UsageError) as caught:
        _ = here.job().also
    main = tmp_path / "manifests" / "tiny.toml"
    assert str(caught.value) == f"{main}: also names tiny-abi3, which is of else."


def test_a_manifest_may_not_stand_in_for_its_own_commit(tmp_path: Path) -> None:
    """By the commit a wheel is known to be of the one or the other."""
    here = machine(tmp_path)
    other = tmp_path / "manifests" / "tiny-abi3.toml"
    other.write_text(other.read_text().replace(THEIRS, OURS))
    with pytest.raises(UsageError) as caught:
        _ = here.job().also
    main = tmp_path / "manifests" / "tiny.toml"
    assert str(caught.value) == f"{main}: also names tiny-abi3, which is of the same commit."


@pytest.mark.parametrize(("version", "torch"), [((3, 9), "2.11.0+cu130"), ((3, 12), "2.9.1+cu130")])
def test_what_is_too_old_gets_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: tuple[int, int], torch: str
) -> None:
    here = machine(tmp_path)
    wheels.put_torch(here.python, torch, "13.0")
    only = publish(here, made(tmp_path))
    capsys.readouterr()
    job = here.job()
    own = tags.cpython_tags(python_version=version, platforms=[f"linux_{platform.machine()}"])
    job.target = replace(job.target, tags=tuple(map(str, own)))
    with pytest.raises(NothingCompatible):
        fetch.fetch(job)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[fetch] rejected")]
    reason = (
        f"its wheel tag {TAG} does not suit the target ({job.target.tags[0]})"
        if version == (3, 9)
        else "it needs torch 2.10 or newer, the target has 2.9.1"
    )
    assert said == [f"[fetch] rejected {only.wheel_file}: {reason}"]


def test_it_is_proven_by_its_own_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernel must run is said by the source that the wheel was made from, also when the wheelhouse is gone."""
    wheels.with_gpu_answers(monkeypatch)
    here = machine(tmp_path, gpu=RTX)
    job = here.job()
    path, claim = made(tmp_path)
    steps.do_verify(job, (wheelhouse.keep(job.settings, path, claim), claim))
    outcome = proving.do_smoke(job)
    assert outcome and [proof["kernel"] for proof in outcome.proofs] == ["tiny_kernel"]
    shutil.rmtree(job.settings.wheelhouse_dir)
    again = proving.do_smoke(here.job())
    assert again and [proof["kernel"] for proof in again.proofs] == ["tiny_kernel"]


def test_an_address_alone_does_not_say_enough(tmp_path: Path) -> None:
    """Which torch is the oldest is in the manifest only; the arch in the name is held against this machine."""
    name = f"tinyattn-{VERSION}+cu13sm90.k1-{TAG}.whl"
    found = parse(fetch._from_name(name), name)
    assert [str(one) for one in found.archs] == ["9.0"]
    assert match.judge(found, wheels.wanted(tags=frozenset({TAG}))).reasons == (
        "it holds code for 9.0, which does not run on 12.0",
        "its manifest does not say which torch it was built for",
        "its manifest does not say which CUDA it was built for",
        "its manifest has no sha256",
    )
