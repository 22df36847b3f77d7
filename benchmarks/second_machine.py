"""Publishes a wheel that was built to a directory store and to a loopback Hub, and installs it as other machines would.

Needs a wheelhouse with one wheel (`invoke build --arch 12.0` makes it) and interpreters for the environments:

    python benchmarks/second_machine.py WHEELHOUSE PYTHON_OF_THE_WHEEL ANOTHER_PYTHON

Prints each command, what it said, its exit code and its time. Environments are made by uv in a temporary folder; the
torch of the wheel and another one are installed from the default package index.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from uv import find_uv_bin

from sagewheels.config import load
from sagewheels.wheelhouse import wheels
from tests.hub import Hub

_OTHER_TORCH = "2.10.0"


class Scene:
    """A temporary folder with environments, and the settings under which the tasks run."""

    def __init__(self, root: Path, wheelhouse: Path) -> None:
        self.root, self.wheelhouse = root, wheelhouse

    def environment(self, name: str, python: str, torch: str) -> Path:
        """A fresh environment with this torch and nothing else."""
        home = self.root / name
        uv = find_uv_bin()
        subprocess.run([uv, "venv", "-q", "--no-project", "--python", python, home], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", home / "bin/python", f"torch=={torch}"], check=True)
        return home / "bin" / "python"

    def task(self, words: str, machine: str, **settings: str) -> None:
        """Runs a task as one machine, with work and wheelhouse of its own, and prints the transcript."""
        folder = self.root / "machines" / machine
        folder.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "TORCH_CUDA_ARCH_LIST": "12.0", **settings}
        shown = " ".join(f"{key}={value}" for key, value in settings.items() if key != "HF_TOKEN")
        print(f"{machine}$ {self.neutral(shown)} sagewheels {words}".replace("$  ", "$ "), flush=True)
        started = time.monotonic()
        argv = [sys.executable, "-m", "sagewheels", *words.split()]
        done = subprocess.run(argv, cwd=folder, env=env, check=False, capture_output=True, text=True)
        print(self.neutral(done.stdout + done.stderr).rstrip())
        print(f"exit {done.returncode}, {time.monotonic() - started:.1f} s\n", flush=True)

    def neutral(self, text: str) -> str:
        """The text without this machine's folders and ports."""
        text = text.replace(str(self.root), "...").replace(str(self.wheelhouse), "wheelhouse")
        return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)


def main(wheelhouse: Path, python: str, other_python: str) -> None:
    """The whole show."""
    (_, manifest), *_rest = wheels(load({"WHEELHOUSE_DIR": str(wheelhouse)}))
    with tempfile.TemporaryDirectory() as name, Hub() as hub:
        scene = Scene(Path(name), wheelhouse)
        same = scene.environment("same", python, manifest.torch)
        again = scene.environment("again", python, manifest.torch)
        torch = scene.environment("torch", python, _OTHER_TORCH)
        other = scene.environment("python", other_python, manifest.torch)
        directory = {"SAGE_STORE": str(scene.root / "store")}
        on_hub = {"HF_ENDPOINT": hub.endpoint, "HF_REPO_ID": "me/wheels", "HF_HUB_DISABLE_XET": "1"}
        token = {"HF_TOKEN": "hf_write"}
        for store in (directory, {**on_hub, **token}):
            built = {"PYTHON_BIN": str(same), "WHEELHOUSE_DIR": str(wheelhouse), **store}
            scene.task("upload", "builder", **built)
            scene.task("upload", "builder", **built)
        scene.task("install", "second", PYTHON_BIN=str(same), **directory)
        scene.task("install", "second", PYTHON_BIN=str(same), **directory)
        scene.task("install", "third", PYTHON_BIN=str(again), **on_hub)
        scene.task("install", "other-torch", PYTHON_BIN=str(torch), **on_hub)
        scene.task("install", "other-python", PYTHON_BIN=str(other), **on_hub)
        print(f"the Hub counted {hub.commits} commits and {len(hub.requests)} requests")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheelhouse", type=Path)
    parser.add_argument("python", metavar="python_of_the_wheel")
    parser.add_argument("other_python", metavar="another_python")
    main(**vars(parser.parse_args()))
