"""The way back by hand: one step at a time, whatever was there, and whatever was cut off in the middle."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sagewheels import exchange, installed, installer, proving, rollback, steps, wheelhouse
from sagewheels.config import Settings
from sagewheels.errors import Refused, UsageError
from sagewheels.target import Target
from tests import wheels
from tests.wheels import NAME, TAG, Machine

V1, V2 = (f"{NAME}-1.0+cu130torch2.11sm120.k{number}-{TAG}.whl" for number in (1, 2))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    wheels.without_cuobjdump(monkeypatch)
    return wheels.machine(tmp_path)


def verify(here: Machine, number: int) -> None:
    """Installs one of our wheels as `verify` does."""
    version = f"1.0+cu130torch2.11sm120.k{number}"
    path = wheels.make(here.folder / "dist", version=version, python=f"mark = 'v{number}'\n")
    manifest = wheels.describe(path)
    steps.do_verify(here.job(), (wheelhouse.keep(here.settings, path, manifest), manifest))


def back(here: Machine, capsys: pytest.CaptureFixture[str], *, dry_run: bool = False) -> list[str]:
    """What a rollback says."""
    capsys.readouterr()
    rollback.rollback(here.job(dry_run=dry_run))
    return capsys.readouterr().out.splitlines()


def state(here: Machine) -> dict[str, object]:
    job = here.job()
    return installed.read_state(job.settings, job.target, job.recipe)


def theirs(here: Machine, **more: bytes) -> Path:
    """A wheel of the user's own, with a script."""
    entry = b"[console_scripts]\ntiny = tinyattn:main\n"
    python = "mark = 'theirs'\ndef main():\n    print(mark)\n"
    return wheels.make(here.folder / "dist", version="0.9", python=python, info={"entry_points.txt": entry})


