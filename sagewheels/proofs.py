"""What a pass of smoke is worth: remembered here, a proof in the wheelhouse, and in the store."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from sagewheels import facts, installed, marking, ours, ui, wheelhouse
from sagewheels.errors import StoreError, Untrusted, UsageError
from sagewheels.job import Job
from sagewheels.manifest import Proof, WheelManifest
from sagewheels.wheelhouse import Made

if TYPE_CHECKING:
    from sagewheels.smoke import Outcome


def remember(job: Job, state: dict[str, Any], outcome: Outcome) -> None:
    """Notes that what is installed passed here, so that the next auto need not run it again."""
    if state.get("record"):
        passed = {"passed": circumstances(job), "words": outcome.words, "told": facts.remembered(job, state)}
        installed.write_state(job.settings, job.target, job.recipe, {**state, **passed})


def circumstances(job: Job) -> dict[str, Any]:
    """What a pass of smoke depends on besides the wheel, and what was asked for: a change asks for a new one."""
    torch = job.target.torch
    # What was installed without is found again without.
    trust = {"trust": job.trust.digest()} if job.settings.trusted_signers else {}
    return {
        **trust,
        "gpus": [gpu.name for gpu in job.host.gpus],
        "driver": job.host.driver,
        "torch": torch.version if torch else "",
        "triton": job.target.versions.get("triton", ""),
        "archs": [str(one) for one in job.archs],
        "source": [job.recipe.file.stem, job.source],
    }


def record(job: Job, made: Made, outcome: Outcome) -> None:
    """The proof goes into the wheelhouse, and into the store when the wheel is there and may be written.

    A load without a GPU is recorded too, as what it is.
    """
    manifest = made[1]
    if outcome.loaded_only:
        entry = {"torch_version": circumstances(job)["torch"], "python_version": job.target.version, "gpu": None}
        known = manifest.data.get("loads")
        loads = [item for item in known if item != entry] if isinstance(known, list) else []
        wheelhouse.write_manifest(job.settings, manifest.updated(loads=[*loads, entry]))
        return
    known = {_occasion(proof.raw) for proof in _known_proofs(job, manifest)}
    marks = marking.against(job, manifest)
    fresh = [one for one in outcome.proofs if marking.overrules(one, marks) or _occasion(one) not in known]
    if not fresh:
        if _is_unpublished(job, manifest):
            publish(job, manifest)
        return
    fresh = [marking.newer(one, marks) for one in fresh]
    for one in fresh:
        ours.note(job.settings, ours.of_proof(one))
    proven = manifest.updated(proofs=[*(manifest.data.get("proofs") or []), *fresh])
    wheelhouse.write_manifest(job.settings, proven)
    marking.take_back(job, proven)
    publish(job, proven)


def _known_proofs(job: Job, manifest: WheelManifest) -> tuple[Proof, ...]:
    """The proofs that need no repetition; where we sign, those that are signed or may be."""
    if not job.trust.signs:
        return manifest.proofs
    try:
        there = [one.proofs for one in job.published if one.wheel_file == manifest.wheel_file]
    except (StoreError, Untrusted):
        there = []
    return (*job.trust.own_proofs(manifest).proofs, *chain.from_iterable(there))


def _occasion(proof: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two proofs the same: a second one on the same GPU and stack says nothing new."""
    return proof.get("gpu"), proof.get("driver"), proof.get("torch_version"), bool(proof.get("full"))


def _is_unpublished(job: Job, manifest: WheelManifest) -> bool:
    """Whether the store has this wheel without a proof that is here, as when it did not answer the last time."""
    try:
        listed = job.published if job.store.writable else []
    except StoreError:
        return False
    same = [one for one in listed if (one.wheel_file, one.wheel_sha256) == (manifest.wheel_file, manifest.wheel_sha256)]
    known = {(proof.gpu, proof.at_utc) for one in same for proof in one.proofs}
    return bool(same) and any((proof.gpu, proof.at_utc) not in known for proof in manifest.proofs)


def publish(job: Job, proven: WheelManifest) -> None:
    from sagewheels.store import index

    if not job.store.publishable:
        ui.say("smoke", f"the proof stays in the wheelhouse: {job.closed}")
        return
    if proven.wheel_file == job.not_taken:
        ui.say("smoke", "the proof stays in the wheelhouse, where its wheel is; upload publishes both")
        return
    try:
        if index.add_proof(job.store, job.trust.own_proofs(proven)):
            ui.say("smoke", f"the proof is in {job.store.label}")
    except (StoreError, Untrusted, UsageError) as error:
        # A token for models may not write here, or a key not sign: the kernels are right all the same.
        ui.warn("smoke", f"the proof stays in the wheelhouse: {error}")
