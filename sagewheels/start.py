"""Where the command begins: what the last run noted is looked at before Invoke and the tasks are loaded."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Answers at once, or runs the tasks named on the command line."""
    from sagewheels import quick

    if line := quick.answer(sys.argv[1:], os.environ):
        print(line, flush=True)
        return
    from sagewheels import cli

    cli.main()
