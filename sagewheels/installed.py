"""What is installed in the target: put there, remembered, and put back as it was."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sagewheels import installer, target, ui
from sagewheels.config import Settings
from sagewheels.errors import Refused, UsageError
from sagewheels.recipe import Recipe
from sagewheels.target import Target

_NOT_PART_OF_A_WHEEL = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json"}


def state_path(settings: Settings, found: Target, recipe: Recipe) -> Path:
    """Where it is remembered what was put into this target."""
    digest = hashlib.sha256(f"{found.prefix}\0{recipe.name}".encode()).hexdigest()[:16]
    return settings.work_dir / "state" / f"{recipe.name}-{digest}.json"


def read_state(settings: Settings, found: Target, recipe: Recipe) -> dict[str, Any]:
    """What is remembered; empty when there is nothing, or when it cannot be read (it is only a memory)."""
    try:
        state = json.loads(state_path(settings, found, recipe).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(state, dict) or state.get("prefix") != str(found.prefix):
        return {}
    texts = ("pending", "wheel", "manifest", "sha256", "record", "previous", "words")
    return state if all(isinstance(state.get(key), (str, type(None))) for key in texts) else {}


def _is_pending(found: Target, recipe: Recipe, state: dict[str, Any]) -> bool:
    """Whether what is there is what a cut-off install of ours left: nothing, the old version, or the new one.

    Any other version was installed by somebody else since, and is not ours to remove.
    """
    if not state.get("pending"):
        return False
    ours = ["".join(Path(name).name.split("-")[1:2]) for name in (state["pending"], state.get("previous")) if name]
    return found.versions.get(recipe.name) in (None, *ours)


def write_state(settings: Settings, found: Target, recipe: Recipe, state: dict[str, Any]) -> None:
    """Remembers `state`, whole or not at all."""
    path = state_path(settings, found, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps({**state, "prefix": str(found.prefix)}, indent=2, sort_keys=True), encoding="utf-8")
    part.replace(path)


def fingerprint(found: Target, recipe: Recipe) -> str:
    """sha256 of the installed package's RECORD, empty when it is not installed."""
    folder = found.dist_info.get(recipe.name)
    try:
        return hashlib.sha256((folder / "RECORD").read_bytes()).hexdigest() if folder else ""
    except OSError:
        return ""


def is_in_place(found: Target, recipe: Recipe, state: dict[str, Any], sha256: str) -> bool:
    """Whether the wheel with this sha256 is what is installed, every file of it untouched since."""
    same = bool(sha256) and state.get("sha256") == sha256 and state.get("record") == fingerprint(found, recipe) != ""
    return same and _is_intact(found.dist_info[recipe.name])


def _is_intact(dist_info: Path) -> bool:
    """Whether every file has the sha256 that RECORD says; a few milliseconds for a wheel of a few megabytes."""
    try:
        rows = csv.reader(io.StringIO((dist_info / "RECORD").read_text(encoding="utf-8")))
        return all(_digest((dist_info.parent / row[0]).read_bytes()) == row[1] for row in rows if row[1:2] != [""])
    except (OSError, IndexError, ValueError, csv.Error):
        return False


