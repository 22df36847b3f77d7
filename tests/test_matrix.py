"""The matrix: what is asked for, what covers it, in which order the rest is built, and what a failure costs."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import arch, cells, environments, matrix, proc, recipe, stack, steps, target, wheelhouse
from sagewheels.cells import Cell, Step
from sagewheels.config import Settings
from sagewheels.errors import BuildFailed, SageError, StoreError, UsageError
from sagewheels.job import Job
from sagewheels.manifest import WheelManifest, parse
from sagewheels.match import Wanted
from sagewheels.stack import Need
from sagewheels.store import index
from sagewheels.store.directory import DirectoryStore
from sagewheels.wheelhouse import Made
from tests import wheels
from tests.wheels import NAME, VERSION, Machine

SAGE, STABLE, SPARGE = "sageattention-2.2.0", "sageattention-2.2.0-abi3", "spargeattn-0.1.0"
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
OWN_TAG = f"cp{OWN.replace('.', '')}"


def cell(python: str = "3.12", torch: str = "2.11", archs: str = "12.0") -> Cell:
    return Cell(python=python, torch=torch, archs=arch.parse_list(archs))


def facts(of: Cell, *, cuda: str = "13", name: str = "sageattention", version: str = "2.2.0") -> Wanted:
    tags = frozenset(target.tags_of(of.version, free_threaded=of.python.endswith("t")))
    return Wanted(name=name, version=version, tags=tags, torch=of.torch, cuda=cuda, archs=of.archs, glibc="2.39")


def wheel(tag: str = "cp312-cp312", **changed: Any) -> WheelManifest:
    """A manifest that covers `cell()`, apart from what is changed."""
    file = f"sageattention-2.2.0+cu130torch2.11sm120-{tag}-linux_{platform.machine()}.whl"
    data = {
        "wheel_file": file,
        "wheel_sha256": "ab" * 32,
        "torch_version": "2.11.0+cu130",
        "cuda_version": "13.0",
        "archs": ["12.0"],
        "created_at_utc": "2026-01-01T00:00:00Z",
    }
    return parse({**data, **changed}, "test")


def planned(
    asked: list[Cell],
    *,
    stored: list[WheelManifest] | None = None,
    kept: list[WheelManifest] | None = None,
    by: str = SAGE,
    cuda: Callable[[Cell], str] = lambda of: "13",
) -> list[Step]:
    wanted = {one: facts(one, cuda=cuda(one)) for one in asked}
    return cells.plan(wanted, recipe.load(by), stored or [], kept or [])


# What was asked for


def test_every_combination_torch_by_torch_and_arch_by_arch() -> None:
    asked = cells.parse("3.10,3.12", "2.11, 2.15", "8.9,12.0")
    assert [(one.torch, one.arch, one.python) for one in asked] == [
        ("2.11", "8.9", "3.10"),
        ("2.11", "8.9", "3.12"),
        ("2.11", "12.0", "3.10"),
        ("2.11", "12.0", "3.12"),
        ("2.15", "8.9", "3.10"),
        ("2.15", "8.9", "3.12"),
        ("2.15", "12.0", "3.10"),
        ("2.15", "12.0", "3.12"),
    ]


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("8.9,12.0", ["8.9", "12.0"]),
        ("8.9;12.0", ["8.9;12.0"]),
        ("12.0 8.9", ["8.9;12.0"]),
        ("sm_90a, 12.0+PTX", ["9.0", "12.0+PTX"]),
        ("12.0,8.9;12.0", ["12.0", "8.9;12.0"]),
    ],
)
def test_a_comma_parts_wheels_a_semicolon_parts_the_archs_of_one(text: str, archs: list[str]) -> None:
    assert [one.arch for one in cells.parse("3.12", "2.11", text)] == archs


@pytest.mark.parametrize(
    ("pythons", "torches", "archs", "line"),
    [
        ("", "2.11", "12.0", "--python is missing. Write it like --python 3.10,3.12."),
        ("3.12", " ", "12.0", "--torch is missing. Write it like --torch 2.11,2.15."),
        ("3.12", "2.11", "", "--arch is missing. Write it like --arch 8.9,12.0."),
        ("3.12,", "2.11", "12.0", "--python '3.12,' has an empty place. Write it like --python 3.10,3.12."),
        ("3", "2.11", "12.0", "--python '3' is not a Python from 3.9 on. Write it like 3.12, several as 3.10,3.12."),
        (
            "3.8",
            "2.11",
            "12.0",
            "--python '3.8' is not a Python from 3.9 on. Write it like 3.12, several as 3.10,3.12.",
        ),
        (
            "3.12.1",
            "2.11",
            "12.0",
            "--python '3.12.1' is not a Python from 3.9 on. Write it like 3.12, several as 3.10,3.12.",
        ),
        (
            "3.12",
            "latest",
            "12.0",
            "--torch 'latest' is not a torch release. Write it like 2.11 or 2.11.0, several as 2.11,2.15.",
        ),
        (
            "3.12",
            ">=2.11",
            "12.0",
            "--torch '>=2.11' is not a torch release. Write it like 2.11 or 2.11.0, several as 2.11,2.15.",
        ),
        ("3.12", "2.11", "blue", "'blue' is not a compute capability. Write it as 12.0, 120 or sm_120."),
        ("3.10,3.10", "2.11", "12.0", "--python names 3.10 twice. Name each once."),
        ("3.10", "2.11,2.11", "12.0", "--torch names 2.11 twice. Name each once."),
        ("3.10", "2.11", "12.0,sm_120", "--arch names 12.0 twice. Name each once."),
        ("3.10", "2.11", "8.9;12.0,12.0;8.9", "--arch names 8.9;12.0 twice. Name each once."),
    ],
)
def test_what_cannot_be_meant(pythons: str, torches: str, archs: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        cells.parse(pythons, torches, archs)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("torch", "pin"), [("2.11", "2.11.*"), ("2.11.0", "2.11.0"), ("2.15.0.dev20261101", "2.15.0.dev20261101")]
)
def test_the_pin_of_a_release(torch: str, pin: str) -> None:
    assert cell(torch=torch).pin == pin
    assert cells.parse("3.13t", torch, "12.0") == [cell("3.13t", torch)]


# What covers it


@pytest.mark.parametrize(
    ("candidate", "covered"),
    [
        (wheel(), True),
        (wheel(torch_version="2.11.3+cu130"), True),
        (wheel(torch_version="2.12.0+cu130"), False),
        (wheel(torch_version="nonsense"), False),
        (wheel(torch_version=None), False),
        (wheel("cp310-cp310"), False),
        (wheel(archs=["8.9"]), False),
        (wheel(glibc="2.40"), False),
        (wheel(wheel_sha256=None), False),
        (wheel(cuda_version="12.8"), False),
        (wheel(cuda_version="13.2"), True),
        (wheel("cp310-abi3", stable_abi={"torch": "2.10"}, torch_version="2.10.0"), True),
        (wheel("cp310-abi3", stable_abi={"torch": "2.12"}, torch_version="2.12.0"), False),
    ],
)
def test_covered_by(candidate: WheelManifest, covered: bool) -> None:
    assert cells.covers(candidate, cell(), facts(cell())) is covered


def test_any_cuda_will_do_where_nobody_knows_which_there_will_be() -> None:
    of = cell()
    assert cells.covers(wheel(cuda_version="12.8"), of, facts(of, cuda=""))
    silent = wheel(wheel_file=f"sageattention-2.2.0-cp312-cp312-linux_{platform.machine()}.whl", cuda_version=None)
    assert not cells.covers(silent.updated(torch_version="2.11.0"), of, facts(of, cuda=""))


def test_an_exact_release_takes_no_other() -> None:
    of = cell(torch="2.11.0")
    assert cells.covers(wheel(), of, facts(of))
    assert not cells.covers(wheel(torch_version="2.11.1+cu130"), of, facts(of))


def test_free_threaded_is_another_python() -> None:
    of = cell("3.13t")
    assert cells.covers(wheel("cp313-cp313t"), of, facts(of))
    assert not cells.covers(wheel("cp313-cp313"), of, facts(of))


NEED = Need(archs=arch.parse_list("12.0"), driver_cuda="", min_torch="")


@pytest.mark.parametrize(
    ("torch", "settings", "cuda"),
    [
        ("2.10", {"torch_channel": "pypi"}, "12"),
        ("2.11", {"torch_channel": "pypi"}, "13"),
        ("2.11.0.dev20260101", {"torch_channel": "pypi"}, "13"),
        ("2.9", {"torch_channel": "stable"}, "12.8"),
        ("2.9", {"torch_channel": "stable", "cuda_index_variant": "cu126"}, "12.8"),
        ("2.9", {"torch_channel": "nightly", "cuda_index_variant": "cu130"}, "13.0"),
        ("2.9", {"torch_index_url": "https://mirror.invalid/whl/cu129"}, "12.9"),
        ("2.9", {"torch_index_url": "https://mirror.invalid/simple"}, ""),
    ],
)
def test_the_cuda_to_expect(torch: str, settings: dict[str, str], cuda: str) -> None:
    assert stack.cuda_expected(torch, NEED, replace(Settings(), **settings)) == cuda  # type: ignore[arg-type]


# The order


def test_what_is_there_comes_first_then_what_shares_its_objects_in_a_row() -> None:
    asked = cells.parse("3.10,3.12", "2.11,2.12", "8.9,12.0")
    found = planned(asked, stored=[wheel()], kept=[wheel("cp310-cp310", torch_version="2.12.1+cu130"), wheel()])
    assert [(step.state, str(step.cell)) for step in found] == [
        ("store", "Python 3.12, torch 2.11, arch 12.0"),
        ("wheelhouse", "Python 3.10, torch 2.12, arch 12.0"),
        ("build", "Python 3.10, torch 2.11, arch 8.9"),
        ("build", "Python 3.12, torch 2.11, arch 8.9"),
        ("build", "Python 3.10, torch 2.11, arch 12.0"),
        ("build", "Python 3.10, torch 2.12, arch 8.9"),
        ("build", "Python 3.12, torch 2.12, arch 8.9"),
        ("build", "Python 3.12, torch 2.12, arch 12.0"),
    ]
    assert found[0].wheel == wheel().wheel_file


def test_a_proven_wheel_is_the_one_that_is_named() -> None:
    proof = {"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z"}
    newer = wheel(wheel_file="sageattention-2.2.0-cp312-cp312-linux_x86_64.whl", created_at_utc="2026-03-01T00:00:00Z")
    assert planned([cell()], stored=[wheel(), newer])[0].wheel == newer.wheel_file
    assert planned([cell()], stored=[wheel(proofs=[proof]), newer])[0].wheel == wheel().wheel_file


def test_a_wheel_of_both_archs_covers_the_cell_of_each() -> None:
    both = wheel(archs=["8.9", "12.0"])
    assert {step.state for step in planned(cells.parse("3.12", "2.11", "8.9,12.0,8.9;12.0"), stored=[both])} == {
        "store"
    }
    assert planned([cell(archs="8.9;12.0")], stored=[wheel()])[0].state == "build"


def test_one_build_on_the_stable_abis_serves_every_python_and_torch_of_a_cuda_major() -> None:
    asked = cells.parse("3.10,3.12,3.13t", "2.10,2.11,2.12", "8.9,12.0")
    found = planned(asked, by=STABLE, cuda=lambda of: "12.8" if of.torch == "2.10" else "13.0")
    built = [str(step.cell) for step in found if step.state == "build" and "t" not in step.cell.python]
    assert built == [
        "Python 3.10, torch 2.10, arch 8.9",
        "Python 3.10, torch 2.10, arch 12.0",
        "Python 3.10, torch 2.11, arch 8.9",
        "Python 3.10, torch 2.11, arch 12.0",
    ]
    by_cell = {step.cell: step for step in found}
    assert by_cell[cell("3.12", "2.12", "8.9")].of == cell("3.10", "2.11", "8.9")
    assert by_cell[cell("3.12", "2.10", "8.9")].of == cell("3.10", "2.10", "8.9")
    assert by_cell[cell("3.13t", "2.11")].state == "build"


def test_archs_with_the_same_cubin_share_a_wheel_of_one_python() -> None:
    found = planned(cells.parse("3.10,3.12", "2.11", "12.0,12.1"))
    assert [(step.state, step.cell.python, step.cell.arch) for step in found] == [
        ("build", "3.10", "12.0"),
        ("build", "3.12", "12.0"),
        ("shared", "3.10", "12.1"),
        ("shared", "3.12", "12.1"),
    ]


@pytest.mark.parametrize(
    ("asked", "by", "start"),
    [
        (cell(archs="7.5"), SAGE, "sageattention 2.2.0 has no kernels for 7.5. It knows 8.0, "),
        (cell(archs="9.0;12.0"), SPARGE, "spas-sage-attn 0.1.0 for 9.0 cannot be built together with another arch. "),
        (
            cell(torch="2.9"),
            STABLE,
            "torch 2.9 is older than 2.10, the oldest for sageattention-2.2.0-abi3. Leave it out of --torch.",
        ),
    ],
)
def test_what_the_source_cannot_build_is_refused_before_anything_is_made(asked: Cell, by: str, start: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned([cell(), asked], by=by)
    assert str(caught.value).startswith(start)


def test_why_a_wheel_that_is_there_will_not_do() -> None:
    (step,) = planned([cell()], stored=[wheel(glibc="2.40"), wheel("cp310-cp310"), wheel(archs=["8.0"])])
    assert (step.state, step.wheel) == ("build", wheel().wheel_file)
    assert step.why == "it needs glibc 2.40, this machine has 2.39"
    assert planned([cell()], stored=[wheel("cp310-cp310")])[0].why == ""


# What comes out


def test_the_document_is_a_matrix_of_github() -> None:
    asked = cells.parse("3.10,3.12", "2.11", "8.9;12.0,12.0")
    text = cells.document(planned(asked, stored=[wheel()]))
    # Any key but include and exclude would be a dimension, and 3.10 as a number is 3.1.
    assert json.loads(text) == {
        "include": [
            {"python": "3.10", "torch": "2.11", "arch": "8.9;12.0"},
            {"python": "3.12", "torch": "2.11", "arch": "8.9;12.0"},
            {"python": "3.10", "torch": "2.11", "arch": "12.0"},
        ]
    }
    assert "\n" not in text
    assert cells.document(planned([cell()], stored=[wheel()])) == '{"include": []}'


def test_the_document_names_a_shared_wheel_once() -> None:
    text = cells.document(planned(cells.parse("3.10,3.12", "2.11,2.12", "12.0"), by=STABLE))
    assert json.loads(text) == {"include": [{"python": "3.10", "torch": "2.11", "arch": "12.0"}]}


def test_the_table() -> None:
    asked = cells.parse("3.12,3.9", "2.11,2.9", "12.0,8.9;12.0")
    words = {one: f"{one.python} {one.torch} {one.arch}" for one in asked}
    assert cells.rows(asked, words) == (
        ["Python", "torch", "12.0", "8.9;12.0"],
        [
            ["3.9", "2.9", "3.9 2.9 12.0", "3.9 2.9 8.9;12.0"],
            ["3.12", "2.9", "3.12 2.9 12.0", "3.12 2.9 8.9;12.0"],
            ["3.9", "2.11", "3.9 2.11 12.0", "3.9 2.11 8.9;12.0"],
            ["3.12", "2.11", "3.12 2.11 12.0", "3.12 2.11 8.9;12.0"],
        ],
    )


# The run: real environments, stores and wheelhouses; torch and the compiler are stood in for


class Works:
    """Stands in for the compiler: a wheel for the target of the job, or a failure for the archs that are broken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.broken, self.built = folder, dict[str, BaseException](), list[str]()
        self.stable = False

    def stack(self, job: Job) -> None:
        assert job.settings.torch_version == "2.11.*"
        assert job.target.prefix.is_relative_to(job.settings.work_dir / "matrix")
        if job.target.torch is None:
            wheels.put_torch(job.target.python)
            job.target = None

    def build(self, job: Job, *, force: bool = False) -> Made:
        assert not force and job.target.torch is not None
        archs = job.settings.torch_cuda_arch_list
        self.built.append(f"{job.target.python_tag} {archs}")
        if archs in self.broken:
            raise self.broken[archs]
        python = "cp39-abi3" if self.stable else f"{job.target.python_tag}-{job.target.python_tag}"
        label = f"+cu130torch2.11{''.join(f'sm{one.number}' for one in job.archs)}"
        path = wheels.make(
            self.folder / "dist",
            wheels.content(_fused=wheels.extension(archs=archs)),
            version=VERSION + label,
            tag=f"{python}-linux_{platform.machine()}",
        )
        listed = archs.split(";")
        made = wheels.describe(path, archs=listed, target_arch=archs, extensions={"_fused": listed})
        return wheelhouse.keep(job.settings, path, made), made


