"""A build on a rented machine: what is ordered, how it is followed, and how each bad end is told."""

from __future__ import annotations

import functools
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import elsewhere, errors, following, jobwatch
from sagewheels.elsewhere import Wish
from sagewheels.errors import SageError
from sagewheels.job import Job
from sagewheels.resources import ROOT
from sagewheels.store.hub import HubStore
from sagewheels.store.hub_jobs import HubJobs
from sagewheels.store.opening import open_store
from tests import wheels
from tests.hub import Hub
from tests.hub_jobs import Jobs
from tests.wheels import Machine

TOKEN, REPO, ID = "hf_write", "me/wheels", f"{0:024x}"
Run = Callable[..., Job]
WHEEL = f"sagedemo-0.1.0{wheels.LABEL}-{wheels.TAG}.whl"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="jobs run on x86_64"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A target with a stack, which is only read."""
    return wheels.machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture
def hub(shared: Machine, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with every image of Python, all of which are this machine."""
    env = {
        "PATH": f"{shared.python.parent}:{shared.folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TOOL": sys.executable,
        "HF_HUB_DISABLE_XET": "1",  # the loopback Hub speaks LFS
        "MADE_BEFORE": str(tmp_path / "dist" / WHEEL),
    }
    with Hub() as hub:
        images = {f"python:3.{minor}-{name}": env for minor in range(10, 15) for name in ("bookworm", "bullseye")}
        hub.jobs = Jobs(tmp_path / "jobs", images, ("hf_write", "hf_read"))
        yield hub


@pytest.fixture
def here(shared: Machine, hub: Hub, tmp_path: Path) -> Machine:
    """This user's machine: the demo's manifest, and a store on the Hub."""
    settings = replace(
        shared.settings,
        sage_manifest="demo",
        sage_store="",
        hf_repo_id=REPO,
        hf_endpoint=hub.endpoint,
        hf_token=TOKEN,
        remote_dir="sage",
        work_dir=tmp_path / "work",
        wheelhouse_dir=tmp_path / "wheelhouse",
        log_dir=tmp_path / "logs",
        environ={**shared.settings.environ, "SAGEWHEELS_REPO": f"file://{tmp_path / 'tool'}"},
    )
    return replace(shared, settings=settings)


@pytest.fixture(scope="module")
def facts(shared: Machine) -> Job:
    """Target and host as they were found once: no test of this file changes them."""
    found = shared.job(sage_manifest="demo")
    _ = found.target, found.host
    return found


@pytest.fixture
def job(here: Machine, facts: Job) -> Callable[..., Job]:
    """A run on this user's machine."""

    def made(**changes: Any) -> Job:
        run = here.job(**changes)
        if "python_bin" not in changes:
            run.target, run.host = facts.target, facts.host
        return run

    return made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of 20 ms, and short patience."""
    quick = functools.partial(HubJobs, timeout=(2.0, 1.0), silence=0.2, pause=lambda _: time.sleep(0.02))
    monkeypatch.setattr(following, "HubJobs", quick)
    wheels.without_cuobjdump(monkeypatch)


def doing(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Jobs run this instead of a build."""
    monkeypatch.setattr(elsewhere, "job_script", lambda: script)


def jobs_of(hub: Hub) -> Jobs:
    assert hub.jobs
    return hub.jobs


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def line_of(ask: Callable[[], object], kind: type[SageError]) -> str:
    """The one line of the error of exactly this kind."""
    with pytest.raises(kind) as caught:
        ask()
    assert type(caught.value) is kind or issubclass(type(caught.value), kind)
    return str(caught.value)


def wish(**more: Any) -> Wish:
    return Wish(on="hf-jobs", **more)


# From the order to the wheel


def tool(folder: Path) -> None:
    """A repository whose script runs sagewheels as it is here, but for the compile."""
    folder.mkdir()
    text = f'#!/bin/sh\nexec "$TOOL" {ROOT / "tests" / "container.py"} "$@"\n'
    wheels.script(folder / "install_sageattention220_wheel.sh", text)
    for argv in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "tool"]):
        subprocess.run(["git", *argv], cwd=folder, check=True)


