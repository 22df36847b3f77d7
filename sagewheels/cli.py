"""The installed command: the tasks of tasks.py behind Invoke's Program."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from invoke.collection import Collection
from invoke.exceptions import ParseError
from invoke.program import Program

from sagewheels import __version__
from sagewheels.errors import UsageError
from sagewheels.resources import ROOT


class _Program(Program):
    """Invoke's Program, for which a mistyped task or flag is the user's error and not a bug."""

    def parse_tasks(self) -> None:
        """Raises UsageError for what cannot be parsed."""
        try:
            super().parse_tasks()
        except ParseError as error:
            raise UsageError(str(error), "See sagewheels --list and sagewheels --help TASK") from None


def main() -> None:
    """Runs the tasks named on the command line, `auto` when none is."""
    try:
        namespace: Collection = _tasks().namespace
    except UsageError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)
    # However it was started, also by `python -m`: Invoke names itself, and what completes it, by the first word.
    program = _Program(version=__version__, namespace=namespace, name="sagewheels", binary="sagewheels")
    program.run(["sagewheels", *sys.argv[1:]])


def _tasks() -> ModuleType:
    """tasks.py lies beside the package, not in it: it is loaded from its file."""
    spec = importlib.util.spec_from_file_location("sagewheels_tasks", ROOT / "tasks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