@pytest.fixture
def works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Works:
    wheels.without_cuobjdump(monkeypatch)
    made = Works(tmp_path)
    monkeypatch.setattr(steps, "do_stack", made.stack)
    monkeypatch.setattr(steps, "do_build", made.build)
    return made


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose own target nobody touches."""
    found = wheels.machine(tmp_path, torch_channel="pypi")
    before = wheels.tree(tmp_path / "env")
    yield found
    assert wheels.tree(tmp_path / "env") == before


def table(text: str) -> list[list[str]]:
    """The rows of the coverage table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines[2:]]


def go(machine: Machine, archs: str, *, pythons: str = OWN, **changes: Any) -> None:
    matrix.matrix(machine.job(torch_cuda_arch_list=archs, **changes), pythons, "2.11")


def file(archs: str, tag: str = f"{OWN_TAG}-{OWN_TAG}") -> str:
    label = "".join(f"sm{one.number}" for one in arch.parse_list(archs))
    return f"{NAME}-{VERSION}+cu130torch2.11{label}-{tag}-linux_{platform.machine()}.whl"


def names(store: Path) -> list[str]:
    return sorted(path.name for path in store.glob("*.whl"))


def test_builds_and_publishes_what_is_missing_and_then_nothing(
    here: Machine, works: Works, capsys: pytest.CaptureFixture[str]
) -> None:
    store = here.folder / "store"
    go(here, "8.9,12.0")
    first = capsys.readouterr()
    assert first.err == ""
    assert first.out.splitlines()[:3] == [
        f"[matrix] 2 cells: 0 in {store}, which does not exist yet, 0 in the wheelhouse, "
        "2 wheels to build in 1 environment",
        f"[matrix] Python {OWN}, torch 2.11, arch 8.9: to be built",
        f"[matrix] Python {OWN}, torch 2.11, arch 12.0: to be built",
    ]
    (row,) = table(first.out)
    assert row[:2] == [OWN, "2.11"] and all(word.startswith("built 0:0") for word in row[2:])
    assert first.out.count("[matrix] making ") == 1
    assert works.built == [f"{OWN_TAG} 8.9", f"{OWN_TAG} 12.0"]
    assert names(store) == sorted([file("8.9"), file("12.0")])

    go(here, "8.9,12.0", work_dir=here.folder / "another")
    second = capsys.readouterr()
    assert second.out.splitlines()[0] == (
        f"[matrix] 2 cells: 2 in {store}, 0 in the wheelhouse, 0 wheels to build in 0 environments"
    )
    assert table(second.out) == [[OWN, "2.11", "store", "store"]]
    assert len(works.built) == 2 and not (here.folder / "another").exists()


