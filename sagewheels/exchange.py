"""One distribution in the place of another, or of none: what was there comes back unless the new one arrived whole.

Files are moved aside within the target's own disk, and moved back: neither needs room, so that a full disk is left as
it was found. `begin` and `undo` can be killed anywhere, and `undo` called again.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sagewheels import aside, record
from sagewheels.files import arriving
from sagewheels.target import Target

_PLAN = "plan.json"


def folder(found: Target, name: str) -> Path:
    """Where files lie while they are aside; there only while something is exchanged."""
    return found.site / f".{name}.sagewheels"


def own(found: Target, name: str) -> Path | None:
    """The dist-info of what is installed in the target itself; None for what another environment lends to it."""
    info = found.dist_info.get(name)
    return info if info and _is_within(found, info.resolve()) else None


def _real(path: Path) -> Path:
    """The one name of a file, which may itself be a link."""
    return path.parent.resolve() / path.name


def _is_within(found: Target, place: Path) -> bool:
    """Whether a resolved path is in the environment, whose site-packages may be a link to another disk."""
    return any(place.is_relative_to(top.resolve()) for top in (found.prefix, found.site))


def begin(found: Target, name: str, wheel: Path | None) -> None:
    """Moves what is installed aside, after it was written down how to undo this and what of `wheel` may arrive.

    Raises UsageError or OSError; `undo` then moves back what was moved.
    """
    place, info = folder(found, name), own(found, name)
    shutil.rmtree(place, ignore_errors=True)
    old = sorted(_installed(found, info)) if info else []
    # By the same names as the old ones, however the environment was reached: what is old must not count as new.
    new = sorted(map(_real, _of_wheel(found, wheel))) if wheel else []
    infos = [
        str(_real(info)) if info else "",
        str(_real(found.site / f"{'-'.join(wheel.name.split('-')[:2])}.dist-info") if wheel else ""),
    ]
    with arriving(place / _PLAN) as stream:
        stream.write(json.dumps({"old": [*map(str, old)], "new": [*map(str, new)], "infos": infos}).encode())
    for number, path in enumerate(old):
        if path.is_file() or path.is_symlink():
            shutil.move(path, place / str(number))
    if info:
        shutil.move(info, place / "info")


def undo(found: Target, name: str) -> None:
    """What was moved aside is back, and nothing of what was to come instead is left. Raises OSError."""
    place = folder(found, name)
    plan = _plan(place)
    if plan:
        old, new, (info, new_info) = plan["old"], plan["new"], plan["infos"]
        for number, path in enumerate(old):
            # A relative link leads nowhere from where it lies aside, and is there all the same.
            if os.path.lexists(place / str(number)):
                shutil.move(place / str(number), path)
        is_aside = (place / "info").exists()
        if new_info and (is_aside or new_info != info):
            shutil.rmtree(new_info, ignore_errors=True)
        if is_aside:
            shutil.rmtree(info, ignore_errors=True)
            shutil.move(place / "info", info)
        came = {Path(path) for path in set(new) - set(old)}
        began = (place / _PLAN).stat().st_ctime
        _remove(found, came | {one for path in new for one in _half_written(Path(path).parent, began)})
    shutil.rmtree(place, ignore_errors=True)


def end(found: Target, name: str) -> None:
    """The new one stays: what was moved aside goes, with the folders that it leaves empty."""
    place = folder(found, name)
    plan = _plan(place)
    shutil.rmtree(place, ignore_errors=True)
    if plan:
        _prune(found, (Path(path) for path in plan["old"]))


def awaited(found: Target, name: str) -> Path | None:
    """The dist-info of what was to come; None for nothing."""
    infos = _plan(folder(found, name)).get("infos", ["", ""])
    return Path(infos[1]) if infos[1] else None


def _plan(place: Path) -> dict[str, Any]:
    """Empty where nothing was moved yet."""
    try:
        found = json.loads((place / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _installed(found: Target, info: Path) -> Iterator[Path]:
    """What RECORD lists, with what Python compiled from it, but for dist-info; nothing outside of the environment."""
    try:
        rows = record.rows(info)
    except (OSError, ValueError):
        return
    for name in {row[0] for row in rows if row and row[0]}:
        path = _real(info.parent / name)
        if _is_within(found, path) and not path.is_relative_to(info.resolve()):
            yield from _with_compiled(path)


def _of_wheel(found: Target, wheel: Path) -> Iterator[Path]:
    """Where the members of a wheel are installed, but for dist-info."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            first, _, rest = name.partition("/")
            kind, _, below = rest.partition("/")
            if first.endswith(".dist-info"):
                if rest == "entry_points.txt":
                    scripts = aside.scripts(archive.read(name).decode("utf-8", "replace"))
                    yield from (found.prefix / "bin" / script for script in scripts)
            elif first.endswith(".data") and kind in ("scripts", "data"):
                yield found.prefix / ("bin" if kind == "scripts" else "") / below
            elif not name.endswith("/"):
                yield from _with_compiled(found.site / (below if first.endswith(".data") else name))


def _half_written(folder: Path, since: float) -> Iterator[Path]:
    """What a killed uv leaves: it writes each file under a name of its own first."""
    yield from (path for path in folder.glob(".tmp??????") if path.is_file() and path.stat().st_ctime >= since)


def _with_compiled(path: Path) -> Iterator[Path]:
    yield path
    if path.suffix == ".py":
        yield from (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")


def _remove(found: Target, paths: Iterable[Path]) -> None:
    gone = list(paths)
    for path in gone:
        for one in [path, *_with_compiled(path)]:
            one.unlink(missing_ok=True)
    _prune(found, gone)


def _prune(found: Target, paths: Iterable[Path]) -> None:
    """Removes the folders of these files that are empty now; never site-packages or the environment's own."""
    keep = {found.site.resolve(), found.prefix.resolve(), (found.prefix / "bin").resolve()}
    folders = {path.parent for path in paths}
    folders |= {one / "__pycache__" for one in folders}
    for one in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        while one.resolve() not in keep and _is_within(found, one.resolve()):
            try:
                one.rmdir()
            except FileNotFoundError:
                pass
            except OSError:  # not empty
                break
            one = one.parent  # noqa: PLW2901  upwards, as long as they are empty
