"""A second auto answers from a note, and never where the answer would be another one than everybody's who is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sagewheels import auto, config, quick, stack, steps
from sagewheels.job import Job
from sagewheels.resources import ROOT
from tests import wheels
from tests.wheels import NAME, RTX, Machine

WORDS = ["auto"]


class Place:
    """A machine on which everything is in place, as the environment of this process says."""

    def __init__(self, machine: Machine, here: Path) -> None:
        self.machine, self.here = machine, here
        given = machine.settings
        self.environ = {
            "PYTHON_BIN": str(machine.python),
            "SAGE_MANIFEST": given.sage_manifest,
            "SAGE_STORE": given.sage_store,
            "TORCH_CUDA_ARCH_LIST": "12.0",
            "WORK_DIR": str(given.work_dir),
            "WHEELHOUSE_DIR": str(given.wheelhouse_dir),
            "LOG_DIR": str(given.log_dir),
            "PATH": given.environ["PATH"],
            "HOME": str(here),
        }

    def job(self, **changes: Any) -> Job:
        return Job(config.load(), **changes)

    @property
    def answer(self) -> str:
        return quick.answer(WORDS, os.environ)

    @property
    def truth(self) -> str:
        """What everybody who is asked says."""
        words = auto._standing(self.job())
        return words and f"[auto] {words}"

    @property
    def note(self) -> Path:
        return quick.place(self.machine.settings.work_dir, WORDS)


@contextmanager
def standing(place: Place) -> Iterator[None]:
    """As a user who stands in the folder, and who has typed `sagewheels auto`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.here)
        patch.setattr(sys, "argv", ["sagewheels", *WORDS])
        for key, value in place.environ.items():
            patch.setenv(key, value)
        yield


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("ready")
    machine = wheels.machine(folder)
    (folder / "here").mkdir()
    (folder / "extra").mkdir()
    # What is in this folder comes before the target's own.
    (machine.site / "extra.pth").write_text(f"import sys; sys.path.insert(0, {str(folder / 'extra')!r})\n")
    (machine.site / "sitecustomize.py").write_text("")
    place = Place(machine, folder / "here")
    with pytest.MonkeyPatch.context() as patch, standing(place):
        wheels.without_cuobjdump(patch)
        path = wheels.make(folder / "dist", python="mark = 'ours'\n")
        steps.do_upload(place.job(), (path, wheels.describe(path)))
        auto.auto(place.job())
    return place


@pytest.fixture
def place(ready: Place) -> Iterator[Place]:
    with standing(ready):
        assert ready.answer != ""
        yield ready
        # What was changed is as it was, and so is the answer.
        assert ready.answer != ""


@contextmanager
def edited(path: Path, text: str) -> Iterator[None]:
    """Another text, with the size and the times of before."""
    before, known = path.read_bytes(), path.stat()
    path.write_text(text)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    try:
        yield
    finally:
        path.write_bytes(before)


@contextmanager
def added(path: Path, text: str = "") -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def moved(path: Path, to: Path) -> Iterator[None]:
    path.rename(to)
    try:
        yield
    finally:
        to.rename(path)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _torch(place: Place) -> Any:
    path = place.machine.site / "torch" / "version.py"
    return edited(path, path.read_text().replace("2.11", "2.12"))


def _triton_removed(place: Place) -> Any:
    path = place.machine.site / f"triton-{wheels.TRITON}.dist-info"
    return moved(path, place.machine.folder / "away")


def _triton_upgraded(place: Place) -> Any:
    path = place.machine.site / f"triton-{wheels.TRITON}.dist-info" / "METADATA"
    return edited(path, path.read_text().replace(wheels.TRITON, "3.7.0"))


def _package_edited(place: Place) -> Any:
    return edited(place.machine.site / NAME / "__init__.py", "mark = 'your'\n")


def _package_removed(place: Place) -> Any:
    (info,) = place.machine.site.glob(f"{NAME}-*.dist-info")
    return moved(info, place.machine.folder / "away")


@contextmanager
def _other_torch_by_pth(place: Place) -> Iterator[None]:
    """A torch in a folder that a .pth puts before all others."""
    with folder(place.machine.folder / "before") as other, folder(other / "torch") as torch:
        (torch / "__init__.py").touch()
        (torch / "version.py").write_text("__version__ = '2.12.0+cu130'\ncuda = '13.0'\n")
        with edited(place.machine.site / "extra.pth", f"import sys; sys.path.insert(0, {str(other)!r})\n"):
            yield


@contextmanager
def _triton_in_a_folder_of_a_pth(place: Place) -> Iterator[None]:
    """Nothing that was there is touched: another triton arrives in a folder that a .pth names."""
    with folder(place.machine.folder / "extra" / "triton-2.0.0.dist-info") as info:
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: triton\nVersion: 2.0.0\n")
        yield


