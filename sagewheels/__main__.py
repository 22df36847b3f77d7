"""`python -m sagewheels` is the command `sagewheels`."""

from __future__ import annotations

from sagewheels.cli import main

if __name__ == "__main__":
    main()
