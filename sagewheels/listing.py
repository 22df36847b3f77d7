"""The store as a table: each wheel, and whether it fits this machine or why not."""

from __future__ import annotations

from sagewheels import ui
from sagewheels.job import Job
from sagewheels.match import Verdict


def show(job: Job) -> None:
    """Prints the table. Raises StoreError when the store does not answer."""
    verdicts = job.verdicts()
    missing = ", which does not exist yet" if job.is_store_missing else ""
    ui.say("list", f"{ui.count(len(verdicts), 'wheel')} in {job.store.label}{missing}")
    if job.store.standing:
        ui.say("list", job.store.standing)
    rows = []
    for verdict in verdicts:
        one = verdict.candidate
        archs, gpus = ", ".join(map(str, one.archs)), ", ".join(sorted({proof.gpu for proof in one.proofs}))
        fits = "fits" if verdict.fits else "; ".join(verdict.reasons)
        signer = (_signer(job, verdict),) if job.trust.enforced else ()
        stack = one.needs_torch or "?", one.cuda or "?", archs or "?"
        rows.append((one.wheel_file, *stack, gpus or "not proven", *signer, fits))
    if rows:
        signed = ("signed by",) if job.trust.enforced else ()
        columns = ("wheel", "torch", "CUDA", "archs", "proven on", *signed, f"for {job.target.python}")
        ui.table(job.store.label, columns, rows)


def _signer(job: Job, verdict: Verdict) -> str:
    """Who signed a wheel that fits; of the others nobody is asked, each would take two runs of ssh-keygen."""
    return job.trust.of_wheel(verdict.candidate).signer or "nobody" if verdict.fits else "not asked"