def test_one_step_at_a_time_to_what_the_user_had(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """v1 comes back with its own memory: what it passed, and what was before it."""
    wheel = theirs(here)
    wheels.pip(here.python, "install", wheel)
    verify(here, 1)
    proving.do_smoke(here.job())
    first = state(here)
    verify(here, 2)
    assert back(here, capsys) == [
        f"[rollback] {V1} is back",
        f"[rollback] auto keeps it: it passed smoke here. To have {V2} again: verify --wheel {V2}",
    ]
    assert (here.import_version(), {**state(here), "record": ""}) == ("v1", {**first, "record": ""})
    manifest = here.settings.sage_manifest
    assert back(here, capsys) == [
        f"[rollback] {wheel.name} is back",
        f"[rollback] auto would install {V1} again, unless [[known_bad]] in {manifest} names it; verify --wheel "
        "chooses another",
    ]
    assert (here.import_version(), state(here)) == ("theirs", {})
    tiny = subprocess.run([here.python.parent / "tiny"], capture_output=True, text=True, check=True)
    assert tiny.stdout == "theirs\n"
    nothing = f"[rollback] nothing to roll back: {NAME} was not installed by sagewheels and is left as it is"
    assert back(here, capsys) == [nothing]
    assert here.import_version() == "theirs"


def test_to_nothing(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = wheels.tree(here.site)
    verify(here, 1)
    assert back(here, capsys)[0] == f"[rollback] {NAME} is not installed, as before"
    assert wheels.tree(here.site) == before


def test_a_dry_run_says_what_and_changes_nothing(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = here.python.parent.parent
    verify(here, 1)
    assert back(here, capsys, dry_run=True) == [
        f"[rollback] would take {V1} out of {prefix}: {NAME} is not installed then, as before"
    ]
    verify(here, 2)
    before = wheels.tree(here.folder)
    assert back(here, capsys, dry_run=True) == [f"[rollback] would take {V2} out of {prefix}: {V1} comes back"]
    assert wheels.tree(here.folder) == before


def test_what_somebody_changed_since_is_left(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    verify(here, 1)
    (here.site / NAME / "__init__.py").write_text("mark = 'by hand'\n")
    changed = f"{NAME} was changed since sagewheels installed it (auto installs it anew) and is left as it is"
    assert back(here, capsys) == [f"[rollback] nothing to roll back: {changed}"]
    assert here.import_version() == "by hand"


def test_a_copy_that_is_gone(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    wheels.pip(here.python, "install", theirs(here))
    verify(here, 1)
    copy = Path(str(state(here)["previous"]))
    copy.unlink()
    with pytest.raises(Refused) as caught:
        back(here, capsys)
    assert str(caught.value) == (
        f"{NAME} is left as it is: {copy}, the copy of what was there, is gone. Install the {NAME} that you want, or "
        "uninstall it."
    )
    assert here.import_version() == "v1"


def test_what_is_rolled_back_is_not_lost(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when the wheelhouse has lost its wheel."""
    verify(here, 1)
    (here.settings.wheelhouse_dir / V1).unlink()
    back(here, capsys)
    (copy,) = here.settings.work_dir.glob("previous/*/*.whl")
    wheels.pip(here.python, "install", copy)
    assert here.import_version() == "v1"


# What came from elsewhere


def editable(here: Machine) -> None:
    """A checkout of the user's, installed with `pip install -e`."""
    source = here.folder / "source"
    (source / "src" / NAME).mkdir(parents=True)
    (source / "src" / NAME / "__init__.py").write_text("mark = 'checkout'\n")
    (source / "pyproject.toml").write_text(
        f'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{NAME}"\nversion = "0.8"\n'
    )
    (source / "backend.py").write_text(_BACKEND.replace("SRC", str(source / "src")))
    wheels.pip(here.python, "install", "-e", source)


_BACKEND = """
import zipfile

def build_editable(folder, config=None, metadata=None):
    name, info = "tinyattn-0.8-py3-none-any.whl", "tinyattn-0.8.dist-info"
    with zipfile.ZipFile(folder + "/" + name, "w") as archive:
        archive.writestr("__editable__tinyattn.pth", "SRC\\n")
        archive.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: tinyattn\\nVersion: 0.8\\n")
        archive.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(info + "/RECORD", "__editable__tinyattn.pth,,\\n%s/METADATA,,\\n%s/WHEEL,,\\n" % (info, info))
    return name
"""


def outside(here: Machine) -> None:
    """Scripts that are no entry points, data and headers lie outside of site-packages."""
    data = "tinyattn-0.7.data"
    files = {
        f"{NAME}/__init__.py": b"mark = 'with data'\n",
        f"{data}/scripts/tiny-script": b"#!python\nimport tinyattn; print(tinyattn.mark)\n",
        f"{data}/data/share/tiny/table.txt": b"1 2 3\n",
    }
    wheels.pip(here.python, "install", wheels.make(here.folder / "dist", files, version="0.7", tag="py3-none-any"))


@pytest.mark.parametrize(("make", "mark"), [(editable, "checkout"), (outside, "with data")])
def test_installs_from_elsewhere(
    here: Machine, capsys: pytest.CaptureFixture[str], make: Callable[[Machine], None], mark: str
) -> None:
    make(here)
    before = _what_matters(here)
    assert here.import_version() == mark
    verify(here, 1)
    assert here.import_version() == "v1"
    back(here, capsys)
    assert (here.import_version(), _what_matters(here)) == (mark, before)
    script = here.python.parent / "tiny-script"
    if script.exists():
        assert subprocess.run([script], capture_output=True, text=True, check=True).stdout == f"{mark}\n"


def _what_matters(here: Machine) -> dict[str, str]:
    """All of the environment, less where it came from and who installed it."""
    ours = ("RECORD", "direct_url.json", "uv_cache.json", "uv_build.json", "REQUESTED", "INSTALLER")
    found = wheels.tree(here.python.parent.parent)
    return {name: told for name, told in found.items() if not name.endswith((*ours, ".lock", ".pyc", "__pycache__"))}


def egg_info_file(here: Machine) -> Path:
    """As distutils left it: a file, which says nothing of what belongs to it."""
    path = here.site / f"{NAME}-0.6.egg-info"
    path.write_text(f"Metadata-Version: 1.0\nName: {NAME}\nVersion: 0.6\n")
    return path


def egg_info_folder(here: Machine) -> Path:
    """As conda and old pips leave it."""
    path = here.site / f"{NAME}-0.6.egg-info"
    path.mkdir()
    (path / "PKG-INFO").write_text(f"Metadata-Version: 1.0\nName: {NAME}\nVersion: 0.6\n")
    return path


@pytest.mark.parametrize("make", [egg_info_file, egg_info_folder])
def test_installs_without_a_record_are_refused_first(here: Machine, make: Callable[[Machine], Path]) -> None:
    (here.site / NAME).mkdir()
    (here.site / NAME / "__init__.py").write_text("mark = 'old'\n")
    path = make(here)
    before = wheels.tree(here.site)
    with pytest.raises(Refused) as caught:
        verify(here, 1)
    assert str(caught.value) == f"{path} has no RECORD, so what is there could not be put back. Uninstall it first."
    assert (wheels.tree(here.site), state(here)) == (before, {})


def test_a_file_outside_of_the_environment_is_refused_first(here: Machine) -> None:
    wheels.pip(here.python, "install", theirs(here))
    elsewhere = here.folder / "elsewhere.txt"
    elsewhere.touch()
    record = here.site / f"{NAME}-0.9.dist-info" / "RECORD"
    record.write_text(f"{record.read_text()}{elsewhere},,\n")
    before = wheels.tree(here.site)
    with pytest.raises(Refused) as caught:
        verify(here, 1)
    assert str(caught.value) == (
        f"{elsewhere}, which RECORD lists, lies outside of the environment and could not be put back. Uninstall "
        f"{NAME}-0.9.dist-info first."
    )
    assert (wheels.tree(here.site), state(here)) == (before, {})


def test_what_another_environment_lends_is_not_copied(here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """It is hidden while ours is there, and seen again afterwards."""
    other = wheels.machine(here.folder / "other", torch=False)
    wheels.pip(other.python, "install", theirs(here))
    (here.site / "lent.pth").write_text(f"{other.site}\n")
    before = wheels.tree(other.folder)
    verify(here, 1)
    assert (here.import_version(), state(here)["previous"]) == ("v1", None)
    back(here, capsys)
    assert (here.import_version(), wheels.tree(other.folder)) == ("theirs", before)


# Cut off in the middle


class Killed(BaseException):
    """Stands for a SIGKILL that comes while the installer works: nothing is tidied up."""


@pytest.fixture
def cut_off(here: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Runs something that is killed when half of its files are there."""

    def run(task: Callable[[], object]) -> None:
        def half(settings: Settings, found: Target, wheel: Path, *, name: str) -> None:
            (here.site / NAME).mkdir(exist_ok=True)
            (here.site / NAME / "__init__.py").write_text("mark = 'half'\n")
            (here.site / f"{'-'.join(wheel.name.split('-')[:2])}.dist-info").mkdir()
            raise Killed

        def nothing(found: Target, name: str) -> None:
            assert name == NAME

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(installer, "install_wheel", half)
            patch.setattr(exchange, "undo", nothing)
            task()
        assert here.import_version() == "half"

    return run


CutOff = Callable[[Callable[[], object]], None]
ENDED = f"[rollback] one was cut off and is finished: {V1} is back"


def test_a_rollback_that_was_cut_off_is_finished_by_the_next(
    here: Machine, cut_off: CutOff, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(here, 1)
    verify(here, 2)
    cut_off(lambda: rollback.rollback(here.job()))
    assert back(here, capsys, dry_run=True) == [f"[rollback] would end what was cut off: {V1} comes back"]
    assert here.import_version() == "half"
    assert back(here, capsys) == [ENDED]
    assert here.import_version() == "v1"
    assert back(here, capsys)[0] == f"[rollback] {NAME} is not installed, as before"


def test_a_rollback_that_was_cut_off_is_finished_by_smoke(
    here: Machine, cut_off: CutOff, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(here, 1)
    verify(here, 2)
    cut_off(lambda: rollback.rollback(here.job()))
    capsys.readouterr()
    proving.do_smoke(here.job())
    assert capsys.readouterr().out.splitlines()[0] == ENDED
    assert (here.import_version(), state(here)["wheel"]) == ("v1", V1)


def test_a_rollback_that_was_cut_off_is_finished_by_an_install(
    here: Machine, cut_off: CutOff, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(here, 1)
    verify(here, 2)
    cut_off(lambda: rollback.rollback(here.job()))
    capsys.readouterr()
    verify(here, 2)
    assert ENDED in capsys.readouterr().out.splitlines()
    assert (here.import_version(), Path(str(state(here)["previous"])).name) == ("v2", V1)


@pytest.mark.parametrize("before", ["ours", "theirs", "nothing"])
def test_an_install_that_was_cut_off_is_undone(
    here: Machine, cut_off: CutOff, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    """With what was remembered; the very files are back, since they were only moved."""
    if before == "ours":
        verify(here, 1)
    if before == "theirs":
        wheels.pip(here.python, "install", theirs(here))
    site, memory = wheels.tree(here.python.parent.parent), state(here)
    cut_off(lambda: verify(here, 2))
    assert back(here, capsys) == [f"[install] one of {NAME} was cut off and is undone"]
    assert (wheels.tree(here.python.parent.parent), state(here)) == (site, memory)


def test_a_memory_that_is_lost_in_the_middle(here: Machine, cut_off: CutOff) -> None:
    """Whoever removes WORK_DIR then gets back what was moved aside all the same."""
    wheels.pip(here.python, "install", theirs(here))
    cut_off(lambda: verify(here, 2))
    (path,) = here.settings.work_dir.glob("state/*.json")
    path.unlink()
    verify(here, 1)
    assert (here.import_version(), Path(str(state(here)["previous"])).name) == ("v1", theirs(here).name)


def test_a_run_with_another_work_dir_undoes_it_as_well(here: Machine, cut_off: CutOff, tmp_path: Path) -> None:
    """Its own memory says nothing of what was cut off, and nothing against undoing it."""
    verify(here, 1)
    site, memory = wheels.tree(here.site), state(here)
    other = replace(here, settings=replace(here.settings, work_dir=tmp_path / "other"))
    cut_off(lambda: verify(other, 2))
    job = here.job()
    installed.finish(job.settings, job.target, job.recipe)
    assert (wheels.tree(here.site), state(here)) == (site, memory)


def test_an_installer_that_fails_leaves_the_very_files(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    verify(here, 1)
    site, memory = wheels.tree(here.site), state(here)

    def fails(settings: Settings, found: Target, wheel: Path, *, name: str) -> None:
        (here.site / NAME / "__init__.py").parent.mkdir(exist_ok=True)
        (here.site / NAME / "__init__.py").write_text("mark = 'half'\n")
        (here.site / NAME / "more.py").touch()
        raise UsageError("no")

    monkeypatch.setattr(installer, "install_wheel", fails)
    with pytest.raises(UsageError):
        verify(here, 2)
    assert ({*wheels.tree(here.site)} - {f"{NAME}/more.py"}, state(here)) == ({*site}, memory)
    assert here.import_version() == "v1"


@pytest.fixture
def linked(here: Machine, tmp_path: Path) -> Machine:
    """A machine whose site-packages is a link to another disk."""
    site, real = here.site, tmp_path / "volume" / "packages"
    real.parent.mkdir()
    site.rename(real)
    site.symlink_to(real)
    return here


def test_site_packages_on_another_disk(
    linked: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is the environment's own, and comes back: after an install that failed, and when asked for."""
    wheel = wheels.make(linked.folder / "dist", version="0.9", python="mark = 'theirs'\n")
    wheels.pip(linked.python, "install", wheel)
    site = linked.site.resolve()
    before = wheels.tree(site)
    with monkeypatch.context() as patch, pytest.raises(UsageError):
        patch.setattr(installed, "_is_whole", lambda *_: False)
        verify(linked, 1)
    assert wheels.tree(site) == before
    verify(linked, 1)
    assert linked.import_version() == "v1"
    assert back(linked, capsys)[0] == f"[rollback] {wheel.name} is back"
    assert linked.import_version() == "theirs"


def test_an_environment_behind_a_link(here: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its files have two names; what comes back is not taken for what came."""
    real = here.python.parent.parent
    (tmp_path / "link").symlink_to(real)
    python = tmp_path / "link" / "bin" / "python"
    linked = replace(here, python=python, settings=replace(here.settings, python_bin=str(python)))
    wheels.pip(here.python, "install", theirs(here))
    before = wheels.tree(real)
    monkeypatch.setattr(installed, "_is_whole", lambda *_: False)
    with pytest.raises(UsageError):
        verify(linked, 1)
    assert wheels.tree(real) == before


def test_nothing_is_left_in_site_packages_on_another_disk(linked: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = wheels.tree(linked.site.resolve())
    verify(linked, 1)
    back(linked, capsys)
    assert wheels.tree(linked.site.resolve()) == before


def test_a_relative_link_comes_back_too(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one to the library that was built last: aside, it leads nowhere."""
    wheels.pip(here.python, "install", theirs(here))
    (library,) = (here.site / NAME).glob("*.so")
    library.rename(library.with_name("library"))
    library.symlink_to("library")
    before = wheels.tree(here.site)

    def fails(settings: Settings, found: Target, wheel: Path, *, name: str) -> None:
        raise UsageError("no")

    monkeypatch.setattr(installer, "install_wheel", fails)
    with pytest.raises(UsageError):
        verify(here, 1)
    assert wheels.tree(here.site) == before


def test_the_memory_of_many_steps_is_bounded(here: Machine) -> None:
    job = here.job()
    memory: dict[str, object] = {"wheel": "0"}
    for number in range(1, 40):
        memory = {"wheel": str(number), "before": memory}
    installed.write_state(job.settings, job.target, job.recipe, json.loads(json.dumps(memory)))
    depth, seen = 0, state(here)
    while seen.get("before"):
        depth, seen = depth + 1, seen["before"]  # type: ignore[assignment]
    assert (depth, seen) == (10, {"wheel": "29"})
