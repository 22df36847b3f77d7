"""The best wheel of the user's own store into the wheelhouse, or the reason why none is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from sagewheels import bad, facts, match, ui, verify, web, wheelhouse
from sagewheels.errors import NothingCompatible, Refused, StoreError, UsageError
from sagewheels.estimate import Rate
from sagewheels.files import arriving
from sagewheels.job import Job
from sagewheels.manifest import WheelManifest, loads, parse
from sagewheels.match import Verdict
from sagewheels.store.entries import merge
from sagewheels.wheelhouse import Made

_MOST_REASONS = 20
_MOST_TRIES = 3
_DOWNLOADS = 2
"""How often a wheel is downloaded before bytes that are not as promised are the store's own, and refused."""


def fetch(job: Job) -> Made:
    """The best wheel for this machine, in the wheelhouse, its bytes checked.

    Raises NothingCompatible with the list of reasons printed, StoreError when the store does not answer, Refused
    when the bytes that came are not those that were promised.
    """
    if job.settings.wheel_url:
        return from_url(job, job.settings.wheel_url)
    verdicts = job.verdicts()
    facts.judged(job, verdicts)
    fits = [verdict.candidate for verdict in verdicts if verdict.fits][:_MOST_TRIES]
    if not fits:
        explain(job, verdicts)
        raise NothingCompatible(f"{job.store.label} holds no wheel for this machine", "Run auto or build to make one")
    for place, best in enumerate(fits, 1):
        ui.say("fetch", f"{best.wheel_file} fits, {_standing(job, best)}")
        try:
            return bring(job, best), best
        except (Refused, StoreError) as error:
            # A damaged or vanished wheel must not hide a good one behind it.
            if place == len(fits):
                raise
            ui.say("fetch", f"not that one: {error.what}")
    raise AssertionError("unreachable")


def _standing(job: Job, candidate: WheelManifest) -> str:
    gpus, made_by = sorted({proof.gpu for proof in candidate.proofs}), job.recipe_of(candidate)
    standing = f"proven on {', '.join(gpus)}" if gpus else "a candidate, not proven yet"
    if job.trust.enforced and (signer := job.trust.of_wheel(candidate).signer):
        standing += f", signed by {signer}"
    return standing if made_by is job.recipe else f"{standing}; made by {made_by.file.stem}"


def explain(job: Job, verdicts: Sequence[Verdict]) -> None:
    """Prints what this machine wants, and for each candidate why it was rejected."""
    wanted = job.wanted()
    archs = ", ".join(map(str, wanted.archs))
    stack = f"torch {wanted.torch or 'none'}, CUDA {wanted.cuda or 'none'}"
    ui.say("fetch", f"wanted: {wanted.name} {wanted.version or 'any'}, {job.target.python_tag}, {stack}, arch {archs}")
    if not verdicts:
        missing = ": it does not exist yet" if job.is_store_missing else ""
        ui.say("fetch", f"{job.store.label} holds no wheels at all{missing}")
    for verdict in verdicts[:_MOST_REASONS]:
        ui.say("fetch", f"rejected {verdict.candidate.wheel_file}: {'; '.join(verdict.reasons)}")
    if len(verdicts) > _MOST_REASONS:
        ui.say("fetch", f"and {len(verdicts) - _MOST_REASONS} more; the task list shows all")


def bring(job: Job, candidate: WheelManifest) -> Path:
    """Downloads a candidate into the wheelhouse unless the very bytes are there. Raises StoreError, Refused."""
    place = job.settings.wheelhouse_dir / candidate.wheel_file
    if place.is_file():
        try:
            verify.bytes_as_promised(place, candidate)
            wheelhouse.write_manifest(job.settings, _with_own_proofs(job, candidate))
            facts.taken(job, place, candidate)
            ui.say("fetch", f"{place.name} is in the wheelhouse already")
            return place
        except Refused as error:
            ui.say("fetch", f"fetching again: {error.what}")
    return _download(job, candidate, lambda part, shown: job.store.download(candidate.wheel_file, part, shown))


def _with_own_proofs(job: Job, candidate: WheelManifest) -> WheelManifest:
    """The store's manifest with the proofs that only the wheelhouse has: a store may be readable alone."""
    for _, own in wheelhouse.wheels(job.settings):
        if own.wheel_file == candidate.wheel_file and own.wheel_sha256 == candidate.wheel_sha256:
            return merge(own, candidate)
    return candidate


def _download(job: Job, candidate: WheelManifest, get: Callable[[Path, Callable[[int, int], None]], None]) -> Path:
    """Writes to a temporary name, checks size and sha256 of what is on disk, and only then gives it its name."""
    place = job.settings.wheelhouse_dir / candidate.wheel_file
    with arriving(place) as stream:
        part = Path(stream.name)
        for left in reversed(range(_DOWNLOADS)):
            try:
                _get(get, part, candidate)
                break
            except Refused as error:
                if not left:
                    raise
                ui.say("fetch", f"fetching again: {error.what}")
    wheelhouse.write_manifest(job.settings, candidate)
    facts.taken(job, place, candidate)
    promised = f"sha256 {candidate.wheel_sha256[:12]} as promised" if candidate.wheel_sha256 else "no sha256 to check"
    ui.say("fetch", f"{place.name}, {ui.size(place.stat().st_size)}, {promised}")
    return place


