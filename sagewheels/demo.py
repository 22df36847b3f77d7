"""The tour: the whole graph on a small kernel of our own, as two machines with one store would run it."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from sagewheels import auto, closing, host, installer, proc, ui
from sagewheels.config import Settings
from sagewheels.errors import SageError, UsageError
from sagewheels.job import Job

_TORCH = "2.11.0"
"""The first torch on the default package index with CUDA 13, for which the compiler is there too."""


_DISK = 14_000_000_000
"""Two environments with torch of 4.5 GB each, and the package cache that they share where it can link."""


def take(settings: Settings) -> None:
    """Builds and publishes on the first machine, fetches on the second, which must not compile.

    Both are environments below WORK_DIR; nothing outside of it is touched. Raises what the steps raise.
    """
    started = time.monotonic()
    root = settings.work_dir / "demo"
    free = host.free_disk(settings.work_dir)
    if free < _DISK:
        raise UsageError(
            f"the demo needs {ui.size(_DISK)} of disk, {ui.size(free)} are free", "Set WORK_DIR to a larger disk"
        )
    ui.say("demo", f"two environments with torch in {root}: up to {ui.size(_DISK)} of disk")
    for folder in ("store", "one/wheelhouse", "one/state", "two"):
        shutil.rmtree(root / folder, ignore_errors=True)
    ui.say("demo", f"first machine: the store {root / 'store'} is empty, so the wheel is built and published")
    first = _machine(settings, root, "one")
    _auto(Job(first))
    if not list((root / "store").glob("*.whl")):
        raise SageError("the first machine published nothing")
    ui.say("demo", "second machine: the store has the wheel, so nothing is compiled")
    second = _machine(settings, root, "two")
    _auto(Job(second))
    if list(second.log_dir.glob("build-*.log")):
        raise SageError("the second machine compiled, though the store holds its wheel")
    ui.say("demo", "the second machine again: everything is in place")
    auto.auto(Job(second))
    ui.say("demo", f"done in {ui.duration(time.monotonic() - started)}; {root} can be removed with the task clean")


def _auto(job: Job) -> None:
    """`auto` as the task does it, with what it says at the end."""
    with closing.panel(job):
        auto.auto(job)


def _machine(settings: Settings, root: Path, name: str) -> Settings:
    """Settings of one machine, with a fresh environment of its own as the target."""
    folder = root / name
    env = folder / "env"
    uv = installer.uv_program(settings)
    if uv is None:
        raise UsageError("uv is missing", "Install sagewheels with its dependencies")
    proc.run([uv, "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, env], error=SageError)
    # A driver that is too old for CUDA 13 gets the torch that suits it, and needs a toolkit of the system.
    new_enough = host.probe(settings.environ).driver_cuda in ("", "13.0")
    return replace(
        settings,
        sage_manifest="demo",
        sage_store=str(root / "store"),
        python_bin=str(env / "bin" / "python"),
        comfyui_path="",
        torch_channel="pypi",
        torch_version=settings.torch_version or (_TORCH if new_enough else ""),
        torch_index_url="",
        wheel_url="",
        work_dir=folder,
        wheelhouse_dir=folder / "wheelhouse",
        log_dir=folder / "logs",
        hf_token="",
        # The tour signs nothing: its store is new each time.
        signing_key="",
        trusted_signers="",
        revoked_signers="",
        min_index_serial=None,
    )