def test_a_wheel_is_built_elsewhere_and_arrives(
    here: Machine, job: Run, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool(tmp_path / "tool")
    names = ("_attn", "_fused")
    files = {f"sagedemo/{name}.abi3.so": wheels.extension(name) for name in names}
    wheels.make(
        tmp_path / "dist", {"sagedemo/__init__.py": b"", **files}, name="sagedemo", version="0.1.0" + wheels.LABEL
    )
    run = job()
    made = following.build(run, wish())
    said = capsys.readouterr().out
    assert made and made[0] == here.settings.wheelhouse_dir / WHEEL, said
    assert made[0].read_bytes() == (tmp_path / "dist" / WHEEL).read_bytes() == hub.files(REPO)[f"sage/{WHEEL}"]
    (ran,) = jobs_of(hub).all.values()
    assert (ran.stage, run.report["job"]["id"]) == ("COMPLETED", ran.id)
    for step in (
        "[stack] kept: torch 2.11.0+cu130",
        f"[build] {WHEEL}",
        f"[upload] {WHEEL} is in hf://datasets/{REPO}",
    ):
        assert f"[job] {step}" in said
    assert f"[fetch] {WHEEL}" in said and "exit code" not in said and TOKEN not in said
    assert [run.in_wheelhouse()[0][0].name, following.build(job(), wish())] == [WHEEL, made]
    label = f"hf://datasets/{REPO}@main/sage"
    assert f"[job] {label} has it already, so nothing is built (--force would)\n" in capsys.readouterr().out
    assert len(jobs_of(hub).all) == 1


def test_what_is_ordered(here: Machine, job: Run, hub: Hub) -> None:
    """A torch to the letter, the store, and nothing of this machine; the token and a password are secrets."""
    source = "https://joe:word@git.example/sage.git"
    run = job(sage_source_repo=source, max_jobs=3, python_bin=str(here.python), nvcc_append_flags="-lineinfo")
    made = order(run)
    minor = sys.version_info.minor
    assert re.fullmatch(rf"python:3\.{minor}-(bookworm|bullseye)", made.image)
    assert made.command == ("bash", "-c", (ROOT / "sagewheels" / "remote_job.sh").read_text())
    assert made.environment == {
        "CUDA_INDEX_VARIANT": "cu130",
        "HF_ENDPOINT": hub.endpoint,
        "HF_REPO_BRANCH": "main",
        "HF_REPO_ID": REPO,
        "HF_REPO_TYPE": "dataset",
        "NVCC_APPEND_FLAGS": "-lineinfo",
        "REMOTE_DIR": "sage",
        "SAGEWHEELS_REF": "main",
        "SAGEWHEELS_REPO": here.settings.environ["SAGEWHEELS_REPO"],
        "SAGE_MANIFEST": "demo",
        "TORCH_CHANNEL": "stable",
        "TORCH_CUDA_ARCH_LIST": "12.0",
        "TORCH_VERSION": "2.11.0+cu130",
    }
    assert made.secrets == {"HF_TOKEN": TOKEN, "SAGE_SOURCE_REPO": source}
    assert "word" not in repr(made) and TOKEN not in repr(made)
    assert made.build == order(run, flavor="cpu-xl", timeout="1h").build != order(job()).build


def order(job: Job, **flags: Any) -> Any:
    store = open_store(job.settings)
    assert isinstance(store, HubStore)
    return elsewhere.order(job, store.repo, wish(**flags))


@pytest.mark.parametrize(("glibc", "image"), [("2.35", "bullseye"), ("2.36", "bookworm"), ("2.41", "bookworm")])
def test_the_image_is_no_newer_than_the_target(job: Run, glibc: str, image: str) -> None:
    run = job()
    run.host = replace(run.host, glibc=glibc)
    run.target = replace(run.target, tags=("cp312-cp312-linux_x86_64",))
    assert order(run).image == f"python:3.12-{image}"


def test_without_a_torch_the_pin_decides(shared: Machine, job: Run, tmp_path: Path) -> None:
    bare = str(wheels.venv(tmp_path / "bare"))
    pinned = job(python_bin=bare, torch_version="2.11.0", torch_channel="stable", cuda_index_variant="cu130")
    asked = order(pinned).environment
    assert (asked["TORCH_VERSION"], asked["TORCH_CHANNEL"], asked["CUDA_INDEX_VARIANT"]) == (
        "2.11.0",
        "stable",
        "cu130",
    )
    assert (elsewhere.wanted(pinned).torch, elsewhere.wanted(pinned).cuda) == ("2.11.0", "13.0")
    line = line_of(lambda: order(job(python_bin=bare)), errors.UsageError)
    what = f"there is no torch in {tmp_path / 'bare'}, and a wheel is for one torch"
    assert line == f"{what}. Run stack first, or set TORCH_VERSION."


def test_a_dry_run_asks_nobody(job: Run, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    run = job(dry_run=True, sage_source_repo="https://joe:word@git.example/sage.git")
    assert following.build(run, wish(timeout="90m")) is None
    first, cost, image, variables, secrets, then = capsys.readouterr().out.splitlines()
    assert first == "[job] would run on Hugging Face Jobs for the owner of HF_TOKEN, on cpu-upgrade, 90m at most"
    assert cost == "[job] it costs money, by the minute: https://huggingface.co/docs/hub/jobs-pricing"
    assert image == f"[job] image {order(run).image}, command bash -c remote_job.sh: stack, build, upload"
    assert "TORCH_VERSION=2.11.0+cu130" in variables and "word" not in variables
    assert secrets == "[job] secrets: HF_TOKEN, SAGE_SOURCE_REPO"
    assert then == f"[job] then its wheel would be fetched from hf://datasets/{REPO}@main/sage; nothing was changed"
    assert hub.requests == []


# What a job cannot do is said before anything is paid for


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"sage_offline": True},
            "a job runs elsewhere, and this run is offline. Leave --offline (SAGE_OFFLINE) or --on out.",
        ),
        (
            {"sage_store": "store"},
            "a job cannot reach PLACE/store, which is a folder of this machine. Name a repository with "
            "SAGE_STORE=hf://datasets/owner/name.",
        ),
        (
            {"trusted_signers": "signers"},
            "a job cannot sign its wheel: SIGNING_KEY stays on this machine, and yours are signed. Build on a machine "
            "of yours, without --on.",
        ),
        (
            {"hf_token": ""},
            f"HF_TOKEN is not set, so hf://datasets/{REPO}@main/sage can only be read. Set HF_TOKEN to a token with "
            f"write access to {REPO}, from https://huggingface.co/settings/tokens.",
        ),
    ],
)
def test_what_cannot_be_built_elsewhere(job: Run, hub: Hub, changes: dict[str, Any], line: str) -> None:
    assert line_of(lambda: following.build(job(**changes), wish()), SageError).replace(str(Path.cwd()), "PLACE") == line
    assert hub.requests == []