def test_a_failing_cell_costs_that_cell(here: Machine, works: Works, capsys: pytest.CaptureFixture[str]) -> None:
    works.broken["9.0"] = BuildFailed("the compile failed (exit code 1): x.cu(7): error: no", "The log is logs/b.log")
    with pytest.raises(UsageError, match=r"^4 of 6 cells failed, the first: uv gives no Python 3\.99: "):
        go(here, "8.9,9.0,12.0", pythons=f"{OWN},3.99")
    said = capsys.readouterr()
    rows = table(said.out)
    assert [row[:2] for row in rows] == [[OWN, "2.11"], ["3.99", "2.11"]]
    assert rows[0][2].startswith("built ") and rows[0][4].startswith("built ")
    assert rows[0][3] == "failed: the compile failed (exit code 1): x.cu(7): error: no"
    assert rows[1][2] == rows[1][3] == rows[1][4]
    assert rows[1][2].startswith("failed: uv gives no Python 3.99: No interpreter found for Python ")
    assert (
        f"[matrix] Python {OWN}, torch 2.11, arch 9.0: the compile failed (exit code 1): x.cu(7): error: no. "
        "The log is logs/b.log."
    ) in said.out.splitlines()
    # An environment that cannot be had is tried once.
    assert said.out.count("[matrix] making ") == 2
    assert names(here.folder / "store") == sorted([file("8.9"), file("12.0")])

    del works.broken["9.0"]
    go(here, "8.9,9.0,12.0")
    assert works.built[-1] == f"{OWN_TAG} 9.0" and len(works.built) == 4
    assert names(here.folder / "store") == sorted([file("8.9"), file("9.0"), file("12.0")])