def _get(get: Callable[[Path, Callable[[int, int], None]], None], part: Path, candidate: WheelManifest) -> None:
    """Writes what comes to `part`. Raises Refused when that is not what was promised, StoreError when nothing comes."""
    rate = Rate()
    with ui.progress("fetch", every=5) as shown:

        def progress(done: int, total: int) -> None:
            # Before a body without an end fills the disk.
            if candidate.size is not None and done > candidate.size:
                what = f"{candidate.wheel_file} has more than the {candidate.size} bytes of its manifest"
                raise Refused(what, "Fetch it again")
            rate.add(time.monotonic(), done)
            fast = f", {ui.size(round(rate.per_second))}/s" if rate.per_second else ""
            of, share = (f" of {ui.size(total)}", done / total) if total else ("", None)
            shown.update(f"{ui.size(done)}{of}{fast}", share=share, seconds_left=rate.left(total))

        get(part, progress)
    verify.bytes_as_promised(part, candidate)


def from_url(job: Job, url: str) -> Made:
    """The wheel of WHEEL_URL, by the manifest beside it (`<url>.json`) or by a `#sha256=` in the address itself.

    Raises Refused when nothing says what its bytes should be and ALLOW_UNSAFE_WHEEL is off, StoreError when the
    address does not answer, NothingCompatible when its manifest does not fit this machine.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UsageError("WHEEL_URL is not an address", "Write https://.../name.whl") from None
    name = PurePosixPath(unquote(parts.path)).name
    if parts.scheme not in {"http", "https", "file"} or not name.endswith(".whl"):
        raise UsageError(f"WHEEL_URL={web.shown(url)!r} is not the address of a wheel", "Write https://.../name.whl")
    if job.settings.sage_offline and parts.scheme != "file":
        raise StoreError("WHEEL_URL was not asked, because this run is offline", "Leave --offline (SAGE_OFFLINE) out")
    bare = url.partition("#")[0]
    found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
    beside = web.small(urlunsplit(parts._replace(path=f"{parts.path}.json", fragment="")))
    manifest = loads(beside, f"{name}.json") if beside is not None else parse(_from_name(name), name)
    if found:
        manifest = manifest.updated(wheel_sha256=found[1].lower())
    # A manifest that is here already, of the same bytes, knows more than the address does.
    known = [one for path, one in wheelhouse.wheels(job.settings) if path.name == name and not job.trust.against(one)]
    if job.trust.enforced and manifest.proofs:
        ui.say("fetch", f"the proofs in {name}.json are dropped: no index vouches for them")
        manifest = manifest.updated(proofs=[])
    manifest = next((one for one in known if one.wheel_sha256 == manifest.wheel_sha256 != ""), manifest)
    if manifest.wheel_file != name:
        raise Refused(f"{name}.json describes {manifest.wheel_file}", "Publish the wheel with its own manifest")
    if not manifest.wheel_sha256 and not job.settings.allow_unsafe_wheel:
        raise Refused(f"nothing says what the bytes of {name} should be", "Add #sha256=... to WHEEL_URL")
    if why := job.trust.against(manifest):
        raise Refused(f"{name} of WHEEL_URL {why}", "Take one that a signer of TRUSTED_SIGNERS made")
    verdict = match.judge(manifest, job.wanted(named=True))
    if not verdict.fits:
        raise NothingCompatible(f"WHEEL_URL does not fit this machine: {'; '.join(verdict.reasons)}")
    for words in bad.against(manifest, job.wanted().archs, bad.by_name(job.recorded())):
        ui.warn("fetch", f"{name} is tried again, as you ask: {words}")
    ui.say("fetch", f"{name} from WHEEL_URL, as you set it")
    return _download(job, manifest, lambda part, shown: web.download(bare, part, shown)), manifest


def _from_name(name: str) -> dict[str, object]:
    """What the file name alone says, in the form of a manifest: `2.2.0+cu130torch2.11sm120` names the stack.

    `2.2.0+cu13sm120`, on the stable ABI, names no torch: which is the oldest, only a manifest says.
    """
    label = re.search(r"\+cu\d+(?:torch(\d+(?:\.\d+)+(?:(?:\.dev|rc|a|b)\d+)?))?((?:sm\d+(?:ptx)?)+)", name)
    if not label:
        return {"wheel_file": name}
    torch = f"{label[1]}.0" if label[1] and re.fullmatch(r"\d+\.\d+", label[1]) else label[1]
    archs = label[2].replace("ptx", "+PTX").replace("sm", ";sm").strip(";")
    return {"wheel_file": name, "torch_version": torch, "target_arch": archs}
