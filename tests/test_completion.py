"""Completion in the shells that the README names, by the lines that it shows: what Tab would offer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BASH = "source <(sagewheels --print-completion-script bash)"
ASK = """
COMP_WORDS=($1) COMP_CWORD=$2
_complete_sagewheels sagewheels "$3"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with the command, whatever environment the tests run in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "sagewheels"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sagewheels "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def offered(path: str, words: str, current: str) -> list[str]:
    """What bash offers behind `words`, where `current` has been typed of the next one."""
    script = f"{BASH}\n{ASK}"
    count = str(len(words.split()))
    argv = ["bash", "--norc", "-c", script, "bash", f"{words} {current}", count, current]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_tasks_and_flags(path: str) -> None:
    assert offered(path, "sagewheels", "do") == ["doctor"]
    assert offered(path, "sagewheels build", "--a") == ["--arch"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_can_read_their_script(path: str, shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    env = {**os.environ, "PATH": path}
    argv = ["sagewheels", "--print-completion-script", shell]
    script = tmp_path / "script"
    script.write_text(subprocess.run(argv, check=True, capture_output=True, text=True, env=env).stdout)
    # zsh only has compctl, by which the script registers itself, when it is interactive.
    flag = "-n" if shell == "fish" else "-fn"
    assert subprocess.run([shell, flag, script], check=True, env=env, capture_output=True, text=True).stderr == ""


def test_the_readme_shows_these_lines() -> None:
    assert BASH in README
    assert "source <(sagewheels --print-completion-script zsh)" in README
    assert "sagewheels --print-completion-script fish | source" in README
