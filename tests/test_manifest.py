"""Wheel manifests: those of the first installer keep working, and what is malformed is refused by file and key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sagewheels import match
from sagewheels.arch import Arch
from sagewheels.errors import Refused
from sagewheels.manifest import ManifestError, WheelManifest, loads, parse
from sagewheels.match import Wanted

WHEEL = "sageattention-2.2.0-cp312-cp312-linux_x86_64.whl"
SHA = "3f" * 32
NIGHTLY = "https://download.pytorch.org/whl/nightly/cu128"

FIRST: dict[str, Any] = {
    "created_at_utc": "2025-08-05T10:11:12+00:00",
    "wheel_file": WHEEL,
    "wheel_sha256": SHA,
    "hf_wheel_url": f"https://huggingface.co/datasets/me/wheels/resolve/main/sageattention220/{WHEEL}",
    "sageattention_version": "2.2.0",
    "expected_sageattention_version": "2.2.0",
    "torch_version": "2.9.0.dev20250804+cu128",
    "torchvision_version": "0.24.0.dev20250804+cu128",
    "torchaudio_version": None,
    "triton_version": "3.4.0",
    "torch_index_url": NIGHTLY,
    "target_arch": "12.0",
    "cudaarchs": "120",
    "required_min_cuda": "12.8",
    "built_for": "sm_120",
    "built_from_repo": "https://github.com/thu-ml/SageAttention.git",
    "built_from_ref": "v2.2.0",
    "built_from_commit": "eb615cf6cf4d221338033340ee2de1c37fbdba4a",
    "builder_gpu_name": "NVIDIA GeForce RTX 5090",
    "builder_gpu_compute_capability": "12.0",
    "python_version": "3.12.3",
    "python_tag": "cp312",
    "platform": "linux_x86_64",
    "machine": "x86_64",
}
"""`latest.json` as the first installer wrote it on an RTX 5090."""

HERE = Wanted(
    name="sageattention",
    version="2.2.0",
    tags=frozenset({"cp312-cp312-linux_x86_64", "cp312-abi3-linux_x86_64", "py3-none-any"}),
    torch="2.9.0.dev20250804",
    cuda="12.8",
    archs=(Arch(12, 0),),
    glibc="2.39",
)

NO_TORCH = "its manifest does not say which torch it was built for"
NO_CUDA = "its manifest does not say which CUDA it was built for"
NO_ARCHS = "its manifest does not say for which archs it was built"
NO_SHA = "its manifest has no sha256"


def first(*missing: str, **changed: object) -> dict[str, Any]:
    """The first installer's manifest without some keys, and with others changed."""
    return {key: value for key, value in {**FIRST, **changed}.items() if key not in missing}


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        pytest.param(first(), (), id="whole"),
        pytest.param(first(target_arch="12.0+PTX"), (), id="with PTX"),
        pytest.param(first(target_arch="sm_120"), (), id="as CUDA tools write it"),
        pytest.param(first(target_arch="8.9;12.0"), (), id="two archs"),
        pytest.param(first(target_arch="8.9 12.0"), (), id="two archs, with a space"),
        pytest.param(first(target_arch=None), (), id="arch from cudaarchs"),
        pytest.param(first("target_arch", "cudaarchs"), (NO_ARCHS,), id="no arch"),
        pytest.param(first(target_arch="", cudaarchs=""), (NO_ARCHS,), id="empty arch"),
        pytest.param(first(target_arch="8.9"), ("it holds code for 8.9, which does not run on 12.0",), id="wrong arch"),
        pytest.param(
            first(target_arch="8.0;9.0+PTX"),
            ("it holds code for 8.0, 9.0, which does not run on 12.0",),
            id="PTX alone does not count",
        ),
        pytest.param(first(torch_version="2.9.0.dev20250804"), (), id="CUDA from the index"),
        pytest.param(first("torch_index_url", torch_version="2.9.0.dev20250804"), (NO_CUDA,), id="no CUDA"),
        pytest.param(first(torch_index_url=None), (), id="default index, CUDA from torch"),
        pytest.param(
            first(torch_version="2.9.0.dev20250901+cu128"),
            ("it was built for torch 2.9.0.dev20250901, the target has 2.9.0.dev20250804",),
            id="another nightly",
        ),
        pytest.param(
            first(torch_version="2.8.0+cu126", torch_index_url=None),
            ("it was built for torch 2.8.0, the target has 2.9.0.dev20250804",),
            id="stable torch, CUDA 12.6 is the same major",
        ),
        pytest.param(
            first(torch_version="2.9.0.dev20250804+cu130"),
            ("it was built for CUDA 13.0, the target's torch has CUDA 12.8",),
            id="another CUDA",
        ),
        pytest.param(first("torch_version", "torch_index_url"), (NO_TORCH, NO_CUDA), id="no torch"),
        pytest.param(first(torch_version=None), (NO_TORCH,), id="torch null, CUDA from the index"),
        pytest.param(first(wheel_sha256=None), (NO_SHA,), id="no sha256"),
        pytest.param(first(wheel_sha256=SHA.upper()), (), id="sha256 in capitals"),
        pytest.param(
            first(wheel_file=WHEEL.replace("2.2.0", "1.0.6")),
            ("it is version 1.0.6, 2.2.0 is expected",),
            id="another version",
        ),
        pytest.param(
            first(wheel_file=WHEEL.replace("cp312-cp312", "cp310-cp310")),
            ("its wheel tag cp310-cp310-linux_x86_64 does not suit the target (cp312-cp312-linux_x86_64)",),
            id="another Python",
        ),
        pytest.param({"wheel_file": WHEEL}, (NO_TORCH, NO_CUDA, NO_ARCHS, NO_SHA), id="the name alone"),
        pytest.param(
            {**dict.fromkeys(FIRST), "wheel_file": WHEEL}, (NO_TORCH, NO_CUDA, NO_ARCHS, NO_SHA), id="all null"
        ),
    ],
)
def test_what_the_first_installer_published_is_judged_rightly(data: dict[str, Any], reasons: tuple[str, ...]) -> None:
    assert match.judge(loads(json.dumps(data), "latest.json"), HERE).reasons == reasons


