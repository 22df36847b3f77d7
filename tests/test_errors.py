"""Errors: one exit code for each kind, and one line that says what is wrong and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.exceptions import Exit

import sagewheels
from sagewheels import errors, manifest
from sagewheels.errors import (
    BuildFailed,
    HostsFailed,
    Interrupted,
    NothingCompatible,
    Refused,
    SageError,
    SmokeFailed,
    StoreError,
    Unreachable,
    Untrusted,
    UsageError,
)

CODES = {
    SageError: 1,
    UsageError: 2,
    NothingCompatible: 3,
    Refused: 4,
    Untrusted: 4,
    manifest.ManifestError: 4,
    BuildFailed: 5,
    SmokeFailed: 6,
    StoreError: 7,
    Unreachable: 7,
    HostsFailed: 1,  # or that of the first host that failed
    Interrupted: 130,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda value: getattr(value, "__name__", str(value)))
def test_exit_codes_are_the_contract(kind: type[SageError], code: int) -> None:
    error = kind("it is wrong", "Mend it")
    assert (error.code, str(error)) == (code, "it is wrong. Mend it.")
    assert isinstance(error, Exit), "Invoke prints the line of an Exit, and a traceback of anything else"


def test_every_error_of_the_module_is_in_the_contract() -> None:
    family = {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, SageError)}
    assert family == set(CODES) - {manifest.ManifestError}


@pytest.mark.parametrize(
    ("what", "remedy", "line"),
    [
        ("no", "", "no."),
        ("no.", "", "no."),
        ("no", "Do it", "no. Do it."),
        ("no. ", "Do it. ", "no. Do it."),
        ("no...", "Do it...", "no. Do it."),
        ("first\nsecond\r\n  third", "Do\nit", "first second third. Do it."),
        ("tab\tand  two spaces", "", "tab and two spaces."),
        ("is it?", "(apt-get install git)", "is it?. (apt-get install git)."),
    ],
)
def test_the_line_is_one_line_and_ends_with_one_full_stop(what: str, remedy: str, line: str) -> None:
    error = UsageError(what, remedy)
    assert (str(error), error.message) == (line, line)


def test_what_and_remedy_can_be_told_apart() -> None:
    error = StoreError("the store is full.", "Make room.")
    assert (error.what, error.remedy) == ("the store is full", "Make room")


def test_a_user_sees_that_line_alone_on_stderr_and_gets_the_code(tmp_path: Path) -> None:
    root = Path(sagewheels.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "TORCH_CHANNEL": "beta"}
    argv = [sys.executable, "-c", "from sagewheels.cli import main; main()", "list"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    line = "TORCH_CHANNEL='beta' in the environment is not known. Use one of nightly, stable, pypi.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert list(tmp_path.iterdir()) == []
