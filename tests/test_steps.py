"""The steps one by one, with a build manifest made by hand: a real target, real wheels, real stores."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import installed, installer, proving, smoke, stack, steps, wheel, wheelhouse
from sagewheels.errors import NothingCompatible, Refused, SageError, SmokeFailed, StoreError, UsageError
from sagewheels.manifest import WheelManifest
from sagewheels.wheelhouse import Made
from tests import wheels
from tests.hub import Hub
from tests.wheels import NAME, RTX, TAG, VERSION, Machine

GOOD = f"{NAME}-{VERSION}{wheels.LABEL}-{TAG}.whl"
PROOF = {"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z"}
REPO = "me/wheels"

# huggingface_hub hands LFS uploads to its HTTP client in a way that the latter is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(autouse=True)
def _marks(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.without_cuobjdump(monkeypatch)


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return wheels.machine(tmp_path)


def keep(machine: Machine, label: str = wheels.LABEL, *, python: str = "", **changes: Any) -> Made:
    """A wheel in the wheelhouse, as fetch or build leave it."""
    path = wheels.make(machine.folder / "dist", version=VERSION + label, python=python)
    manifest = wheels.describe(path, **changes)
    return wheelhouse.keep(machine.settings, path, manifest), manifest


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def failing(kind: type[SageError], run: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        run(*arguments, **more)
    assert type(caught.value) is kind
    return str(caught.value)


# stack


def test_a_good_stack_is_kept(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = wheels.tree(here.folder)
    steps.do_stack(here.job())
    prefix = here.python.parent.parent
    assert lines(capsys) == [f"[stack] kept: torch 2.11.0+cu130, triton 3.6.0, CUDA 13.0 in {prefix}"]
    assert wheels.tree(here.folder) == before


def test_a_stack_whose_install_was_cut_off_is_laid_anew(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """torch/version.py is there long before the last library is: metadata alone would call it good for ever."""
    job = here.job(dry_run=True, torch_channel="pypi")
    mark = stack.pending_path(job.settings, job.target)
    mark.parent.mkdir(parents=True)
    mark.touch()
    steps.do_stack(job)
    said = lines(capsys)
    assert said[0] == f"[stack] {here.python} needs a stack: an install of it was cut off"
    assert said[1].startswith("[stack] would try, 1: torch from the default package index")


def test_a_dry_run_says_what_would_be_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = wheels.machine(tmp_path, torch=False)
    before = wheels.tree(tmp_path)
    steps.do_stack(machine.job(dry_run=True, torch_channel="stable"))
    first, *tries = lines(capsys)
    assert first == f"[stack] {machine.python} needs a stack: there is no torch"
    assert tries == [
        "[stack] would try, 1: torch from https://download.pytorch.org/whl/cu128 "
        "(channel stable, cu128 by CUDA_INDEX_VARIANT)",
        "[stack] would try, 2: torch from the default package index (channel pypi)",
    ]
    assert wheels.tree(tmp_path) == before


def test_the_stack_of_a_proven_wheel_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = wheels.machine(tmp_path, torch=False)
    _publish(machine, proofs=[PROOF])
    capsys.readouterr()
    steps.do_stack(machine.job(dry_run=True))
    assert lines(capsys)[1] == (
        f"[stack] would try, 1: torch==2.11.0 from the default package index (the store holds {GOOD}, proven with it)"
    )


def _publish(machine: Machine, **changes: Any) -> Made:
    made = keep(machine, **changes)
    assert steps.do_upload(machine.job(), made)
    shutil.rmtree(machine.settings.wheelhouse_dir)
    return made


# fetch


def test_fetch_dry_run(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    _publish(here)
    before = wheels.tree(here.folder)
    capsys.readouterr()
    assert steps.do_fetch(here.job(dry_run=True)) is None
    assert lines(capsys) == [f"[fetch] would bring {GOOD} from {here.settings.sage_store}"]
    line = failing(NothingCompatible, steps.do_fetch, here.job(dry_run=True, torch_cuda_arch_list="9.0"))
    assert line == f"{here.settings.sage_store} holds no wheel for this machine. Run auto or build to make one."
    assert f"[fetch] rejected {GOOD}: it holds code for 12.0, which does not run on 9.0" in lines(capsys)
    assert wheels.tree(here.folder) == before


def test_fetch_dry_run_of_a_url(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    job = here.job(dry_run=True, wheel_url="https://example.invalid/x-1-py3-none-any.whl")
    assert steps.do_fetch(job) is None
    assert lines(capsys) == ["[fetch] would bring the wheel of WHEEL_URL"]


# choose


def test_choose_takes_the_best_fit(here: Machine) -> None:
    keep(here, "+cu130torch2.11sm120.k1")
    best = keep(here, "+cu130torch2.11sm120.k2", proofs=[PROOF])
    keep(here, "+cu130torch2.12sm120", torch_version="2.12.0+cu130", proofs=[PROOF])
    assert steps.choose(here.job()) == best


def test_choose_takes_the_named_one(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = keep(here, "+cu130torch2.12sm120", torch_version="2.12.0+cu130")
    keep(here)
    assert steps.choose(here.job(), other[0].name) == other
    assert steps.choose(here.job(), str(other[0])) == other
    monkeypatch.chdir(here.settings.wheelhouse_dir)
    assert steps.choose(here.job(), other[0].name) == other


def test_choose_from_nothing(here: Machine) -> None:
    house = here.settings.wheelhouse_dir
    assert failing(UsageError, steps.choose, here.job()) == (
        f"{house} holds no wheel for this machine. Run fetch or build first."
    )
    outside = wheels.make(here.folder / "dist")
    for name in (outside.name, str(outside), "nonsense.whl"):
        line = f"{name} is no wheel with a manifest in {house}. Fetch or build first."
        assert failing(UsageError, steps.choose, here.job(), name) == line


# verify


def test_verify_checks_and_installs(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    made, job = keep(here), here.job()
    steps.do_verify(job, made)
    needs = wheel.inspect(made[0], wheels.PACKAGE).glibc or "any"
    assert lines(capsys) == [
        f"[verify] {GOOD}: sha256, RECORD, tags, archs 12.0, GLIBC_{needs}: as promised",
        f"[install] {GOOD} is installed in {here.python.parent.parent}",
    ]
    assert job.target.versions[NAME] == VERSION + wheels.LABEL
    assert here.import_version() == "ours"


def test_verify_installs_nothing_that_it_refuses(here: Machine) -> None:
    path, manifest = keep(here)
    path.write_bytes(path.read_bytes() + b"\0")
    before = wheels.tree(here.site)
    assert "its manifest says" in failing(Refused, steps.do_verify, here.job(), (path, manifest))
    assert (wheels.tree(here.site), here.import_version()) == (before, "none")


def test_what_is_checked_is_what_is_installed(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write to a shared wheelhouse changes the wheel between the two."""
    made, install = keep(here), installer.install_wheel
    other = wheels.make(here.folder / "other", version=VERSION + wheels.LABEL, python="mark = 'another'\n")

    def late(*arguments: Any, **more: Any) -> None:
        shutil.copy(other, made[0])
        install(*arguments, **more)

    monkeypatch.setattr(installer, "install_wheel", late)
    steps.do_verify(here.job(), made)
    assert here.import_version() == "ours"
    assert not (here.settings.work_dir / "checked").exists()


