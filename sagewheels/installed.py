"""What is installed in the target: put there, remembered, and put back as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sagewheels import aside, exchange, installer, record, target, ui
from sagewheels.config import Settings
from sagewheels.errors import SageError, UsageError
from sagewheels.files import arriving, sync
from sagewheels.recipe import Recipe
from sagewheels.target import Target
from sagewheels.wheel import file_hash

_STEPS = 10
"""How many installs are remembered, each with the wheel that it replaced."""


@dataclass(frozen=True)
class Obstacle:
    """Why nothing can be put back, in words: the `copy` of what was there is gone, or what is there is not ours.

    It is not ours where it was `changed` since, nor where it is `foreign`: installed by somebody else.
    """

    why: Literal["copy", "changed", "foreign"]
    words: str


def state_path(settings: Settings, found: Target, recipe: Recipe) -> Path:
    """Where it is remembered what was put into this target."""
    digest = hashlib.sha256(f"{found.prefix}\0{recipe.name}".encode()).hexdigest()[:16]
    return settings.work_dir / "state" / f"{recipe.name}-{digest}.json"


def read_state(settings: Settings, found: Target, recipe: Recipe) -> dict[str, Any]:
    """What is remembered; empty when there is nothing, or when it cannot be read (it is only a memory).

    `previous` is a wheel of what was there before, `before` what was remembered of that if it was ours. `pending`
    names the wheel that is just being installed, or, with `back`, taken out again.
    """
    try:
        state = json.loads(state_path(settings, found, recipe).read_text(encoding="utf-8"))
        return state if _is_memory(state) and state.get("prefix") == str(found.prefix) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _is_memory(state: Any) -> bool:
    texts = ("pending", "wheel", "manifest", "sha256", "record", "previous", "words")
    return (
        isinstance(state, dict)
        and all(isinstance(state.get(key), (str, type(None))) for key in texts)
        and all(state.get(key) is None or _is_memory(state[key]) for key in ("before", "was"))
    )


def is_pending(found: Target, recipe: Recipe, state: dict[str, Any]) -> bool:
    """Whether what is there is what a cut-off install or rollback of ours left: nothing, the old version, or the new.

    Any other version was installed by somebody else since, and is not ours to remove.
    """
    if not state.get("pending"):
        return False
    ours = ["".join(Path(name).name.split("-")[1:2]) for name in (state["pending"], state.get("previous")) if name]
    return found.versions.get(recipe.name) in (None, *ours)


def write_state(settings: Settings, found: Target, recipe: Recipe, state: dict[str, Any]) -> None:
    """Remembers `state`, whole or not at all."""
    last = state
    for _ in range(_STEPS):
        last = last.get("before") or {}
    last.pop("before", None)
    text = json.dumps({**state, "prefix": str(found.prefix)}, indent=2, sort_keys=True)
    with arriving(state_path(settings, found, recipe)) as stream:
        stream.write(text.encode("utf-8"))


def _forget_state(settings: Settings, found: Target, recipe: Recipe) -> None:
    path = state_path(settings, found, recipe)
    path.unlink(missing_ok=True)
    sync(path.parent)


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
        return all(
            record.digest((dist_info.parent / row[0]).read_bytes()) == row[1]
            for row in record.rows(dist_info)
            if row[1:2] != [""]
        )
    except (OSError, IndexError, ValueError):
        return False


def install(settings: Settings, found: Target, recipe: Recipe, wheel: Path, sha256: str) -> Target:
    """Puts the wheel into the target and remembers what was there before; returns the facts after it.

    Killed at any moment, the next run still knows the way back. Raises UsageError when the installer fails; then
    what was there is back.
    """
    found = finish(settings, found, recipe)
    state = read_state(settings, found, recipe)
    if is_in_place(found, recipe, state, sha256):
        ui.say("install", f"{wheel.name} is installed already")
        return found
    installer.demand_writable(found)
    way_back = _way_back(settings, found, recipe, state, sha256)
    write_state(settings, found, recipe, {"pending": wheel.name, **way_back, "was": state})
    with _exchange(settings, found, recipe, wheel, state) as after:
        made_by, as_listed = recipe.file.stem, fingerprint(after, recipe)
        state = {"wheel": wheel.name, "manifest": made_by, "sha256": sha256, "record": as_listed, **way_back}
        write_state(settings, after, recipe, state)
    ui.say("install", f"{wheel.name} is installed in {found.prefix}")
    return after


def _way_back(settings: Settings, found: Target, recipe: Recipe, state: dict[str, Any], sha256: str) -> dict[str, Any]:
    """What an install that begins now replaces: `previous` and `before`."""
    # What a cut-off install, or the same wheel damaged since, has left is not worth keeping: what was before it is.
    if is_pending(found, recipe, state) or (
        state.get("sha256") == sha256 and state.get("record") == fingerprint(found, recipe)
    ):
        return {key: state[key] for key in ("previous", "before") if key in state}
    ours = is_in_place(found, recipe, state, str(state.get("sha256")))
    return {"previous": _set_aside(settings, found, recipe), **({"before": state} if ours else {})}


@contextmanager
def _exchange(
    settings: Settings, found: Target, recipe: Recipe, wheel: Path | None, memory: dict[str, Any]
) -> Iterator[Target]:
    """The wheel, or nothing, in the place of what is there; the block writes down that it is so.

    Whatever goes wrong until then, what was there is back, and `memory` of it, after an error that is told.
    """
    try:
        exchange.begin(found, recipe.name, wheel)
        if wheel:
            installer.install_wheel(settings, found, wheel, name=recipe.name)
        after = _again(settings, found, recipe)
        if wheel and not _is_whole(after, recipe, wheel):
            raise UsageError(f"{wheel.name} did not arrive in {after.site}", "Look for settings of uv or pip")
        yield after
    except BaseException as error:
        exchange.undo(found, recipe.name)
        if isinstance(error, (SageError, OSError)):
            with suppress(SageError, OSError):  # the first error is the one to tell, and a pending state says as much
                _remember(settings, found, recipe, memory)
        raise
    exchange.end(found, recipe.name)


def _is_whole(found: Target, recipe: Recipe, wheel: Path) -> bool:
    return found.versions.get(recipe.name) == wheel.name.split("-")[1] and _is_intact(found.dist_info[recipe.name])


def _remember(settings: Settings, found: Target, recipe: Recipe, memory: dict[str, Any]) -> None:
    if memory:
        write_state(settings, found, recipe, memory)
    else:
        _forget_state(settings, found, recipe)


def _again(settings: Settings, found: Target, recipe: Recipe) -> Target:
    return target.ask(found.python, "the target", settings.environ, (recipe.name,))


def obstacle(settings: Settings, found: Target, recipe: Recipe) -> Obstacle | None:
    """What keeps `restore` from putting anything back; None when nothing does."""
    state = read_state(settings, found, recipe)
    if is_pending(found, recipe, state) or is_in_place(found, recipe, state, str(state.get("sha256"))):
        previous = state.get("previous")
        if not previous or Path(str(previous)).is_file():
            return None
        return Obstacle("copy", f"{recipe.name} is left as it is: {previous}, the copy of what was there, is gone")
    if state.get("record") == fingerprint(found, recipe) != "":
        words = f"{recipe.name} was changed since sagewheels installed it (auto installs it anew) and is left as it is"
        return Obstacle("changed", words)
    if recipe.name not in found.versions:
        return Obstacle("foreign", f"{recipe.name} is not installed")
    return Obstacle("foreign", f"{recipe.name} was not installed by sagewheels and is left as it is")


def restore(settings: Settings, found: Target, recipe: Recipe) -> str:
    """Puts back what was there before our install, and what was remembered of it; says in words what that is.

    Touches nothing when it was not sagewheels that installed what is there. Killed at any moment, or failed with
    UsageError, `finish` goes on with it.
    """
    if stop := obstacle(settings, found, recipe):
        return stop.words
    installer.demand_writable(found)
    state = read_state(settings, found, recipe)
    leaving, previous, before = state.get("pending") or state["wheel"], state.get("previous"), state.get("before")
    if "pending" not in state:
        _keep_copy(settings, found, recipe, state)
    way_back = {"previous": previous, **({"before": before} if before else {})}
    going = {"pending": leaving, "back": True, **way_back}
    write_state(settings, found, recipe, going)
    memory = going if "pending" in state else state
    with _exchange(settings, found, recipe, Path(previous) if previous else None, memory) as after:
        # The same files as ever, though RECORD names another place from which they came.
        _remember(settings, after, recipe, {**before, "record": fingerprint(after, recipe)} if before else {})
    return f"{Path(previous).name} is back" if previous else f"{recipe.name} is not installed, as before"


def is_cut_off(found: Target, recipe: Recipe, state: dict[str, Any]) -> bool:
    """Whether `finish` has anything to do."""
    going_back = bool(state.get("back")) and is_pending(found, recipe, state)
    return going_back or exchange.folder(found, recipe.name).exists()


def finish(settings: Settings, found: Target, recipe: Recipe) -> Target:
    """Ends what was cut off: an install is undone, a rollback goes on. Returns the facts after it.

    Raises as `restore` does.
    """
    state = read_state(settings, found, recipe)
    if not is_cut_off(found, recipe, state):
        return found
    # A memory without a pending wheel may be of another WORK_DIR than the one whose run was cut off.
    if not is_pending(found, recipe, state) and (state.get("pending") or _has_arrived(found, recipe)):
        exchange.end(found, recipe.name)
        return found
    exchange.undo(found, recipe.name)
    if state.get("back"):
        ui.say(
            "rollback", f"one was cut off and is finished: {restore(settings, _again(settings, found, recipe), recipe)}"
        )
    else:
        ui.say("install", f"one of {recipe.name} was cut off and is undone")
        if state.get("pending"):
            _remember(settings, found, recipe, state.get("was") or {})
    return _again(settings, found, recipe)


def _has_arrived(found: Target, recipe: Recipe) -> bool:
    """Whether what was to come is there, whole; for an exchange of which nothing is remembered here."""
    info = exchange.awaited(found, recipe.name)
    return info is None or _is_intact(info)


def _set_aside(settings: Settings, found: Target, recipe: Recipe) -> str | None:
    """Packs what is installed into a wheel under WORK_DIR; None when nothing is. Its path is absolute.

    What another environment lends to this one (its site-packages) is not touched by an install, and needs no copy.
    """
    folder = exchange.own(found, recipe.name)
    if folder is None:
        return None
    place = settings.work_dir.resolve() / "previous" / fingerprint(found, recipe)[:16]
    return str(aside.repack(folder, place, found.prefix))


def _keep_copy(settings: Settings, found: Target, recipe: Recipe, state: dict[str, Any]) -> None:
    """What is taken out can be installed again: its wheel is in the wheelhouse, or else a copy under WORK_DIR."""
    wheel = settings.wheelhouse_dir / str(state.get("wheel"))
    if not wheel.is_file() or file_hash(wheel)[0] != state.get("sha256"):
        _set_aside(settings, found, recipe)
