"""sagewheels as it is, in a stand-in for a rented machine: the compile leaves a wheel that was made before."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sagewheels import cli, config, wheel, wheelhouse
from tests import wheels


def compile() -> None:
    """Stands in for nvcc alone."""
    made = Path(os.environ["MADE_BEFORE"])
    manifest = wheels.describe(made, extensions={"_attn": ["12.0"], "_fused": ["12.0"]})
    print(f"[build] {wheelhouse.keep(config.load(), made, manifest).name}", flush=True)


if __name__ == "__main__":
    wheel.cubins = wheels.marked_archs
    compile() if sys.argv[1:] == ["build"] else cli.main()
