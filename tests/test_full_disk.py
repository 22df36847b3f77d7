"""A disk that is full from some write on: one line says so, nothing is damaged, and with room again it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import trap, wheels
from tests.trap import FULL, Ended, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Where the user has a version of the package, with a script."""
    made = Stage(tmp_path, short_lived=True)
    wheels.pip(made.machine.python, "install", made.theirs)
    return made


def at_each_write(stage: Stage, points: int, everything: bool, *words: str) -> None:
    """Fills the disk at points spread over the task's writes, then runs it with room again."""
    stage.save()
    before = stage.machine.import_version()
    undisturbed = stage.run(*words, mode=FULL, at=1 << 30)
    assert undisturbed.code == 0, undisturbed.err
    state, mark = stage.state(), stage.machine.import_version()
    for at in trap.sample(undisturbed.count, points, everything):
        stage.reset()
        full = stage.run(*words, mode=FULL, at=at)
        told = f"full at {at}, {full.where}, code {full.code} after {full.out}\n{full.err}"
        assert full.where, told
        is_told(full)
        nothing_is_damaged(stage, before, mark)
        again = stage.run(*words)
        assert again.code == 0, told + again.out + again.err
        assert stage.state() == state, told + again.out + again.err


def is_told(full: Ended) -> None:
    """One line, with the place; a task may also do without what it could not write (a note in a lock file)."""
    lines = full.err.splitlines()
    assert not [line for line in lines if "Traceback" in line or "bug" in line]
    if full.code:
        assert full.code in (2, 7)
        assert "the disk is full" in lines[-1] and "/" in lines[-1]
        assert [line for line in lines[:-1] if " warning: " not in line] == []


def nothing_is_damaged(stage: Stage, *marks: str) -> None:
    """The target holds the one or the other version, whole; what lies elsewhere is whole too."""
    assert stage.machine.import_version() in marks
    for path in stage.folder.rglob("*.whl"):
        assert path.read_bytes() in (stage.built.read_bytes(), stage.theirs.read_bytes()) or "previous" in path.parts
    for path in stage.folder.rglob("*.json"):
        json.loads(path.read_text())
    assert stage.parts() == []


@pytest.mark.parametrize(("task", "points"), [("auto", 2), ("rollback", 1), ("install", 0), ("fetch", 0)])
def test_replacing_what_the_user_has(stage: Stage, everything: bool, task: str, points: int) -> None:
    """`auto` builds, keeps, uploads, installs, and writes down what smoke saw; the others have less to write."""
    if not points and not everything:
        pytest.skip("a part of what auto does: with --all")
    if task != "auto":
        stage.run("auto")
    if task in ("install", "fetch"):
        stage.run("rollback")
        shutil.rmtree(stage.folder / "wheelhouse")
    at_each_write(stage, points, everything, task)


def test_an_output_that_takes_no_more(stage: Stage) -> None:
    """A log on a full disk: a write there names no file."""
    with Path("/dev/full").open("w") as full, stage.start("clean", out=full) as process:
        _, err = process.communicate(timeout=60)
    places = ", ".join(str(stage.folder / name) for name in ("work", "wheelhouse", "logs"))
    line = f"the output, a temporary file, or one below {places} cannot be written: the disk is full. Free some space"
    assert (process.returncode, err) == (2, f"{line} and try again.\n")