def test_the_facts_of_an_old_manifest() -> None:
    found = parse(FIRST, "latest.json")
    assert (found.wheel_file, found.wheel_sha256, found.size) == (WHEEL, SHA, None)
    assert (found.name, found.version, found.torch, found.cuda) == (
        "sageattention",
        "2.2.0",
        "2.9.0.dev20250804",
        "12.8",
    )
    assert (found.archs, found.glibc, found.build_key, found.proofs) == ((Arch(12, 0),), "", "", ())
    assert found.created_at_utc == "2025-08-05T10:11:12+00:00"
    assert found.tags == ("cp312", "cp312", "linux_x86_64")


def test_the_facts_of_one_of_ours() -> None:
    name = "sageattention-2.2.0+cu130torch2.11sm120.k01234567-cp312-cp312-linux_x86_64.whl"
    proof = {"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T03:04:05Z", "cases": 64}
    found = parse(
        first(
            wheel_file=name,
            schema=1,
            size=4500000,
            torch_version="2.11.0+cu130",
            cuda_version="13.0",
            target_arch="8.9;12.0",
            archs=["12.0"],
            glibc="2.34",
            build_key="ab" * 32,
            proofs=[proof],
            signature=None,
            something_newer={"kept": True},
        ),
        name,
    )
    assert (found.version, found.cuda, found.size) == ("2.2.0+cu130torch2.11sm120.k01234567", "13.0", 4500000)
    assert found.archs == (Arch(12, 0),), "what is in the binaries counts, not what was asked for"
    assert (found.glibc, found.build_key) == ("2.34", "ab" * 32)
    (proven,) = found.proofs
    assert (proven.gpu, proven.arch, proven.at_utc) == (proof["gpu"], proof["arch"], proof["at_utc"])
    assert proven.raw == proof
    assert json.loads(found.to_json())["something_newer"] == {"kept": True}


