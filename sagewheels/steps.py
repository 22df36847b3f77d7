"""The steps of the graph. Each can run alone, changes nothing that is good, and says what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewheels import build as compiling
from sagewheels import (
    buildplan,
    full,
    installed,
    marking,
    ours,
    preflight,
    smoke,
    stack,
    toolkit,
    ui,
    verify,
    wheel,
    wheelhouse,
)
from sagewheels import fetch as fetching
from sagewheels.buildplan import Plan
from sagewheels.errors import NothingCompatible, Refused, SageError, SmokeFailed, StoreError, Untrusted, UsageError
from sagewheels.files import copy, forget
from sagewheels.job import Job
from sagewheels.manifest import Proof, WheelManifest
from sagewheels.match import rank
from sagewheels.recipe import Recipe
from sagewheels.target import Target

if TYPE_CHECKING:
    from sagewheels.store.index import Along

Made = tuple[Path, WheelManifest]


def do_stack(job: Job, *, believing: bool = True) -> None:
    """A good CUDA PyTorch and Triton in the target, and what else the package needs.

    Raises UsageError, StoreError, and Untrusted for a store that is not to be believed, if it is `believing`.
    """
    _torch(job, believing=believing)
    lacking = stack.missing(job.target, job.recipe.needs)
    if not lacking:
        return
    ui.say("stack", f"{'would install' if job.dry_run else 'installing'} {' '.join(lacking)} for {job.recipe.name}")
    if job.dry_run:
        return
    stack.add(job.settings, job.target, lacking)
    job.target = None
    if stack.missing(job.target, lacking):
        raise UsageError(f"{' '.join(lacking)} did not arrive in {job.target.site}", "Look for settings of uv or pip")


def _torch(job: Job, *, believing: bool) -> None:
    """A good CUDA PyTorch and Triton in the target."""
    cut_off = stack.pending_path(job.settings, job.target)
    wrong = stack.faults(job.target, job.need, job.settings)
    if cut_off.exists():
        wrong.append("an install of it was cut off")
    torch = job.target.torch
    if torch and not wrong:
        triton = job.target.versions.get("triton", "none")
        ui.say("stack", f"kept: torch {torch.version}, triton {triton}, CUDA {torch.cuda} in {job.target.prefix}")
        return
    ui.say("stack", f"{job.target.python} needs a stack: {'; '.join(wrong)}")
    proven = stack.proven_stacks(job.proven_or_none(believing=believing), job.wanted(), job.host.driver_cuda)
    plan = stack.attempts(job.target, job.need, job.settings, proven)
    if job.dry_run:
        for place, attempt in enumerate(plan, 1):
            ui.say("stack", f"would try, {place}: {attempt}")
        return
    # Whoever finds this mark knows that files of torch may be missing, however whole its version.py looks.
    again = cut_off.exists()
    cut_off.parent.mkdir(parents=True, exist_ok=True)
    cut_off.touch()
    stack.install(job.settings, job.need, job.target, plan, again=again)
    cut_off.unlink(missing_ok=True)
    job.target = None
    fresh = job.target.torch
    assert fresh is not None
    ui.say("stack", f"installed: torch {fresh.version}, triton {job.target.versions.get('triton')}")


def do_fetch(job: Job) -> Made | None:
    """The best wheel of the store in the wheelhouse; None in a dry run. Raises NothingCompatible on a miss, always."""
    if not job.dry_run:
        return fetching.fetch(job)
    if not plan_fetch(job):
        raise NothingCompatible(f"{job.store.label} holds no wheel for this machine", "Run auto or build to make one")
    return None


def plan_fetch(job: Job) -> bool:
    """Says what fetch would bring; whether there is anything."""
    if job.settings.wheel_url:
        ui.say("fetch", "would bring the wheel of WHEEL_URL")
        return True
    verdicts = job.verdicts()
    if verdicts and verdicts[0].fits:
        ui.say("fetch", f"would bring {verdicts[0].candidate.wheel_file} from {job.store.label}")
        return True
    fetching.explain(job, verdicts)
    return False


def choose(job: Job, named: str = "") -> Made:
    """The wheel that a task works on: the named file of the wheelhouse, else the best fit there.

    Raises UsageError when there is none.
    """
    if named:
        path = Path(named) if Path(named).is_file() else job.settings.wheelhouse_dir / named
        for place, manifest in wheelhouse.wheels(job.settings):
            if place.name == path.name and place.resolve() == path.resolve():
                return place, manifest
        raise UsageError(
            f"{named} is no wheel with a manifest in {job.settings.wheelhouse_dir}", "Fetch or build first"
        )
    fits = job.in_wheelhouse()
    others = wheelhouse.wheels(job.settings)
    if not fits and others:
        verdict = rank([manifest for _, manifest in others], job.wanted(here=True))[0]
        what = f"no wheel of {job.settings.wheelhouse_dir} fits, the nearest is {verdict.candidate.wheel_file}"
        raise Refused(f"{what}: {'; '.join(verdict.reasons)}", "Run fetch or build")
    if not fits:
        raise UsageError(f"{job.settings.wheelhouse_dir} holds no wheel for this machine", "Run fetch or build first")
    return fits[0]


def do_verify(job: Job, made: Made) -> None:
    """The wheel is what it claims and made for this machine; then it is installed. Raises Refused."""
    path, manifest = made
    if job.dry_run:
        ui.say("verify", f"would check {path.name} and install it in {job.target.prefix}")
        return
    # fetch, choose and auto pass over what smoke found bad: it only comes here when the user named it.
    recipe = job.recipe_of(manifest)
    if why := job.trust.against(manifest):
        raise Refused(f"{path.name} {why}", "Fetch or build another one")
    with _own_copy(job, path) as own:
        found = verify.check(own, manifest, job.wanted(here=True, named=True), recipe)
        archs = ", ".join(map(str, recipe.archs_of(found.held)))
        checked = "sha256, " if manifest.wheel_sha256 else "no sha256 to compare with; "
        what = f"{checked}RECORD, tags, archs {archs}, GLIBC_{found.glibc or 'any'}: as promised"
        ui.say("verify", f"{path.name}: {what}")
        job.target = installed.install(job.settings, job.target, recipe, own, found.sha256)


@contextmanager
def _own_copy(job: Job, path: Path) -> Iterator[Path]:
    """The wheel where nobody else writes: what is checked is what is installed, whoever shares the wheelhouse."""
    own = job.settings.work_dir / "checked" / path.name
    try:
        copy(path, own)
        yield own
    finally:
        forget(own)


def do_build(job: Job, *, force: bool = False, turn: Callable[[Plan], Made | None] | None = None) -> Made | None:
    """A wheel for the archs in the wheelhouse; None in a dry run. Raises UsageError, StoreError, BuildFailed.

    `turn` is asked when all is ready to compile. It may wait; what it returns is taken instead.
    """
    job.recipe.cubins_for(job.archs)
    toolkit.torch_of(job.target)
    if job.dry_run:
        units = sum(job.recipe.units[name] for name in job.recipe.extensions(job.archs))
        plan = buildplan.jobs(job.settings, job.recipe, job.archs, job.host)
        archs = ", ".join(map(str, job.recipe.cubins_for(job.archs)))
        source = job.recipe.source
        origin = source.path or job.settings.sage_source_repo or source.repo
        what = f"{job.recipe.file.stem} for {archs}: {ui.count(units, 'unit')}"
        how = f"{plan.at_once} at once ({plan.why})"
        after = "after a preflight, which doctor does now"
        ui.say("build", f"would compile {what}, {how}, {len(job.recipe.patches)} patches on {origin}, {after}")
        return None
    wanted = job.wanted()
    if not force and buildplan.has_tools(job.settings, job.target, job.recipe):
        for kit in toolkit.candidates(job.settings, job.target):
            plan_ = buildplan.prepare(job.settings, job.recipe, job.archs, job.target, job.host, kit)
            if made := compiling.made_before(job.settings, plan_, wanted.archs, wanted.known_bad):
                return made
    kit = preflight.check(job.settings, job.recipe, job.archs, job.target, job.host)
    plan_ = buildplan.prepare(job.settings, job.recipe, job.archs, job.target, job.host, kit)
    ui.say("build", f"nvcc {plan_.toolkit.build} from {plan_.toolkit.origin}, {plan_.toolkit.compiler}")
    if turn and (made := turn(plan_)):
        return made
    return compiling.run(job.settings, plan_, force=force, known_bad=wanted.known_bad, archs=wanted.archs)


def do_upload(job: Job, made: Made, *, asked: bool = False, named: bool = False, along: Along | None = None) -> bool:
    """Wheel and manifest are in the store, in one commit; False when nothing was published, which is said.

    With SIGNING_KEY they are signed, also a wheel of another machine that the user `named`. What `along` changes is in
    that commit too, if there is one.

    Raises StoreError, also for a store that cannot be written when the user asked for the upload itself.
    """
    from sagewheels.store import index

    path, manifest = made
    if job.dry_run:
        ui.say("upload", f"would publish {path.name} to {job.store.label}")
        return False
    if not job.store.writable and asked:
        raise StoreError(f"{job.store.label} can only be read", "Set HF_TOKEN, or SAGE_STORE to a folder of yours")
    if not job.store.writable:
        why = f"{job.store.label} can only be read (HF_TOKEN is not set)"
        ui.say("upload", f"nothing was published: {why}. {path} stays in the wheelhouse")
        return False
    verify.bytes_as_promised(path, manifest)
    verify.stable(wheel.inspect(path, job.recipe.package), manifest)
    job.trust.demand_signable(manifest, named=named)
    manifest = job.trust.own_proofs(manifest)
    if index.publish(job.store, path, manifest, vouch=job.trust.entry if job.trust.signs else None, along=along):
        standing = "proven" if manifest.proofs else "a candidate until it is proven"
        ui.say("upload", f"{path.name} is in {job.store.label}, {standing}")
    else:
        ui.say("upload", f"{path.name} is in {job.store.label} already, nothing changed")
    if job.store.standing:
        ui.say("upload", job.store.standing)
    return True


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
    proven = state.get("passed") == circumstances(job)
    try:
        outcome = smoke.run(job.settings, recipe, found, job.host, names)
        if long and not outcome.failures:
            outcome = full.run(job.settings, recipe, found, job.host, outcome)
    except SmokeFailed as error:
        words = _put_back(job)
        if made and isinstance(error, smoke.Crashed):
            marking.record_crash(job, made[1], str(state.get("sha256")), error, found)
        raise SmokeFailed(error.what, f"{words}. {error.remedy}") from None
    except BaseException:  # Ctrl-C, a full disk, nobody who reads our output: what is not proven does not stay
        if not proven:
            _put_back(job)
        raise
    if outcome.failures:
        raise _failed(job, made, state, outcome, found)
    ui.say("smoke", outcome.words)
    if made:
        _record(job, made, outcome)
    # Last: who finds that it passed here does not look for its proof.
    _remember(job, state, outcome)
    return outcome


def _failed(job: Job, made: Made | None, state: dict[str, Any], outcome: smoke.Outcome, found: Target) -> SmokeFailed:
    """Says what failed, puts the machine back and marks the wheel; what passed before stays unless it is to blame."""
    for text in outcome.failures:
        ui.say("smoke", f"FAILED: {text}")
    if state.get("passed") == circumstances(job) and not outcome.faults:
        stays = "It passed here before, and nothing speaks against the wheel itself: it stays installed"
        return SmokeFailed(f"smoke failed: {outcome.failures[0]}", stays)
    words = _put_back(job)
    if made:
        marking.record(job, made[1], str(state.get("sha256")), outcome.faults, found)
    return SmokeFailed(f"smoke failed: {outcome.failures[0]}", f"{words}; the wheel is not proven")


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
    try:
        words = installed.restore(job.settings, job.target, job.recipe)
    except SageError as error:
        return f"WHAT WAS THERE BEFORE COULD NOT BE PUT BACK: {error.what}"
    finally:
        job.target = None
    # Files that somebody changed since are theirs: then nothing was put back, and the line must not say so.
    return words if "was changed since" in words else f"The machine is as it was: {words}"


def _remember(job: Job, state: dict[str, Any], outcome: smoke.Outcome) -> None:
    """Notes that what is installed passed here, so that the next auto need not run it again."""
    if state.get("record"):
        installed.write_state(
            job.settings, job.target, job.recipe, {**state, "passed": circumstances(job), "words": outcome.words}
        )


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


def _record(job: Job, made: Made, outcome: smoke.Outcome) -> None:
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
            _publish_proof(job, manifest)
        return
    fresh = [marking.newer(one, marks) for one in fresh]
    for one in fresh:
        ours.note(job.settings, ours.of_proof(one))
    proven = manifest.updated(proofs=[*(manifest.data.get("proofs") or []), *fresh])
    wheelhouse.write_manifest(job.settings, proven)
    marking.take_back(job, proven)
    _publish_proof(job, proven)


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


def _publish_proof(job: Job, proven: WheelManifest) -> None:
    from sagewheels.store import index

    if not job.store.writable:
        ui.say("smoke", f"the proof stays in the wheelhouse: {job.store.label} can only be read")
        return
    try:
        if index.add_proof(job.store, job.trust.own_proofs(proven)):
            ui.say("smoke", f"the proof is in {job.store.label}")
    except (StoreError, Untrusted, UsageError) as error:
        # A token for models may not write here, or a key not sign: the kernels are right all the same.
        ui.warn("smoke", f"the proof stays in the wheelhouse: {error}")


def do_init(job: Job, *, sign: bool = False) -> None:
    """The store exists, may be written to, and has its card and index, signed if `sign`. Raises StoreError."""
    from sagewheels import signed
    from sagewheels.store import index

    if not job.store.writable:
        raise StoreError(
            f"{job.store.label} cannot be set up: HF_TOKEN is not set", "Set HF_TOKEN to a token that may write"
        )
    if job.dry_run:
        ui.say("init-hf", f"would create {job.store.label} if it is not there, with card and index")
        if sign:
            signed.begin(job)
        return
    ui.say("init-hf", job.store.rights())
    if sign:
        job = signed.begin(job)
    adopted = sign and signed.adopt(job)
    made = index.initialise(job.store) or adopted
    ui.say("init-hf", f"{job.store.label} {'is set up' if made else 'was set up already'}")
    if job.store.standing:
        ui.say("init-hf", job.store.standing)
