"""The graph: which branch is taken, that a second run changes nothing, and that a dry run changes nothing at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sagewheels import auto, steps, wheelhouse
from sagewheels.errors import BuildFailed, NothingCompatible, Refused, SmokeFailed, StoreError
from sagewheels.job import Job
from sagewheels.wheelhouse import Made
from tests import wheels
from tests.hub import Hub
from tests.wheels import NAME, RTX, TAG, VERSION, Machine

GOOD = f"{NAME}-{VERSION}{wheels.LABEL}-{TAG}.whl"
LOADED = "loaded only: there is no GPU here, nothing was computed and nothing is proven"
REPO = "me/wheels"

# huggingface_hub hands LFS uploads to its HTTP client in a way that the latter is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


class Compiler:
    """Stands in for the build step, which needs nvcc: what it was asked, and a real wheel that it leaves."""

    def __init__(self, **made: Any) -> None:
        self.made, self.asked = made, list[bool]()

    def __call__(self, job: Job, *, force: bool = False, turn: Any = None) -> Made:
        self.asked.append(force)
        assert not job.dry_run
        if not self.made:
            raise BuildFailed("the compile failed (exit code 1): nvcc fatal")
        path = wheels.make(job.settings.work_dir / "out", **self.made)
        manifest = wheels.describe(path, created_at_utc="2026-05-05T00:00:00Z")
        print(f"[build] {path.name}")
        return wheelhouse.keep(job.settings, path, manifest), manifest


@pytest.fixture(autouse=True)
def _marks(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_cuobjdump(monkeypatch)


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return wheels.machine(tmp_path)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler(python="mark = 'built'\n", version=f"{VERSION}+cu130torch2.11sm120.kbuilt")
    dry = steps.do_build

    def build(job: Job, *, force: bool = False, turn: Any = None) -> Made | None:
        return dry(job, force=force) if job.dry_run else made(job, force=force)

    monkeypatch.setattr(steps, "do_build", build)
    return made


def publish(machine: Machine, label: str = wheels.LABEL, *, python: str = "", **changes: Any) -> str:
    """A wheel in the store and nowhere else; its name."""
    files = changes.pop("files", None)
    path = wheels.make(machine.folder / "dist", files, version=VERSION + label, python=python)
    steps.do_upload(machine.job(), (path, wheels.describe(path, **changes)))
    return path.name


def topics(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The steps that spoke, each once for each time that it began."""
    found: list[str] = []
    for line in capsys.readouterr().out.splitlines():
        topic = line[1:].split("]", 1)[0] if line.startswith("[") else ""
        if topic and found[-1:] != [topic]:
            found.append(topic)
    return found


