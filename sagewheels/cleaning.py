"""Removing what can be made again, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from sagewheels import ui, wheelhouse
from sagewheels.config import Settings

_OURS = ("source", "out", "toolkit", "buildtools", "stubs", "demo", "matrix", "checked", "test-env")
"""Folders below WORK_DIR. `state` and `previous` stay: they are the way back for what is installed."""


def clean(settings: Settings, *, everything: bool, dry_run: bool) -> None:
    """Says what goes and how large it is, then removes it.

    `everything` adds compiled objects, the wheelhouse's wheels and our logs; without objects the next build is slow.
    """
    victims = [settings.work_dir / name for name in _OURS if (settings.work_dir / name).exists()]
    if everything:
        victims += _objects(settings)
        # Only what we put there: these folders may be shared with other files of the user.
        victims += sorted([*settings.wheelhouse_dir.glob("*.whl.json"), *_wheels(settings)])
        victims += settings.wheelhouse_dir.glob(wheelhouse.MARKS)
        victims += sorted(
            path for kind in ("build", "smoke", "error") for path in settings.log_dir.glob(f"{kind}-*.log")
        )
    total = 0
    for path in victims:
        used = _size(path)
        total += used
        ui.say("clean", f"{'would remove' if dry_run else 'removing'} {path} ({ui.size(used)})")
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    ui.say(
        "clean",
        f"{ui.size(total)} {'would be freed' if dry_run else 'freed'}" if victims else "there is nothing to remove",
    )


def _objects(settings: Settings) -> list[Path]:
    """The object cache of WORK_DIR; never a folder that OBJECT_CACHE_DIR names, which others may use."""
    folder = settings.work_dir / "objects"
    named = settings.object_cache_dir and Path(settings.object_cache_dir).resolve().is_relative_to(folder.resolve())
    return [folder] if folder.exists() and not named else []


def _wheels(settings: Settings) -> list[Path]:
    """Wheels that have our manifest beside them."""
    found = [path.with_suffix("") for path in settings.wheelhouse_dir.glob("*.whl.json")]
    return [path for path in found if path.is_file()]


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(item.lstat().st_size for item in files if item.is_symlink() or item.is_file())
