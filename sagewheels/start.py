"""Where the command begins: what the last run noted is looked at before Invoke and the tasks are loaded."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Answers at once, or runs the tasks named on the command line."""
    from sagewheels import quick

    if line := quick.answer(sys.argv[1:], os.environ):
        try:
            print(line, flush=True)
        except OSError as error:
            # Not sys.exit: Python would try to write it once more, and say so.
            print(f"the answer could not be written: {error.strerror}. Mend that and run it again.", file=sys.stderr)
            os._exit(1)
        return
    from sagewheels import cli

    cli.main()
