"""Smoke as a step of the graph: what is installed is tried, and proven or taken out again."""

from __future__ import annotations

from typing import Any

from sagewheels import diagnosis, facts, full, installed, marking, proofs, smoke, symptoms, ui, wheelhouse
from sagewheels.errors import SageError, SmokeFailed, UsageError
from sagewheels.job import Job
from sagewheels.recipe import Recipe
from sagewheels.steplines import stepped
from sagewheels.symptomrows import Where
from sagewheels.target import Target
from sagewheels.wheelhouse import Made

_NOT_BACK = "WHAT WAS THERE BEFORE COULD NOT BE PUT BACK"


@stepped("smoke")
def do_smoke(job: Job, *, long: bool = False) -> smoke.Outcome | None:
    """The kernels agree with the reference on every GPU, and the wheel has its proof; else the machine is put back.

    `long` adds the checks of the manifest's smoke.full, which take minutes.

    Raises SmokeFailed. None in a dry run.
    """
    if not job.dry_run:
        job.target = _finished(job)
    state = installed.read_state(job.settings, job.target, job.recipe)
    if job.recipe.name not in job.target.versions:
        raise UsageError(f"{job.recipe.name} is not installed in {job.target.prefix}", "Run install or auto first")
    made = _ours(job, state)
    recipe = _recipe(job, state, made)
    if long:
        full.table(recipe)
    if job.dry_run:
        ui.say("smoke", f"would run {job.recipe.name} {job.target.versions[job.recipe.name]} on {_gpus(job)}")
        return None
    extensions = made[1].data.get("extensions") if made else None
    names = list(extensions) if isinstance(extensions, dict) else list(recipe.extensions(_known(job, recipe)))
    found = job.target
    proven = state.get("passed") == proofs.circumstances(job)
    try:
        outcome = smoke.run(job.settings, recipe, found, job.host, names)
        if long and not outcome.failures:
            outcome = full.run(job.settings, recipe, found, job.host, outcome)
    except SmokeFailed as error:
        job.report.update(passed=False, gpus=[], failures=[error.what])
        words = _put_back(job)
        if made and isinstance(error, smoke.Crashed):
            marking.record_crash(job, made[1], str(state.get("sha256")), error, found)
        raise SmokeFailed(error.what, f"{words}. {error.remedy}") from None
    except BaseException:  # Ctrl-C, a full disk, nobody who reads our output: what is not proven does not stay
        if not proven:
            _put_back(job)
        raise
    facts.smoked(job, outcome)
    if outcome.failures:
        raise _failed(job, recipe, made, state, outcome, found)
    ui.say("smoke", outcome.words)
    if made:
        proofs.record(job, made, outcome)
    # Last: who finds that it passed here does not look for its proof. That it computes says nothing of who made it.
    if not job.trust.enforced or (made and not job.trust.against(made[1])):
        proofs.remember(job, state, outcome)
    return outcome


def _failed(
    job: Job, recipe: Recipe, made: Made | None, state: dict[str, Any], outcome: smoke.Outcome, found: Target
) -> SmokeFailed:
    """Says what failed, puts the machine back and marks the wheel; what passed before stays unless it is to blame."""
    for text in outcome.failures:
        ui.say("smoke", f"FAILED: {text}")
    if state.get("passed") == proofs.circumstances(job) and not outcome.faults:
        stays = "It passed here before, and nothing speaks against the wheel itself: it stays installed"
        stays += _symptom(recipe, made, outcome)
        return SmokeFailed(f"smoke failed: {outcome.failures[0]}", stays)
    words = _put_back(job)
    if made:
        marking.record(job, made[1], str(state.get("sha256")), outcome.faults, found)
    return SmokeFailed(
        f"smoke failed: {outcome.failures[0]}", f"{words}; the wheel is not proven{_symptom(recipe, made, outcome)}"
    )


def _symptom(recipe: Recipe, made: Made | None, outcome: smoke.Outcome) -> str:
    """`. ` and what to do about the first failure that is known, or what the probe said besides; else empty."""
    listed = made[1].data.get("patches") if made else None
    has = {str(one.get("name")) for one in listed if isinstance(one, dict)} if isinstance(listed, list) else set()
    lacking = {patch.file for patch in recipe.patches} - has
    where: Where = "run" if any(text.startswith("GPU ") for text in outcome.failures) else "import"
    known = symptoms.remedy("\n".join(outcome.failures), where, lacking=lacking)
    if not known and outcome.log:
        known = diagnosis.of_file(outcome.log, where)
    return f". {known}" if known else ""


def _finished(job: Job) -> Target | None:
    """The target after what was cut off there has been ended; to be asked for all facts anew if anything was."""
    after = installed.finish(job.settings, job.target, job.recipe)
    return job.target if after is job.target else None


def _gpus(job: Job) -> str:
    return ", ".join(gpu.name for gpu in job.host.gpus) or "no GPU: load only"


def _recipe(job: Job, state: dict[str, Any], made: Made | None) -> Recipe:
    """The build manifest of what is installed, which decides what it must be able to do."""
    if made:
        return job.recipe_of(made[1])
    ours = installed.is_in_place(job.target, job.recipe, state, str(state.get("sha256")))
    named = [one for one in job.also if ours and one.file.stem == state.get("manifest")]
    return named[0] if named else job.recipe


def _known(job: Job, recipe: Recipe) -> tuple[Any, ...]:
    """The archs of this machine that the manifest knows, else all of the wanted ones."""
    return tuple(one for one in job.host.archs if one in recipe.archs) or tuple(one.plain for one in job.archs)


def _ours(job: Job, state: dict[str, Any]) -> Made | None:
    """The wheel in the wheelhouse that is what is installed, if sagewheels installed it and it is untouched."""
    for path, manifest in wheelhouse.wheels(job.settings):
        same = path.name == state.get("wheel") and manifest.wheel_sha256 in ("", state.get("sha256"))
        if same and installed.is_in_place(job.target, job.recipe, state, str(state.get("sha256"))):
            return path, manifest
    return None


def _put_back(job: Job) -> str:
    stop = installed.obstacle(job.settings, job.target, job.recipe)
    try:
        words = installed.restore(job.settings, job.target, job.recipe)
    except SageError as error:
        return f"{_NOT_BACK}: {error.what}"
    finally:
        job.target = None
    if stop and stop.why == "copy":
        return f"{_NOT_BACK}: {stop.words}"
    # Files that somebody changed since are theirs: then nothing was put back, and the line must not say so.
    return words if stop and stop.why == "changed" else f"The machine is as it was: {words}"
