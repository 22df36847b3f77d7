"""One screen of checks: what is here, whether it will do, and the remedy where it will not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

from sagewheels import checks_toolkit, config, preflight, stack, target, ui
from sagewheels.checks import Check, Standing
from sagewheels.checks_installed import package, packages, triton_cache
from sagewheels.errors import SageError, StoreError, UsageError
from sagewheels.job import Job

_DISK = 8_000_000_000
"""torch with its libraries takes 4.5 GB, toolkit and build 1 GB."""


def show(job: Job) -> None:
    """Prints the screen. Raises UsageError when a check is bad."""
    checks = [check for group in _GROUPS for check in _guarded(group, job)]
    job.report["checks"] = [asdict(check) for check in checks]
    rows = [(check.standing, check.what, check.found, check.remedy) for check in checks]
    ui.table("doctor", ("", "check", "found", "remedy"), rows)
    bad = [check.what for check in checks if check.standing == "bad"]
    if bad:
        raise UsageError(f"{len(bad)} of {len(checks)} checks are bad: {', '.join(bad)}", "See the remedies above")
    ui.say("doctor", f"{len(checks)} checks, none is bad")


def _guarded(group: Callable[[Job], Iterator[Check]], job: Job) -> list[Check]:
    """The checks of one group; what it cannot find out is a bad check itself."""
    found: list[Check] = []
    try:
        for check in group(job):
            found.append(check)
    except SageError as error:
        # Without its store auto goes on: it builds.
        standing: Standing = "note" if isinstance(error, StoreError) else "bad"
        found.append(Check(what=group.__name__.strip("_"), standing=standing, found=error.what, remedy=error.remedy))
    return found


def _settings(_: Job) -> Iterator[Check]:
    for found, remedy in config.exposed():
        yield Check(what=".env", standing="note", found=found, remedy=remedy)


def _machine(job: Job) -> Iterator[Check]:
    here = job.host
    if here.gpus:
        names = ", ".join(f"{gpu.name} (arch {gpu.arch}, {gpu.memory} MiB)" for gpu in here.gpus)
        yield Check(what="GPU", standing="ok", found=names)
        yield Check(what="driver", standing="ok", found=f"{here.driver}, runs CUDA up to {here.driver_cuda}")
    else:
        remedy = "Building works; to run the kernels, install the NVIDIA driver (with containers: --gpus all)"
        yield Check(what="GPU", standing="note", found=here.problem, remedy=remedy)
    yield _archs(job)
    for item in preflight.room(job.settings, job.recipe, here, work=_DISK):
        yield _check(item, "bad" if item.what == "memory" else "note")


def _check(item: preflight.Finding, standing: Standing) -> Check:
    """A finding as a line of the screen; what only a build needs is a note, since a wheel may be fetched."""
    if item.bad:
        return Check(what=item.what, standing=standing, found=item.found, remedy=item.remedy)
    return Check(what=item.what, standing="ok", found=item.found)


def _archs(job: Job) -> Check:
    archs = ", ".join(map(str, job.archs))
    try:
        job.recipe.cubins_for(job.archs)
    except UsageError as error:
        return Check(what="archs", standing="bad", found=f"{archs}: {error.what}", remedy=error.remedy)
    return Check(what="archs", standing="ok", found=archs)


def _interpreter(job: Job) -> Iterator[Check]:
    path, why = target.locate(job.settings)
    found = job.target
    yield Check(what="target", standing="ok", found=f"{path}, CPython {found.version}, by {why}")
    if not found.writable:
        yield Check(
            what="site-packages", standing="bad", found=f"{found.site} cannot be written", remedy="Set PYTHON_BIN"
        )
    if found.externally_managed:
        remedy = "Better use a virtual environment; else --break-system-packages is used"
        yield Check(what="environment", standing="note", found="externally managed", remedy=remedy)
    headers = "" if found.has_python_h else "apt-get install python3-dev: Triton compiles at run time"
    yield Check(what="Python.h", standing="note" if headers else "ok", found=str(found.include), remedy=headers)
    wrong = [
        *stack.faults(found, job.need, job.settings),
        *(f"{job.recipe.name} needs {need}" for need in stack.missing(found, job.recipe.needs)),
    ]
    torch = f"torch {found.torch.version}, CUDA {found.torch.cuda or 'none'}" if found.torch else "no torch"
    words = "; ".join(wrong) or f"{torch}, triton {found.versions.get('triton')}"
    remedy = "the task stack installs one that fits" if wrong else ""
    yield Check(what="stack", standing="note" if wrong else "ok", found=words, remedy=remedy)


def _compiler(job: Job) -> Iterator[Check]:
    archs = job.recipe.cubins_for(job.archs)
    if job.target.torch is None or not job.target.torch.cuda:
        for item in preflight.without_torch(job.settings, job.recipe, archs, job.target):
            yield _check(item, "note")
        yield checks_toolkit.ahead(job, archs)
        return
    looked = preflight.look(job.settings, job.recipe, archs, job.target, installs=False)
    for item in looked.findings:
        made = item.what == "toolkit" and looked.may_make
        yield _check(replace(item, remedy="A build makes one from the package index first") if made else item, "note")


def _signatures(job: Job) -> Iterator[Check]:
    trust = job.trust
    trust.demand_usable()
    found = "only what TRUSTED_SIGNERS signed is taken" if trust.enforced else "whatever the store holds is taken"
    signs = "; SIGNING_KEY signs what is published" if trust.signs else ""
    remedy = "" if trust.enforced else "init-hf --sign makes a key and a list of signers"
    yield Check(what="signatures", standing="note" if remedy else "ok", found=f"{found}{signs}", remedy=remedy)


def _store(job: Job) -> Iterator[Check]:
    fits = [verdict for verdict in job.verdicts() if verdict.fits]
    found = f"{job.store.label}: {ui.count(len(job.published), 'wheel')}, {len(fits)} for this machine"
    remedy = "" if fits else "auto will compile one"
    yield Check(what="store", standing="ok" if fits else "note", found=found, remedy=remedy)
    if not job.store.writable:
        remedy = "Set HF_TOKEN to publish what is built"
        yield Check(
            what="token", standing="note", found="HF_TOKEN is not set: the store can only be read", remedy=remedy
        )
    else:
        yield Check(what="rights", standing="ok", found=job.store.rights())


_GROUPS = (_settings, _machine, _interpreter, package, packages, triton_cache, _compiler, _signatures, _store)
NAMES = ("archs", "memory", "Python.h", "stack", "import", "packages", "Triton cache", "host compiler", "toolkit")
"""The checks that symptoms.toml names, each the one that finds the cause before it bites."""
