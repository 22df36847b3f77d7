"""The JSON Schema of wheel manifests: true of what is written, and as strict as what is read."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sagewheels import buildplan, describe, manifest, smoke, wheel
from sagewheels.arch import parse_list
from sagewheels.buildplan import Plan
from sagewheels.config import Settings
from sagewheels.errors import Refused
from sagewheels.resources import ROOT
from sagewheels.source import Checkout
from sagewheels.target import Target, Torch
from sagewheels.toolkit import Toolkit
from tests import wheels

SCHEMA = json.loads((ROOT / "manifests" / "wheel.schema.json").read_text())
KEYS = (
    "created_at_utc wheel_file wheel_sha256 hf_wheel_url sageattention_version expected_sageattention_version "
    "torch_version torchvision_version torchaudio_version triton_version torch_index_url target_arch cudaarchs "
    "required_min_cuda built_for built_from_repo built_from_ref built_from_commit builder_gpu_name "
    "builder_gpu_compute_capability python_version python_tag platform machine "
    "schema name version size build_key archs cuda_version stable_abi torch_abi glibc extensions patches toolchain "
    "proofs signature"
).split()
OLD = {
    "created_at_utc": "2025-08-01T10:00:00Z",
    "wheel_file": "sageattention-2.2.0-cp312-cp312-linux_x86_64.whl",
    "wheel_sha256": "a" * 64,
    "hf_wheel_url": None,
    "torch_version": "2.8.0+cu128",
    "target_arch": "12.0+PTX",
    "cudaarchs": "120",
    "builder_gpu_name": "NVIDIA GeForce RTX 5090",
    "their_own_key": {"kept": True},
}


def problems(data: Any) -> list[str]:
    """Where a manifest breaks the schema."""
    found = jsonschema.Draft202012Validator(SCHEMA).iter_errors(data)
    return sorted("/".join(map(str, error.absolute_path)) or error.message for error in found)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What build writes beside a wheel, from a real wheel and a plan made by hand."""
    wheels.without_cuobjdump(monkeypatch)
    recipe = wheels.load_recipe(tmp_path, patches={"0001-why.patch": "the patch\n"})
    archs = parse_list("12.0")
    target = Target(
        python=tmp_path / "python",
        prefix=tmp_path,
        version="3.12.3",
        soabi="cpython-312-x86_64-linux-gnu",
        machine="x86_64",
        site=tmp_path,
        include=tmp_path,
        has_python_h=True,
        externally_managed=False,
        writable=True,
        torch=Torch(folder=tmp_path, version=wheels.TORCH, cuda=wheels.CUDA),
        versions={"triton": wheels.TRITON},
        dist_info={},
        tags=("cp312-cp312-linux_x86_64",),
    )
    plan = Plan(
        recipe=recipe,
        rules=tuple(recipe.rules(archs)),
        archs=archs,
        target=target,
        toolkit=Toolkit(home=tmp_path, version="13.0", build="V13.0.88", origin="CUDA_HOME", compiler="c++ 13.3.0"),
        jobs=buildplan.Jobs(at_once=1, memory=1, extensions=1, why="by hand"),
        tools="ninja-1.13",
        glibc="2.39",
        flags=buildplan.Flags(cxx="-g0", nvcc="", link="-Wl,-s"),
    )
    tree = Checkout(folder=tmp_path, repo="local:demo", ref="", commit="c" * 40, epoch=0, patches=recipe.patches)
    key = buildplan.build_key(plan, tree.commit, [patch.sha256 for patch in tree.patches])
    found = wheel.inspect(wheels.make(tmp_path / "dist"), wheels.PACKAGE)
    return dict(describe.describe(Settings(environ=dict(os.environ)), plan, tree, key, found).data)


