"""Where the files that are not Python live: beside the checkout's package, or inside the installed one."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "resources"

ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
"""Folder that holds `tasks.py`, `manifests/`, `patches/`, `shims/` and `demo/`."""


def probe_source(name: str) -> str:
    """Text of `probe_<name>.py`, which runs in the target's interpreter and must stand alone."""
    return (_PACKAGE / f"probe_{name}.py").read_text(encoding="utf-8")


def job_script() -> str:
    """Text of `remote_job.sh`, which runs on a rented machine and must stand alone."""
    return (_PACKAGE / "remote_job.sh").read_text(encoding="utf-8")