@contextmanager
def _torch_in_a_folder_of_a_pth(place: Place) -> Iterator[None]:
    with folder(place.machine.folder / "extra" / "torch") as torch:
        (torch / "__init__.py").touch()
        (torch / "version.py").write_text("__version__ = '2.12.0+cu130'\ncuda = '13.0'\n")
        yield


def _sitecustomize(place: Place) -> Any:
    text = "import sys; sys.path[:] = [one for one in sys.path if 'site-packages' not in one]\n"
    return edited(place.machine.site / "sitecustomize.py", text)


@contextmanager
def _other_interpreter(place: Place) -> Iterator[None]:
    """The same path, another Python: the one without this environment."""
    python = place.machine.python
    real = os.path.realpath(python)
    with moved(python, python.with_name("old")):
        wheels.script(python, f'#!/bin/sh\nexec {real} "$@"\n')
        try:
            yield
        finally:
            python.unlink()


@contextmanager
def _replaced_environment(place: Place) -> Iterator[None]:
    home = place.machine.python.parent.parent
    with moved(home, home.with_name("old-env")):
        wheels.venv(home)
        try:
            yield
        finally:
            shutil.rmtree(home)


def _smoke_forgotten(place: Place) -> Any:
    (path,) = place.machine.settings.work_dir.glob(f"state/{NAME}-*.json")
    return edited(path, path.read_text().replace('"passed"', '"denied"'))


def _stack_cut_off(place: Place) -> Any:
    return added(stack.pending_path(place.machine.settings, place.job().target))


def _exchanging(place: Place) -> Any:
    return folder(place.machine.site / f".{NAME}.sagewheels")


def _manifest(place: Place) -> Any:
    path = Path(place.machine.settings.sage_manifest)
    return edited(path, path.read_text().replace("schema = 1", 'schema = 1\nneeds = ["numpy"]'))


def _dotenv(place: Place) -> Any:
    return added(place.here / ".env", "TORCH_VERSION=2.9.0\n")


def _gpu(place: Place) -> Any:
    path = place.machine.folder / "bin" / "nvidia-smi"
    return edited(path, f"#!/bin/sh\necho '{RTX}'\n")


CHANGES = [
    _torch,
    _triton_removed,
    _triton_upgraded,
    _package_edited,
    _package_removed,
    _other_torch_by_pth,
    _triton_in_a_folder_of_a_pth,
    _torch_in_a_folder_of_a_pth,
    _sitecustomize,
    _other_interpreter,
    _replaced_environment,
    _smoke_forgotten,
    _stack_cut_off,
    _exchanging,
    _manifest,
    _dotenv,
    _gpu,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(place: Place, change: Callable[[Place], Any]) -> None:
    with change(place):
        try:
            assert place.truth == "", "this change makes the noted answer wrong"
        finally:
            assert place.answer == ""


@pytest.mark.parametrize(("key", "value"), [("TORCH_CUDA_ARCH_LIST", "9.0"), ("TORCH_VERSION", "2.9.0")])
def test_another_wish_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(key, value)
        assert place.truth == place.answer == ""


def test_another_python_on_path_is_seen(ready: Place, tmp_path: Path) -> None:
    with standing(ready), pytest.MonkeyPatch.context() as patch:
        first = tmp_path / "first"
        first.mkdir()
        patch.delenv("PYTHON_BIN")
        patch.setenv("PATH", f"{first}:{ready.machine.python.parent}:{os.environ['PATH']}")
        assert auto.in_place(ready.job())
        assert ready.answer == ready.truth != ""
        (first / "python3").symlink_to(os.path.realpath(ready.machine.python))
        assert ready.answer == ready.truth == ""
        ready.note.unlink()
        (first / "python3").unlink()
    with standing(ready):
        assert auto.in_place(ready.job())


# The note itself


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", "[" * 100_000, "{}", '{"asked": ["auto"]}', '{"asked": 1, "here": []}', "\xff"]
)
def test_a_damaged_note_is_passed_over(place: Place, text: str) -> None:
    with edited(place.note, text):
        assert place.answer == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("line", "[auto] nothing to do: \x1b[2J"), ("line", "rm"), ("names", 7), ("environ", ""), ("gpus", []),
        ("contents", []), ("stats", {"/nowhere": [1]}), ("contents", {"\0": "x"}), ("here", "/"), ("noted", "x"),
    ],
)  # fmt: skip
def test_a_hostile_note_is_passed_over(place: Place, key: str, value: object) -> None:
    known = json.loads(place.note.read_text())
    with edited(place.note, json.dumps({**known, key: value})):
        assert place.answer == ("" if key != "noted" else place.truth), "without the kernel's list nobody asks its age"


