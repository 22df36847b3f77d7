"""The machine: GPUs and driver, and the cores, memory and disk that this process may really use."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagewheels import arch, proc
from sagewheels.arch import Arch
from sagewheels.errors import SageError, UsageError

_DRIVER_CUDA = ((580, "13.0"), (575, "12.9"), (570, "12.8"), (560, "12.6"), (550, "12.4"), (525, "12.0"), (450, "11.8"))
"""First driver branch -> newest CUDA release whose builds it runs.

Source: CUDA Toolkit release notes, table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
Compatibility", and the driver that each toolkit ships with.
"""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as nvidia-smi lists it; memory in MiB."""

    index: int
    name: str
    arch: Arch
    memory: int


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine; `memory` in bytes, `glibc` empty where the libc is another one."""

    gpus: tuple[Gpu, ...]
    driver: str
    problem: str
    cores: int
    memory: int
    glibc: str

    @property
    def archs(self) -> tuple[Arch, ...]:
        """The compute capabilities of the GPUs, each once."""
        return tuple(sorted({gpu.arch for gpu in self.gpus}))

    @property
    def driver_cuda(self) -> str:
        """The newest CUDA that the driver runs; empty without a driver."""
        return cuda_of_driver(self.driver)


def cuda_of_driver(driver: str) -> str:
    """`13.0` for driver 580.65.06. Within one CUDA major every minor runs (minor version compatibility)."""
    found = re.match(r"[0-9]{1,6}", driver)
    branch = int(found[0]) if found else 0
    return next((cuda for first, cuda in _DRIVER_CUDA if branch >= first), "")


def probe(environ: Mapping[str, str]) -> Host:
    """What is here. Never raises: what cannot be found is empty, and `problem` says why there is no GPU."""
    gpus, driver, problem = _gpus(environ)
    libc = platform.libc_ver()
    return Host(
        gpus=gpus,
        driver=driver,
        problem=problem,
        cores=cores(),
        memory=memory(),
        glibc=libc[1] if libc[0] == "glibc" else "",
    )


def _gpus(environ: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str, str]:
    """GPUs, driver version, and what went wrong."""
    # WSL keeps the program outside PATH.
    path = os.pathsep.join([environ.get("PATH", os.defpath), "/usr/lib/wsl/lib"])
    program = shutil.which("nvidia-smi", path=path)
    if not program:
        return (), "", "nvidia-smi is not on PATH: no NVIDIA driver"
    query = "--query-gpu=index,name,compute_cap,memory.total,driver_version"
    try:
        done = proc.run([program, query, "--format=csv,noheader,nounits"], env=environ, timeout=30)
    except SageError as error:
        return (), "", error.what
    if done.code:
        return (), "", f"nvidia-smi failed: {done.last_line}"
    return parse_smi(done.out)


def parse_smi(text: str) -> tuple[tuple[Gpu, ...], str, str]:
    """GPUs, driver version and problem from nvidia-smi's CSV; a line that cannot be read becomes the problem."""
    gpus, driver, problem = [], "", ""
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            # A GPU's name may hold commas; the other fields cannot.
            index, rest = line.split(",", 1)
            name, capability, memory_mib, version = rest.rsplit(",", 3)
            size = memory_mib.strip()
            gpus.append(
                Gpu(
                    index=int(index),
                    name=name.strip(),
                    arch=arch.parse(capability),
                    memory=int(size) if size.isdecimal() else 0,
                )
            )
            driver = version.strip()
        except (ValueError, UsageError):
            problem = f"nvidia-smi said {line[:80]!r}"
    return tuple(gpus), driver, problem or ("" if gpus else "nvidia-smi lists no GPU")


def cores() -> int:
    """Processors that this process may use: the affinity mask, and the cgroup's quota rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min((limit for limit in map(_quota, _cgroups()) if limit), default=None)
    return max(1, min(allowed, -int(-quota // 1))) if quota else allowed


def memory() -> int:
    """Bytes that this process may still use: what the kernel calls available, and what the cgroup leaves."""
    free = [limit for folder in _cgroups() if (limit := _memory_left(folder)) is not None]
    text = _read(Path("/proc/meminfo"))
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return min([*free, int(found[1]) * 1024] if found else free or [4 << 30])


def swap() -> int:
    """Bytes of swap that this process may still use: what is free, and what the cgroup (v2) leaves."""
    found = re.search(r"^SwapFree:\s+(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    free = [int(found[1]) * 1024 if found else 0]
    for folder in _cgroups():
        limit, used = (_read(folder / f"memory.swap.{name}").strip() for name in ("max", "current"))
        if limit.isdecimal() and used.isdecimal():
            free.append(max(0, int(limit) - int(used)))
    return min(free)


def _cgroups() -> list[Path]:
    """Our cgroup's folders up to the root, for v2 and for v1's cpu and memory controllers."""
    root = Path("/sys/fs/cgroup")
    folders = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, name = line.split(":", 2)
        for mount in [root] if not controllers else [root / item for item in controllers.split(",")]:
            here = mount / name.lstrip("/")
            # In a container the path is the host's and does not exist here; the mount itself is our cgroup.
            folders += [folder for folder in (here, *here.parents) if folder.is_relative_to(mount) and folder.is_dir()]
    return list(dict.fromkeys(folders))


def _quota(folder: Path) -> float | None:
    """Processors by the CFS quota of one cgroup, None when unlimited."""
    text = _read(folder / "cpu.max") or f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
    numbers = text.split()
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or not int(numbers[1]):
        return None
    return int(numbers[0]) / int(numbers[1])


def _memory_left(folder: Path) -> int | None:
    """Limit less use, page cache not counted as use; None when unlimited."""
    for limit_name, used_name in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        limit, used = _read(folder / limit_name).strip(), _read(folder / used_name).strip()
        if limit.isdecimal() and used.isdecimal() and int(limit) < 1 << 60:
            # v1 counts a group's use with its children, and their cache as total_inactive_file only.
            stat = _read(folder / "memory.stat")
            names = ("total_inactive_file", "inactive_file")
            cache = next((hit for name in names if (hit := re.search(rf"^{name} (\d+)", stat, re.MULTILINE))), None)
            return max(0, int(limit) - int(used) + (int(cache[1]) if cache else 0))
    return None


def free_disk(folder: Path) -> int:
    """Bytes free for us where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
