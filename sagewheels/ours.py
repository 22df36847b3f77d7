"""What was made on this machine: the wheels that it built and the proofs that it found, by sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagewheels.config import Settings


def note(settings: Settings, digest: str) -> None:
    """Remembers a wheel by its sha256, or a proof by `of_proof`; `clean` keeps it."""
    path = _path(settings, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def has(settings: Settings, digest: str) -> bool:
    """Whether this was made here."""
    return bool(digest) and _path(settings, digest).is_file()


def of_proof(proof: Mapping[str, Any]) -> str:
    """The sha256 of a proof."""
    return hashlib.sha256(json.dumps(proof, sort_keys=True).encode()).hexdigest()


def _path(settings: Settings, digest: str) -> Path:
    return settings.work_dir / "state" / "made-here" / digest