def test_a_note_that_others_can_write_is_passed_over(place: Place) -> None:
    place.note.chmod(0o666)
    assert place.answer == ""
    place.note.chmod(0o600)
    with moved(place.note, place.note.with_name("other")):
        place.note.symlink_to("other")
        assert place.answer == ""
        place.note.unlink()
        os.mkfifo(place.note)
        assert place.answer == ""
        place.note.unlink()


def test_a_damaged_note_is_written_anew(place: Place) -> None:
    place.note.write_text("{")
    assert auto.in_place(place.job(dry_run=True)) and place.answer == "", "a dry run writes nothing"
    assert auto.in_place(place.job())
    assert place.answer == place.truth


def test_a_warning_is_said_again_and_again(place: Place) -> None:
    place.note.unlink()
    with added(place.here / ".env", "HF_REPOID=me/wheels\n"):
        assert auto.in_place(place.job())
        assert not place.note.exists()
    assert auto.in_place(place.job())


def test_a_folder_that_cannot_be_written_is_no_error(place: Place) -> None:
    state = place.note.parent
    place.note.unlink()
    with moved(state, state.with_name("elsewhere")):
        state.write_text("")
        assert not auto.in_place(place.job())
        state.unlink()
    assert auto.in_place(place.job())


@pytest.mark.parametrize(
    ("words", "wish"),
    [
        ([], ["auto"]),
        (["auto"], ["auto"]),
        (["install", "--arch", "12.0"], ["install", "--arch=12.0"]),
        (["--python=a", "--arch=12.0", "--no-wait"], ["auto", "--arch=12.0", "--python=a"]),
        (["auto", "--store", "--rebuild"], ["auto", "--store=--rebuild"]),
        (["auto", "--rebuild"], None),
        (["auto", "--dry-run"], None),
        (["auto", "--json"], None),
        (["auto", "--arch"], None),
        (["auto", "install"], None),
        (["--help"], None),
        (["smoke"], None),
        (["auto", "-a", "12.0"], None),
        (["auto", "--arch", "12.0", "--arch", "9.0"], None),
        (["auto", "--arch=9.0", "--store=a", "--arch", "12.0"], None),
    ],
)
def test_what_a_note_can_answer(words: list[str], wish: list[str] | None) -> None:
    assert quick.asked(words) == wish


# GPUs


def test_the_kernels_list_stands_for_nvidia_smi_for_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, boot, asked = tmp_path / "nvidia", tmp_path / "boot_id", tmp_path / "asked"
    wheels.script(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\necho x >> {asked}\necho '{RTX}'\n")
    environ = {"PATH": str(tmp_path / "bin")}
    monkeypatch.setattr(quick, "DRIVER", driver)
    monkeypatch.setattr(quick, "BOOT", boot)
    monkeypatch.setattr(quick, "DEVICES", tmp_path)
    assert quick.gpus(environ)["out"].strip() == RTX
    assert asked.read_text() == "x\n", "no list, so nvidia-smi was asked"
    one = driver / "gpus" / "0000:01:00.0" / "information"
    one.parent.mkdir(parents=True)
    one.write_text("Model: NVIDIA GeForce RTX 5090\n")
    (driver / "version").write_text("580.65.06\n")
    boot.write_text("a\n")
    now = quick.gpus(environ)
    note = {"noted": time.time() - 3000}
    assert quick.gpus(environ, note) == now
    assert quick.gpus(environ, {"noted": time.time() - 3700}) != now
    assert quick.gpus(environ, {"noted": time.time() + 60}) != now, "a clock that was put back"
    for path, text in ((driver / "version", "590.10\n"), (boot, "b\n"), (one, "GPU Excluded: Yes\n")):
        with edited(path, text):
            assert quick.gpus(environ, note) != now
    with added(driver / "gpus" / "0000:02:00.0" / "information", "Model: another\n"):
        assert quick.gpus(environ, note) != now
    assert quick.gpus(environ, note) == now
    assert asked.read_text() == "x\n"
    one.unlink()
    (driver / "gpus" / "0000:02:00.0").rmdir()
    assert not quick.gpus(environ, note)["enough"], "a driver without a GPU"


# As people run it

_GUARD = """
import socket
def refuse(*ignored):
    raise SystemExit("a connection was tried")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


def test_a_second_auto_loads_no_invoke_and_reaches_for_nobody(place: Place, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_GUARD)
    code = (
        "import sys; sys.argv = ['sagewheels', 'auto']; from sagewheels.start import main; main(); "
        "print(sorted(one for one in sys.modules if one.startswith(('invoke', 'sagewheels', 'packaging', 'rich'))))"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [place.truth, "['sagewheels', 'sagewheels.quick', 'sagewheels.start']"]


def test_an_answer_that_cannot_be_written_is_one_line(place: Place) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "sagewheels", *WORDS]
    assert place.answer
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=env)
    line = "the answer could not be written: No space left on device. Mend that and run it again.\n"
    assert (done.returncode, done.stderr) == (1, line)
