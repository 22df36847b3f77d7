"""Compiling: a checkout becomes a wheel, its log, and a wheel manifest made from the wheel itself."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from sagewheels import (
    arch,
    backend,
    bad,
    buildplan,
    describe,
    diagnosis,
    manylinux,
    ours,
    source,
    stableabi,
    ui,
    wheel,
    wheelhouse,
)
from sagewheels.arch import Arch
from sagewheels.bad import Marks
from sagewheels.buildplan import Plan
from sagewheels.config import Settings
from sagewheels.errors import BuildFailed, UsageError
from sagewheels.recipe import Recipe
from sagewheels.source import Checkout
from sagewheels.trust import Trust
from sagewheels.wheelhouse import Made


def run(
    settings: Settings,
    plan: Plan,
    *,
    force: bool = False,
    known_bad: Marks | None = None,
    archs: Sequence[Arch] = (),
) -> Made:
    """A wheel in the wheelhouse with its manifest; the one that is there already when the build key is the same.

    `archs` are those that it will run on, where they are not the ones that it is compiled for.

    Raises UsageError or StoreError for the source, also for a unit of the manifest that it has not, BuildFailed with
    the line of the log that matters, and at once for a build key that is known to be bad: the same inputs give the
    same wheel.
    """
    tree = source.checkout(settings, plan.recipe, settings.work_dir / "source" / plan.recipe.file.stem)
    key = buildplan.build_key(plan, tree.commit, [patch.sha256 for patch in tree.patches])
    if not force and (mark := bad.of_build(key, archs or plan.archs, known_bad or {})):
        what = f"what would be compiled, build key {key[:8]}, is {mark.words}"
        raise BuildFailed(what, "Change torch or patches; build --force and auto --rebuild compile it anyway")
    if not force and (kept := _kept(settings, key)):
        return kept
    _units_are_there(plan.recipe, tree)
    started = time.monotonic()
    out = settings.work_dir / "out" / key[:16]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = _log_path(settings, plan)
    backend.run(settings, plan, tree, key, out, log)
    made = sorted(out.glob("*.whl"))
    if len(made) != 1:
        known = diagnosis.of_file(log, "build")
        what = f"the build ended without a wheel: {backend.matters(log)}"
        raise BuildFailed(what, f"{known and known + '. '}See {log}")
    found = wheel.inspect(manylinux.sealed(made[0], plan.target, tree.epoch), plan.recipe.package)
    _as_planned(plan, found)
    manifest = describe.describe(settings, plan, tree, key, found)
    ours.note(settings, manifest.wheel_sha256)
    kept_as = wheelhouse.keep(settings, found.path, manifest)
    ui.say("build", f"{kept_as.name}, {ui.size(found.size)}, in {ui.duration(time.monotonic() - started)}")
    return kept_as, manifest


def _units_are_there(recipe: Recipe, tree: Checkout) -> None:
    """What the manifest says of a unit is of a file of the pinned commit; another one may well lack it.

    Raises UsageError: it would count for nothing.
    """
    if not recipe.source.path and tree.commit != recipe.source.commit:
        return
    for name in recipe.unit_rules:
        if not (tree.folder / name).is_file():
            what = f'{recipe.file}: unit."{name}" is no file of the source'
            raise UsageError(what, "Name it as the source does, or take it out")


def made_before(settings: Settings, plan: Plan, archs: Sequence[Arch], known_bad: Marks) -> Made | None:
    """The wheel of the wheelhouse with the build key that this plan will have, if that is known without a checkout.

    None for one that is known to be bad: `run` says so.
    """
    key = known_key(settings, plan)
    return None if not key or bad.of_build(key, archs, known_bad) else _kept(settings, key)


def known_key(settings: Settings, plan: Plan) -> str:
    """The build key that this plan will have, empty where only a checkout tells it."""
    commit = source.known(settings, plan.recipe)
    return buildplan.build_key(plan, commit, [patch.sha256 for patch in plan.recipe.patches]) if commit else ""


def _kept(settings: Settings, key: str) -> Made | None:
    kept = wheelhouse.of_build_key(settings, key)
    if kept and (why := Trust(settings).against(kept[1])):
        ui.say("build", f"{kept[0].name} is in the wheelhouse with that build key, but {why}: building anew")
        return None
    if kept:
        ui.say("build", f"{kept[0].name} is in the wheelhouse already, with the same build key {key[:8]}")
    return kept


def _log_path(settings: Settings, plan: Plan) -> Path:
    settings.log_dir.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return settings.log_dir / f"build-{plan.recipe.file.stem}-{stamp}-{os.getpid()}.log"


def _as_planned(plan: Plan, found: wheel.Wheel) -> None:
    """The wheel holds every extension, for every arch. Raises BuildFailed: the source left something out."""
    missing = [name for name in plan.extensions if name not in found.extensions]
    if missing:
        raise BuildFailed(f"{found.path.name} was built without {', '.join(missing)}")
    if plan.recipe.stable_torch:
        _as_stable(found)
    for rule in plan.rules:
        for name in rule.extensions:
            have = found.extensions[name].archs
            if rule.cubin not in have:
                raise BuildFailed(f"{name} holds code for {arch.join(have) or 'nothing'}, not for {rule.cubin}")


def _as_stable(found: wheel.Wheel) -> None:
    """The wheel is for many a Python and many a torch. Raises BuildFailed: the source promised too much."""
    if not stableabi.oldest_python(found.tags):
        raise BuildFailed(f"{found.path.name} is not tagged abi3, though its build manifest has [stable_abi]")
    if found.beyond_libtorch:
        raise BuildFailed(found.beyond_libtorch)
