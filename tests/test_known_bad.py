"""Known-bad wheels from end to end: what smoke finds on one machine, the next one passes over with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sagewheels import auto, listing, marking, proving, steps, wheelhouse
from sagewheels.errors import NothingCompatible, SmokeFailed
from sagewheels.job import Job
from sagewheels.store import index
from sagewheels.wheelhouse import Made
from tests import wheels
from tests.hub import Hub
from tests.wheels import NAME, RTX, TAG, VERSION, Machine

GOOD = f"{NAME}-{VERSION}{wheels.LABEL}-{TAG}.whl"
BUILT = GOOD.replace("sm120", "sm120.kbuilt")
REPO = "me/wheels"
WRONG = "mark = 'wrong'\nimport os\ncosine = float(os.environ.get('TINY_COSINE', '0.5'))\n"
"""A wheel that computes garbage, until something outside of it changes."""
WHY = (
    "2 of 2 cases are wrong, first head_dim 64 float16 full length 17 HND 8/8 heads: cosine 0.5000, relative L2 0.010 "
    "(NVIDIA GeForce RTX 5090, "
)
REJECTED = f"[fetch] rejected {GOOD}: it is known to be bad on arch 12.0: {WHY}"

# huggingface_hub hands LFS uploads to its HTTP client in a way that the latter is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    wheels.without_cuobjdump(monkeypatch)
    wheels.with_gpu_answers(monkeypatch)
    return wheels.machine(tmp_path, gpu=RTX)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the build step, which needs nvcc: the text of the package to build; grows with each build."""
    python = ["mark = 'built'\n"]

    def build(job: Job, *, force: bool = False, turn: Any = None) -> Made:
        path = wheels.make(job.settings.work_dir / "out", version=BUILT.split("-")[1], python=python[-1])
        python.append(python[-1])
        manifest = wheels.describe(path, created_at_utc="2026-05-05T00:00:00Z")
        return wheelhouse.keep(job.settings, path, manifest), manifest

    monkeypatch.setattr(steps, "do_build", build)
    return python


def publish(machine: Machine, label: str = wheels.LABEL, *, python: str = WRONG, **changes: Any) -> str:
    """A wheel in the store and nowhere else; its name."""
    path = wheels.make(machine.folder / "dist", version=VERSION + label, python=python)
    steps.do_upload(machine.job(), (path, wheels.describe(path, **changes)))
    return path.name


def smoke_fails(machine: Machine, **changes: Any) -> str:
    with pytest.raises(SmokeFailed) as caught:
        auto.auto(machine.job(**changes))
    assert (caught.value.code, machine.import_version()) == (6, "none")
    return str(caught.value)


def on_hub(hub: Hub) -> dict[str, Any]:
    return {"sage_store": "", "hf_repo_id": REPO, "hf_endpoint": hub.endpoint, "remote_dir": "sage"}


def store(machine: Machine) -> Path:
    return Path(machine.settings.sage_store)


def latest(machine: Machine) -> Any:
    return json.loads((store(machine) / "latest.json").read_text())


def marks(folder: Path, name: str = "index.json") -> Any:
    return json.loads((folder / name).read_text())["known_bad"]


