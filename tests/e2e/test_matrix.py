"""A matrix for real: two interpreters, torch from the package index, a compile for each, one store."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sagewheels import config, environments, installer, proc
from sagewheels.resources import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.index]

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


@dataclass(frozen=True)
class Place:
    """Where the matrix runs, for which Pythons, and what the first run said."""

    folder: Path
    env: dict[str, str]
    other: str
    first: subprocess.CompletedProcess[str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _matrix(self.folder, self.env, *arguments)


def _matrix(folder: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sagewheels", "matrix", "--torch", "2.11", "--arch", "12.0", *arguments]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=1500)


def _another(folder: Path) -> str:
    """A second Python that uv gives here; without one, the test is skipped."""
    settings = config.load(cwd=folder)
    uv = installer.uv_program(settings)
    assert uv
    for python in ("3.10", "3.11", "3.12", "3.13"):
        env = {**settings.environ, "PATH": environments._path(settings, python)}
        argv: list[str | Path] = [
            uv,
            "venv",
            "--quiet",
            "--offline",
            "--no-project",
            "--python",
            python,
            folder / python,
        ]
        if python != OWN and proc.run(argv, env=env).code == 0:
            return python
    pytest.skip("needs a second Python")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("matrix")
    other = _another(tmp_path_factory.mktemp("pythons"))
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path_factory.mktemp("home")),
        "TORCH_CHANNEL": "pypi",
        "SAGE_MANIFEST": "demo",
        "SAGE_STORE": str(folder / "store"),
    }
    # A Python that nobody has stands in the middle.
    return Place(folder, env, other, _matrix(folder, env, "--python", f"{OWN},3.99,{other}"))


def _rows(text: str) -> dict[str, str]:
    """Python -> what the coverage table says."""
    found = re.findall(r"^\| (3\.\d+) +\| 2\.11 +\| (.+?) +\|$", text, re.M)
    return dict(found)


def test_the_rest_goes_on_after_a_failure(place: Place) -> None:
    said = place.first
    assert said.returncode == 2, f"{said.stdout[-3000:]}\n{said.stderr[-3000:]}"
    assert said.stderr.splitlines()[-1].startswith("1 of 3 cells failed, the first: uv gives no Python 3.99: ")
    rows = _rows(said.stdout)
    assert re.fullmatch(r"built \d+:\d\d", rows[OWN]) and re.fullmatch(r"built \d+:\d\d", rows[place.other])
    assert rows["3.99"].startswith("failed: uv gives no Python 3.99: ")
    tags = {path.name.split("-")[2] for path in (place.folder / "store").glob("*.whl")}
    assert tags == {f"cp{python.replace('.', '')}" for python in (OWN, place.other)}


def test_the_second_python_takes_the_cuda_objects_of_the_first(place: Place) -> None:
    """They know nothing of Python: only the two bindings are compiled once more."""
    said = [line for line in place.first.stdout.splitlines() if "compiled before" in line]
    assert said == ["[build] 2 of 4 objects were compiled before"]


def test_a_second_machine_builds_nothing(place: Place) -> None:
    env = {**place.env, "WORK_DIR": str(place.folder / "second"), "WHEELHOUSE_DIR": str(place.folder / "empty")}
    said = _matrix(place.folder, env, "--python", f"{OWN},{place.other}")
    assert (said.returncode, said.stderr) == (0, "")
    assert _rows(said.stdout) == {OWN: "store", place.other: "store"}
    assert not (place.folder / "second" / "matrix").exists()


def test_the_document_holds_what_is_missing(place: Place) -> None:
    said = place.run("--python", f"{OWN},3.99", "--json")
    assert (said.returncode, said.stderr) == (0, "")
    assert json.loads(said.stdout) == {"include": [{"python": "3.99", "torch": "2.11", "arch": "12.0"}]}
