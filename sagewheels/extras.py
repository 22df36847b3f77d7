"""Libraries that few tasks need, and that no rented machine shall wait for: they come when such a task is run first."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from sagewheels import installer, proc, ui
from sagewheels.config import Settings
from sagewheels.errors import StoreError, UsageError
from sagewheels.resources import ROOT

_TOOL = ".sagewheels-tool"
"""What the bootstrap script puts into the environment that is ours alone."""


def remedy(module: str) -> str:
    """How the library comes beside the tool, wherever that is: the name of the library, not one that nobody owns."""
    return f"Run {sys.executable} -m uv pip install --python {sys.executable} {module}"


def demand(settings: Settings, extra: str, module: str) -> None:
    """The module of the extra can be imported: in the bootstrap script's own environment it is installed if needed.

    Raises UsageError where it is missing from an environment of the user's, StoreError where it cannot be downloaded.
    """
    if importlib.util.find_spec(module):
        return
    uv = installer.uv_program(settings)
    if not uv or not (Path(sys.prefix) / _TOOL).exists():
        raise UsageError(f"{extra} needs {module}, which is not installed", remedy(module))
    ui.say(extra, f"installing {module} beside the tool (once)")
    pins = ROOT / "constraints.txt"
    argv: list[str | Path] = [uv, "pip", "install", "--quiet", "--python", sys.executable, "-c", pins, module]
    proc.run(argv, env=installer.environment(settings), error=StoreError)
    importlib.invalidate_caches()
