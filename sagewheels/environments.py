"""The environments of a matrix: one for each Python with each torch, below WORK_DIR/matrix; no other is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from sagewheels import installer, proc, stack, steps, ui
from sagewheels.cells import Cell
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.files import arriving
from sagewheels.job import Job
from sagewheels.redact import redacted


def ready(job: Job, cell: Cell) -> Job:
    """A Job whose target is the cell's environment, with a stack; what was half made is made anew.

    Raises UsageError with uv's own line when there is no such Python, and as the stack task does.
    """
    folder = folder_of(job.settings, cell)
    settings = replace(
        job.settings,
        python_bin=str(folder / "bin" / "python"),
        comfyui_path="",
        torch_cuda_arch_list=cell.arch,
        torch_version=cell.pin,
        # Pins of what goes with one torch, and that would be in the way of every other.
        torchvision_version="",
        torchaudio_version="",
        triton_version="",
        wheel_url="",
    )
    complete = bool(facts(job.settings, cell))
    if not complete:
        _venv(settings, cell, folder)
    there = Job(settings)
    there.trust = job.trust
    there.store, there.published, there.marks_in_store = job.store, job.published, job.marks_in_store
    there.host = replace(job.host, gpus=(), driver="")
    assert there.target.prefix.resolve() == folder.resolve(), "only an environment of our own is ever installed into"
    if not complete:
        stack.pending_path(settings, there.target).unlink(missing_ok=True)
    steps.do_stack(there)
    torch = there.target.torch
    assert torch is not None
    learnt = {"asked": _asked(job.settings, cell), "torch": torch.version, "cuda": torch.cuda}
    with arriving(folder / "complete") as stream:
        stream.write(json.dumps(learnt).encode("utf-8"))
    return there


def _venv(settings: Settings, cell: Cell, folder: Path) -> None:
    """An empty environment with the Python that uv finds or downloads."""
    uv = installer.uv_program(settings)
    if uv is None:
        raise UsageError("uv is missing", "Install sagewheels with its dependencies")
    ui.say("matrix", f"making {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    env = {**installer.environment(settings), "PATH": _path(settings, cell.python)}
    done = proc.run([uv, "venv", "--quiet", "--clear", "--no-project", "--python", cell.python, folder], env=env)
    if done.code:
        remedy = f"Install it (uv python install {cell.python}), or leave it out"
        raise UsageError(f"uv gives no Python {cell.python}: {_complaint(done)}", remedy)


def _complaint(done: proc.Result) -> str:
    """uv's own line that names the error, with the innermost of the causes that it lists below."""
    errors = re.findall(r"^error: (.+)", done.err, re.MULTILINE)
    causes = re.findall(r"^\s+(?:cause|Caused by): (.+)", done.err, re.MULTILINE)
    return ": ".join([*(errors or [done.last_line])[:1], *causes[-1:]])


def _path(settings: Settings, python: str) -> str:
    """PATH with pyenv's own Pythons of this release in the place of its shims, at which uv stumbles.

    A shim only runs what `pyenv global` names.
    """
    parts: list[str] = []
    for part in settings.variable("PATH").split(os.pathsep):
        versions = Path(part).parent / "versions"
        shims = Path(part).name == "shims" and versions.is_dir()
        parts += [str(path) for path in sorted(versions.glob(f"{python}.*/bin"))] if shims else [part]
    return os.pathsep.join(parts)


def folder_of(settings: Settings, cell: Cell) -> Path:
    return settings.work_dir.absolute() / "matrix" / f"cp{cell.python.replace('.', '')}-torch{cell.torch}"


def _asked(settings: Settings, cell: Cell) -> list[str]:
    """What an environment was made for: with another channel it would hold another torch."""
    index = redacted(settings.torch_index_url)
    return [cell.python, cell.pin, settings.torch_channel, settings.cuda_index_variant, index]


def facts(settings: Settings, cell: Cell) -> dict[str, str]:
    """`torch` and `cuda` of a complete environment that was made for the same; empty for any other."""
    try:
        folder = folder_of(settings, cell)
        found = json.loads((folder / "complete").read_text(encoding="utf-8"))
        # A link to a Python that was removed meanwhile does not exist.
        if found["asked"] == _asked(settings, cell) and (folder / "bin" / "python").exists():
            return {key: str(found[key]) for key in ("torch", "cuda")}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}