def test_what_fails_here_is_taken_nowhere_again(
    rtx: Machine, builds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(rtx)
    capsys.readouterr()
    smoke_fails(rtx)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"[smoke] recorded in {store(rtx)}: {GOOD} is known to be bad on arch 12.0"
    (mark,) = marks(store(rtx))
    assert marks(rtx.settings.wheelhouse_dir, "known-bad.json") == [mark]
    known = {"wheel_file": GOOD, "arch": "12.0", "driver": "580.65.06", "torch_version": wheels.TORCH}
    assert {key: mark[key] for key in known} == known
    second = wheels.machine(tmp_path / "second", gpu=RTX, sage_store=str(store(rtx)))
    with pytest.raises(NothingCompatible):
        auto.install(second.job())
    assert f"{REJECTED}{mark['at_utc'][:10]})" in capsys.readouterr().out.splitlines()
    auto.auto(rtx.job())
    assert f"{REJECTED}{mark['at_utc'][:10]})" in capsys.readouterr().out.splitlines()
    assert (rtx.import_version(), len(builds)) == ("built", 2)
    auto.auto(second.job())
    assert (second.import_version(), len(builds)) == ("built", 2), "it takes what the first has built"


def test_the_next_best_is_taken_instead(rtx: Machine, builds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    publish(rtx, created_at_utc="2026-02-02T00:00:00Z")
    other = publish(rtx, "+cu130torch2.11sm120.k2", python="mark = 'other'\n")
    smoke_fails(rtx)
    auto.auto(rtx.job())
    assert (rtx.import_version(), len(builds), latest(rtx)["wheel_file"]) == ("other", 1, other)
    capsys.readouterr()
    listing.show(rtx.job())
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {GOOD} ")]
    assert f"| it is known to be bad on arch 12.0: {WHY}" in row


@pytest.mark.parametrize(
    ("token", "said", "warned"),
    [
        ("", "[smoke] recorded in the wheelhouse alone: {what}; {label} can only be read\n", ""),
        (
            "hf_read",
            "",
            "[smoke] warning: recorded in the wheelhouse alone: {what}; HF_TOKEN has no right to write in me/wheels "
            "(403). Set HF_TOKEN to a token with write access to me/wheels, from ",
        ),
    ],
)
def test_a_store_that_can_only_be_read(
    rtx: Machine, builds: list[str], capsys: pytest.CaptureFixture[str], token: str, said: str, warned: str
) -> None:
    """Then this machine alone knows, which is enough not to go round in circles."""
    path = wheels.make(rtx.folder / "dist", python=WRONG)
    facts = {"what": f"{GOOD} is known to be bad on arch 12.0", "label": f"hf://datasets/{REPO}@main/sage"}
    with Hub(write=("hf_write",), read=("hf_read",)) as hub:
        where = on_hub(hub)
        steps.do_upload(rtx.job(**where, hf_token="hf_write"), (path, wheels.describe(path)))
        commits = hub.commits
        capsys.readouterr()
        smoke_fails(rtx, **where, hf_token=token)
        shown = capsys.readouterr()
        assert said.format(**facts) in shown.out
        assert shown.err.startswith(warned.format(**facts)) and bool(shown.err) is bool(warned)
        assert hub.commits == commits
        auto.auto(rtx.job(**where))
        assert REJECTED in capsys.readouterr().out
    assert (rtx.import_version(), len(builds)) == ("built", 2)


def test_the_hub_is_told(rtx: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = wheels.make(rtx.folder / "dist", python=WRONG)
    with Hub() as hub:
        where = on_hub(hub)
        steps.do_upload(rtx.job(**where, hf_token="hf_write"), (path, wheels.describe(path)))
        commits = hub.commits
        smoke_fails(rtx, **where, hf_token="hf_write")
        assert hub.commits == commits + 1
        (mark,) = json.loads(hub.files(REPO)["sage/index.json"])["known_bad"]
        assert mark["wheel_sha256"] == wheels.describe(path).wheel_sha256
        second = wheels.machine(tmp_path / "second", gpu=RTX)
        capsys.readouterr()
        with pytest.raises(NothingCompatible):
            auto.install(second.job(**where))
        assert f"{REJECTED}{mark['at_utc'][:10]})" in capsys.readouterr().out.splitlines()


def test_what_is_built_here_and_wrong_is_marked_too(rtx: Machine, builds: list[str]) -> None:
    """It was uploaded before smoke, so that others can see it."""
    builds.append(WRONG)
    smoke_fails(rtx)
    assert [mark["wheel_file"] for mark in marks(store(rtx))] == [BUILT]
    assert not (store(rtx) / "latest.json").exists()


def test_a_proof_takes_the_mark_back(rtx: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """As after an update of the driver: naming the wheel is the way past the mark."""
    publish(rtx)
    smoke_fails(rtx)
    better = {**rtx.settings.environ, "TINY_COSINE": "0.9999"}
    job = rtx.job(environ=better)
    steps.do_verify(job, steps.choose(job, GOOD))
    capsys.readouterr()
    proving.do_smoke(rtx.job(environ=better))
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"[smoke] {GOOD} was known to be bad here, which is taken back",
        f"[smoke] the proof is in {store(rtx)}",
    ]
    assert marks(store(rtx)) == []
    assert not (rtx.settings.wheelhouse_dir / "known-bad.json").exists()
    assert latest(rtx)["wheel_file"] == GOOD
    assert rtx.job().verdicts()[0].fits


def test_what_came_last_counts(rtx: Machine) -> None:
    """Also on the same GPU with the same driver and torch, and within one second."""
    publish(rtx)
    better = {**rtx.settings.environ, "TINY_COSINE": "0.9999"}
    auto.auto(rtx.job(environ=better))
    assert latest(rtx)["wheel_file"] == GOOD
    with pytest.raises(SmokeFailed):
        proving.do_smoke(rtx.job())
    assert latest(rtx) == {}
    assert not rtx.job().verdicts()[0].fits
    auto.auto(rtx.job(environ=better, wheel_url=(store(rtx) / GOOD).as_uri()))
    assert marks(store(rtx)) == []
    (verdict,) = rtx.job().verdicts()
    assert (verdict.fits, len(verdict.candidate.proofs)) == (True, 2)


LATE = """mark = 'late'
import os
late = {} if 'TINY_MENDED' in os.environ else {'wrong': '3 of 64 values differ'}
"""
"""A wheel that only the long checks find wrong."""
FULL = """
[smoke.full]
checks = ["side-stream"]
min_cosine = 0.998
max_relative_l2 = 0.0625
max_lse_error = 0.1
lengths = [503]
every_length_to = 65
long = 131072
[[smoke.full.call]]
call = "tinyattn:attn"
"""


def with_long_checks(machine: Machine) -> None:
    manifest = Path(machine.settings.sage_manifest)
    manifest.write_text(manifest.read_text() + FULL)


def test_what_the_long_checks_find_is_marked(rtx: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """And a pass of the short ones, which saw nothing before, does not take it back."""
    with_long_checks(rtx)
    publish(rtx, python=LATE)
    auto.auto(rtx.job())
    assert (rtx.import_version(), latest(rtx)["wheel_file"]) == ("late", GOOD)
    with pytest.raises(SmokeFailed) as caught:
        proving.do_smoke(rtx.job(), long=True)
    what = "side-stream of attn: head_dim 64: 3 of 64 values differ"
    assert str(caught.value).startswith(f"smoke failed: GPU 0 (NVIDIA GeForce RTX 5090): {what}. ")
    assert (rtx.import_version(), latest(rtx)) == ("none", {})
    (mark,) = marks(store(rtx))
    assert (mark["arch"], mark["reason"], mark["full"]) == ("12.0", what, True)
    job = rtx.job()
    steps.do_verify(job, steps.choose(job, GOOD))
    for _ in range(2):
        proving.do_smoke(rtx.job())
    (verdict,) = rtx.job().verdicts()
    assert (verdict.fits, marks(store(rtx)), len(verdict.candidate.proofs)) == (False, [mark], 1)
    capsys.readouterr()
    proving.do_smoke(rtx.job(environ={**rtx.settings.environ, "TINY_MENDED": "1"}), long=True)
    assert f"[smoke] {GOOD} was known to be bad here, which is taken back" in capsys.readouterr().out.splitlines()
    (verdict,) = rtx.job().verdicts()
    assert (verdict.fits, marks(store(rtx)), latest(rtx)["wheel_file"]) == (True, [], GOOD)
    assert [proof.raw.get("full") for proof in verdict.candidate.proofs] == [None, ["side-stream"]]


def test_what_keeps_the_long_checks_from_being_made_marks_nothing(rtx: Machine) -> None:
    with_long_checks(rtx)
    publish(rtx, python="mark = 'late'\nlate = {'error': 'RuntimeError: Failed to find C compiler.'}\n")
    auto.auto(rtx.job())
    with pytest.raises(SmokeFailed, match=r"side-stream of attn: head_dim 64: RuntimeError: Failed to find C compiler"):
        proving.do_smoke(rtx.job(), long=True)
    assert "known_bad" not in json.loads((store(rtx) / "index.json").read_text())
    assert rtx.job().verdicts()[0].fits


def test_a_named_wheel_is_tried_again_with_a_warning(rtx: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    publish(rtx)
    smoke_fails(rtx)
    capsys.readouterr()
    smoke_fails(rtx, wheel_url=(store(rtx) / GOOD).as_uri())
    warning = f"[fetch] warning: {GOOD} is tried again, as you ask: it is known to be bad on arch 12.0: {WHY}"
    assert capsys.readouterr().err.startswith(warning)


def test_what_people_call_bad_is_not_taken_by_name_either(rtx: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    publish(rtx, python="mark = 'ours'\n")
    sha256 = json.loads((store(rtx) / f"{GOOD}.json").read_text())["wheel_sha256"]
    manifest = Path(rtx.settings.sage_manifest)
    manifest.write_text(f"{manifest.read_text()}\n[[known_bad]]\nsha256 = '{sha256}'\nreason = 'it leaks memory'\n")
    capsys.readouterr()
    with pytest.raises(NothingCompatible):
        auto.install(rtx.job())
    assert f"[fetch] rejected {GOOD}: it is known to be bad: it leaks memory" in capsys.readouterr().out.splitlines()
    with pytest.raises(
        NothingCompatible, match=r"^WHEEL_URL does not fit .*: it is known to be bad: it leaks memory\.$"
    ):
        auto.install(rtx.job(wheel_url=(store(rtx) / GOOD).as_uri()))


CRASH = "import os, signal\nos.kill(os.getpid(), signal.{})\n"
_TORCH_ON_GPUS = """
from torch.version import __version__

class backends:
    class cuda:
        class matmul:
            allow_tf32 = True

class cuda:
    @staticmethod
    def device_count():
        return {count}

class ones:
    def __init__(self, size, device):
        self.size = size

    def sum(self):
        return self

    def item(self):
        return self.size
"""


@pytest.mark.parametrize("count", [0, 1])
def test_a_crash_is_the_wheels_where_torch_alone_computes(rtx: Machine, count: int) -> None:
    (rtx.site / "torch" / "__init__.py").write_text(_TORCH_ON_GPUS.format(count=count))
    publish(rtx, python=CRASH.format("SIGSEGV"))
    assert smoke_fails(rtx).startswith("the kernels brought the interpreter down (killed by SIGSEGV)")
    assert rtx.job().verdicts()[0].fits is (count == 0)


def test_what_may_be_the_machines_fault_is_not_recorded(rtx: Machine) -> None:
    """A wheel whose probe was killed, as for want of memory, is tried again."""
    publish(rtx, python=CRASH.format("SIGKILL"))
    smoke_fails(rtx)
    assert "known_bad" not in json.loads((store(rtx) / "index.json").read_text())
    assert not (rtx.settings.wheelhouse_dir / "known-bad.json").exists()


def test_ctrl_c_while_it_is_recorded(rtx: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is back already, what is known here is whole, and nothing half-written stays."""
    publish(rtx)
    before = wheels.tree(store(rtx))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "add_mark", interrupted)
    with pytest.raises(KeyboardInterrupt):
        auto.auto(rtx.job())
    assert rtx.import_version() == "none"
    house = rtx.settings.wheelhouse_dir
    assert len(marks(house, "known-bad.json")) == 1
    assert sorted(path.name for path in house.iterdir()) == ["known-bad.json", GOOD, f"{GOOD}.json"]
    assert wheels.tree(store(rtx)) == before


@pytest.mark.parametrize("text", ["", "[]", '{"known_bad": 7}', '{"known_bad": [7, {"reason": 1}]}', "\xff"])
def test_a_damaged_list_of_marks_is_no_obstacle(rtx: Machine, text: str) -> None:
    place = rtx.settings.wheelhouse_dir / "known-bad.json"
    place.parent.mkdir()
    place.write_bytes(text.encode("latin-1"))
    publish(rtx)
    smoke_fails(rtx)
    assert marks(place.parent, place.name)[-1]["wheel_file"] == GOOD


def test_marks_that_cannot_be_read_now_are_not_written_over(
    rtx: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(wheelhouse, "small", denied)
    with pytest.raises(PermissionError):
        wheelhouse.raw_marks(rtx.settings)
    place = rtx.settings.wheelhouse_dir / "known-bad.json"
    assert wheelhouse.marks(rtx.settings) == [], "nor do they keep anybody from a wheel"
    assert capsys.readouterr().err == f"[wheelhouse] warning: {place} cannot be read (Permission denied)\n"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("2 of 2 wrong, HND 8/8 heads", "2 of 2 wrong, HND 8/8 heads"),
        (
            "ImportError: /home/me/tiny/_fused.so: undefined symbol: _Z1f",
            "ImportError: _fused.so: undefined symbol: _Z1f",
        ),
        ("File '/home/me/a b.py', line 3", "File 'a b.py', line 3"),
        ("two\nlines\tand \x1b[2J", "two lines and ?[2J"),
        ("x" * 999, "x" * 300),
    ],
)
def test_reasons_are_plain_and_name_no_folder_of_this_machine(text: str, plain: str) -> None:
    assert marking._plain(text) == plain
