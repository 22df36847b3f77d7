"""A run that is killed at any point: the next one ends where an undisturbed one does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import trap, wheels
from tests.trap import KILL_ALL, KILL_FIRST, Stage

SIGKILL = -9


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Where the user has a version of the package, with a script."""
    made = Stage(tmp_path)
    wheels.pip(made.machine.python, "install", made.theirs)
    return made


def after_each_kill(stage: Stage, points: int, everything: bool, *words: str) -> None:
    """Kills the task at points spread over its life, and lets it run again."""
    stage.save()
    undisturbed = stage.run(*words)
    assert undisturbed.code == 0, undisturbed.err
    state, mark = stage.state(), stage.machine.import_version()
    for at in trap.sample(undisturbed.count, points, everything):
        stage.reset()
        killed = stage.run(*words, mode=KILL_FIRST if at % 2 else KILL_ALL, at=at)
        again = stage.run(*words)
        told = f"killed at {at}, {killed.where}, after {killed.out}\n{again.out}{again.err}"
        assert (killed.code, again.code) == (SIGKILL, 0), told
        assert stage.machine.import_version() == mark, told
        assert stage.state() == state, told
        assert stage.parts() == [], told


def test_auto(stage: Stage, everything: bool) -> None:
    """With the compile, whose wheel is there at once here, the upload, and another version to replace."""
    after_each_kill(stage, 3, everything, "auto")


def test_install(stage: Stage, everything: bool) -> None:
    if not everything:
        pytest.skip("a part of what auto does: with --all")
    stage.run("auto")
    stage.run("rollback")
    shutil.rmtree(stage.folder / "wheelhouse")
    after_each_kill(stage, 1, everything, "install")


def test_rollback(stage: Stage, everything: bool) -> None:
    stage.run("auto")
    after_each_kill(stage, 2, everything, "rollback")
    assert stage.machine.import_version() == "theirs"
