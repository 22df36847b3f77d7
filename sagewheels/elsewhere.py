"""`build --on`: what a rented machine is asked to do, so that its wheel is one for this target. Asks nobody."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from sagewheels import stack, toolkit, ui
from sagewheels.config import KEYS, Settings
from sagewheels.errors import UsageError
from sagewheels.job import Job
from sagewheels.match import Wanted
from sagewheels.redact import redacted
from sagewheels.resources import ROOT, job_script
from sagewheels.store.hub_jobs import Order
from sagewheels.store.hub_repo import Repo

PLACES = ("hf-jobs",)
FLAVOR = "cpu-upgrade"
"""8 cores, 32 GB of memory, 50 GB of disk: https://huggingface.co/docs/hub/jobs-pricing, read on 2026-11-25."""

_REPOSITORY = "https://github.com/adbrasi/sageattention220-ultimate-installer.git"
_TRAVEL = (
    "SAGE_VERSION SAGE_SOURCE_REPO SAGE_SOURCE_REF SAGE_EXPECT_VERSION TORCH_INDEX_URL TRITON_SPEC MIN_CUDA_FOR_SM120 "
    "MIN_TRITON_FOR_50XX NVCC_APPEND_FLAGS HF_ENDPOINT HF_PRIVATE"
).split()
"""Settings that go along as they are here; what speaks of this machine (folders, jobs, compilers) does not."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 7 * 86400


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The flags of `build --on`. Raises UsageError for a place or a duration that is none."""

    on: str
    flavor: str = FLAVOR
    timeout: str = "2h"
    namespace: str = ""
    detach: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.on not in PLACES:
            raise UsageError(f"--on {self.on!r} is no place to build on", f"Write --on {PLACES[0]}, or leave it out")
        for flag, text in (("flavor", self.flavor), ("namespace", self.namespace)):
            if text and not re.fullmatch(r"[\w.-]+", text):
                raise UsageError(f"--{flag} {text!r} is not a name", f"Write it like {FLAVOR}")
        _ = self.seconds

    @property
    def seconds(self) -> int:
        """How long the job may run."""
        found = re.fullmatch(r"([0-9]{1,6})([smhd])", self.timeout)
        seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
        if not 60 <= seconds <= _LONGEST:
            raise UsageError(f"--timeout {self.timeout!r} is not a time from 1m to 7d", "Write it like 90m or 2h")
        return seconds


def asked(
    on: str, *, flavor: str = "", timeout: str = "", namespace: str = "", detach: bool = False, force: bool = False
) -> Wish | None:
    """What the flags of `build` ask for; None for a build here. Raises UsageError for those that need --on."""
    given = {"flavor": flavor, "timeout": timeout, "namespace": namespace, "detach": detach}
    given = {name: value for name, value in given.items() if value}
    if not on and given:
        raise UsageError(f"--{next(iter(given))} is for a build elsewhere", f"Add --on {PLACES[0]}")
    return Wish(on=on, force=force, **given) if on else None  # type: ignore[arg-type]


def order(job: Job, repo: Repo, wish: Wish) -> Order:
    """The job that builds for this target and publishes to this store. Raises UsageError where none can.

    The same settings make the same `build`, whatever the flavor and the time.
    """
    image, settings = _image(job), dict(_settings(job, repo))
    _demand_compiler(job)
    secrets = {key: value for key, value in settings.items() if redacted(value) != value}
    plain = {key: value for key, value in settings.items() if key not in secrets}
    command = ("bash", "-c", job_script())
    named = json.dumps([image, command, plain, sorted(secrets)], sort_keys=True)
    return Order(
        image=image,
        flavor=wish.flavor,
        command=command,
        environment=plain,
        secrets={**secrets, "HF_TOKEN": repo.token},
        seconds=wish.seconds,
        build=hashlib.sha256(named.encode()).hexdigest()[:16],
    )


def wanted(job: Job) -> Wanted:
    """The facts of this target; where it has no torch, as if it had the one of TORCH_VERSION."""
    if job.target.torch:
        return job.wanted()
    version = job.settings.torch_version.partition("+")[0]
    cuda = stack.cuda_expected(version, job.need, job.settings)
    return job.wanted_of(job.target.tags, torch=version, cuda=cuda, archs={one.plain for one in job.archs})


