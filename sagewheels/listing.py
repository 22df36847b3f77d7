"""The store as a table: each wheel, and whether it fits this machine or why not."""

from __future__ import annotations

from sagewheels import ui
from sagewheels.job import Job


def show(job: Job) -> None:
    """Prints the table. Raises StoreError when the store does not answer."""
    verdicts = job.verdicts()
    missing = ", which does not exist yet" if job.is_store_missing else ""
    ui.say("list", f"{ui.count(len(verdicts), 'wheel')} in {job.store.label}{missing}")
    rows = []
    for verdict in verdicts:
        one = verdict.candidate
        archs, gpus = ", ".join(map(str, one.archs)), ", ".join(sorted({proof.gpu for proof in one.proofs}))
        fits = "fits" if verdict.fits else "; ".join(verdict.reasons)
        rows.append((one.wheel_file, one.needs_torch or "?", one.cuda or "?", archs or "?", gpus or "not proven", fits))
    if rows:
        columns = ("wheel", "torch", "CUDA", "archs", "proven on", f"for {job.target.python}")
        ui.table(job.store.label, columns, rows)
