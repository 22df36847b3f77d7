"""What can be told of toolkits before there is a torch: by versions and headers alone, nothing is compiled."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sagewheels import stack, toolkit
from sagewheels.arch import Arch
from sagewheels.checks import Check
from sagewheels.job import Job
from sagewheels.target import Torch
from sagewheels.toolkit import Toolkit

_UNTRIED = "cannot be tried without a CUDA torch"
_USUAL_TORCH = "2.11"
"""What its CUDA is asked for where TORCH_VERSION is not set."""


def ahead(job: Job, archs: tuple[Arch, ...]) -> Check:
    """Whether a toolkit here suits the torch that stack would install. Raises UsageError where no torch can be."""
    cuda = stack.cuda_expected(job.settings.torch_version or _USUAL_TORCH, job.need, job.settings)
    if not cuda:
        return Check(what="toolkit", standing="note", found=_UNTRIED, remedy="Run stack first")
    torch = Torch(folder=job.target.site / "torch", version=_USUAL_TORCH, cuda=cuda)
    kits = toolkit.survey(job.settings, replace(job.target, torch=torch), job.recipe.rules(archs))
    suited = [kit for kit, problem in kits if not problem]
    good = [kit for kit in suited if not trouble(kit, job.host.glibc)]
    if good:
        found, remedy = f"CUDA {good[0].version} in {good[0]}", "Run stack first"
    elif toolkit.on_index(torch):
        found, remedy = f"none here suits CUDA {cuda}", "Run stack first: a build then makes one from the package index"
    else:
        told = [f"{kit}: {problem or trouble(kit, job.host.glibc)}" for kit, problem in kits]
        found = f"stack would install one with CUDA {cuda}: {'; '.join(told) or 'there is no toolkit'}"
        remedy = f"To compile: install the CUDA {cuda} toolkit and set CUDA_HOME to it, or take a CUDA 13 torch"
    return Check(what="toolkit", standing="note", found=f"{_UNTRIED}; {found}", remedy=remedy)


def trouble(kit: Toolkit, glibc: str) -> str:
    """Why this toolkit cannot work with the host compiler or the libc that are here, empty where nothing is known."""
    newest, gcc = _newest_gcc(kit.home), re.search(r"(?:g\+\+|c\+\+|gcc).* (\d{1,2})\.\d", kit.compiler)
    if newest and gcc and int(gcc[1]) > newest:
        return f"it takes g++ {newest} at most, the host compiler is {gcc[1]}"
    if int(kit.version.split(".")[0]) <= 12 and _parts(glibc) >= (2, 41):
        return f"its headers contradict glibc {glibc}, which declares cospi and rsqrt otherwise"
    return ""


def _newest_gcc(home: Path) -> int:
    """As the toolkit's own header says it; 0 where it does not."""
    try:
        text = (home / "include" / "crt" / "host_config.h").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    found = re.search(r"gcc versions later than (\d{1,3}) are not supported", text)
    return int(found[1]) if found else 0


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,5}", version)[:2])
