"""`--offline`: what is on this machine does, or the line names what would have been asked; nobody is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagewheels import wheelhouse
from sagewheels.resources import ROOT
from tests import wheels
from tests.hub import Hub
from tests.wheels import NAME, TAG, VERSION, Machine

GOOD = f"{NAME}-{VERSION}{wheels.LABEL}-{TAG}.whl"
LABEL = "hf://datasets/me/wheels@main/sageattention220"
AWAY = (
    f"{LABEL} was not asked, because this run is offline. "
    "Leave --offline (SAGE_OFFLINE) out, or name a folder with --store."
)
TASK = """
import socket, sys
from sagewheels import wheel
from tests import wheels

def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise SystemExit(f"a connection to {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
wheel.cubins = wheels.marked_archs
sys.argv[0] = "sagewheels"
from sagewheels.start import main
main()
"""
"""The command; a run that connects anywhere ends with exit 1 and another line."""


class Cut:
    """A machine whose store is on a Hub that counts what it is asked, and whose Python connects to nothing."""

    def __init__(self, machine: Machine, hub: Hub, folder: Path) -> None:
        self.machine, self.hub, self.folder = machine, hub, folder
        given = machine.settings
        self.env = {
            **given.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHON_BIN": str(machine.python),
            "SAGE_MANIFEST": given.sage_manifest,
            "HF_REPO_ID": "me/wheels",
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "hf_write",
            "TORCH_CUDA_ARCH_LIST": "12.0",
            "WHEELHOUSE_DIR": str(given.wheelhouse_dir),
            "WORK_DIR": str(given.work_dir),
            "UV_CACHE_DIR": str(folder / "uv"),
        }

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", TASK, *words]
        return subprocess.run(
            argv, cwd=self.folder, env={**self.env, **env}, check=False, capture_output=True, text=True, timeout=120
        )

    def keeps_a_wheel(self) -> None:
        path = wheels.make(self.folder)
        wheelhouse.keep(self.machine.settings, path, wheels.describe(path))


@pytest.fixture
def cut(tmp_path: Path) -> Iterator[Cut]:
    with Hub() as hub:
        hub.create("me/wheels")
        yield Cut(wheels.machine(tmp_path / "machine"), hub, tmp_path)
        assert hub.requests == []


def test_auto_takes_what_the_wheelhouse_has_and_then_has_nothing_to_do(cut: Cut) -> None:
    cut.keeps_a_wheel()
    first = cut("auto", "--offline")
    assert first.returncode == 0, first.stderr
    assert cut.machine.import_version()
    assert f"[auto] warning: the store was not reached: {AWAY}" in first.stderr.splitlines()
    second = cut("auto", SAGE_OFFLINE="1")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.startswith(f"[auto] nothing to do: {GOOD} is in ")
    assert cut("auto", "--offline").stdout == second.stdout


@pytest.mark.parametrize("task", ["fetch", "install", "list"])
def test_what_only_the_store_has_is_named(cut: Cut, task: str) -> None:
    done = cut(task, "--offline")
    assert (done.returncode, done.stderr) == (7, f"{AWAY}\n")


def test_a_report_says_it_too(cut: Cut) -> None:
    told = json.loads(cut("fetch", "--offline", "--json").stdout)
    assert (told["exit_code"], f"{told['error']['what']}. {told['error']['remedy']}.") == (7, AWAY)


def test_an_address_is_not_asked(cut: Cut) -> None:
    done = cut("fetch", "--offline", WHEEL_URL=f"{cut.hub.endpoint}/{GOOD}")
    line = "WHEEL_URL was not asked, because this run is offline. Leave --offline (SAGE_OFFLINE) out.\n"
    assert (done.returncode, done.stderr) == (7, line)


def test_a_folder_is_no_network(cut: Cut) -> None:
    store = cut.folder / "store"
    store.mkdir()
    cut.keeps_a_wheel()
    assert cut("upload", "--store", str(store), SAGE_OFFLINE="1").returncode == 0
    assert cut("fetch", "--offline", "--store", str(store)).returncode == 0


def test_a_stack_that_is_not_here_is_not_fetched(tmp_path: Path) -> None:
    """uv and pip are told so themselves; what they say is in the line."""
    with Hub() as hub:
        bare = Cut(wheels.machine(tmp_path / "machine", torch=False), hub, tmp_path)
        done = bare("stack", "--offline", TORCH_CHANNEL="pypi")
    assert done.returncode == 7
    assert "Packages were unavailable because the network was disabled" in done.stderr
    assert done.stderr.endswith(". Leave --offline (SAGE_OFFLINE) out, or install torch by hand.\n")


def test_without_the_flag_the_store_is_asked(cut: Cut) -> None:
    """What holds the tests above to their word."""
    done = cut("fetch")
    assert done.returncode == 1
    assert done.stderr.startswith("a connection to ('127.0.0.1', ")