@pytest.mark.parametrize(
    ("torch", "index", "version", "cuda"),
    [
        ("2.8.0+cu128", "https://download.pytorch.org/whl/cu126", "2.2.0+cu118", "12.8"),
        ("2.8.0", "https://download.pytorch.org/whl/cu126/", "2.2.0+cu118", "12.6"),
        ("2.8.0", "", "2.2.0+cu130torch2.11sm120", "13.0"),
        ("2.8.0+cpu", "https://download.pytorch.org/whl/cpu", "2.2.0", ""),
        ("2.8.0+rocm6.3", "", "2.2.0", ""),
        ("2.8.0+cu12", "", "2.2.0", ""),
        ("2.8.0+cu1281", "", "2.2.0", ""),
    ],
)
def test_where_the_cuda_version_is_found(torch: str, index: str, version: str, cuda: str) -> None:
    file = WHEEL.replace("2.2.0", version)
    assert parse({"wheel_file": file, "torch_version": torch, "torch_index_url": index}, "x").cuda == cuda


@pytest.mark.parametrize(
    ("file", "name", "version", "tags"),
    [
        ("Sage_Demo-1.0-py3-none-any.whl", "sage-demo", "1.0", ("py3", "none", "any")),
        (
            "a-1!2.0+l.1-1build-cp39.cp310-abi3-linux_x86_64.whl",
            "a",
            "1!2.0+l.1",
            ("cp39.cp310", "abi3", "linux_x86_64"),
        ),
        ("a-1-cp313-cp313t-manylinux_2_28_x86_64.whl", "a", "1", ("cp313", "cp313t", "manylinux_2_28_x86_64")),
    ],
)
def test_what_a_wheels_name_says(file: str, name: str, version: str, tags: tuple[str, str, str]) -> None:
    found = parse({"wheel_file": file}, "x")
    assert (found.name, found.version, found.tags) == (name, version, tags)


