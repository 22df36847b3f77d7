"""The demo, for real: an environment, torch, a compile, a store, and a second machine that need not compile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from sagewheels import recipe, wheel
from sagewheels.resources import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.index]

WHEEL = re.compile(r"sagedemo-0\.1\.0\+cu\d+torch[\d.]+sm[\dsm]+\.k[0-9a-f]{8}-cp\d+-cp\d+t?-manylinux_2_\d+_\w+\.whl")


@dataclass(frozen=True)
class Tour:
    """One run of the demo: where it ran and what it said."""

    folder: Path
    env: dict[str, str]
    done: subprocess.CompletedProcess[str]

    @property
    def root(self) -> Path:
        return self.folder / ".build-sageattention" / "demo"

    @property
    def wheel(self) -> Path:
        """The one wheel in its store."""
        (found,) = (self.root / "store").glob("*.whl")
        return found

    def part(self, machine: str) -> list[str]:
        """What was said from the line that begins so."""
        lines = self.done.stdout.splitlines()
        marks = [place for place, line in enumerate(lines) if line.startswith("[demo] ")] + [len(lines)]
        start = next(place for place in marks if lines[place].startswith(f"[demo] {machine}"))
        return lines[start : marks[marks.index(start) + 1]]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another task, as the second machine: its target, its wheelhouse, the demo's store."""
        return _sagewheels(self.folder, self.env, *arguments)


def _sagewheels(folder: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sagewheels", *arguments]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=1500)


def _killed_in_the_middle(folder: Path, env: dict[str, str]) -> None:
    """The same run before, which the machine took away when the first unit was compiled."""
    objects = folder / ".build-sageattention" / "demo" / "one" / "objects"
    argv = [sys.executable, "-m", "sagewheels", "demo"]
    one_at_a_time = {**env, "MAX_JOBS": "1"}
    with subprocess.Popen(argv, cwd=folder, env=one_at_a_time, stdout=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 900
        while not list(objects.rglob("*.json")):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail(f"nothing was compiled: {process.communicate()[0][-3000:]}")
            time.sleep(0.05)
        process.kill()
    assert not list(folder.rglob("sagedemo*.whl"))


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("tour")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path_factory.mktemp("home"))}
    _killed_in_the_middle(folder, env)
    done = _sagewheels(folder, env, "demo")
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    two = folder / ".build-sageattention" / "demo" / "two"
    as_second = {
        "SAGE_MANIFEST": "demo",
        "SAGE_STORE": str(two.parent / "store"),
        "PYTHON_BIN": str(two / "env" / "bin" / "python"),
        "WORK_DIR": str(two),
        "WHEELHOUSE_DIR": str(two / "wheelhouse"),
        "LOG_DIR": str(two / "logs"),
    }
    return Tour(folder, {**env, **as_second}, done)


def test_the_first_machine_builds_and_publishes(tour: Tour) -> None:
    assert tour.done.stderr == ""
    lines = tour.part("first machine")
    name = tour.wheel.name
    assert WHEEL.fullmatch(name)
    for expected in (
        r"\[demo\] first machine: the store .*/demo/store is empty, so the wheel is built and published",
        r"\[stack\] installed: torch \S+, triton \S+",
        r"\[fetch\] .*/demo/store holds no wheels at all: it does not exist yet",
        r"\[build\] nvcc V[\d.]+ from .+",
        r"\[build\] \d+ units for [\d.;]+, \d+ at once \(.*\), log .*/one/logs/build-demo-.*\.log",
        rf"\[build\] {re.escape(name)}, [\d.]+ [kM]B, in .+",
        rf"\[upload\] {re.escape(name)} is in .*/demo/store, a candidate until it is proven",
        rf"\[verify\] {re.escape(name)}: sha256, RECORD, tags, archs [\d., ]+, GLIBC_[\d.]+: as promised",
        rf"\[install\] {re.escape(name)} is installed in .*/one/env",
        rf"\[auto\] done in .+: {re.escape(name)} in .*/one/env",
    ):
        assert [line for line in lines if re.fullmatch(expected, line)], expected


def test_a_killed_build_goes_on_from_its_objects(tour: Tour) -> None:
    """And it leaves no compiler behind, which would hold its pipes open."""
    said = [line for line in tour.part("first machine") if "compiled before" in line]
    assert len(said) == 1 and re.fullmatch(r"\[build\] [1-3] of 4 objects were compiled before", said[0])


def test_the_second_machine_does_not_compile(tour: Tour) -> None:
    lines = tour.part("second machine: ")
    name = tour.wheel.name
    assert [line for line in lines if line.startswith(f"[fetch] {name} fits, ")]
    assert [line for line in lines if line.startswith(f"[install] {name} is installed in ")]
    assert [line for line in lines if line.startswith(("[build]", "[upload]"))] == []
    assert not list((tour.root / "two" / "logs").glob("build-*"))
    assert not (tour.root / "two" / "source").exists()
    assert (tour.root / "two" / "wheelhouse" / name).read_bytes() == tour.wheel.read_bytes()