def test_what_only_this_machine_has(here: Machine, job: Run, shared: Machine) -> None:
    own = shared.settings.sage_manifest
    line = line_of(lambda: order(job(sage_manifest=own)), errors.UsageError)
    assert line == (
        f"the build manifest {own} is not in the repository that a job builds from. Put it into manifests/ of a fork, "
        "and name that with SAGEWHEELS_REPO and SAGEWHEELS_REF."
    )
    environ = {**here.settings.environ, "SAGEWHEELS_REPO": "/srv/tool"}
    line = line_of(lambda: order(job(environ=environ)), errors.UsageError)
    assert line == "SAGEWHEELS_REPO=/srv/tool is a folder of this machine. Name one that a job can reach."


@pytest.mark.parametrize(("tag", "machine"), [("cp39", "x86_64"), ("cp313t", "x86_64"), ("cp312", "aarch64")])
def test_a_target_that_jobs_have_no_image_for(here: Machine, job: Run, tag: str, machine: str) -> None:
    run = job()
    run.target = replace(run.target, tags=(f"cp-{tag}-x",), machine=machine)
    assert line_of(lambda: order(run), errors.UsageError) == (
        f"a job builds for CPython 3.10 or newer on x86_64, this target is {tag} on {machine}. "
        "Build here, without --on."
    )


def test_a_torch_whose_compiler_a_job_has_not(job: Run) -> None:
    run = job()
    assert run.target.torch
    run.target = replace(run.target, torch=replace(run.target.torch, version="2.9.0+cu128", cuda="12.8"))
    assert line_of(lambda: order(run), errors.UsageError) == (
        "a job compiles for CUDA 13 and newer, and this torch has CUDA 12.8. Build on a machine with that toolkit, "
        "without --on, or take a torch with CUDA 13."
    )


def test_a_signed_store_takes_no_wheel_of_a_job(job: Run, hub: Hub) -> None:
    hub.create(REPO, {"sage/index.json": b'{"wheels": [], "serial": 1, "signature": "somebody"}'})
    assert line_of(lambda: following.build(job(), wish()), errors.StoreError) == (
        f"hf://datasets/{REPO}@main/sage takes what is signed (SIGNING_KEY is not set), and a job has no key. Build "
        "on a machine that has it, without --on."
    )
    assert jobs_of(hub).all == {}


