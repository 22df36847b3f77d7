"""Linters and tests, in an environment of their own: never in the tool's, never in the user's."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sagewheels import host, installer, proc, ui
from sagewheels.config import Settings
from sagewheels.errors import SageError, UsageError
from sagewheels.resources import ROOT

_WORKERS = 8
"""Test processes at most: each may compile, and some start twenty programs."""


def environment(settings: Settings) -> Path:
    """The test environment's python, made or brought up to date when pyproject.toml or the pins have changed.

    Raises UsageError outside a checkout, SageError when the package index does not give what is needed.
    """
    pins, project = ROOT / "constraints.txt", ROOT / "pyproject.toml"
    if not project.is_file():
        raise UsageError("the tests are not part of the installed package", "Run them from a checkout")
    home = settings.work_dir / "test-env"
    stamp = home / "complete"
    wanted = hashlib.sha256(f"{ROOT}\0{sys.version}\0".encode() + pins.read_bytes() + project.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        uv = installer.uv_program(settings)
        if uv is None:
            raise UsageError("uv is missing", "Install sagewheels with its dependencies")
        ui.say("test", f"making {home}")
        proc.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, home], error=SageError)
        python = home / "bin" / "python"
        everything = f"{ROOT}[test,lint]"
        proc.run([uv, "pip", "install", "--quiet", "--python", python, "-c", pins, "-e", everything], error=SageError)
        stamp.write_text(wanted, encoding="utf-8")
    return home / "bin" / "python"


def lint(settings: Settings) -> None:
    """ruff, its formatter, mypy --strict and shellcheck are content. Raises SageError with what is not."""
    python = environment(settings)
    folder = python.parent
    _show(settings, [folder / "ruff", "check", "--quiet", "."])
    _show(settings, [folder / "ruff", "format", "--quiet", "--check", "."])
    _show(settings, [python, "-m", "mypy"])
    scripts = [ROOT / "install_sageattention220_wheel.sh", ROOT / ".ci" / "run", ROOT / "sagewheels" / "remote_job.sh"]
    _show(settings, [folder / "shellcheck", *scripts])
    ui.say("lint", "ruff, mypy and shellcheck are content")


def test(settings: Settings, arguments: str, *, everything: bool = False) -> None:
    """The linters, then pytest with coverage, `everything` of it if asked. Raises SageError when something fails."""
    lint(settings)
    whole = ["--all"] if everything else []
    # A file's tests stay together: they share what took long to make.
    spread = ["--numprocesses", str(min(host.cores(), _WORKERS)), "--dist", "loadfile"]
    pytest = ["-m", "pytest", *spread, "--cov", "--cov-report=term"]
    _show(settings, [environment(settings), *pytest, *whole, *shlex.split(arguments)])


def _show(settings: Settings, argv: Sequence[str | Path]) -> None:
    """Runs a program whose output people want to see as it comes; it gets no secrets."""
    words, env = [str(part) for part in argv], settings.environ
    code = subprocess.run(words, cwd=ROOT, env=env, check=False, stdin=subprocess.DEVNULL).returncode
    if code:
        raise SageError(f"{Path(argv[0]).name} {argv[1]} found something", "See its output above")