NO_WHEEL = "latest.json: wheel_file {!r} is not the name of a wheel."


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "latest.json is not JSON (Expecting value: line 1 column 1 (char 0))."),
        ("{", "latest.json is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))."),
        ('{"size": NaN}', "latest.json is not JSON (NaN is not JSON)."),
        ('{"size": -Infinity}', "latest.json is not JSON (-Infinity is not JSON)."),
        ("[]", "latest.json is not a JSON object."),
        ("null", "latest.json is not a JSON object."),
        ('"text"', "latest.json is not a JSON object."),
        ("{}", NO_WHEEL.format("")),
        ('{"wheel_file": null}', NO_WHEEL.format("")),
        ('{"wheel_file": "model.safetensors"}', NO_WHEEL.format("model.safetensors")),
        ('{"wheel_file": "../a-1-py3-none-any.whl"}', NO_WHEEL.format("../a-1-py3-none-any.whl")),
        ('{"wheel_file": "sub/a-1-py3-none-any.whl"}', NO_WHEEL.format("sub/a-1-py3-none-any.whl")),
        ('{"wheel_file": ".a-1-py3-none-any.whl"}', NO_WHEEL.format(".a-1-py3-none-any.whl")),
        ('{"wheel_file": "a-1-py3-none-any.whl\\nb"}', NO_WHEEL.format("a-1-py3-none-any.whl\nb")),
        ('{"wheel_file": "a-1-none-any.whl"}', NO_WHEEL.format("a-1-none-any.whl")),
        ('{"wheel_file": 7}', "latest.json: wheel_file is not text."),
    ],
)
def test_what_is_no_manifest_at_all_is_refused(text: str, line: str) -> None:
    with pytest.raises(ManifestError) as caught:
        loads(text, "latest.json")
    assert str(caught.value) == line
    assert isinstance(caught.value, Refused)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"wheel_file": "a" * 250 + "-1-py3-none-any.whl"}, "wheel_file '" + "a" * 80 + "' is not the name of a wheel"),
        ({"wheel_sha256": "3f" * 31}, "wheel_sha256 is not a sha256"),
        ({"wheel_sha256": "md5:" + "3" * 60}, "wheel_sha256 is not a sha256"),
        ({"wheel_sha256": 12}, "wheel_sha256 is not text"),
        ({"torch_version": 2.8}, "torch_version is not text"),
        ({"target_arch": ["12.0"]}, "target_arch is not text"),
        ({"target_arch": 12.0}, "target_arch is not text"),
        ({"target_arch": "native"}, "'native' is not a compute capability"),
        ({"target_arch": None, "cudaarchs": "all"}, "'all' is not a compute capability"),
        ({"archs": "12.0"}, "archs is not a list of text"),
        ({"archs": [12.0]}, "archs is not a list of text"),
        ({"archs": ["12.0", "x"]}, "'x' is not a compute capability"),
        ({"archs": [" ; "]}, "the list of archs is empty"),
        ({"glibc": 2.38}, "glibc is not text"),
        ({"size": "4500000"}, "size is not a number of bytes"),
        ({"size": -1}, "size is not a number of bytes"),
        ({"size": True}, "size is not a number of bytes"),
        ({"size": 1.5}, "size is not a number of bytes"),
        ({"proofs": {}}, "proofs is not a list of objects"),
        ({"proofs": ["RTX 5090"]}, "proofs is not a list of objects"),
        ({"proofs": [{"gpu": 5090}]}, "gpu is not text"),
        ({"schema": 2}, "schema 2 is newer than this sagewheels. Update sagewheels"),
        ({"schema": "1"}, "schema '1' is newer than this sagewheels. Update sagewheels"),
    ],
)
def test_a_malformed_key_is_refused_by_file_and_key(changed: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(first(**changed), "index.json")
    assert str(caught.value) == f"index.json: {what}."


def test_bytes_that_are_no_text_and_endless_nesting_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"^a\.json is not JSON \('utf-8' codec"):
        loads(b'{"wheel_file": "\xff"}', "a.json")
    with pytest.raises(ManifestError, match=r"^a\.json is not JSON \(maximum recursion depth"):
        loads("[" * 200_000, "a.json")


def test_what_is_written_back_is_what_was_read() -> None:
    data = first(unknown_key=[1, {"a": "é"}], schema=1)
    text = parse(data, "x").to_json()
    assert json.loads(text) == data
    assert "é" in text and text.endswith("}\n")
    assert loads(text, "x") == parse(data, "x")


def test_updating_changes_the_copy_alone_and_checks_it() -> None:
    before = parse(first(), "x")
    after = before.updated(wheel_sha256="ab" * 32, proofs=[{"gpu": "H200", "arch": "9.0", "at_utc": ""}])
    assert (after.wheel_sha256, after.data["wheel_sha256"]) == ("ab" * 32, "ab" * 32)
    assert [proof.gpu for proof in after.proofs] == ["H200"]
    assert (before.wheel_sha256, before.proofs, "proofs" in before.data) == (SHA, (), False)
    with pytest.raises(ManifestError, match=rf"^{WHEEL}: size is not a number of bytes\.$".replace("+", r"\+")):
        before.updated(size="big")


def test_manifests_are_compared_by_their_facts() -> None:
    assert parse(first(built_for="a"), "x") == parse(first(built_for="b"), "y")
    assert parse(first(target_arch="8.9"), "x") != parse(first(), "x")
    assert isinstance(parse(first(), "x"), WheelManifest)


@pytest.mark.parametrize("text", ["2.9\n[fetch] forged", "\x1b[2J", "9" * 5000])
@pytest.mark.parametrize("key", ["torch_version", "cuda_version", "created_at_utc", "python_tag"])
def test_text_that_would_forge_lines_on_a_terminal_is_refused(key: str, text: str) -> None:
    with pytest.raises(ManifestError):
        parse({"wheel_file": "a-1-py3-none-any.whl", key: text}, "test")
