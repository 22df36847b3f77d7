"""`python -m sagewheels` is the command `sagewheels`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from sagewheels.start import main

        main()
    except KeyboardInterrupt:  # before any task has begun, while the modules are loaded
        sys.exit(130)
