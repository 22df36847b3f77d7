"""What people type to install from a store: the lines of its card and of its page. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path

from sagewheels.manifest import WheelManifest
from sagewheels.store import Store

PRIVATE = "This store is private: pip and uv cannot sign in, sagewheels does with HF_TOKEN."


def address(entry: WheelManifest, store: Store) -> str:
    """What pip and uv take, with the sha256 that both check where the manifest has one."""
    where = store.address(entry.wheel_file)
    return with_hash(where if "://" in where else Path(where).as_uri(), entry)


def with_hash(where: str, entry: WheelManifest) -> str:
    """The address of this wheel with its sha256."""
    return f"{where}#sha256={entry.wheel_sha256}" if entry.wheel_sha256 else where


def sagewheels(store: Store) -> str:
    """The line that chooses, checks and proves; what is private it reads with HF_TOKEN."""
    return f"sagewheels install --store {shlex.quote(store.label)}"


def is_local(store: Store) -> bool:
    """Whether this is a folder, which may be seen under other paths and addresses than here."""
    return "://" not in store.address("index.json")