def test_verify_wants_every_gpu_of_this_machine(tmp_path: Path) -> None:
    """--arch says what to build and fetch; what is installed must run on what is here."""
    machine = wheels.machine(tmp_path, gpu="0, NVIDIA H200, 9.0, 143771, 580.65.06")
    line = failing(Refused, steps.do_verify, machine.job(), keep(machine))
    why = "was not made for this machine: it holds code for 12.0, which does not run on 9.0"
    assert line == f"{GOOD} {why}. {steps.REFUSED}."


def test_verify_dry_run(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    made = keep(here)
    before = wheels.tree(here.folder)
    steps.do_verify(here.job(dry_run=True), made)
    assert lines(capsys) == [f"[verify] would check {GOOD} and install it in {here.python.parent.parent}"]
    assert wheels.tree(here.folder) == before


# build


def test_build_dry_run(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = wheels.tree(here.folder)
    assert steps.do_build(here.job(dry_run=True, torch_cuda_arch_list="8.9;12.0")) is None
    (line,) = lines(capsys)
    expected = r"\[build\] would compile tiny for 8\.9, 12\.0: 1 unit, \d+ at once \(\d+ cores?, [\d.]+ GB free\), .+"
    assert re.fullmatch(expected, line)
    assert wheels.tree(here.folder) == before


def test_build_for_an_arch_that_the_source_lacks(here: Machine) -> None:
    line = failing(UsageError, steps.do_build, here.job(torch_cuda_arch_list="7.5"))
    assert line.startswith(f"{NAME} {VERSION} has no kernels for 7.5. It knows 8.9, 9.0, 12.0")


def test_build_without_a_cuda_torch(tmp_path: Path) -> None:
    machine = wheels.machine(tmp_path, torch=False)
    line = failing(UsageError, steps.do_build, machine.job())
    told = f"{machine.job().target.python} has no CUDA torch to compile against"
    assert line == f"{told}. Run stack, or name another Python with --python."


# upload


def test_upload_publishes_once(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    made, store = keep(here), Path(here.settings.sage_store)
    assert steps.do_upload(here.job(), made, asked=True)
    assert lines(capsys) == [f"[upload] {GOOD} is in {store}, a candidate until it is proven"]
    assert (store / GOOD).read_bytes() == made[0].read_bytes()
    assert [one["wheel_file"] for one in json.loads((store / "index.json").read_text())["wheels"]] == [GOOD]
    assert not (store / "latest.json").exists()
    before = wheels.tree(store)
    assert steps.do_upload(here.job(), made, asked=True)
    assert lines(capsys) == [f"[upload] {GOOD} is in {store} already, nothing changed"]
    assert wheels.tree(store) == before


def test_upload_of_a_proven_wheel(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    steps.do_upload(here.job(), keep(here, proofs=[PROOF]))
    assert lines(capsys) == [f"[upload] {GOOD} is in {here.settings.sage_store}, proven"]
    assert json.loads((Path(here.settings.sage_store) / "latest.json").read_text())["wheel_file"] == GOOD


def test_upload_dry_run(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    made = keep(here)
    before = wheels.tree(here.folder)
    assert not steps.do_upload(here.job(dry_run=True), made, asked=True)
    assert lines(capsys) == [f"[upload] would publish {GOOD} to {here.settings.sage_store}"]
    assert wheels.tree(here.folder) == before


def test_upload_of_a_damaged_wheel(here: Machine) -> None:
    path, manifest = keep(here)
    path.write_bytes(bytes(path.stat().st_size))
    assert "It was changed or damaged" in failing(Refused, steps.do_upload, here.job(), (path, manifest))
    assert not Path(here.settings.sage_store).exists()


def test_upload_of_what_would_be_refused_by_everybody(here: Machine) -> None:
    path = wheels.make(here.folder / "dist", {**wheels.content(), "evil.pth": b"import evil\n"})
    manifest = wheels.describe(path)
    made = wheelhouse.keep(here.settings, path, manifest), manifest
    assert "would install evil.pth" in failing(Refused, steps.do_upload, here.job(), made)
    assert not Path(here.settings.sage_store).exists()


def _hub(hub: Hub, **more: Any) -> dict[str, Any]:
    return {"sage_store": "", "hf_repo_id": REPO, "hf_endpoint": hub.endpoint, "remote_dir": "sage", **more}


def test_upload_without_a_token(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for, it is an error; as a part of auto it is said, and the work goes on."""
    made = keep(here)
    with Hub() as hub:
        job, label = here.job(**_hub(hub)), f"hf://datasets/{REPO}@main/sage"
        with pytest.raises(StoreError) as caught:
            steps.do_upload(job, made, asked=True)
        assert caught.value.code == 7
        assert str(caught.value) == f"{label} can only be read. Set HF_TOKEN, or SAGE_STORE to a folder of yours."
        assert not steps.do_upload(job, made)
        assert lines(capsys) == [
            f"[upload] nothing was published: {label} can only be read (HF_TOKEN is not set). "
            f"{made[0]} stays in the wheelhouse"
        ]
        assert hub.requests == []


def test_upload_to_the_hub(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    made = keep(here)
    with Hub() as hub:
        hub.create(REPO, {"README.md": b"# mine\n", "other/file": b"kept"})
        assert steps.do_upload(here.job(**_hub(hub, hf_token="hf_write")), made, asked=True)
        files = hub.files(REPO)
    assert files[f"sage/{GOOD}"] == made[0].read_bytes()
    assert files["other/file"] == b"kept"
    assert {f"sage/{GOOD}.json", "sage/index.json"} <= set(files)
    assert lines(capsys) == [f"[upload] {GOOD} is in hf://datasets/{REPO}@main/sage, a candidate until it is proven"]


# smoke


def test_smoke_of_what_is_not_installed(here: Machine) -> None:
    line = f"{NAME} is not installed in {here.python.parent.parent}. Run install or auto first."
    assert failing(UsageError, proving.do_smoke, here.job()) == line


def test_smoke_where_there_is_no_gpu(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """It stops at loading and says so; nothing is proven, in the wheelhouse or in the store."""
    steps.do_verify(here.job(), keep(here))
    capsys.readouterr()
    outcome = proving.do_smoke(here.job())
    assert outcome is not None and outcome.loaded_only
    assert lines(capsys) == [
        f"[smoke] import {NAME}: ok",
        f"[smoke] import {NAME}._fused: ok",
        "[smoke] loaded only: there is no GPU here, nothing was computed and nothing is proven",
    ]
    ((_, manifest),) = wheelhouse.wheels(here.settings)
    assert manifest.proofs == ()
    assert [one["gpu"] for one in manifest.data["loads"]] == [None]
    assert len(list(here.settings.log_dir.glob("smoke-*.log"))) == 1


def test_smoke_dry_run(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    steps.do_verify(here.job(), keep(here))
    before = wheels.tree(here.folder)
    capsys.readouterr()
    assert proving.do_smoke(here.job(dry_run=True)) is None
    assert lines(capsys) == [f"[smoke] would run {NAME} {VERSION}{wheels.LABEL} on no GPU: load only"]
    assert wheels.tree(here.folder) == before


def test_smoke_of_a_package_that_the_user_installed(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be tried, is never proven, and is left alone when it fails."""
    wheels.pip(here.python, "install", wheels.make(here.folder / "dist"))
    assert proving.do_smoke(here.job()) is not None
    assert not (here.settings.work_dir / "state").exists()
    (here.site / wheels.PACKAGE / "_fused.abi3.so").unlink()
    before = wheels.tree(here.site)
    line = failing(SmokeFailed, proving.do_smoke, here.job())
    assert line == (
        f"smoke failed: import {NAME}._fused failed: ModuleNotFoundError: No module named '{NAME}._fused'. "
        f"The machine is as it was: {NAME} was not installed by sagewheels and is left as it is; "
        "the wheel is not proven."
    )
    assert wheels.tree(here.site) == before


def test_smoke_that_fails_for_what_is_known_names_the_remedy(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler said stands in the probe's log only: its own error is that a command failed."""
    wheels.with_gpu_answers(monkeypatch)
    real = vars(smoke)["probe_source"]

    def probe(name: str) -> str:
        said = "/tmp/a/main.c:5:10: fatal error: Python.h: No such file or directory"
        error = "CalledProcessError: Command '['gcc', 'main.c']' returned non-zero exit status 1."
        source: str = real(name)
        return f"print({said!r})\n" + source.replace('result = {"finite": True', f'result = {{"error": {error!r}')

    monkeypatch.setattr(smoke, "probe_source", probe)
    steps.do_verify(here.job(), keep(here))
    wheels.script(here.folder / "bin" / "nvidia-smi", f"#!/bin/sh\necho '{wheels.RTX}'\n")
    line = failing(SmokeFailed, proving.do_smoke, here.job())
    assert "returned non-zero exit status 1" in line
    remedy = "Install the headers (apt-get install python3-dev; python3.12-dev for a Python 3.12 beside the system's)"
    assert line.endswith(f"; the wheel is not proven. {remedy}.")


def test_smoke_proves_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels.with_gpu_answers(monkeypatch)
    machine = wheels.machine(tmp_path, gpu=RTX)
    made, store = keep(machine), Path(machine.settings.sage_store)
    steps.do_upload(machine.job(), made)
    steps.do_verify(machine.job(), made)
    capsys.readouterr()
    proving.do_smoke(machine.job())
    said = lines(capsys)
    assert "[smoke] proven on NVIDIA GeForce RTX 5090 (arch 12.0)" in said
    assert said[-1] == f"[smoke] the proof is in {store}"
    ((_, manifest),) = wheelhouse.wheels(machine.settings)
    (proof,) = manifest.data["proofs"]
    known = {
        "gpu": "NVIDIA GeForce RTX 5090",
        "arch": "12.0",
        "driver": "580.65.06",
        "cases": 2,
        "kernel": "tiny_kernel",
    }
    assert {key: proof[key] for key in known} == known
    latest = json.loads((store / "latest.json").read_text())
    assert (latest["wheel_file"], latest["proofs"]) == (GOOD, [proof])
    # The same again is no news.
    before = wheels.tree(store)
    proving.do_smoke(machine.job())
    assert wheels.tree(store) == before


def test_a_proof_of_a_wheel_that_is_not_in_the_store_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels.without_waiting(monkeypatch)
    wheels.with_gpu_answers(monkeypatch)
    machine = wheels.machine(tmp_path, gpu=RTX)
    steps.do_verify(machine.job(), keep(machine))
    assert proving.do_smoke(machine.job()) is not None
    assert capsys.readouterr().err == (
        f"[smoke] warning: the proof stays in the wheelhouse: {GOOD} is not in {machine.settings.sage_store}. "
        "Upload it first.\n"
    )
    ((_, manifest),) = wheelhouse.wheels(machine.settings)
    assert len(manifest.proofs) == 1


def test_a_proof_that_could_not_be_published_is_published_by_the_next_smoke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels.without_waiting(monkeypatch)
    wheels.with_gpu_answers(monkeypatch)
    with Hub() as hub:
        where: dict[str, Any] = {
            "sage_store": "",
            "hf_repo_id": "me/wheels",
            "hf_endpoint": hub.endpoint,
            "hf_token": "hf_write",
        }
        machine = wheels.machine(tmp_path, gpu=RTX, **where)
        made = keep(machine)
        steps.do_upload(machine.job(), made)
        steps.do_verify(machine.job(), made)
        hub.misbehave("/commit/", "503", 3)
        proving.do_smoke(machine.job())
        assert "[smoke] warning: the proof stays in the wheelhouse: " in capsys.readouterr().err
        listed = [json.loads(hub.files("me/wheels")[name]) for name in hub.files("me/wheels") if "index.json" in name]
        assert [one["proofs"] for one in listed[0]["wheels"]] == [[]]
        for commits in (2, 2):
            proving.do_smoke(machine.job())
            assert hub.commits == commits
    assert capsys.readouterr().out.count("[smoke] the proof is in hf://datasets/me/wheels@main/") == 1


def test_wrong_results_put_the_machine_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels.with_gpu_answers(monkeypatch)
    machine = wheels.machine(tmp_path, gpu=RTX)
    theirs = wheels.make(tmp_path / "dist", version="0.9", python="mark = 'theirs'\n")
    wheels.pip(machine.python, "install", theirs)
    made = keep(machine, python="mark = 'wrong'\ncosine = 0.5\n")
    steps.do_upload(machine.job(), made)
    steps.do_verify(machine.job(), made)
    assert machine.import_version() == "wrong"
    with pytest.raises(SmokeFailed) as caught:
        proving.do_smoke(machine.job())
    assert caught.value.code == 6
    assert str(caught.value) == (
        "smoke failed: GPU 0 (NVIDIA GeForce RTX 5090): 2 of 2 cases are wrong, first head_dim 64 float16 full "
        f"length 17 HND 8/8 heads: cosine 0.5000, relative L2 0.010. The machine is as it was: {theirs.name} is back; "
        "the wheel is not proven."
    )
    assert machine.import_version() == "theirs"
    store = Path(machine.settings.sage_store)
    assert not (store / "latest.json").exists()
    assert json.loads((store / f"{GOOD}.json").read_text())["proofs"] == []


def test_wrong_results_where_the_way_back_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel that failed is still there, and the line says so."""
    wheels.with_gpu_answers(monkeypatch)
    machine = wheels.machine(tmp_path, gpu=RTX)
    wheels.pip(machine.python, "install", wheels.make(tmp_path / "dist", version="0.9", python="mark = 'theirs'\n"))
    steps.do_verify(machine.job(), keep(machine, python="mark = 'wrong'\ncosine = 0.5\n"))
    (copy,) = machine.settings.work_dir.glob("previous/*/*.whl")
    copy.unlink()
    line = failing(SmokeFailed, proving.do_smoke, machine.job())
    assert line.endswith(
        f" WHAT WAS THERE BEFORE COULD NOT BE PUT BACK: {NAME} is left as it is: {copy}, the copy of what was there, "
        "is gone; the wheel is not proven."
    )
    assert machine.import_version() == "wrong"


def test_what_passed_here_before_stays_when_it_is_not_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU that torch does not see, or Ctrl-C: the second smoke of a proven wheel does not take it away."""
    wheels.without_waiting(monkeypatch)
    wheels.with_gpu_answers(monkeypatch)
    machine = wheels.machine(tmp_path, gpu=RTX)
    steps.do_verify(machine.job(), keep(machine))
    proving.do_smoke(machine.job())
    real = smoke.run

    def blind(*args: Any) -> smoke.Outcome:
        return replace(real(*args), failures=("torch sees no GPU",), proofs=())

    def interrupted(*args: Any) -> smoke.Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(smoke, "run", blind)
    with pytest.raises(SmokeFailed) as caught:
        proving.do_smoke(machine.job())
    assert str(caught.value) == (
        "smoke failed: torch sees no GPU. It passed here before, and nothing speaks against the wheel itself: it stays "
        "installed."
    )
    monkeypatch.setattr(smoke, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        proving.do_smoke(machine.job())
    assert machine.import_version() != "none"


def test_kernels_that_bring_the_interpreter_down(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    made = keep(here, python="import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    steps.do_verify(here.job(), made)
    line = failing(SmokeFailed, proving.do_smoke, here.job())
    assert line.startswith("the kernels brought the interpreter down (killed by SIGSEGV): ")
    assert f"The machine is as it was: {NAME} is not installed, as before. The whole output is " in line
    assert here.import_version() == "none"
    assert installed.read_state(here.settings, here.job().target, here.job().recipe) == {}


# init-hf


def test_init_of_a_folder(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    store = Path(here.settings.sage_store)
    steps.do_init(here.job(dry_run=True))
    assert not store.exists()
    store.mkdir()
    steps.do_init(here.job())
    steps.do_init(here.job())
    assert lines(capsys) == [
        f"[init-hf] would create {store} if it is not there, with card and index",
        f"[init-hf] this user may write to {store}",
        f"[init-hf] {store} is set up",
        f"[init-hf] this user may write to {store}",
        f"[init-hf] {store} was set up already",
    ]
    assert {"README.md", "index.json"} <= {path.name for path in store.iterdir()}


def test_init_without_a_token(here: Machine) -> None:
    with Hub() as hub:
        line = failing(StoreError, steps.do_init, here.job(**_hub(hub)))
        assert hub.requests == []
    assert line == (
        f"hf://datasets/{REPO}@main/sage cannot be set up: HF_TOKEN is not set. Set HF_TOKEN to a token that may write."
    )


def test_init_of_a_repository_that_is_not_there(here: Machine) -> None:
    with Hub() as hub:
        steps.do_init(here.job(**_hub(hub, hf_token="hf_write", hf_private=True)))
        assert hub.repos[("dataset", REPO)].private
        assert "sage/index.json" in hub.files(REPO)


def test_a_manifest_stays_whole(here: Machine) -> None:
    """Keys that this version does not know survive a round through the wheelhouse."""
    _, manifest = keep(here, their_key={"kept": [1, 2]})
    ((_, again),) = wheelhouse.wheels(here.settings)
    assert isinstance(again, WheelManifest) and dict(again.data) == dict(manifest.data)