def test_the_stack_of_the_second_machine_is_that_of_the_first(tour: Tour) -> None:
    installed = [line for line in tour.done.stdout.splitlines() if line.startswith("[stack] installed: ")]
    assert len(installed) == 2 and installed[0] == installed[1]


def test_the_third_run_finds_everything_in_place(tour: Tour) -> None:
    (_, line) = tour.part("the second machine again")
    assert line.startswith(f"[auto] nothing to do: {tour.wheel.name} is in ")
    assert tour.done.stdout.splitlines()[-1].startswith("[demo] done in ")


def test_smoke_computes_or_says_that_it_cannot(tour: Tour) -> None:
    said = [line for line in tour.done.stdout.splitlines() if line.startswith("[smoke] ")]
    loaded = "[smoke] loaded only: there is no GPU here, nothing was computed and nothing is proven"
    assert len([line for line in said if line == loaded or line.startswith("[smoke] proven on ")]) == 2
    proven = loaded not in said
    assert (tour.root / "store" / "latest.json").exists() == proven


def test_the_manifest_is_what_the_schema_says(tour: Tour) -> None:
    schema = json.loads((ROOT / "manifests" / "wheel.schema.json").read_text())
    listed = json.loads((tour.root / "store" / "index.json").read_text())["wheels"]
    beside = json.loads(tour.wheel.with_name(f"{tour.wheel.name}.json").read_text())
    here = json.loads((tour.root / "two" / "wheelhouse" / f"{tour.wheel.name}.json").read_text())
    for data in (*listed, beside, here):
        jsonschema.Draft202012Validator(schema).validate(data)
    assert listed == [beside]
    assert (beside["wheel_sha256"], beside["size"]) == wheel.file_hash(tour.wheel)
    assert set(beside["extensions"]) == {"_attn", "_fused"}
    assert beside["built_from_commit"].startswith("sha256:")
    assert str(tour.folder) not in json.dumps(beside), "a published manifest names no folder of this machine"


def test_the_wheel_holds_what_its_manifest_says(tour: Tour) -> None:
    found = wheel.inspect(tour.wheel, "sagedemo")
    data = json.loads(tour.wheel.with_name(f"{tour.wheel.name}.json").read_text())
    assert {name: [str(one) for one in item.archs] for name, item in found.extensions.items()} == data["extensions"]
    assert [str(one) for one in recipe.load("demo").archs_of(found.held)] == data["archs"]
    assert found.glibc == data["glibc"]
    assert str(tour.folder).encode() not in tour.wheel.read_bytes()


def test_list(tour: Tour) -> None:
    done = tour.run("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"[list] 1 wheel in {tour.root / 'store'}"
    (row,) = [line for line in done.stdout.splitlines() if tour.wheel.name in line]
    assert [cell.strip() for cell in row.strip("|").split("|")][-1] == "fits"


def test_doctor(tour: Tour) -> None:
    done = tour.run("doctor")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"^\[doctor\] \d+ checks, none is bad$", done.stdout, re.M)
    assert re.search(r"\| ok +\| stack +\| torch [\d.]+\+cu\d+, CUDA \d+\.\d+, triton [\d.]+ ", done.stdout)
    assert re.search(r"\| ok +\| sagedemo +\| 0\.1\.0\+cu\S+ is installed, installed by sagewheels ", done.stdout)
    assert f"{tour.root / 'store'}: 1 wheel, 1 for this machine" in done.stdout


def test_a_dry_run_changes_nothing(tour: Tour) -> None:
    before = _small_tree(tour.root)
    done = tour.run("auto", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"[auto] nothing to do: {tour.wheel.name} is in ")
    assert _small_tree(tour.root) == before


def _small_tree(root: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files but those of the environments, which are too many to read."""
    paths = [path for path in root.rglob("*") if "env" not in path.relative_to(root).parts]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths if path.is_file()}


def test_clean_at_last(tour: Tour) -> None:
    """Runs after the others: what can be made again goes, the demo with it."""
    env = {key: value for key, value in tour.env.items() if key not in ("WORK_DIR", "WHEELHOUSE_DIR", "LOG_DIR")}
    dry = _sagewheels(tour.folder, env, "clean", "--dry-run")
    assert re.fullmatch(
        rf"\[clean\] would remove {re.escape(str(tour.root))} \([\d.]+ [MG]B\)", dry.stdout.splitlines()[0]
    )
    assert tour.root.exists()
    done = _sagewheels(tour.folder, env, "clean")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\[clean\] [\d.]+ [MG]B freed", done.stdout.splitlines()[-1])
    assert not tour.root.exists()
