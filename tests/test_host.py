"""The machine: nvidia-smi's answers, drivers, and what cgroups leave of cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sagewheels import arch, host
from sagewheels.host import Gpu

GIB = 1 << 30
NO_GPU = "nvidia-smi lists no GPU"


def gpu(index: int, name: str, capability: str, memory: int) -> Gpu:
    return Gpu(index=index, name=name, arch=arch.parse(capability), memory=memory)


RTX = gpu(0, "NVIDIA GeForce RTX 5090", "12.0", 32607)


@pytest.mark.parametrize(
    ("text", "gpus", "driver", "problem"),
    [
        ("0, NVIDIA GeForce RTX 5090, 12.0, 32607, 580.65.06\n", (RTX,), "580.65.06", ""),
        (
            "0, NVIDIA GeForce RTX 5090, 12.0, 32607, 580.65.06\n1, NVIDIA H200, 9.0, 143771, 580.65.06\n",
            (RTX, gpu(1, "NVIDIA H200", "9.0", 143771)),
            "580.65.06",
            "",
        ),
        (
            "0, A name, with, commas, 8.9, 24564, 570.1\r\n",
            (gpu(0, "A name, with, commas", "8.9", 24564),),
            "570.1",
            "",
        ),
        ("0,NVIDIA A10,8.6,23028,535.1", (gpu(0, "NVIDIA A10", "8.6", 23028),), "535.1", ""),
        ("0, NVIDIA GB10, 12.1, [N/A], 580.95.05", (gpu(0, "NVIDIA GB10", "12.1", 0),), "580.95.05", ""),
        ("0, Tesla, [N/A], 16384, 450.1", (), "", "nvidia-smi said '0, Tesla, [N/A], 16384, 450.1'"),
        ("No devices were found\n", (), "", "nvidia-smi said 'No devices were found'"),
        ("", (), "", NO_GPU),
        ("\n  \n", (), "", NO_GPU),
        ("x, y, 12.0, 1, 580.1", (), "", "nvidia-smi said 'x, y, 12.0, 1, 580.1'"),
        ("1" * 100, (), "", f"nvidia-smi said {'1' * 80!r}"),
        (
            "0, NVIDIA GeForce RTX 5090, 12.0, 32607, 580.65.06\nUnable to determine the device handle for GPU1\n",
            (RTX,),
            "580.65.06",
            "nvidia-smi said 'Unable to determine the device handle for GPU1'",
        ),
    ],
)
def test_what_nvidia_smi_says(text: str, gpus: tuple[Gpu, ...], driver: str, problem: str) -> None:
    assert host.parse_smi(text) == (gpus, driver, problem)


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("580.65.06", "13.0"),
        ("590.1", "13.0"),
        ("579.99", "12.9"),
        ("575.57.08", "12.9"),
        ("570.86.10", "12.8"),
        ("560.28.03", "12.6"),
        ("550.54.14", "12.4"),
        ("535.183.01", "12.0"),
        ("525.60.13", "12.0"),
        ("470.256.02", "11.8"),
        ("418.87", ""),
        ("", ""),
        ("unknown", ""),
    ],
)
def test_the_newest_cuda_of_a_driver(driver: str, cuda: str) -> None:
    assert host.cuda_of_driver(driver) == cuda


def smi(folder: Path, script: str) -> dict[str, str]:
    """An environment whose nvidia-smi is this shell script."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_a_machine_with_gpus(tmp_path: Path) -> None:
    asked = '--query-gpu=index,name,compute_cap,memory.total,driver_version" = "$1'
    script = (
        f'test "{asked}" || exit 9\ntest "$2" = --format=csv,noheader,nounits || exit 8\n'
        "echo '1, NVIDIA H200, 9.0, 143771, 570.1'\necho '0, NVIDIA GeForce RTX 5090, 12.0, 32607, 570.1'\n"
        "echo '2, NVIDIA H200, 9.0, 143771, 570.1'"
    )
    found = host.probe(smi(tmp_path, script))
    assert [item.name for item in found.gpus] == ["NVIDIA H200", "NVIDIA GeForce RTX 5090", "NVIDIA H200"]
    assert (found.driver, found.driver_cuda, found.problem) == ("570.1", "12.8", "")
    assert found.archs == arch.parse_list("9.0 12.0"), "each once, in order"
    assert found.cores >= 1 and found.memory > 0


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'NVIDIA-SMI has failed because'; exit 9", "nvidia-smi failed: NVIDIA-SMI has failed because"),
        ("exit 6", "nvidia-smi failed: no output, exit code 6"),
        ("kill -9 $$", "nvidia-smi failed: no output, killed by SIGKILL"),
        ("true", NO_GPU),
    ],
)
def test_a_machine_whose_driver_is_broken(tmp_path: Path, script: str, problem: str) -> None:
    found = host.probe(smi(tmp_path, script))
    assert (found.gpus, found.archs, found.driver, found.driver_cuda, found.problem) == ((), (), "", "", problem)


@pytest.mark.skipif(Path("/usr/lib/wsl/lib/nvidia-smi").exists(), reason="WSL has an nvidia-smi outside of PATH")
def test_a_machine_without_a_driver(tmp_path: Path) -> None:
    found = host.probe({"PATH": str(tmp_path)})
    assert (found.gpus, found.driver, found.problem) == ((), "", "nvidia-smi is not on PATH: no NVIDIA driver")