def explain(job: Job, planned: Order, wish: Wish) -> None:
    """Prints what would be done, for a dry run."""
    owner = wish.namespace or "the owner of HF_TOKEN"
    ui.say("job", f"would run on Hugging Face Jobs for {owner}, on {planned.flavor}, {wish.timeout} at most")
    ui.say("job", "it costs money, by the minute: https://huggingface.co/docs/hub/jobs-pricing")
    ui.say("job", f"image {planned.image}, command bash -c remote_job.sh: stack, build, upload")
    ui.say("job", f"variables: {' '.join(f'{key}={value}' for key, value in sorted(planned.environment.items()))}")
    ui.say("job", f"secrets: {', '.join(sorted(planned.secrets))}")
    ui.say("job", f"then its wheel would be fetched from {job.store.label}; nothing was changed")


def _image(job: Job) -> str:
    """Docker's official Python of the target's version: g++ and git are in it, the toolkit comes as for any build.

    A wheel runs where glibc is as new as where it was made: a target that is older than bookworm gets bullseye.
    """
    found, glibc = job.target, job.host.glibc
    tag = re.fullmatch(r"cp3([0-9]+)", found.python_tag)
    if found.machine != "x86_64" or not tag or int(tag[1]) < 10:
        what = f"a job builds for CPython 3.10 or newer on x86_64, this target is {found.python_tag} on {found.machine}"
        raise UsageError(what, "Build here, without --on")
    is_old = tuple(map(int, re.findall(r"[0-9]+", glibc)[:2])) < (2, 36)
    return f"python:3.{tag[1]}-{'bullseye' if is_old and int(tag[1]) <= 13 else 'bookworm'}"


def _settings(job: Job, repo: Repo) -> Iterator[tuple[str, str]]:
    """Every variable of the job but HF_TOKEN."""
    given = job.settings
    for key in _TRAVEL:
        value = getattr(given, key.lower())
        if value != KEYS[key].default:
            yield key, str(int(value)) if isinstance(value, bool) else str(value)
    yield from _stack(job, given)
    yield "SAGE_MANIFEST", _manifest(job)
    yield "TORCH_CUDA_ARCH_LIST", ";".join(map(str, job.archs))
    yield "HF_REPO_ID", repo.name
    yield "HF_REPO_TYPE", repo.kind
    yield "HF_REPO_BRANCH", repo.branch
    yield "REMOTE_DIR", repo.folder.rstrip("/")
    address = given.variable("SAGEWHEELS_REPO") or _REPOSITORY
    if not urlsplit(address).scheme and "@" not in address:
        raise UsageError(f"SAGEWHEELS_REPO={address} is a folder of this machine", "Name one that a job can reach")
    yield "SAGEWHEELS_REPO", address
    yield "SAGEWHEELS_REF", given.variable("SAGEWHEELS_REF") or "main"


def _stack(job: Job, given: Settings) -> Iterator[tuple[str, str]]:
    """The very torch of this target, local label and all: a wheel for any other would not be one for it."""
    if job.target.torch:
        torch = toolkit.torch_of(job.target)
        yield "TORCH_VERSION", torch.version
        yield "TORCH_CHANNEL", "nightly" if ".dev" in torch.version else "stable"
        yield "CUDA_INDEX_VARIANT", f"cu{torch.cuda.replace('.', '')}"
    elif given.torch_version:
        yield "TORCH_VERSION", given.torch_version
        yield "TORCH_CHANNEL", given.torch_channel
        yield "CUDA_INDEX_VARIANT", given.cuda_index_variant
    else:
        what = f"there is no torch in {job.target.prefix}, and a wheel is for one torch"
        raise UsageError(what, "Run stack first, or set TORCH_VERSION")


def _demand_compiler(job: Job) -> None:
    """The image has no nvcc, and the package index has it for CUDA 13 and newer. Raises UsageError for an older one."""
    cuda = wanted(job).cuda
    if cuda and int(cuda.partition(".")[0]) < toolkit.FIRST_MAJOR_ON_INDEX:
        what = f"a job compiles for CUDA {toolkit.FIRST_MAJOR_ON_INDEX} and newer, and this torch has CUDA {cuda}"
        raise UsageError(what, "Build on a machine with that toolkit, without --on, or take a torch with CUDA 13")


def _manifest(job: Job) -> str:
    """The name of the build manifest. Raises UsageError for a file that only this machine has."""
    file = job.recipe.file
    if file.resolve().parent != (ROOT / "manifests").resolve():
        remedy = "Put it into manifests/ of a fork, and name that with SAGEWHEELS_REPO and SAGEWHEELS_REF"
        raise UsageError(f"the build manifest {file} is not in the repository that a job builds from", remedy)
    return file.stem
