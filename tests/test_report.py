"""`--json`: stdout is one object that the schema describes, whatever happens, and stderr has what people read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sagewheels import steps
from sagewheels.resources import ROOT
from tests import wheels
from tests.test_auto import GOOD, publish
from tests.wheels import RTX, Machine

SCHEMA = json.loads((ROOT / "manifests" / "report.schema.json").read_text())
HEAD = {"exit_code", "error", "seconds"}
TASK = """
import sys
import pytest
from tests import wheels
from sagewheels.cli import main

patch = pytest.MonkeyPatch()
wheels.without_cuobjdump(patch)
wheels.with_gpu_answers(patch)
sys.argv[0] = "sagewheels"
main()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    wheels.without_cuobjdump(monkeypatch)
    wheels.with_gpu_answers(monkeypatch)
    return wheels.machine(tmp_path, gpu=RTX)


def told(machine: Machine, *words: str, code: int = 0, **env: str) -> tuple[dict[str, Any], str]:
    """The object on stdout of a task as a process, which the schema describes, and what stderr had."""
    given = machine.settings
    settings = {
        "PYTHON_BIN": str(machine.python),
        "SAGE_MANIFEST": given.sage_manifest,
        "SAGE_STORE": given.sage_store,
        "TORCH_CUDA_ARCH_LIST": "12.0",
        "WORK_DIR": str(given.work_dir),
        "WHEELHOUSE_DIR": str(given.wheelhouse_dir),
        "LOG_DIR": str(given.log_dir),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", TASK, *words],
        env={**os.environ, **given.environ, **settings, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    valid(report)
    assert report["exit_code"] == code
    return report, done.stderr


def valid(report: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    assert set(report) <= set(SCHEMA["properties"]), "each key is described"


def test_the_schema_is_one_and_describes_each_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert all(5 < len(value["description"]) <= 140 for value in SCHEMA["properties"].values())
    for wrong in ({}, {"exit_code": 0, "error": None}, {"exit_code": 8, "error": None, "seconds": 1}):
        assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(wrong)


def test_install_says_all_of_what_is_there(here: Machine) -> None:
    publish(here)
    report, said = told(here, "install", "--json")
    assert [(step["name"], step["outcome"]) for step in report["steps"]] == [
        (name, "done") for name in ("stack", "fetch", "verify", "install", "smoke")
    ]
    assert (report["wheel"]["file"], report["changed"], report["passed"]) == (GOOD, True, True)
    assert report["origin"] == {"kind": "store", "where": here.settings.sage_store}
    assert report["target"]["python"] == str(here.python)
    assert [proof["gpu"] for proof in report["proof"]] == ["NVIDIA GeForce RTX 5090"]
    assert [(gpu["cases"], gpu["wrong_cases"], gpu["verdict"]) for gpu in report["gpus"]] == [(2, 0, "right")]
    assert f"[fetch] {GOOD} fits" in said and "[done] proof: NVIDIA GeForce RTX 5090 (arch 12.0): 2 cases" in said
    # The second one changes nothing, and knows the same of what is there.
    again, said = told(here, "auto", "--json")
    assert (again["changed"], again["steps"]) == (False, [])
    for key in ("wheel", "proof", "package"):
        assert again[key] == report[key], key
    assert said.startswith("[auto] nothing to do: ") and len(said.splitlines()) == 1
    report, _ = told(here, "smoke", "--json")
    assert report["gpus"][0]["worst_cosine"] == 0.9999 and report["standing"].startswith("proven on ")
    planned, said = told(here, "smoke", "--json", "--dry-run")
    assert planned["steps"][0]["outcome"] == "planned" and "would run" in said


def test_fetch_and_list_have_every_verdict(here: Machine) -> None:
    other = publish(here, "+cu130torch2.12sm120", torch_version="2.12.0+cu130")
    report, said = told(here, "fetch", "--json", code=3)
    assert report["error"]["what"] == f"{here.settings.sage_store} holds no wheel for this machine"
    assert said.splitlines()[-1] == f"{report['error']['what']}. {report['error']['remedy']}."
    why = ["it was built for torch 2.12.0, the target has 2.11.0"]
    assert [(one["file"], one["fits"], one["reasons"]) for one in report["wheels"]] == [(other, False, why)]
    assert [step["outcome"] for step in report["steps"]] == ["missed"]
    publish(here)
    planned, _ = told(here, "fetch", "--json", "--dry-run")
    assert [(step["name"], step["outcome"]) for step in planned["steps"]] == [("fetch", "planned")]
    assert "wheel" not in planned
    listed, said = told(here, "list", "--json")
    assert [one["fits"] for one in listed["wheels"]] == [True, False]
    assert listed["store"] == {"label": here.settings.sage_store, "exists": True}
    assert f"| {GOOD}" in said
    fetched, _ = told(here, "fetch", "--json")
    assert fetched["wheel"]["path"] == str(here.settings.wheelhouse_dir / GOOD)


def test_what_goes_wrong_is_in_the_object_too(here: Machine) -> None:
    """A damaged wheel, kernels that are wrong, a store that cannot be read."""
    publish(here, files=None, python="cosine = 0.5\n")
    report, said = told(here, "install", "--json", code=6)
    assert (report["passed"], report["changed"]) == (False, True)
    assert report["failures"][0] in said and report["gpus"][0]["wrong_cases"] == 2
    assert (report["steps"][-1]["name"], report["steps"][-1]["outcome"]) == ("smoke", "failed")
    assert "[done]" not in said
    other = wheels.make(here.folder / "dist", version=f"{wheels.VERSION}+cu130torch2.11sm120.kother")
    steps.do_upload(here.job(), (other, wheels.describe(other)))
    wheel = Path(here.settings.sage_store) / other.name
    wheel.write_bytes(bytes(wheel.stat().st_size))
    report, said = told(here, "fetch", "--json", code=4)
    assert said.splitlines()[-1].startswith(report["error"]["what"])
    report, said = told(here, "fetch", "--json", code=7, SAGE_STORE=str(wheel))
    assert said.splitlines()[-1].startswith(report["error"]["what"])


def test_doctor_has_each_check(tmp_path: Path) -> None:
    # Without a torch no compiler is tried, which takes seconds.
    report, said = told(wheels.machine(tmp_path / "bare", gpu=RTX, torch=False), "doctor", "--json")
    assert {check["what"] for check in report["checks"]} >= {"GPU", "driver", "target", "stack", "store"}
    assert all(set(check) == {"what", "standing", "found", "remedy"} for check in report["checks"])
    assert "| check" in said