@pytest.mark.parametrize("problem", [BuildFailed("no"), OSError(28, "No space left on device", "logs/b.log")])
def test_the_exit_code_is_that_of_the_first_failure(here: Machine, works: Works, problem: Exception) -> None:
    works.broken["8.9"] = problem
    with pytest.raises(SageError) as caught:
        go(here, "8.9,12.0", pythons=f"{OWN},3.99")
    assert caught.value.code == (5 if isinstance(problem, BuildFailed) else 1)
    what = "no" if isinstance(problem, BuildFailed) else "logs/b.log: No space left on device"
    assert str(caught.value) == f"3 of 4 cells failed, the first: {what}. Correct it, then run it again."


def test_a_reason_is_said_once(
    here: Machine, works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many cells it costs; and again only below the table, where there are others."""
    lack = StoreError("no stack could be installed (there is no version of torch==2.14.9)", "Check the pins")
    whole = "no stack could be installed (there is no version of torch==2.14.9). Check the pins."

    def missing(*_: Any) -> None:
        raise lack

    with monkeypatch.context() as patch:
        patch.setattr(environments, "ready", missing)
        with pytest.raises(StoreError) as caught:
            go(here, "8.9,12.0")
    said = capsys.readouterr()
    assert said.err == f"[matrix] warning: Python {OWN}, torch 2.11, arch 8.9: {whole}\n"
    assert whole not in said.out
    assert table(said.out)[0][2:] == ["failed: no stack could be installed (there is no version of ..."] * 2
    assert str(caught.value) == (f"2 of 2 cells failed, the first: {lack.what}. Correct it, then run it again.")

    works.broken["9.0"] = BuildFailed("no")
    with pytest.raises(UsageError):
        go(here, "8.9,9.0,12.0", pythons=f"{OWN},3.99")
    said = capsys.readouterr()
    (line,) = (text for text in said.out.splitlines() if text.startswith("[matrix] Python 3.99") and "uv gives" in text)
    assert line.startswith("[matrix] Python 3.99, torch 2.11, arch 8.9 and 2 more: uv gives no Python 3.99: ")
    assert f"[matrix] Python {OWN}, torch 2.11, arch 9.0: no." in said.out.splitlines()
    assert said.err.count("uv gives no Python") == 1


def test_what_is_done_stays_done_after_ctrl_c(here: Machine, works: Works, capsys: pytest.CaptureFixture[str]) -> None:
    works.broken["9.0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go(here, "8.9,9.0,12.0")
    (row,) = table(capsys.readouterr().out)
    assert row[2].startswith("built ") and row[3:] == ["planned", "planned"]
    del works.broken["9.0"]
    go(here, "8.9,9.0,12.0")
    said = capsys.readouterr().out
    (row,) = table(said)
    assert row[2] == "store" and all(word.startswith("built ") for word in row[3:])
    assert "[matrix] making " not in said, "a complete environment is used again"
    assert works.built == [f"{OWN_TAG} {archs}" for archs in ("8.9", "9.0", "9.0", "12.0")]


def test_a_store_that_cannot_be_written_keeps_nobody_from_building(
    here: Machine, works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryStore, "writable", False)
    go(here, "8.9")
    assert f"[upload] nothing was published: {here.folder / 'store'} can only be read" in capsys.readouterr().out
    go(here, "8.9")
    assert table(capsys.readouterr().out) == [[OWN, "2.11", "wheelhouse"]]
    monkeypatch.undo()
    wheels.without_cuobjdump(monkeypatch)
    go(here, "8.9")
    assert works.built == [f"{OWN_TAG} 8.9"], "the wheelhouse has it"
    assert table(capsys.readouterr().out) == [[OWN, "2.11", "published"]]
    assert names(here.folder / "store") == [file("8.9")]


def test_a_store_that_fails_does_not_make_a_wheel_unbuilt(
    here: Machine, works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> bool:
        raise StoreError("the disk of the store is full")

    monkeypatch.setattr(index, "publish", full)
    with pytest.raises(StoreError) as caught:
        go(here, "8.9,12.0")
    assert str(caught.value) == (
        "2 of 2 cells failed, the first: the disk of the store is full. Correct it, then run it again."
    )
    assert works.built == [f"{OWN_TAG} 8.9", f"{OWN_TAG} 12.0"]
    (row,) = table(capsys.readouterr().out)
    assert all(word.startswith("built ") and word.endswith(", not published") for word in row[2:])


def test_a_damaged_wheel_of_the_wheelhouse_is_built_again(here: Machine, works: Works) -> None:
    go(here, "8.9", sage_store=str(here.folder / "first"))
    (here.folder / "wheelhouse" / file("8.9")).write_bytes(b"damaged")
    go(here, "8.9")
    assert len(works.built) == 2


def test_a_wheel_on_the_stable_abis_is_built_once(
    here: Machine, works: Works, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Path(here.settings.sage_manifest)
    manifest.write_text(manifest.read_text().replace("[source]", '[stable_abi]\ntorch = "2.10"\n[source]'))
    works.stable = True
    made = works.build

    def build(job: Job, *, force: bool = False) -> Made:
        path, found = made(job, force=force)
        found = found.updated(stable_abi={"torch": "2.10"})
        wheelhouse.write_manifest(job.settings, found)
        return path, found

    monkeypatch.setattr(steps, "do_build", build)
    go(here, "12.0", pythons=f"{OWN},3.99")
    said = capsys.readouterr().out
    assert (
        f"[matrix] Python 3.99, torch 2.11, arch 12.0: the wheel of Python {OWN}, torch 2.11, arch 12.0 serves it"
        in (said.splitlines())
    )
    assert [row[2].split()[0] for row in table(said)] == ["built", "shared"]
    assert len(works.built) == 1, "and no environment was made for Python 3.99"


def test_a_half_made_environment_is_made_anew(here: Machine, works: Works) -> None:
    go(here, "8.9")
    (folder,) = (here.settings.work_dir / "matrix").iterdir()
    assert folder.name == f"{OWN_TAG}-torch2.11"
    (folder / "complete").unlink()
    (folder / "left-behind").touch()
    go(here, "12.0")
    assert (folder / "complete").exists() and not (folder / "left-behind").exists()


def test_an_environment_whose_python_was_removed_is_made_anew(here: Machine, works: Works) -> None:
    go(here, "8.9")
    (folder,) = (here.settings.work_dir / "matrix").iterdir()
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/nowhere/python")
    go(here, "12.0")
    assert (folder / "bin" / "python").exists()


def test_an_environment_of_another_channel_is_made_anew(here: Machine, works: Works) -> None:
    go(here, "8.9")
    (folder,) = (here.settings.work_dir / "matrix").iterdir()
    (folder / "left-behind").touch()
    go(here, "9.0")
    assert (folder / "left-behind").exists()
    go(here, "12.0", torch_channel="stable")
    assert not (folder / "left-behind").exists()


def test_the_cuda_of_an_environment_decides_when_it_is_there(here: Machine, works: Works) -> None:
    """An index may give another CUDA than was expected: then what the store has for that one is not built again."""
    go(here, "12.0")
    other = here.folder / "other"
    go(here, "12.0", torch_channel="stable", cuda_index_variant="cu128", work_dir=other)
    assert len(works.built) == 1, "CUDA 12.8 was expected, 13.0 came, and for that there is a wheel"


def test_a_dry_run_makes_nothing(here: Machine, works: Works, capsys: pytest.CaptureFixture[str]) -> None:
    before = wheels.tree(here.folder)
    matrix.matrix(here.job(dry_run=True, torch_cuda_arch_list="8.9,12.0"), f"{OWN},3.99", "2.11")
    assert table(capsys.readouterr().out) == [
        [OWN, "2.11", "planned", "planned"],
        ["3.99", "2.11", "planned", "planned"],
    ]
    assert wheels.tree(here.folder) == before


def test_json_and_nothing_else(here: Machine, works: Works, capsys: pytest.CaptureFixture[str]) -> None:
    go(here, "12.0")
    capsys.readouterr()
    matrix.matrix(here.job(torch_cuda_arch_list="8.9,12.0"), OWN, "2.11", as_json=True)
    assert capsys.readouterr() == (f'{{"include": [{{"python": "{OWN}", "torch": "2.11", "arch": "8.9"}}]}}\n', "")
    matrix.matrix(here.job(torch_cuda_arch_list="12.0"), OWN, "2.11", as_json=True)
    assert capsys.readouterr() == ('{"include": []}\n', "")
    nowhere = here.folder / "nowhere"
    matrix.matrix(here.job(torch_cuda_arch_list="12.0", sage_store=str(nowhere)), OWN, "2.11", as_json=True)
    said = capsys.readouterr()
    assert said.err == f"[matrix] warning: {nowhere} does not exist yet\n"
    assert json.loads(said.out)["include"], "the wheelhouse of this machine is nothing to the others"


def test_without_an_arch_it_is_that_of_the_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = wheels.machine(tmp_path, gpu=wheels.RTX, torch_channel="pypi")
    matrix.matrix(machine.job(dry_run=True, torch_cuda_arch_list=""), "3.12", "2.11")
    assert "Python 3.12, torch 2.11, arch 12.0: to be built" in capsys.readouterr().out


# Environments


def test_uv_looks_at_the_pythons_of_pyenv_instead_of_its_shims(tmp_path: Path) -> None:
    root = tmp_path / ".pyenv"
    for version in ("2.7.18", "3.1.0", "3.10.13", "3.10.9"):
        (root / "versions" / version / "bin").mkdir(parents=True)
    (root / "shims").mkdir()
    path = f"/usr/bin:{root / 'shims'}:/opt/shims:/bin"
    settings = Settings(environ={"PATH": path})
    pythons = f"{root}/versions/3.10.13/bin:{root}/versions/3.10.9/bin"
    assert environments._path(settings, "3.10") == f"/usr/bin:{pythons}:/opt/shims:/bin"
    assert environments._path(settings, "3.12") == "/usr/bin:/opt/shims:/bin"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "warning: something\nerror: Request failed\n  cause: Failed to download `a`\n  cause: dns error\n",
            "Request failed: dns error",
        ),
        ("error: Request failed\n  Caused by: one\n  Caused by: two\n", "Request failed: two"),
        ("error: No interpreter found for Python 3.99\n\nhint: update uv\n", "No interpreter found for Python 3.99"),
        ("panicked\n", "panicked"),
    ],
)
def test_uvs_own_line(text: str, said: str) -> None:
    assert environments._complaint(proc.Result(("uv",), 2, "", text)) == said


# The command


@pytest.mark.parametrize("more", [[], ["--json"], ["-j"], ["--dry-run"]])
def test_the_command(tmp_path: Path, more: list[str]) -> None:
    machine = wheels.machine(tmp_path, torch=False)
    env: Mapping[str, str] = {
        **machine.settings.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "SAGE_MANIFEST": machine.settings.sage_manifest,
        "SAGE_STORE": str(tmp_path / "store"),
        "PYTHON_BIN": str(machine.python),
    }
    argv = [sys.executable, "-m", "sagewheels", "matrix", "--python", "3.10,3", "--torch", "2.11", "--arch", "8.9,12.0"]
    done = proc.run([*argv, *more], env=env, cwd=tmp_path)
    line = "--python '3' is not a Python from 3.9 on. Write it like 3.12, several as 3.10,3.12."
    assert (done.code, done.out, done.err) == (2, "", f"{line}\n")
    if more:
        argv[5] = "3.10,3.12"
        done = proc.run([*argv, *more], env=env, cwd=tmp_path)
        assert done.code == 0, done.err
        if more != ["--dry-run"]:
            assert [list(one.values()) for one in json.loads(done.out)["include"]] == [
                ["3.10", "2.11", "8.9"],
                ["3.12", "2.11", "8.9"],
                ["3.10", "2.11", "12.0"],
                ["3.12", "2.11", "12.0"],
            ]
        assert not (tmp_path / ".build-sageattention").exists()