def test_a_token_that_may_not_write_pays_for_nothing(job: Run, hub: Hub) -> None:
    line = line_of(lambda: following.build(job(hf_token="hf_read"), wish()), errors.StoreError)
    assert line.startswith(f"HF_TOKEN belongs to me and may not write to {REPO}.")
    assert jobs_of(hub).all == {}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"on": "moon"}, "--on 'moon' is no place to build on. Write --on hf-jobs, or leave it out."),
        (
            {"on": "hf-jobs", "timeout": "2 hours"},
            "--timeout '2 hours' is not a time from 1m to 7d. Write it like 90m or 2h.",
        ),
        ({"on": "hf-jobs", "timeout": "8d"}, "--timeout '8d' is not a time from 1m to 7d. Write it like 90m or 2h."),
        ({"on": "hf-jobs", "flavor": "a b"}, "--flavor 'a b' is not a name. Write it like cpu-upgrade."),
        ({"on": "", "detach": True}, "--detach is for a build elsewhere. Add --on hf-jobs."),
        ({"on": "", "flavor": "cpu-xl"}, "--flavor is for a build elsewhere. Add --on hf-jobs."),
    ],
)
def test_flags_that_cannot_be_meant(flags: dict[str, Any], line: str) -> None:
    assert line_of(lambda: elsewhere.asked(**flags), errors.UsageError) == line


# How the Hub refuses


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (
            "402",
            "me has no credits, so the Hub does not run a job (402). Add credits at "
            "https://huggingface.co/settings/billing, or build on a machine of yours without --on.",
        ),
        (
            "403",
            "HF_TOKEN may not run a job in the name of me (403). Give the token the right to run jobs at "
            "https://huggingface.co/settings/tokens, or name another --namespace.",
        ),
        (
            "503",
            "the Hub could not be asked to run a job: 127.0.0.1: 503 Service Unavailable (3 tries). Check the network, "
            "or try again later.",
        ),
    ],
)
def test_the_hub_runs_no_job(job: Run, hub: Hub, status: str, line: str) -> None:
    hub.misbehave("POST /api/jobs", status, 3)
    assert line_of(lambda: following.build(job(), wish()), errors.StoreError) == line


def test_a_flavor_that_the_hub_does_not_know(job: Run) -> None:
    assert line_of(lambda: following.build(job(), wish(flavor="cpu-huge")), errors.UsageError) == (
        "the Hub does not take the job with --flavor cpu-huge: Invalid flavor cpu-huge. Check --flavor and --timeout: "
        "https://huggingface.co/docs/hub/jobs-pricing lists the flavors."
    )


def test_another_namespace(job: Run, hub: Hub) -> None:
    line = line_of(lambda: following.build(job(), wish(namespace="them")), errors.StoreError)
    assert line.startswith("HF_TOKEN may not list jobs in the name of them (403).")
    following.build(job(), wish(namespace="team", detach=True))
    assert [one.owner for one in jobs_of(hub).all.values()] == ["team"]


