"""Writing down that a wheel is bad, or no longer is: always here, and in the store where that can be done."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sagewheels
from sagewheels import bad, blame, proc, ui, wheelhouse
from sagewheels.blame import Fault
from sagewheels.errors import SageError, StoreError, Untrusted, UsageError
from sagewheels.job import Job
from sagewheels.manifest import WheelManifest, when
from sagewheels.smoke import Crashed
from sagewheels.target import Target

_ALONE = """
import torch
assert torch.cuda.device_count()
for index in range(torch.cuda.device_count()):
    assert torch.ones(8, device="cuda:%d" % index).sum().item() == 8
"""


def record_crash(job: Job, manifest: WheelManifest, sha256: str, crash: Crashed, found: Target) -> None:
    """As `record`, of a probe that gave no answer, if it was the kernels that brought it down."""
    faults = blame.of_crash(crash.ended, crash.what, job.host, full=crash.probe == "full")
    if faults and _torch_computes(job, found):
        record(job, manifest, sha256, faults, found)


def _torch_computes(job: Job, found: Target) -> bool:
    """Whether torch alone computes on every GPU: only then is a crash of the kernels theirs."""
    return proc.run([found.python, "-I", "-B", "-c", _ALONE], env=job.settings.environ, timeout=300).code == 0


def record(job: Job, manifest: WheelManifest, sha256: str, faults: Sequence[Fault], found: Target) -> None:
    """Marks the wheel as bad in the wheelhouse, then in the store. Never raises for want of a place to write to."""
    now = datetime.datetime.now(datetime.timezone.utc)
    for fault in faults:
        raw: dict[str, Any] = {
            "wheel_file": manifest.wheel_file,
            "wheel_sha256": manifest.wheel_sha256 or sha256,
            "build_key": manifest.build_key or None,
            "arch": fault.arch,
            "gpu": fault.gpu,
            "driver": job.host.driver,
            "torch_version": found.torch.version if found.torch else None,
            "reason": _plain(fault.reason),
            "at_utc": bad.later(now, (one.at_utc for one in manifest.proofs if one.arch == fault.arch)),
            "sagewheels": sagewheels.__version__,
            **({"full": True} if fault.full else {}),
        }
        mark = bad.read(raw)
        if mark:
            _record(job, mark)


def _plain(text: str) -> str:
    """One line that can be read and published: of paths, which are this machine's own, only the last part."""
    bare = re.sub(r"(?:/[^/\s'\":]+)+/", "", " ".join(text.split()))
    return "".join(letter if letter.isprintable() else "?" for letter in bare)[:300]


def _record(job: Job, mark: bad.Mark) -> None:
    what = f"{mark.wheel_file} is known to be bad on arch {mark.arch}"
    try:
        # First here: a store that cannot be written must not send this machine round in circles.
        wheelhouse.write_marks(job.settings, bad.added(wheelhouse.raw_marks(job.settings), mark))
    except (SageError, OSError) as error:
        ui.warn("smoke", f"that {what} could not be written down here: {error}")
    if not job.store.writable:
        ui.say("smoke", f"recorded in the wheelhouse alone: {what}; {job.store.label} can only be read")
        return
    from sagewheels.store import index

    try:
        index.add_mark(job.store, mark)
        ui.say("smoke", f"recorded in {job.store.label}: {what}")
    except (StoreError, Untrusted, UsageError) as error:
        ui.warn("smoke", f"recorded in the wheelhouse alone: {what}; {error}")


def against(job: Job, manifest: WheelManifest) -> list[bad.Mark]:
    """What smoke has found against this wheel, here and in the store if that answers."""
    if job.store.writable:
        try:
            _ = job.published
        except (StoreError, Untrusted):
            pass
    marks = bad.standing(manifest, bad.by_name(job.recorded()))
    return [mark for mark in marks if mark.at_utc]


def overrules(proof: Mapping[str, Any], marks: Iterable[bad.Mark]) -> bool:
    """Whether a proof that is made now takes one of these marks back."""
    return any(proof["arch"] == mark.arch and bad.reaches(proof, mark) for mark in marks)


def take_back(job: Job, proven: WheelManifest) -> None:
    """The wheelhouse no longer says that this wheel is bad where a proof has overruled it; a proof stands without."""
    try:
        before = wheelhouse.raw_marks(job.settings)
        after = bad.without_overruled(before, proven)
        if after != before:
            wheelhouse.write_marks(job.settings, after)
    except OSError as error:
        ui.warn("smoke", f"the marks of the wheelhouse stay as they are: {error}")
        return
    if after != before:
        ui.say("smoke", f"{proven.wheel_file} was known to be bad here, which is taken back")


def newer(proof: dict[str, Any], marks: Sequence[bad.Mark]) -> dict[str, Any]:
    """The proof, dated behind the marks of its arch: it was made in the knowledge of them."""
    moments = [mark.at_utc for mark in marks if mark.arch == proof["arch"]]
    return {**proof, "at_utc": bad.later(when(proof["at_utc"]), moments)} if moments else proof
