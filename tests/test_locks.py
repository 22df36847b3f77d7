"""Two runs in one place take turns, also with what a killed one left running."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sagewheels import proc
from tests import wheels
from tests.trap import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


class SlowInstaller:
    """A uv that begins an install, and goes on with it when it is let go, or after a minute: no test leaves it."""

    def __init__(self, folder: Path) -> None:
        self.begun, self._go = folder / "begun", folder / "go"
        wait = f"touch {self.begun}\nfor _ in $(seq 3000); do [ -e {self._go} ] && break; sleep 0.02; done"
        text = f'#!/bin/sh\n{wait}\nexec {wheels.uv()} "$@"\n'
        self.program = str(wheels.script(folder / "uv", text))

    def wait(self) -> None:
        end = time.monotonic() + 60
        while not self.begun.exists():
            assert time.monotonic() < end, "the installer was not begun"
            time.sleep(0.02)

    def go(self) -> None:
        self._go.touch()


def is_waiting(process: subprocess.Popen[str], of: int, stage: Stage) -> bool:
    """Says for whom it waits, by name, and does wait."""
    assert process.stdout
    line = process.stdout.readline()
    expected = rf"\[lock\] waiting for process {of} \(auto, since \d\d:\d\d\), which works in {stage.folder}/work\n"
    assert re.fullmatch(expected, line), line
    time.sleep(0.3)
    return process.poll() is None


def ended(process: subprocess.Popen[str]) -> list[str]:
    """The lines of a run that ends well."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out + err
    return out.splitlines()


def test_the_second_auto_waits_and_finds_everything_in_place(stage: Stage, tmp_path: Path) -> None:
    slow = SlowInstaller(tmp_path)
    first = stage.start("auto", INSTALLER=slow.program)
    slow.wait()
    second = stage.start("auto")
    assert is_waiting(second, first.pid, stage)
    slow.go()
    assert any(line.startswith("[auto] done in ") for line in ended(first))
    (line,) = ended(second)
    assert line.startswith(f"[auto] nothing to do: {stage.built.name} is in ")


def test_what_a_killed_auto_left_installing_is_waited_for(stage: Stage, tmp_path: Path) -> None:
    """Two writers in one site-packages would leave a mixture."""
    slow = SlowInstaller(tmp_path)
    first = stage.start("auto", INSTALLER=slow.program)
    slow.wait()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = stage.start("auto")
    assert is_waiting(second, first.pid, stage)
    slow.go()
    said = ended(second)
    assert f"[install] one of {wheels.NAME} was cut off and is undone" in said
    assert (stage.machine.import_version(), stage.parts()) == ("built", [])


def test_only_what_writes_holds_a_lock(tmp_path: Path) -> None:
    """A compiler cache leaves a server behind, which would hold it for ever."""
    lock = tmp_path / "lock"
    ask = [sys.executable, "-c", "import os; print(os.fstat(int(os.environ['FD'])).st_ino)"]
    with lock.open("w") as held, proc.holding(held.fileno()):
        env = {"FD": str(held.fileno())}
        assert proc.run(ask, env=env, writes=lock.parent).out == f"{lock.stat().st_ino}\n"
        assert proc.run(ask, env=env).code == 1
    assert proc.run(ask, env=env, writes=lock.parent).code == 1


@pytest.mark.parametrize("text", ["4711\x1b[2J (auto)", "\xff" * 200])
def test_a_lock_file_that_says_nothing_readable(stage: Stage, text: str) -> None:
    """It lies where others may have written it."""
    work = stage.folder / "work"
    work.mkdir()
    holder = "import fcntl, sys; lock = open(sys.argv[1]); fcntl.flock(lock, 2); print(flush=True); sys.stdin.read()"
    (work / "lock").write_text(text, encoding="latin-1")
    argv = [sys.executable, "-c", holder, str(work / "lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        waiting = stage.start("clean")
        assert waiting.stdout
        assert waiting.stdout.readline() == f"[lock] waiting for process unknown, which works in {work}\n"
        process.stdin.close()
        assert ended(waiting)[-1] == "[clean] there is nothing to remove"