@pytest.mark.parametrize("kind", ["lose", "429 0", "503", "drop"])
def test_what_passes_is_tried_again_and_one_job_is_paid_for(
    job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    doing(monkeypatch, "sleep 30")
    hub.misbehave("POST /api/jobs", kind)
    following.build(job(), wish(detach=True))
    assert len(jobs_of(hub).all) == 1


# How a job ends


@pytest.mark.parametrize(
    ("script", "kind", "line"),
    [
        (
            "echo '[build] compiling'; echo 'the compile failed: nvcc fatal.'; echo '[job] exit code 5'; exit 5",
            errors.BuildFailed,
            "job ID failed (exit code 5): the compile failed: nvcc fatal. Its log is at URL.",
        ),
        (
            "echo 'the disk is full.'; echo '[job] exit code 2'; exit 2",
            errors.UsageError,
            "job ID failed (exit code 2): the disk is full. Its log is at URL.",
        ),
        ("echo '[job] exit code 127'; exit 127", errors.BuildFailed, None),
        (
            "echo half a word; kill -9 $$",
            errors.BuildFailed,
            "job ID broke off (Job failed with exit code: -9): half a word. Its log is at URL.",
        ),
        (
            "echo '[job] exit code 0'",
            errors.NothingCompatible,
            f"job ID ended well, but hf://datasets/{REPO}@main/sage has no wheel for this machine: it holds none. "
            "Check SAGEWHEELS_REPO and SAGEWHEELS_REF, by which the job was built.",
        ),
    ],
)
def test_a_bad_end(
    job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[SageError], line: str | None
) -> None:
    doing(monkeypatch, script)
    told = line_of(lambda: following.build(job(), wish()), kind)
    url = f"{hub.endpoint}/jobs/me/{ID}"
    assert told.replace(url, "URL").replace(ID, "ID") == (
        line or "job ID failed (exit code 127): it said nothing. Its log is at URL."
    )


@pytest.mark.parametrize(
    ("stage", "message", "line"),
    [
        ("CANCELED", None, f"job {ID} was canceled. Run the same command again to begin anew."),
        (
            "ERROR",
            "Job timeout",
            f"job {ID} did not end within --timeout 2h: at work. Give it more time, or a larger --flavor.",
        ),
        ("deleted", None, f"job {ID} was deleted before it ended. Run the same command again to begin anew."),
    ],
)
def test_a_job_that_others_end(
    job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, stage: str, message: str | None, line: str
) -> None:
    doing(monkeypatch, "echo at work; sleep 30")
    jobs, looks = jobs_of(hub), list[int]()
    real = HubJobs.look

    def look(self: HubJobs, id: str) -> Any:
        looks.append(1)
        if len(looks) == 2 and stage == "deleted":
            jobs.end(jobs.all.pop(id), "DELETED")
        elif len(looks) == 2:
            jobs.end(jobs.all[id], stage, message)
        return real(self, id)

    monkeypatch.setattr(HubJobs, "look", look)
    assert line_of(lambda: following.build(job(), wish()), SageError) == line


def test_an_image_that_is_not_there(job: Run, hub: Hub) -> None:
    jobs_of(hub).images = {}
    line = line_of(lambda: following.build(job(), wish()), errors.BuildFailed)
    image = order(job()).image
    assert line.startswith(f"job {ID} broke off (the image {image} does not exist): it said nothing. Its log is at ")


def test_a_log_that_breaks_off_is_resumed(
    job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line once, though the log is cut three times, and the Hub fails in between."""
    doing(monkeypatch, "for n in 1 2 3 4 5 6; do echo line $n; sleep 0.05; done; echo '[job] exit code 5'; exit 5")
    jobs_of(hub).cuts = [2, 2, 5]
    hub.misbehave(rf"GET /api/jobs/me/{ID}$", "503", 3)
    line_of(lambda: following.build(job(), wish()), errors.BuildFailed)
    said = re.findall(r"^\[job\] line (\d)$", capsys.readouterr().out, re.M)
    assert said == list("123456")
    assert len(jobs_of(hub).readings) >= 4


def test_the_last_words_are_heard_though_the_job_is_over(job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    doing(monkeypatch, "echo nvcc fatal; echo '[job] exit code 5'; exit 5")
    jobs_of(hub).cuts = [0, 1]
    real = HubJobs.look

    def late(self: HubJobs, id: str) -> Any:
        until(lambda: jobs_of(hub).all[id].is_over)
        return real(self, id)

    monkeypatch.setattr(HubJobs, "look", late)
    line = line_of(lambda: following.build(job(), wish()), errors.BuildFailed)
    assert line.startswith(f"job {ID} failed (exit code 5): nvcc fatal. ")


def test_a_log_shows_no_token_and_no_escape(
    job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doing(monkeypatch, "printf 'token %s\\n\\033[2Jhello\\n' \"$HF_TOKEN\"; echo '[job] exit code 5'; exit 5")
    line_of(lambda: following.build(job(), wish()), errors.BuildFailed)
    said = capsys.readouterr().out
    assert "[job] token ***\n[job] \\x1b[2Jhello\n" in said


def test_a_hub_that_is_gone_is_told_with_the_way_back(job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    doing(monkeypatch, "sleep 30")
    monkeypatch.setattr(jobwatch, "_MOST_LOST", 2)
    hub.misbehave(rf"GET /api/jobs/me/{ID}", "503", 1000)
    line = line_of(lambda: following.build(job(), wish()), errors.StoreError)
    assert line == (
        f"job {ID} cannot be seen any longer: the Hub could not be asked to look at a job: 127.0.0.1: 503 Service "
        f"Unavailable (3 tries). It may go on, at {hub.endpoint}/jobs/me/{ID}: run the same command again to follow it."
    )
    assert jobs_of(hub).all[ID].stage == "RUNNING"


def test_a_job_that_never_starts_is_taken_back(job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs_of(hub).starts = False
    monkeypatch.setattr(jobwatch, "LONGEST_QUEUE", 0.2)
    monkeypatch.setattr(jobwatch, "_TURN", 0.05)
    assert line_of(lambda: following.build(job(), wish()), errors.StoreError) == (
        f"no cpu-upgrade was free for job {ID} in 0.2 s. Try another --flavor, or later."
    )
    assert jobs_of(hub).all[ID].stage == "CANCELED"


# Who ends what


def test_the_same_build_is_followed_and_not_begun_again(
    job: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doing(monkeypatch, "sleep 0.3; echo '[job] exit code 5'; exit 5")
    assert following.build(job(), wish(detach=True)) is None
    url = f"{hub.endpoint}/jobs/me/{ID}"
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"[job] {ID} runs on cpu-upgrade, which is billed by the minute: {url}",
        f"[job] it goes on without us: the same command without --detach follows it, hf jobs cancel {ID} ends it",
    ]
    line_of(lambda: following.build(job(), wish()), errors.BuildFailed)
    assert f"[job] {ID} of the same build runs already on cpu-upgrade: {url}" in capsys.readouterr().out
    # What has failed is not found again, and what is another build never was.
    following.build(job(), wish(detach=True))
    following.build(job(torch_cuda_arch_list="8.9"), wish(detach=True))
    assert len(jobs_of(hub).all) == 3


def command(here: Machine, hub: Hub, folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command as people run it, with the settings of `here`."""
    names = (
        "sage_manifest",
        "hf_repo_id",
        "hf_endpoint",
        "hf_token",
        "remote_dir",
        "torch_cuda_arch_list",
        "python_bin",
    )
    env = {name.upper(): getattr(here.settings, name) for name in names}
    return [sys.executable, "-m", "sagewheels", *arguments], {**here.settings.environ, "PYTHONPATH": str(ROOT), **env}


@pytest.mark.parametrize("found", [False, True])
def test_an_interrupt_ends_what_was_begun(here: Machine, job: Run, hub: Hub, tmp_path: Path, found: bool) -> None:
    """A job that was begun is canceled, since it is paid for; one that ran before goes on."""
    tool(tmp_path / "tool")
    # The compile waits for a wheel that nobody makes.
    jobs = jobs_of(hub)
    slow = wheels.script(tmp_path / "slow", "#!/bin/sh\necho at work\nexec sleep 60\n")
    jobs.images = {name: {**env, "TOOL": str(slow)} for name, env in jobs.images.items()}
    if found:
        following.build(job(), wish(detach=True))
    argv, env = command(here, hub, tmp_path, "build", "--on", "hf-jobs")
    running = subprocess.Popen(
        argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    with running:
        assert running.stdout and running.stderr
        for line in running.stdout:
            if line == "[job] at work\n":
                break
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
        said = running.stderr.read().splitlines()
    gone = "was canceled: it costs nothing more"
    left = f"goes on, since it was not begun here: hf jobs cancel {ID} ends it"
    assert said == [
        f"[job] warning: {ID} {left if found else gone}",
        "interrupted: run the same command again, it goes on where it can.",
    ]
    assert [one.stage for one in jobs.all.values()] == ["RUNNING" if found else "CANCELED"]


def test_the_script_of_a_job_says_what_it_cannot_fetch(here: Machine, job: Run, hub: Hub, tmp_path: Path) -> None:
    """And shows no password, which older versions of git quote: others may see the log."""
    quoting = '#!/bin/sh\n[ "$1" != fetch ] || { echo "fatal: unable to access $6" >&2; exit 128; }\n'
    wheels.script(tmp_path / "git" / "git", quoting)
    jobs = jobs_of(hub)
    jobs.images = {name: {**env, "PATH": f"{tmp_path / 'git'}:{env['PATH']}"} for name, env in jobs.images.items()}
    environ = {**here.settings.environ, "SAGEWHEELS_REPO": "https://joe:word@127.0.0.1:1/tool.git"}
    line = line_of(lambda: following.build(job(environ=environ), wish()), errors.UsageError)
    told = "SAGEWHEELS_REF main cannot be fetched. Check SAGEWHEELS_REPO and SAGEWHEELS_REF."
    assert line == f"job {ID} failed (exit code 2): {told} Its log is at {hub.endpoint}/jobs/me/{ID}."
    assert "fatal: unable to access https://127.0.0.1:1/tool.git" in jobs.all[ID].lines
    assert "word" not in f"{jobs.all[ID].shown()}"