def _digest(content: bytes) -> str:
    """The form in which RECORD writes a sha256."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def install(settings: Settings, found: Target, recipe: Recipe, wheel: Path, sha256: str) -> Target:
    """Puts the wheel into the target and remembers what was there before; returns the facts after it.

    Killed at any moment, the next run still knows the way back. Raises UsageError when the installer fails; then
    what was there is back.
    """
    state = read_state(settings, found, recipe)
    if is_in_place(found, recipe, state, sha256):
        ui.say("install", f"{wheel.name} is installed already")
        return found
    # What a cut-off install, or the same wheel damaged since, has left is not worth keeping: what was before it is.
    again = _is_pending(found, recipe, state) or (
        state.get("sha256") == sha256 and state.get("record") == fingerprint(found, recipe)
    )
    previous = state.get("previous") if again else _set_aside(settings, found, recipe)
    write_state(settings, found, recipe, {"pending": wheel.name, "previous": previous})
    try:
        installer.install_wheel(settings, found, wheel, name=recipe.name)
    except UsageError:
        restore(settings, found, recipe)
        raise
    after = target.ask(found.python, "the target", settings.environ, (recipe.name,))
    record = fingerprint(after, recipe)
    if after.versions.get(recipe.name) != wheel.name.split("-")[1] or not _is_intact(after.dist_info[recipe.name]):
        words = restore(settings, after, recipe)
        raise UsageError(f"{wheel.name} did not arrive in {after.site}", f"{words}. Look for settings of uv or pip")
    made_by = recipe.file.stem
    state = {"wheel": wheel.name, "manifest": made_by, "sha256": sha256, "record": record, "previous": previous}
    write_state(settings, after, recipe, state)
    ui.say("install", f"{wheel.name} is installed in {found.prefix}")
    return after


def restore(settings: Settings, found: Target, recipe: Recipe) -> str:
    """Puts back what was there before our install, and says in words what that is.

    Touches nothing when it was not sagewheels that installed what is there.
    """
    state = read_state(settings, found, recipe)
    if not (_is_pending(found, recipe, state) or is_in_place(found, recipe, state, str(state.get("sha256")))):
        if state.get("record") == fingerprint(found, recipe) != "":
            return (
                f"{recipe.name} was changed since sagewheels installed it (auto installs it anew) and is left as it is"
            )
        return f"{recipe.name} was not installed by sagewheels and is left as it is"
    previous = state.get("previous")
    if previous and not Path(previous).is_file():
        return f"{recipe.name} is left as it is: {previous}, the copy of what was there, is gone"
    if previous:
        installer.install_wheel(settings, found, Path(previous), name=recipe.name)
    else:
        installer.uninstall(settings, found, recipe.name)
    state_path(settings, found, recipe).unlink(missing_ok=True)
    return f"{Path(previous).name} is back" if previous else f"{recipe.name} is not installed, as before"


def _set_aside(settings: Settings, found: Target, recipe: Recipe) -> str | None:
    """Packs what is installed into a wheel under WORK_DIR; None when nothing is. Its path is absolute."""
    folder = found.dist_info.get(recipe.name)
    if folder is None:
        return None
    place = settings.work_dir.resolve() / "previous" / fingerprint(found, recipe)[:16]
    place.mkdir(parents=True, exist_ok=True)
    return str(repack(folder, place))


def repack(dist_info: Path, into: Path) -> Path:
    """An installed distribution as a wheel file again, from its RECORD; scripts are left to its entry points.

    Raises Refused when a file that RECORD lists is gone: then there is no way back, and nothing is touched.
    """
    site = dist_info.parent
    files = dict(_installed_files(dist_info))
    try:
        tags = [
            line[5:] for line in (dist_info / "WHEEL").read_text(encoding="utf-8").splitlines() if line[:5] == "Tag: "
        ]
    except OSError:
        tags = ["py3-none-any"]
    # All of them, as compressed sets: the first of `py2.py3-none-any` alone would not be installed again.
    parts = [sorted(set(part)) for part in zip(*(tag.split("-") for tag in tags or ["py3-none-any"]), strict=True)]
    wheel = into / f"{dist_info.name.removesuffix('.dist-info')}-{'-'.join('.'.join(part) for part in parts)}.whl"
    part = wheel.with_name(f".{wheel.name}.{os.getpid()}.part")
    rows = io.StringIO()
    record = csv.writer(rows, lineterminator="\n")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            content = path.read_bytes()
            record.writerow([name, _digest(content), len(content)])
            archive.writestr(name, content)
        record.writerow([f"{dist_info.relative_to(site)}/RECORD", "", ""])
        archive.writestr(f"{dist_info.relative_to(site)}/RECORD", rows.getvalue())
    part.replace(wheel)
    return wheel


def _installed_files(dist_info: Path) -> Iterator[tuple[str, Path]]:
    site = dist_info.parent
    try:
        rows = list(csv.reader(io.StringIO((dist_info / "RECORD").read_text(encoding="utf-8"))))
    except OSError:
        raise Refused(
            f"{dist_info} has no RECORD, so what is there could not be put back", "Uninstall it first"
        ) from None
    for row in rows:
        name = row[0] if row else ""
        path = site / name
        skip = name.startswith(("..", "/")) or name.endswith(".pyc") or path.name in _NOT_PART_OF_A_WHEEL
        if not name or (skip and (path.parent == dist_info or name.startswith(("..", "/")) or name.endswith(".pyc"))):
            continue
        if not path.is_file():
            raise Refused(f"{path} is gone though RECORD lists it", f"Reinstall {dist_info.name} or uninstall it first")
        yield name, path
