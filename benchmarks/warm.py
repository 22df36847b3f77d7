"""How long a second `auto` and the install of a wheel of the store take, beside pip and uv doing the same.

Stages two machines by itself, in a temporary folder: a virtual environment with a torch of a few lines and a real wheel
of a few megabytes that the C compiler made, a nvidia-smi that says there is no GPU, a cuobjdump that says what the
wheel holds, and a Hub on the loopback interface. Needs a package index once, for the environment's own pip.

    python benchmarks/warm.py [--runs 15]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sagewheels import steps, wheel  # noqa: E402  the checkout's
from tests import wheels  # noqa: E402
from tests.hub import Hub  # noqa: E402

_REPO = "me/wheels"
_INSTALL = """
import sys
from pathlib import Path
from sagewheels import start, wheel
wheel.cuobjdump = lambda: Path({cuobjdump!r})
sys.argv = ["sagewheels", "install"]
start.main()
"""


def timed(argv: Sequence[str | Path], env: dict[str, str], cwd: Path) -> float:
    """Seconds from start to exit. Raises SystemExit for a run that failed."""
    begin = time.perf_counter()
    done = subprocess.run([*map(str, argv)], env=env, cwd=cwd, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{argv[0]} failed: {done.stdout}{done.stderr}")
    return took


def alternating(ways: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Each way in turn, `runs` times, after one turn that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, way in ways.items():
            took = way()
            if turn:
                taken[name].append(took)
    return taken


def table(title: str, taken: dict[str, list[float]], base: str) -> None:
    """Medians, extremes, and what part of the median of `base`."""
    print(f"\n{title}\n\n| | median | least | most | ratio |\n|---|---|---|---|---|")
    whole = statistics.median(taken[base])
    for name, all_ in taken.items():
        middle = statistics.median(all_)
        print(f"| {name} | {middle:.3f} s | {min(all_):.3f} s | {max(all_):.3f} s | {middle / whole:.2f} |")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name, Hub() as hub:
        folder = Path(name)
        hub.create(_REPO)
        machine = wheels.machine(folder)
        pip, uv = [machine.python, "-m", "pip"], wheels.uv()
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(machine.python), "pip"], check=True)
        wheel.cubins = wheels.marked_archs
        content = {**wheels.content(), f"{wheels.PACKAGE}/payload.bin": os.urandom(3_500_000)}
        path = wheels.make(folder / "dist", content)
        job = machine.job(sage_store="", hf_repo_id=_REPO, hf_endpoint=hub.endpoint, hf_token="hf_write")
        steps.do_upload(job, (path, wheels.describe(path)))
        cuobjdump = wheels.script(
            folder / "bin" / "cuobjdump", '#!/bin/sh\n[ "$1" = --list-ptx ] || echo "ELF file 1: tiny.1.sm_120.cubin"\n'
        )
        given = machine.settings
        env = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "PYTHONDONTWRITEBYTECODE")}
        env |= {
            "PATH": given.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHON_BIN": str(machine.python),
            "SAGE_MANIFEST": given.sage_manifest,
            "HF_REPO_ID": _REPO,
            "HF_ENDPOINT": hub.endpoint,
            "TORCH_CUDA_ARCH_LIST": "12.0",
            "WORK_DIR": str(given.work_dir),
            "WHEELHOUSE_DIR": str(given.wheelhouse_dir),
            "LOG_DIR": str(given.log_dir),
        }
        url = f"{hub.endpoint}/datasets/{_REPO}/resolve/main/sageattention220/{path.name}"
        driver = [sys.executable, "-c", _INSTALL.format(cuobjdump=str(cuobjdump))]

        def anew(argv: Sequence[str | Path]) -> float:
            subprocess.run(
                [uv, "pip", "uninstall", "--quiet", "--python", str(machine.python), wheels.NAME], check=True
            )
            for gone in (given.work_dir, given.wheelhouse_dir):
                shutil.rmtree(gone, ignore_errors=True)
            return timed(argv, env, folder)

        pythons = ["--python", str(machine.python)]
        installs = alternating(
            {
                "pip install URL": lambda: anew([*pip, "install", "--no-cache-dir", url]),
                "sagewheels install": lambda: anew(driver),
                "uv pip install URL": lambda: anew([uv, "pip", "install", "--no-cache", *pythons, url]),
            },
            runs,
        )
        anew(driver)
        wish = f"{wheels.NAME}=={wheels.VERSION}{wheels.LABEL}"
        time.sleep(2)
        timed([sys.executable, "-m", "sagewheels", "auto"], env, folder)
        requests = len(hub.requests)
        seconds = alternating(
            {
                "pip install, satisfied": lambda: timed([*pip, "install", wish], env, folder),
                "second sagewheels auto": lambda: timed([sys.executable, "-m", "sagewheels", "auto"], env, folder),
                "second auto by Invoke": lambda: timed(
                    [sys.executable, "-m", "invoke", "-r", ROOT, "auto"], env, folder
                ),
                "uv pip install, satisfied": lambda: timed([uv, "pip", "install", *pythons, wish], env, folder),
            },
            runs,
        )
        version = subprocess.run([*map(str, pip), "--version"], capture_output=True, text=True, check=True).stdout
        print(
            f"{os.cpu_count()} cores, staged without a GPU; Python {platform.python_version()}, {version[:8].strip()}"
        )
        print(f"{runs} runs of each, alternating. Requests to the store in the second table: ", end="")
        print(len(hub.requests) - requests)
        table("Installing a wheel of 3.5 MB from the loopback Hub", installs, "pip install URL")
        table("Everything is in place", seconds, "pip install, satisfied")


if __name__ == "__main__":
    main()
