"""The way back, asked for by hand: what was installed before is installed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sagewheels import installed, proofs, ui
from sagewheels.errors import Refused
from sagewheels.job import Job


def rollback(job: Job) -> None:
    """What was there before is back, and said; nothing is touched that sagewheels did not install.

    An install or a rollback that was cut off is brought to its end instead: either is a way back by itself. Raises
    Refused when the copy of what was there is gone, UsageError when it cannot be installed; then what is there stays.
    """
    state = installed.read_state(job.settings, job.target, job.recipe)
    if installed.is_cut_off(job.target, job.recipe, state):
        if job.dry_run:
            ui.say("rollback", f"would end what was cut off: {_before(job, state)}")
        else:
            job.target = installed.finish(job.settings, job.target, job.recipe)
        return
    if stop := installed.obstacle(job.settings, job.target, job.recipe):
        if stop.why == "copy":
            raise Refused(stop.words, f"Install the {job.recipe.name} that you want, or uninstall it")
        ui.say("rollback", f"nothing to roll back: {stop.words}")
    elif job.dry_run:
        wheel = state.get("wheel") or state["pending"]
        ui.say("rollback", f"would take {wheel} out of {job.target.prefix}: {_before(job, state)}")
    else:
        _go_back(job, state)


def _before(job: Job, state: dict[str, Any]) -> str:
    """What will be there then, in words."""
    previous = state.get("previous")
    return f"{Path(previous).name} comes back" if previous else f"{job.recipe.name} is not installed then, as before"


def _go_back(job: Job, state: dict[str, Any]) -> None:
    ui.say("rollback", installed.restore(job.settings, job.target, job.recipe))
    job.target = None
    now, leaving = installed.read_state(job.settings, job.target, job.recipe), state.get("wheel") or state["pending"]
    if now.get("passed") and now["passed"] == proofs.circumstances(job):
        ui.say("rollback", f"auto keeps it: it passed smoke here. To have {leaving} again: verify --wheel {leaving}")
        return
    ui.say(
        "rollback",
        f"auto would install {leaving} again, unless [[known_bad]] in {job.recipe.file} names it; verify --wheel "
        "chooses another",
    )
