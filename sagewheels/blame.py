"""Whose fault a failure of smoke is: the wheel's, which is then known to be bad, or the machine's. Pure.

The line is drawn so that a wheel is never condemned for the machine's sake. The wheel's are: numbers that were computed
and are wrong, another kernel than the one that must run, an error of CUDA that only a kernel can cause, a module that
does not fit this torch, and a crash where torch alone computes. All else may be the machine's, and condemns nobody: no
driver, no GPU that torch sees, no memory, no compiler or Python.h for Triton, a profiler that may not look, no time.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagewheels.host import Host

_BY_KERNELS = re.compile(
    r"illegal memory access|misaligned address|illegal instruction|invalid program counter|illegal address"
    r"|device-side assert|unspecified launch failure|no kernel image is available|invalid device function"
    r"|invalid configuration argument|too many resources requested"
)
_CRASHES = frozenset({-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE})
"""Not SIGKILL (memory, or our time limit), SIGILL (torch on an old CPU) or SIGBUS (a full disk or /dev/shm)."""
NOT_A_KERNEL = ("Mem", "void at::")
"""How the names begin of what a profiler sees besides the kernels in question: copies, and torch's own."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What speaks against the wheel itself, and on which arch; `full`: the long checks found it, not the short ones."""

    arch: str
    gpu: str
    reason: str
    full: bool = False


def of_gpu(gpu: Mapping[str, Any], wrong: Iterable[Mapping[str, Any]], kernel: str) -> bool:
    """Whether the failures on one GPU are the wheel's; `wrong` are its cases that are not right."""
    cases = [*wrong, {"error": gpu["error"]}] if gpu.get("error") else list(wrong)
    if of_cases(cases):
        return True
    errors = [case["error"] for case in cases if case.get("error")]
    # A profiler that may not look sees no kernel at all, or nothing but copies.
    seen = [name for name in gpu.get("kernels", ()) if not name.startswith(NOT_A_KERNEL)]
    return bool(kernel and seen) and not errors and not any(kernel in name for name in seen)


def of_cases(wrong: Iterable[Mapping[str, Any]]) -> bool:
    """Whether these failures are the wheel's: something was computed and is wrong, or an error that only kernels cause.

    What else kept a case from being tried is not: no compiler for Triton or torch.compile, or a GPU that is lost.
    """
    return any(
        _BY_KERNELS.search(str(case["error"])) if case.get("error") else "finite" in case or bool(case.get("wrong"))
        for case in wrong
    )


def of_imports(answer: Mapping[str, Any], package: str, host: Host) -> list[Fault]:
    """A module of this package that does not fit the torch that it was made for; on no arch where there is no GPU."""
    own = re.compile(rf"/{re.escape(package)}/[^/ ]+\.so: undefined symbol|does not define module export function")
    errors = ((module, error) for module, error in answer["imports"].items() if own.search(error))
    module, error = next(errors, ("", ""))
    names = {str(gpu.arch): gpu.name for gpu in reversed(host.gpus)} if module else {}
    return [Fault(arch=arch, gpu=name, reason=f"import {module} failed: {error}") for arch, name in names.items()]


def of_crash(code: int, what: str, host: Host, *, full: bool = False) -> list[Fault]:
    """A crash, by the exit code of the probe; whose it is where the GPUs differ, nobody knows."""
    archs = {str(gpu.arch) for gpu in host.gpus}
    if code not in _CRASHES or len(archs) != 1:
        return []
    return [Fault(arch=archs.pop(), gpu=host.gpus[0].name, reason=what, full=full)]


def settled(faults: Sequence[Fault], right: Iterable[str]) -> tuple[Fault, ...]:
    """One fault for each arch, and none where another GPU of that arch computed rightly: then it is that GPU's."""
    first = {fault.arch: fault for fault in reversed(faults)}
    return tuple(fault for arch, fault in sorted(first.items()) if arch not in set(right))