class Machine:
    """Files below /proc and /sys/fs/cgroup, with the folders that hold them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.allowed = root, 64
        self.folders: list[Path] = []
        monkeypatch.setattr(host, "_read", self.read)
        monkeypatch.setattr(host, "_cgroups", self.cgroups)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(self.allowed)))

    def read(self, path: Path) -> str:
        place = path if path.is_relative_to(self.root) else self.root / str(path).lstrip("/")
        return place.read_text(encoding="utf-8") if place.is_file() else ""

    def cgroups(self) -> list[Path]:
        return self.folders

    def cgroup(self, **files: object) -> None:
        """One more cgroup; `cpu_max` is the file cpu.max, for names that need a dot, `__` is one."""
        folder = self.root / f"cgroup{len(self.folders)}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n", encoding="utf-8")
        self.folders.append(folder)

    def available(self, size: int) -> None:
        path = self.root / "proc" / "meminfo"
        path.parent.mkdir(exist_ok=True)
        text = f"MemTotal:       {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable:   {size // 1024} kB\n"
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu__max": "max 100000"}, 64),
        ({"cpu__max": "400000 100000"}, 4),
        ({"cpu__max": "150000 100000"}, 2),
        ({"cpu__max": "100001 100000"}, 2),
        ({"cpu__max": "10000 100000"}, 1),
        ({"cpu__max": "0 100000"}, 64),
        ({"cpu__max": "400000 0"}, 64),
        ({"cpu__max": "9900000 100000"}, 64),
        ({"cpu__max": "nonsense"}, 64),
        ({"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, 64),
        ({"cpu__cfs_quota_us": "250000", "cpu__cfs_period_us": "100000"}, 3),
        ({"cpu__cfs_quota_us": "250000"}, 64),
    ],
)
def test_cores_are_what_the_quota_leaves(machine: Machine, files: dict[str, str], cores: int) -> None:
    machine.cgroup(**files)
    assert host.cores() == cores


def test_the_tightest_of_affinity_and_quotas_counts(machine: Machine) -> None:
    assert host.cores() == 64, "without any cgroup"
    machine.cgroup(cpu__max="1200000 100000")
    machine.cgroup(cpu__max="800000 100000")
    machine.cgroup(cpu__max="max 100000")
    assert host.cores() == 8
    machine.allowed = 3
    assert host.cores() == 3
    machine.cgroup(cpu__max="1 100000")
    assert host.cores() == 1, "never none"


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 40 * GIB),
        ({"memory__max": "max", "memory__current": GIB}, 40 * GIB),
        ({"memory__max": 16 * GIB, "memory__current": 6 * GIB}, 10 * GIB),
        ({"memory__max": 16 * GIB}, 40 * GIB),
        (
            {
                "memory__max": 16 * GIB,
                "memory__current": 12 * GIB,
                "memory__stat": f"anon 1\ninactive_file {4 * GIB}\nactive_file 9",
            },
            8 * GIB,
        ),
        ({"memory__max": GIB, "memory__current": 2 * GIB}, 0),
        ({"memory__max": 100 * GIB, "memory__current": 0}, 40 * GIB),
        ({"memory__limit_in_bytes": 9223372036854771712, "memory__usage_in_bytes": GIB}, 40 * GIB),
        ({"memory__limit_in_bytes": 8 * GIB, "memory__usage_in_bytes": 5 * GIB}, 3 * GIB),
        (
            {
                "memory__limit_in_bytes": 8 * GIB,
                "memory__usage_in_bytes": 5 * GIB,
                "memory__stat": f"cache 1\ntotal_inactive_file {2 * GIB}",
            },
            5 * GIB,
        ),
    ],
)
def test_memory_is_what_the_cgroup_leaves(machine: Machine, files: dict[str, object], left: int) -> None:
    machine.available(40 * GIB)
    machine.cgroup(**files)
    assert host.memory() == left


def test_the_cache_of_child_cgroups_is_no_use_in_v1(machine: Machine) -> None:
    machine.available(40 * GIB)
    stat = f"inactive_file 0\nactive_file 0\ntotal_inactive_file {2 * GIB}"
    machine.cgroup(memory__limit_in_bytes=8 * GIB, memory__usage_in_bytes=5 * GIB, memory__stat=stat)
    assert host.memory() == 5 * GIB


def test_the_tightest_cgroup_counts_and_the_kernel_too(machine: Machine) -> None:
    assert host.memory() == 4 * GIB, "an assumption where nothing is known"
    machine.cgroup(memory__max=20 * GIB, memory__current=GIB)
    machine.cgroup(memory__max=30 * GIB, memory__current=25 * GIB)
    assert host.memory() == 5 * GIB
    machine.available(2 * GIB)
    assert host.memory() == 2 * GIB


@pytest.mark.parametrize(
    ("text", "have", "folders"),
    [
        ("0::/\n", [], ["."]),
        ("0::/user/one\n", ["user/one"], ["user/one", "user", "."]),
        ("0::/docker/gone\n", [], ["."]),
        ("4:memory:/a\n2:cpu,cpuacct:/a\n", ["memory/a", "cpu"], ["memory/a", "memory", "cpu"]),
        ("1:name=systemd:/x\n0::/\n", [], ["."]),
        ("", [], []),
    ],
)
def test_our_cgroups_up_to_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, have: list[str], folders: list[str]
) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    for name in have:
        (root / name).mkdir(parents=True)
    real = Path
    monkeypatch.setattr(host, "Path", lambda name: root if name == "/sys/fs/cgroup" else real(name))
    monkeypatch.setattr(host, "_read", lambda path: text if str(path) == "/proc/self/cgroup" else "")
    assert host._cgroups() == [root / name for name in folders]


def test_this_machine_has_a_core_and_memory() -> None:
    assert 1 <= host.cores() <= (os.cpu_count() or 1)
    assert host.memory() > 0


def test_the_disk_of_a_folder_that_is_yet_to_be(tmp_path: Path) -> None:
    assert host.free_disk(tmp_path / "not" / "yet") == pytest.approx(host.free_disk(tmp_path), rel=0.05)
