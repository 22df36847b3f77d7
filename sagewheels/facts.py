"""What a run found out, in plain JSON types: the report that `--json` prints, and that the closing panel is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from sagewheels.job import Job
    from sagewheels.manifest import WheelManifest
    from sagewheels.match import Verdict
    from sagewheels.smoke import Outcome
    from sagewheels.wheelhouse import Made

BUILT, STORE, WHEELHOUSE, ADDRESS = "built here", "store", "wheelhouse", "WHEEL_URL"
"""Where a wheel comes from."""

_REMEMBERED = ("package", "wheel", "proof", "standing")


def wheel(one: WheelManifest) -> dict[str, Any]:
    """A wheel as its manifest has it; null where that does not say."""
    return {
        "file": one.wheel_file,
        "name": one.name,
        "version": one.version,
        "sha256": one.wheel_sha256 or None,
        "size": one.size,
        "archs": [str(arch) for arch in one.archs],
        "torch": one.needs_torch or None,
        "cuda": one.cuda or None,
        "proven_on": sorted({proof.gpu for proof in one.proofs}),
    }


def verdict(one: Verdict) -> dict[str, Any]:
    """A wheel of the store, and whether it fits here."""
    return {**wheel(one.candidate), "fits": one.fits, "reasons": list(one.reasons)}


def judged(job: Job, verdicts: Iterable[Verdict]) -> None:
    """Notes what the store holds, and what this machine wants."""
    wanted = job.wanted()
    job.report["store"] = {"label": job.store.label, "exists": not job.is_store_missing}
    job.report["wanted"] = {
        "name": wanted.name,
        "version": wanted.version or None,
        "python": job.target.python_tag,
        "torch": wanted.torch or None,
        "cuda": wanted.cuda or None,
        "archs": [str(arch) for arch in wanted.archs],
    }
    job.report["wheels"] = [verdict(one) for one in verdicts]


def taken(job: Job, path: Path, manifest: WheelManifest) -> None:
    """Notes the wheel that is in the wheelhouse now."""
    job.report["wheel"] = {**wheel(manifest), "path": str(path)}


def chosen(job: Job, made: Made, origin: str) -> None:
    """Notes the wheel that is installed next, and where it comes from."""
    path, manifest = made
    taken(job, path, manifest)
    recipe = job.recipe_of(manifest)
    job.report["package"] = {"name": recipe.name, "version": manifest.version or recipe.version}
    where = job.settings.wheelhouse_dir if origin == WHEELHOUSE else job.store.label
    job.report["origin"] = {"kind": origin, "where": str(where) if origin in (STORE, WHEELHOUSE) else None}


def smoked(job: Job, outcome: Outcome) -> None:
    """Notes what smoke found, also when that is that the kernels are wrong."""
    job.report["gpus"] = [dict(gpu) for gpu in outcome.gpus]
    job.report["failures"] = list(outcome.failures)
    job.report["passed"] = not outcome.failures
    job.report["standing"] = outcome.words
    job.report["proof"] = [dict(proof) for proof in outcome.proofs]
    torch = job.target.torch
    job.report["target"] = {
        "python": str(job.target.python),
        "prefix": str(job.target.prefix),
        "version": job.target.version,
        "torch": torch.version if torch else None,
        "cuda": torch.cuda if torch else None,
        "triton": job.target.versions.get("triton"),
    }


def remembered(job: Job, state: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth knowing of this pass when the next run finds everything in place."""
    before = state.get("told")
    known = before if isinstance(before, dict) else {}
    return {**known, **{key: job.report[key] for key in _REMEMBERED if key in job.report}}


def in_place(job: Job, state: Mapping[str, Any]) -> None:
    """Notes that nothing was to be done, and what is known of what is there."""
    told = state.get("told")
    known = told if isinstance(told, dict) else {}
    job.report.update({key: known[key] for key in _REMEMBERED if key in known})
    job.report.setdefault("wheel", {"file": state.get("wheel"), "sha256": state.get("sha256")})
    job.report.update(
        changed=False, steps=[], target={"python": str(job.target.python), "prefix": str(job.target.prefix)}
    )
    job.report["next"] = list(job.recipe.next)
