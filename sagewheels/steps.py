"""The steps of the graph. Each can run alone, changes nothing that is good, and says what it did."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sagewheels import build as compiling
from sagewheels import (
    buildplan,
    facts,
    installed,
    preflight,
    stack,
    toolkit,
    ui,
    verify,
    wheel,
    wheelhouse,
)
from sagewheels import fetch as fetching
from sagewheels.buildplan import Plan
from sagewheels.errors import NothingCompatible, Refused, StoreError, UsageError
from sagewheels.files import copy
from sagewheels.job import Job
from sagewheels.match import rank
from sagewheels.steplines import step, stepped
from sagewheels.wheelhouse import Made

if TYPE_CHECKING:
    from sagewheels.elsewhere import Wish
    from sagewheels.store.index import Along


REFUSED = "Nothing was installed: fetch or build another one"
"""What comes next where a wheel itself is to blame."""


@stepped("stack")
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


@stepped("fetch")
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
    facts.judged(job, verdicts)
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
        with step(job, "verify"):
            try:
                found = verify.check(own, manifest, job.wanted(here=True, named=True), recipe)
            except Refused as error:
                raise Refused(error.what, error.remedy or REFUSED) from None
            archs = ", ".join(map(str, recipe.archs_of(found.held)))
            checked = "sha256, " if manifest.wheel_sha256 else "no sha256 to compare with; "
            what = f"{checked}RECORD, tags, archs {archs}, GLIBC_{found.glibc or 'any'}: as promised"
            ui.say("verify", f"{path.name}: {what}")
        with step(job, "install"):
            job.target = installed.install(job.settings, job.target, recipe, own, found.sha256)


@contextmanager
def _own_copy(job: Job, path: Path) -> Iterator[Path]:
    """The wheel where nobody else writes: what is checked is what is installed, whoever shares the wheelhouse."""
    own = job.settings.work_dir / "checked" / path.name
    try:
        copy(path, own)
        yield own
    finally:
        shutil.rmtree(own.parent, ignore_errors=True)


@stepped("build")
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


def do_build_elsewhere(job: Job, wish: Wish) -> Made | None:
    """The same on a rented machine, by way of the store; None in a dry run, and for a job that is left to itself.

    Raises UsageError, StoreError, and what the job ended with.
    """
    from sagewheels import following

    return following.build(job, wish)


@stepped("upload")
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
    if not job.store.publishable and not asked:
        ui.say("upload", f"nothing was published: {job.closed}. {path} stays in the wheelhouse")
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