@pytest.fixture
def proven(made: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The same with a proof as smoke writes it."""
    answer = {
        "torch": wheels.TORCH,
        "imports": {},
        "gpus": [
            {
                "index": 0,
                "name": "NVIDIA H200",
                "arch": "12.0",
                "cases": [{"finite": True, "cosine": 0.9999, "relative_l2": 0.01}],
                "timed": [
                    {
                        "shape": [1, 8, 512, 64],
                        "ms": 1.0,
                        "sdpa_ms": 2.0,
                        "finite": True,
                        "cosine": 1.0,
                        "relative_l2": 0.0,
                    }
                ],
                "kernels": ["tiny_kernel"],
            }
        ],
    }
    machine = wheels.machine(tmp_path / "machine", gpu="0, NVIDIA H200, 12.0, 143771, 580.65.06")
    job = machine.job()
    outcome = smoke.judge(answer, job.recipe, job.host, job.target)
    assert outcome.failures == () and len(outcome.proofs) == 1
    return {**made, "proofs": list(outcome.proofs)}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["additionalProperties"] is True


def test_it_knows_every_key_and_says_what_it_is() -> None:
    assert set(KEYS) <= set(SCHEMA["properties"])
    assert set(manifest._TEXTS) <= set(SCHEMA["properties"])
    for key, value in SCHEMA["properties"].items():
        assert 5 < len(value["description"]) <= 120, key


def test_what_build_writes(made: dict[str, Any]) -> None:
    assert problems(made) == []
    assert set(KEYS) == set(made), "build writes every key, null where there is nothing to say"
    assert set(made) <= set(SCHEMA["properties"])


def test_what_smoke_adds(proven: dict[str, Any]) -> None:
    assert problems(proven) == []
    described = SCHEMA["properties"]["proofs"]["items"]["properties"]
    assert set(proven["proofs"][0]) == set(described) - {"full"}
    assert problems({**proven, "loads": [{"torch_version": "2.11.0", "python_version": "3.12.3", "gpu": None}]}) == []


def test_what_the_long_checks_add(proven: dict[str, Any]) -> None:
    before = smoke.Outcome(failures=(), proofs=tuple(proven["proofs"]), loaded_only=False)
    (proof,) = before.after((), (), ["lengths", "cross"]).proofs
    assert proof["full"] == ["lengths", "cross"]
    assert problems({**proven, "proofs": [proof]}) == []
    assert set(proof) == set(SCHEMA["properties"]["proofs"]["items"]["properties"])
    assert problems({**proven, "proofs": [{**proof, "full": True}]}) == ["proofs/0/full"]


def test_what_the_first_installer_wrote() -> None:
    assert problems(OLD) == []
    assert manifest.parse(OLD, "latest.json").cuda == "12.8"


def test_any_key_but_one_may_be_null_or_missing(made: dict[str, Any]) -> None:
    for key in KEYS:
        without, null = {name: value for name, value in made.items() if name != key}, {**made, key: None}
        allowed = key != "wheel_file"
        assert (problems(without) == []) == allowed, key
        assert (problems(null) == []) == allowed, key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("wheel_file", "../evil.whl"),
        ("wheel_file", "sageattention.whl"),
        ("wheel_file", 7),
        ("wheel_sha256", "abc"),
        ("size", -1),
        ("size", "12"),
        ("schema", 2),
        ("archs", "12.0"),
        ("archs", [12.0]),
        ("proofs", {"gpu": "x"}),
        ("torch_version", 2.8),
        ("stable_abi", "2.10"),
        ("stable_abi", {"torch": "new"}),
        ("stable_abi", {}),
    ],
)
def test_what_the_reader_refuses_breaks_the_schema(made: dict[str, Any], key: str, value: object) -> None:
    wrong = {**copy.deepcopy(made), key: value}
    with pytest.raises(Refused):
        manifest.parse(wrong, "x.json")
    assert problems(wrong) != []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("build_key", "abc"),
        ("patches", [{"name": "0001-x.patch"}]),
        ("extensions", {"_fused": "12.0"}),
        ("extensions", {"_fused": ["sm_120"]}),
        ("proofs", [{"gpu": "", "arch": "12.0", "at_utc": "2026-01-01T00:00:00Z"}]),
        ("proofs", [{"gpu": "NVIDIA H200", "arch": "9.0"}]),
        ("created_at_utc", "yesterday"),
    ],
)
def test_the_schema_wants_more_of_what_is_written(made: dict[str, Any], key: str, value: object) -> None:
    assert [where.split("/")[0] for where in problems({**made, key: value})][:1] == [key]


def test_the_first_installers_keys_are_filled_for_their_own_package_alone(made: dict[str, Any]) -> None:
    """`made` is of another one, of which sageattention_version would say what is not so."""
    assert (made["name"], made["version"]) == (wheels.NAME, wheels.VERSION)
    assert (made["sageattention_version"], made["expected_sageattention_version"]) == (None, None)
