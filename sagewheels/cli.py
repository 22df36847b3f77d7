"""The installed command: the tasks of tasks.py behind Invoke's Program."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from invoke.collection import Collection
from invoke.program import Program

from sagewheels import __version__
from sagewheels.resources import ROOT


def main() -> None:
    """Runs the tasks named on the command line, `auto` when none is."""
    namespace: Collection = _tasks().namespace
    Program(version=__version__, namespace=namespace, name="sagewheels", binary="sagewheels").run(sys.argv)


def _tasks() -> ModuleType:
    """tasks.py lies beside the package, not in it: it is loaded from its file."""
    spec = importlib.util.spec_from_file_location("sagewheels_tasks", ROOT / "tasks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
