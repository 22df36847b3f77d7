"""Compute capabilities: reading what people write, and which binary runs on which GPU. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from sagewheels.errors import UsageError

_SPELLING = re.compile(
    r"(?:sm_?|compute_?)?(?:(?P<major>\d{1,2})\.(?P<minor>\d)|(?P<digits>\d{2,3}))(?P<suffix>[af]?)(?P<ptx>\+ptx)?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, order=True)
class Arch:
    """One compute capability, with the suffix of an arch-specific (`a`) or family-specific (`f`) cubin."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"

    @property
    def number(self) -> str:
        """`120` for 12.0, as CUDA tools and CUDAARCHS write it."""
        return f"{self.major}{self.minor}{self.suffix}"

    @property
    def plain(self) -> Arch:
        """The capability alone, as a GPU reports it."""
        return Arch(self.major, self.minor)

    def runs_on(self, gpu: Arch) -> bool:
        """Whether a cubin of this arch loads on `gpu`.

        Source: CUDA C++ Programming Guide, binary compatibility (same major, minor not lower), arch-specific
        features (`a`: that capability only) and family-specific features (`f`: same major). PTX is not counted:
        it would be compiled by the driver, and nobody has proven the result.
        """
        if self.suffix == "a":
            return (self.major, self.minor) == (gpu.major, gpu.minor)
        return self.major == gpu.major and self.minor <= gpu.minor


def covers(held: Iterable[Arch], gpu: Arch) -> bool:
    """Whether one of these cubins runs on the GPU; PTX is none."""
    return any(one.runs_on(gpu) for one in held if not one.ptx)


@lru_cache(maxsize=1024)
def parse(text: str) -> Arch:
    """One arch from any common spelling: `12.0`, `120`, `sm_120`, `compute_90a`, `9.0a`, `8.0+PTX`.

    Raises UsageError for anything else.
    """
    found = _SPELLING.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text.strip()!r} is not a compute capability", "Write it as 12.0, 120 or sm_120")
    if found["digits"]:
        major, minor = int(found["digits"][:-1]), int(found["digits"][-1])
    else:
        major, minor = int(found["major"]), int(found["minor"])
    return Arch(major, minor, found["suffix"].lower(), bool(found["ptx"]))


@lru_cache(maxsize=1024)
def parse_list(text: str) -> tuple[Arch, ...]:
    """Archs separated by `;`, `,` or spaces, sorted, each once.

    Raises UsageError when one of them is not an arch, or when there is none.
    """
    words = [word for word in re.split(r"[;,\s]+", text) if word]
    if not words:
        raise UsageError("the list of archs is empty", "Name at least one, such as 12.0")
    return tuple(sorted({parse(word) for word in words}))


def join(archs: Iterable[Arch]) -> str:
    """`8.9;12.0`, the form that TORCH_CUDA_ARCH_LIST takes."""
    return ";".join(str(arch) for arch in archs)
