"""What people see while threads of a build say something: whole lines, with and without a live status line."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from sagewheels import ui
from sagewheels.resources import ROOT

SCRIPT = """
import sys, threading
from sagewheels import ui

def say(who):
    for number in range(50):
        ui.say("build", f"{who} says {number} <")

with ui.progress("build", every=0.0) as shown:
    threads = [threading.Thread(target=say, args=(who,)) for who in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        shown.update("1/2 units")
"""
LINES = sorted(f"[build] {who} says {number} <" for who in "abcd" for number in range(50))


def said(text: str) -> list[str]:
    """The lines that the threads said; whatever else there is must be whole progress lines."""
    lines = text.splitlines()
    others = [line for line in lines if line and "says" not in line]
    assert all(re.fullmatch(r"\[build\] 1/2 units, \d+\.\d s", line) for line in others), others[:3]
    return sorted(line for line in lines if "says" in line)


def test_threads_say_whole_lines_into_a_log() -> None:
    argv = [sys.executable, "-c", SCRIPT]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert said(subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout) == LINES


@pytest.mark.skipif(not hasattr(pty, "openpty"), reason="needs a pseudo-terminal")
def test_threads_say_whole_lines_above_the_status_line() -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", SCRIPT]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "CI": ""}
    with subprocess.Popen(argv, env=env, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        raw = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            raw += block
    os.close(ours)
    assert process.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode())
    # What nobody drew over is not erased either: the words of two threads would share a line.
    assert plain.index("⠋") < plain.index("says")
    found = sorted(re.findall(r"^\[build\] \w says \d+ <$", plain.replace("\r", "\n"), re.M))
    assert found == LINES


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("CI", "true")])
def test_a_terminal_on_which_nothing_can_be_drawn_again_gets_plain_lines(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("CI", "")
    assert ui.is_live()
    monkeypatch.setenv(name, value)
    assert not ui.is_live()