def test_what_the_store_holds_is_fetched_verified_and_smoked(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(here)
    capsys.readouterr()
    auto.auto(here.job())
    said = capsys.readouterr().out.splitlines()
    prefix = here.python.parent.parent
    assert [line for line in said if not line.startswith(f"[fetch] {GOOD}, ")][:3] == [
        f"[stack] kept: torch 2.11.0+cu130, triton 3.6.0, CUDA 13.0 in {prefix}",
        f"[fetch] {GOOD} fits, a candidate, not proven yet",
        said[3],
    ]
    assert [line.split("]")[0][1:] for line in said] == [
        "stack", "fetch", "fetch", "verify", "install", "smoke", "smoke", "smoke", "auto",
    ]  # fmt: skip
    assert said[-2] == f"[smoke] {LOADED}"
    assert said[-1].startswith("[auto] done in ") and said[-1].endswith(f": {GOOD} in {prefix}")
    assert (compiler.asked, here.import_version()) == ([], "ours")


def test_a_second_run_changes_nothing_and_asks_nobody(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    publish(here)
    auto.auto(here.job())
    shutil.rmtree(here.settings.sage_store)
    before = wheels.tree(here.folder)
    capsys.readouterr()
    job = here.job()
    auto.auto(job)
    prefix = here.python.parent.parent
    assert capsys.readouterr().out == f"[auto] nothing to do: {GOOD} is in {prefix}, {LOADED}\n"
    assert wheels.tree(here.folder) == before
    assert "store" not in vars(job)
    auto.install(here.job())
    assert capsys.readouterr().out == f"[install] nothing to do: {GOOD} is in {prefix}, {LOADED}\n"


def test_a_miss_is_built_uploaded_verified_and_smoked(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    other = publish(here, "+cu130torch2.12sm120", torch_version="2.12.0+cu130")
    capsys.readouterr()
    auto.auto(here.job())
    assert topics(capsys) == ["stack", "fetch", "auto", "build", "upload", "verify", "install", "smoke", "auto"]
    assert (compiler.asked, here.import_version()) == ([False], "built")
    listed = json.loads((Path(here.settings.sage_store) / "index.json").read_text())["wheels"]
    assert sorted(one["wheel_file"] for one in listed) == sorted([other, GOOD.replace("sm120", "sm120.kbuilt")])


def test_what_was_built_is_never_built_again(here: Machine, compiler: Compiler, tmp_path: Path) -> None:
    """Nor on the next machine with the same store."""
    auto.auto(here.job())
    second = wheels.machine(tmp_path / "second", sage_store=here.settings.sage_store)
    auto.auto(second.job())
    assert (compiler.asked, second.import_version()) == ([False], "built")


def test_rebuild_compiles_though_a_wheel_fits(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(here)
    auto.auto(here.job())
    capsys.readouterr()
    auto.auto(here.job(), rebuild=True)
    assert topics(capsys) == ["stack", "build", "upload", "verify", "install", "smoke", "auto"]
    assert (compiler.asked, here.import_version()) == ([True], "built")


def test_the_wheelhouse_serves_when_the_store_lacks_it(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wheels.make(here.folder / "dist")
    wheelhouse.keep(here.settings, path, wheels.describe(path))
    auto.auto(here.job())
    said = capsys.readouterr().out.splitlines()
    assert f"[auto] {here.settings.sage_store} holds no wheel for this machine" in said
    assert f"[auto] {GOOD} is in the wheelhouse" in said
    assert compiler.asked == []


def test_the_wheelhouse_serves_when_the_store_does_not_answer(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wheels.make(here.folder / "dist")
    wheelhouse.keep(here.settings, path, wheels.describe(path))
    Path(here.settings.sage_store).touch()
    auto.auto(here.job())
    warning = f"[auto] warning: the store was not reached: {here.settings.sage_store} cannot be "
    assert capsys.readouterr().err.startswith(warning)
    assert (compiler.asked, here.import_version()) == ([], "ours")


def test_a_dead_store_costs_no_compile(here: Machine, compiler: Compiler) -> None:
    """The wheel is built, installed and smoked; that it could not be published is told last, with exit 7."""
    with Hub(write=(), read=("hf_read",)) as hub:
        hub.create(REPO)
        job = here.job(sage_store="", hf_repo_id=REPO, hf_endpoint=hub.endpoint, remote_dir="sage", hf_token="hf_read")
        with pytest.raises(StoreError) as caught:
            auto.auto(job)
    assert caught.value.code == 7
    assert str(caught.value) == (
        f"the machine is ready, but HF_TOKEN has no right to write in {REPO} (403). Set HF_TOKEN to a token with write "
        f"access to {REPO}, from https://huggingface.co/settings/tokens. Then upload publishes the wheel."
    )
    assert (compiler.asked, here.import_version()) == ([False], "built")
    assert auto.in_place(here.job())


def test_what_was_built_and_not_published_when_it_was_killed_is_published_by_the_next(
    here: Machine, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(auto, "_publish", Killed())
        auto.auto(here.job())
    auto.auto(here.job())
    (listed,) = json.loads((Path(here.settings.sage_store) / "index.json").read_text())["wheels"]
    assert (compiler.asked, listed["wheel_file"]) == ([False], GOOD.replace("sm120", "sm120.kbuilt"))
    assert not list(here.settings.work_dir.glob("state/*.unpublished"))


class Killed:
    """Stands for a SIGKILL."""

    def __call__(self, *args: object) -> None:
        raise KeyboardInterrupt


def test_without_a_token_nothing_is_published_and_that_is_no_failure(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    with Hub() as hub:
        hub.create(REPO)
        auto.auto(here.job(sage_store="", hf_repo_id=REPO, hf_endpoint=hub.endpoint, remote_dir="sage"))
        assert hub.commits == 0
    assert "[upload] nothing was published: " in capsys.readouterr().out
    assert here.import_version() == "built"


def test_a_build_that_fails_leaves_what_was_installed(here: Machine, compiler: Compiler) -> None:
    theirs = wheels.make(here.folder / "dist", version="0.9", python="mark = 'theirs'\n")
    wheels.pip(here.python, "install", theirs)
    compiler.made = {}
    before = wheels.tree(here.site)
    with pytest.raises(BuildFailed) as caught:
        auto.auto(here.job())
    assert caught.value.code == 5
    assert (wheels.tree(here.site), here.import_version()) == (before, "theirs")


def test_damaged_bytes_in_the_store_stop_everything(here: Machine, compiler: Compiler) -> None:
    """It is neither installed nor papered over by a compile."""
    publish(here)
    damaged = Path(here.settings.sage_store) / GOOD
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with pytest.raises(Refused) as caught:
        auto.auto(here.job())
    assert caught.value.code == 4
    assert (compiler.asked, here.import_version()) == ([], "none")


def test_an_extension_that_does_not_load_puts_the_machine_back(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = wheels.make(here.folder / "dist", version="0.9", python="mark = 'theirs'\n")
    wheels.pip(here.python, "install", theirs)
    broken = wheels.content(_fused=wheels.extension(entry="NoInit"))
    publish(here, files=broken, python="mark = 'ours'\n")
    with pytest.raises(SmokeFailed) as caught:
        auto.auto(here.job())
    assert caught.value.code == 6
    assert str(caught.value) == (
        f"smoke failed: import {NAME}._fused failed: ImportError: dynamic module does not define module export "
        f"function (PyInit__fused). The machine is as it was: {theirs.name} is back; the wheel is not proven."
    )
    assert (here.import_version(), compiler.asked) == ("theirs", [])
    assert not auto.in_place(here.job())


def test_proven_once_and_known_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels.with_gpu_answers(monkeypatch)
    machine = wheels.machine(tmp_path, gpu=RTX)
    publish(machine)
    auto.auto(machine.job())
    assert f"[smoke] the proof is in {machine.settings.sage_store}" in capsys.readouterr().out
    auto.auto(machine.job())
    proven = "proven on NVIDIA GeForce RTX 5090 (arch 12.0)"
    assert capsys.readouterr().out == f"[auto] nothing to do: {GOOD} is in {machine.python.parent.parent}, {proven}\n"
    wheels.script(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\necho '{RTX.replace('580.65.06', '590.10')}'\n")
    assert not auto.in_place(machine.job()), "another driver asks for another smoke"


# in_place: what makes the next run look again


def _remove_file(here: Machine) -> None:
    (here.site / wheels.PACKAGE / "_fused.abi3.so").unlink()


def _other_version(here: Machine) -> None:
    wheels.pip(here.python, "install", wheels.make(here.folder / "dist", version="0.9"))


def _uninstall(here: Machine) -> None:
    wheels.pip(here.python, "uninstall", NAME)


def _forget(here: Machine) -> None:
    shutil.rmtree(here.settings.work_dir)


@pytest.mark.parametrize("change", [_remove_file, _other_version, _uninstall, _forget])
def test_what_was_changed_since_is_mended(here: Machine, change: Any) -> None:
    publish(here, python="mark = 'ours'\n")
    auto.auto(here.job())
    assert auto.in_place(here.job())
    change(here)
    assert not auto.in_place(here.job())
    auto.auto(here.job())
    assert here.import_version() == "ours"
    assert auto.in_place(here.job())


def test_a_file_that_was_edited_since_is_mended(here: Machine, tmp_path: Path) -> None:
    """What is installed are the bytes that were verified, and not what an installer kept of an earlier time."""
    environ = {**here.settings.environ, "UV_CACHE_DIR": str(tmp_path / "cache")}  # where hard links are possible
    publish(here, python="mark = 'ours'\n")
    auto.auto(here.job(environ=environ))
    (here.site / wheels.PACKAGE / "__init__.py").write_text("mark = 'by hand'\n")
    assert not auto.in_place(here.job())
    auto.auto(here.job(environ=environ))
    assert here.import_version() == "ours"
    assert auto.in_place(here.job())


@pytest.mark.parametrize("change", ["torch", "triton"])
def test_another_stack_is_no_longer_in_place(here: Machine, change: str) -> None:
    publish(here)
    auto.auto(here.job())
    if change == "torch":
        wheels.put_torch(here.python, "2.12.0+cu130")
    else:
        shutil.rmtree(here.site / f"triton-{wheels.TRITON}.dist-info")
        wheels.put_distribution(here.python, "triton", "3.7.0")
    assert not auto.in_place(here.job())


def test_another_arch_is_another_wish(here: Machine) -> None:
    publish(here)
    files = wheels.content(_fused=wheels.extension(archs="9.0a"))
    other = publish(
        here, "+cu130torch2.11sm90", files=files, archs=["9.0a"], target_arch="9.0", extensions={"_fused": ["9.0a"]}
    )
    auto.auto(here.job())
    auto.auto(here.job(torch_cuda_arch_list="9.0"))
    assert here.job().target.versions[NAME] == other.split("-")[1]


def test_a_smoke_that_never_passed_is_run_again(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """As after a kill between install and smoke."""
    publish(here)
    job = here.job()
    made = steps.do_fetch(job)
    assert made is not None
    steps.do_verify(job, made)
    assert not auto.in_place(here.job())
    capsys.readouterr()
    auto.auto(here.job())
    assert f"[install] {GOOD} is installed already" in capsys.readouterr().out
    assert auto.in_place(here.job())


# install


def test_install_never_compiles(here: Machine, compiler: Compiler) -> None:
    with pytest.raises(NothingCompatible) as caught:
        auto.install(here.job())
    assert caught.value.code == 3
    assert (compiler.asked, here.import_version()) == ([], "none")


def test_install_takes_what_the_store_has(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(here)
    capsys.readouterr()
    auto.install(here.job())
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"[install] done: {GOOD} in {here.python.parent.parent}"
    assert (compiler.asked, here.import_version()) == ([], "ours")


# dry runs


def test_dry_run_with_a_wheel_that_fits(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    publish(here)
    before = wheels.tree(here.folder)
    capsys.readouterr()
    auto.auto(here.job(dry_run=True))
    prefix = here.python.parent.parent
    plan = [
        f"[stack] kept: torch 2.11.0+cu130, triton 3.6.0, CUDA 13.0 in {prefix}",
        f"[fetch] would bring {GOOD} from {here.settings.sage_store}",
        "[plan] then the wheel is verified, installed and smoked; nothing was changed",
    ]
    assert capsys.readouterr().out.splitlines() == plan
    auto.install(here.job(dry_run=True))
    assert capsys.readouterr().out.splitlines() == plan
    assert wheels.tree(here.folder) == before


def test_dry_run_with_an_empty_store(here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    before = wheels.tree(here.folder)
    auto.auto(here.job(dry_run=True))
    said = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0][1:] for line in said] == ["stack", "fetch", "fetch", "build", "claim", "upload", "plan"]
    assert said[3].startswith("[build] would compile tiny for 12.0: ")
    assert said[4] == f"[claim] would claim it in {here.settings.sage_store}, so that other machines wait for it"
    assert said[5] == f"[upload] would publish it to {here.settings.sage_store}"
    assert (wheels.tree(here.folder), compiler.asked) == (before, [])
    with pytest.raises(NothingCompatible):
        auto.install(here.job(dry_run=True))
    assert wheels.tree(here.folder) == before


def test_dry_run_without_a_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = wheels.machine(tmp_path, torch=False)
    before = wheels.tree(tmp_path)
    auto.auto(machine.job(dry_run=True))
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "[plan] then, with that stack, the store is asked; what it lacks is built; nothing was changed"
    assert wheels.tree(tmp_path) == before


def test_dry_run_when_the_store_does_not_answer(
    here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(here.settings.sage_store).touch()
    before = wheels.tree(here.folder)
    auto.auto(here.job(dry_run=True))
    shown = capsys.readouterr()
    assert shown.err.startswith("[auto] warning: the store was not reached: ")
    assert "[build] would compile" in shown.out
    assert wheels.tree(here.folder) == before


def test_dry_run_where_all_is_in_place(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    publish(here)
    auto.auto(here.job())
    before = wheels.tree(here.folder)
    capsys.readouterr()
    auto.auto(here.job(dry_run=True))
    assert capsys.readouterr().out.startswith("[auto] nothing to do: ")
    assert wheels.tree(here.folder) == before


def test_dry_run_of_rebuild(here: Machine, compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    publish(here)
    auto.auto(here.job())
    before = wheels.tree(here.folder)
    capsys.readouterr()
    auto.auto(here.job(dry_run=True), rebuild=True)
    assert topics(capsys) == ["stack", "build", "claim", "upload", "plan"]
    assert (wheels.tree(here.folder), compiler.asked) == (before, [])
