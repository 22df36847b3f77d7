"""The same build key twice: another folder, umask, time zone and language, and the same wheel byte for byte."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sagewheels.resources import ROOT
from tests import wheels

pytestmark = [pytest.mark.slow, pytest.mark.index]


def test_the_demo_twice(tmp_path: Path) -> None:
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("needs a C++ compiler")
    python = wheels.venv(tmp_path / "env")
    install = [wheels.uv(), "pip", "install", "--quiet", "--python", python, "torch==2.11.0"]
    subprocess.run([str(one) for one in install], check=True)
    argv = [sys.executable, ROOT / "benchmarks" / "reproducible.py", python, "--manifest", "demo", "--arch", "12.0"]
    done = subprocess.run([str(one) for one in argv], capture_output=True, text=True, check=False, timeout=1500)
    shutil.rmtree(tmp_path / "env")
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert all(row.endswith(" | yes |") for row in rows[1:]), rows
    assert re.fullmatch(r"\| its name \| sagedemo-0\.1\.0\+\S+-manylinux_2_\d+_\w+\.whl \| yes \|", rows[-1])
    assert {"sagedemo/_attn", "sagedemo/_fused"} <= {row.split()[1].split(".")[0] for row in rows}
