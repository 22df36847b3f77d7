"""Which of the settings go along to another machine, as variables or as files, and which describe this one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sagewheels import config, files
from sagewheels.config import KEYS, SECRETS, Settings
from sagewheels.errors import UsageError

FILES = ("TRUSTED_SIGNERS", "REVOKED_SIGNERS")
"""Files without which the other machine would take what is refused here: their content goes along."""

_HERE = frozenset({"PYTHON_BIN", "MAX_JOBS", "EXT_PARALLEL", "COMPILER_LAUNCHER", "COMFYUI_PATH", "SAGE_OFFLINE"})
"""They describe this machine, and would be wrong on another."""

_BOOTSTRAP = ("SAGEWHEELS_REPO", "SAGEWHEELS_REF")
"""Read by the bootstrap script alone: from where sagewheels comes."""


def variables(settings: Settings, *, own: Collection[str] = ()) -> dict[str, str]:
    """What was set here and holds elsewhere too, by key; no secret, no path, nothing about this machine.

    `own`: the keys that the other machine sets itself. Raises UsageError for a store or a build manifest that is a
    path of this machine: without it, the other one would take from another store, or build something else.
    """
    for key, text, remedy in (
        ("SAGE_STORE", settings.sage_store, "or use a Hub repository (HF_REPO_ID)"),
        ("SAGE_MANIFEST", settings.sage_manifest, "or use one of manifests/"),
    ):
        if key not in own and _is_local(key, text):
            raise UsageError(
                f"{key}={text} is a path of this machine, which others may not have",
                f"Write {key}=... behind each host of --hosts, {remedy}",
            )
    found = {key: _written(getattr(settings, key.lower())) for key in KEYS if _goes(settings, key) and key not in own}
    bootstrap = {key: settings.variable(key) for key in _BOOTSTRAP if settings.variable(key)}
    return found | bootstrap


def contents(settings: Settings, *, own: Collection[str] = ()) -> dict[str, str]:
    """The text of each file of FILES that is set, by key. Raises UsageError for one that cannot be read or sent."""
    return {
        key: _text(key, Path(path)) for key in FILES if key not in own and (path := str(getattr(settings, key.lower())))
    }


def _goes(settings: Settings, key: str) -> bool:
    if key in SECRETS or key in _HERE or config.is_path(key):
        return False
    return bool(getattr(settings, key.lower()) != KEYS[key].default)


def _is_local(key: str, text: str) -> bool:
    if key == "SAGE_MANIFEST":
        return "/" in text or text.endswith(".toml")
    return bool(text) and not text.lower().startswith("hf://")


def _written(value: object) -> str:
    """The value as `.env` has it."""
    return ("1" if value else "0") if isinstance(value, bool) else str(value)


def _text(key: str, path: Path) -> str:
    try:
        text = files.small(path).decode()
    except OSError as error:
        raise UsageError(f"{key} {path} cannot be read ({error.strerror})", "Correct it, or unset it") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # a KRL: no text, and a shell holds none of it
        raise UsageError(
            f"{key} {path} is a binary file, which cannot be sent along", "Use one with a public key on each line"
        )
    return text
