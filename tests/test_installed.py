"""What is installed: put there, remembered and put back, in real environments with a real installer."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sagewheels import aside, installed, installer, target
from sagewheels.config import Settings
from sagewheels.errors import Refused, UsageError
from sagewheels.recipe import Recipe
from sagewheels.target import Target
from sagewheels.wheel import file_hash
from tests import wheels
from tests.wheels import Machine

OURS = f"{wheels.NAME}-{wheels.VERSION}{wheels.LABEL}"


class Place:
    """One machine, asked anew before each step, as a new run would."""

    def __init__(self, machine: Machine, recipe: Recipe) -> None:
        self.machine, self.recipe, self.settings = machine, recipe, machine.settings
        self._first = self.target

    @property
    def target(self) -> Target:
        return target.probe(self.settings, self.recipe.name)

    def install(self, wheel: Path, settings: Settings | None = None) -> Target:
        given = settings or self.settings
        return installed.install(given, self.target, self.recipe, wheel, file_hash(wheel)[0])

    def restore(self) -> str:
        return installed.restore(self.settings, self.target, self.recipe)

    @property
    def version(self) -> str:
        return self.target.versions.get(self.recipe.name, "none")

    @property
    def state(self) -> dict[str, object]:
        return installed.read_state(self.settings, self._first, self.recipe)  # only its prefix counts


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(wheels.machine(tmp_path, torch=False), wheels.load_recipe(tmp_path))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return wheels.make(tmp_path / "dist", python="mark = 'ours'\n")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Another wheel of the package, with a script, which the user had before."""
    entry = b"[console_scripts]\ntiny = tinyattn:main\n"
    return wheels.make(
        tmp_path / "dist",
        version="0.9",
        python="mark = 'theirs'\ndef main():\n    print(mark)\n",
        info={"entry_points.txt": entry},
    )


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_install_into_an_environment_that_had_none(
    place: Place, ours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = place.install(ours)
    assert said(capsys) == [f"[install] {ours.name} is installed in {after.prefix}"]
    assert (place.version, place.machine.import_version()) == ("1.0+cu130torch2.11sm120", "ours")
    assert after.versions == {wheels.NAME: "1.0+cu130torch2.11sm120"}
    assert place.state == {
        "wheel": ours.name,
        "manifest": "tiny",
        "sha256": file_hash(ours)[0],
        "record": installed.fingerprint(after, place.recipe),
        "previous": None,
        "prefix": str(after.prefix),
    }


def test_reinstalling_changes_nothing(place: Place, ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.install(ours)
    before, times = wheels.tree(place.machine.folder), _times(place.machine.site)
    capsys.readouterr()
    place.install(ours)
    assert said(capsys) == [f"[install] {ours.name} is installed already"]
    assert (wheels.tree(place.machine.folder), _times(place.machine.site)) == (before, times)


def _times(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))]


def test_a_package_behind_a_link_is_not_touched(place: Place, ours: Path, theirs: Path) -> None:
    """uv would empty the folder that it leads to: somebody's checkout, say."""
    place.install(theirs)
    package, checkout = place.machine.site / "tinyattn", place.machine.folder / "checkout"
    shutil.move(package, checkout)
    package.symlink_to(checkout)
    before = wheels.tree(place.machine.folder)
    with pytest.raises(Refused, match="lies behind a link that leads out of site-packages"):
        place.install(ours)
    after = wheels.tree(place.machine.folder)
    assert {name: one for name, one in after.items() if not name.startswith("work")} == {
        name: one for name, one in before.items() if not name.startswith("work")
    }


def test_restore_to_nothing(place: Place, ours: Path) -> None:
    before = wheels.tree(place.machine.site)
    place.install(ours)
    assert place.restore() == "tinyattn is not installed, as before"
    assert (place.machine.import_version(), place.state) == ("none", {})
    assert wheels.tree(place.machine.site) == before


def test_restore_to_what_the_user_had(place: Place, ours: Path, theirs: Path) -> None:
    """With its script, though the copy holds no scripts: the installer makes them from the entry points."""
    wheels.pip(place.machine.python, "install", theirs)
    before = _package(place)
    place.install(ours)
    assert (place.machine.import_version(), (place.machine.python.parent / "tiny").exists()) == ("ours", False)
    copy = str(place.state["previous"])
    assert Path(copy).is_relative_to(place.settings.work_dir / "previous")
    assert place.restore() == f"{theirs.name} is back"
    assert (place.version, place.machine.import_version(), place.state) == ("0.9", "theirs", {})
    assert _package(place) == before
    tiny = subprocess.run([place.machine.python.parent / "tiny"], capture_output=True, text=True, check=True)
    assert tiny.stdout == "theirs\n"


def _package(place: Place) -> dict[str, str]:
    """What lies in site-packages, less where it came from."""
    found = wheels.tree(place.machine.site)
    return {
        name: content
        for name, content in found.items()
        if not name.endswith(("RECORD", "direct_url.json", "uv_cache.json", "REQUESTED", "INSTALLER"))
    }


def test_restore_goes_back_one_step_at_a_time(place: Place, ours: Path, tmp_path: Path) -> None:
    """What the second install replaced is the first one, also when sagewheels installed both."""
    newer = wheels.make(tmp_path / "dist", version="1.1", python="mark = 'newer'\n")
    place.install(ours)
    place.install(newer)
    assert place.machine.import_version() == "newer"
    assert place.restore() == f"{ours.name} is back"
    assert place.machine.import_version() == "ours"
    assert place.restore() == "tinyattn is not installed, as before"
    assert place.restore() == "tinyattn is not installed"


def test_a_second_restore_does_nothing(place: Place, ours: Path) -> None:
    place.install(ours)
    place.restore()
    before = wheels.tree(place.machine.folder)
    assert place.restore() == "tinyattn is not installed"
    assert wheels.tree(place.machine.folder) == before


def test_what_the_user_installed_since_is_left_alone(place: Place, ours: Path, theirs: Path) -> None:
    place.install(ours)
    wheels.pip(place.machine.python, "install", theirs)
    before = wheels.tree(place.machine.site)
    assert place.restore() == "tinyattn was not installed by sagewheels and is left as it is"
    assert (wheels.tree(place.machine.site), place.machine.import_version()) == (before, "theirs")


def test_what_the_user_installed_since_is_the_new_way_back(place: Place, ours: Path, theirs: Path) -> None:
    place.install(ours)
    wheels.pip(place.machine.python, "install", theirs)
    place.install(ours)
    assert place.restore() == f"{theirs.name} is back"


def test_files_that_the_user_changed_since_are_left_alone(place: Place, ours: Path) -> None:
    place.install(ours)
    (place.machine.site / wheels.PACKAGE / "__init__.py").write_text("mark = 'by hand'\n")
    assert place.restore() == (
        "tinyattn was changed since sagewheels installed it (auto installs it anew) and is left as it is"
    )
    assert place.machine.import_version() == "by hand"


def test_an_installed_package_that_lost_a_file_is_installed_again(place: Place, ours: Path) -> None:
    place.install(ours)
    module = place.machine.site / wheels.PACKAGE / "_fused.abi3.so"
    module.unlink()
    place.install(ours)
    assert module.exists()


def test_an_install_that_was_cut_off_keeps_the_first_copy(place: Place, ours: Path, theirs: Path) -> None:
    """Killed in the middle, half of ours is there: that half must not become the way back."""
    wheels.pip(place.machine.python, "install", theirs)
    copy = str(aside.repack(place.target.dist_info[wheels.NAME], place.machine.folder))
    installed.write_state(place.settings, place.target, place.recipe, {"pending": ours.name, "previous": copy})
    wheels.pip(place.machine.python, "install", ours)
    (place.machine.site / wheels.PACKAGE / "__init__.py").unlink()
    place.install(ours)
    assert place.machine.import_version() == "ours"
    assert place.state["previous"] == copy
    assert "pending" not in place.state
    assert place.restore() == f"{theirs.name} is back"


def test_an_install_that_was_cut_off_can_be_put_back_at_once(place: Place, ours: Path, theirs: Path) -> None:
    wheels.pip(place.machine.python, "install", theirs)
    copy = str(aside.repack(place.target.dist_info[wheels.NAME], place.machine.folder))
    installed.write_state(place.settings, place.target, place.recipe, {"pending": ours.name, "previous": copy})
    shutil.rmtree(place.machine.site / wheels.PACKAGE)
    assert place.restore() == f"{theirs.name} is back"
    assert place.machine.import_version() == "theirs"


def test_the_state_says_pending_while_the_installer_runs(
    place: Place, ours: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed there, the next run finds the copy."""
    wheels.pip(place.machine.python, "install", theirs)

    def killed(settings: Settings, found: Target, wheel: Path, *, name: str) -> None:
        assert (wheel, name) == (ours, wheels.NAME)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(installer, "install_wheel", killed)
        with pytest.raises(KeyboardInterrupt):
            place.install(ours)
    state = place.state
    assert state["pending"] == ours.name
    assert zipfile.ZipFile(str(state["previous"])).read(f"{wheels.PACKAGE}/__init__.py").startswith(b"mark = 'theirs'")
    place.install(ours)
    assert place.restore() == f"{theirs.name} is back"


@pytest.mark.parametrize("before", [True, False])
def test_a_wheel_that_the_installer_refuses(place: Place, theirs: Path, tmp_path: Path, before: bool) -> None:
    if before:
        wheels.pip(place.machine.python, "install", theirs)
    bad = wheels.make(tmp_path / "bad", version="1.0", info={"METADATA": b"Name: other\nVersion: 3\n"})
    with pytest.raises(UsageError, match=r"^uv pip failed \(exit code \d+\): "):
        place.install(bad)
    assert (place.machine.import_version(), place.state) == ("theirs" if before else "none", {})


def test_a_target_that_cannot_be_written(place: Place, ours: Path) -> None:
    found = replace(place.target, writable=False)
    with pytest.raises(UsageError) as caught:
        installed.install(place.settings, found, place.recipe, ours, file_hash(ours)[0])
    assert str(caught.value) == (f"{found.site} cannot be written to. Set PYTHON_BIN to an environment of your own.")
    assert place.version == "none"


def test_an_externally_managed_target(place: Place, ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """uv and pip refuse to touch it without the flag; that the flag was given is said."""
    stdlib = subprocess.run(
        [place.machine.python, "-c", "import sysconfig; print(sysconfig.get_paths()['stdlib'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(stdlib.stdout.strip()).is_dir()
    found = replace(place.target, externally_managed=True)
    installed.install(place.settings, found, place.recipe, ours, file_hash(ours)[0])
    assert said(capsys)[0] == f"[install] {found.python} is externally managed: using --break-system-packages"
    assert place.machine.import_version() == "ours"


def test_without_uv_the_pip_of_the_target_does_it(
    place: Place, ours: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels.lend_pip(place.machine.python)
    wheels.pip(place.machine.python, "install", theirs)

    def no_uv(settings: Settings) -> None:
        assert settings is place.settings

    monkeypatch.setattr(installer, "uv_program", no_uv)
    place.install(ours)
    assert place.machine.import_version() == "ours"
    assert place.restore() == f"{theirs.name} is back"
    assert place.machine.import_version() == "theirs"


def test_a_copy_that_is_gone(place: Place, ours: Path, theirs: Path) -> None:
    wheels.pip(place.machine.python, "install", theirs)
    place.install(ours)
    copy = Path(str(place.state["previous"]))
    copy.unlink()
    assert place.restore() == f"tinyattn is left as it is: {copy}, the copy of what was there, is gone"
    assert place.machine.import_version() == "ours"


def test_two_targets_have_a_memory_each(place: Place, ours: Path, tmp_path: Path) -> None:
    other = wheels.machine(tmp_path / "other", torch=False)
    second = Place(replace_settings(other, work_dir=place.settings.work_dir), place.recipe)
    place.install(ours)
    assert second.state == {}
    assert second.restore() == "tinyattn is not installed"
    second.install(ours)
    assert len(list((place.settings.work_dir / "state").iterdir())) == 2


def replace_settings(machine: Machine, **changes: Path) -> Machine:
    return replace(machine, settings=replace(machine.settings, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"prefix": "/elsewhere", "pending": "x.whl"}'])
def test_a_memory_that_cannot_be_read_is_none(place: Place, text: str) -> None:
    path = installed.state_path(place.settings, place.target, place.recipe)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert place.state == {}


def test_what_is_in_place(place: Place, ours: Path) -> None:
    after = place.install(ours)
    digest = file_hash(ours)[0]
    assert installed.is_in_place(after, place.recipe, place.state, digest)
    assert not installed.is_in_place(after, place.recipe, place.state, "0" * 64)
    assert not installed.is_in_place(after, place.recipe, {}, digest)
    assert not installed.is_in_place(after, place.recipe, {"sha256": "", "record": ""}, "")
    record = after.dist_info[wheels.NAME] / "RECORD"
    record.write_text(record.read_text() + "\n")
    assert not installed.is_in_place(after, place.recipe, place.state, digest)
    record.unlink()
    assert not installed.is_in_place(after, place.recipe, {**place.state, "record": ""}, digest)


def _without_wheel_file(info: Path) -> None:
    (info / "WHEEL").unlink()
    lines = (info / "RECORD").read_text().splitlines()
    (info / "RECORD").write_text("".join(f"{line}\n" for line in lines if "/WHEEL," not in line))


@pytest.mark.parametrize("change", [lambda info: None, _without_wheel_file])
def test_a_copy_can_be_installed(place: Place, theirs: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    wheels.pip(place.machine.python, "install", theirs)
    subprocess.run([place.machine.python, "-m", "compileall", "-q", place.machine.site / wheels.PACKAGE], check=True)
    info = place.target.dist_info[wheels.NAME]
    change(info)
    (tmp_path / "copies").mkdir()
    copy = aside.repack(info, tmp_path / "copies")
    names = zipfile.ZipFile(copy).namelist()
    assert not [name for name in names if name.endswith(".pyc") or ".." in name or "direct_url" in name]
    assert f"{wheels.PACKAGE}/_fused.abi3.so" in names
    assert zipfile.ZipFile(copy).testzip() is None
    if change is _without_wheel_file:
        assert copy.name == "tinyattn-0.9-py3-none-any.whl"
        return
    assert copy.name == theirs.name
    fresh = wheels.venv(tmp_path / "fresh")
    wheels.pip(fresh, "install", copy)
    done = subprocess.run([fresh.parent / "tiny"], capture_output=True, text=True, check=True)
    assert done.stdout == "theirs\n"


def test_a_copy_is_the_same_each_time(place: Place, theirs: Path, tmp_path: Path) -> None:
    wheels.pip(place.machine.python, "install", theirs)
    info = place.target.dist_info[wheels.NAME]
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    one, two = aside.repack(info, first), aside.repack(info, second)
    with zipfile.ZipFile(one) as a, zipfile.ZipFile(two) as b:
        assert {name: a.read(name) for name in a.namelist()} == {name: b.read(name) for name in b.namelist()}
    assert [path.name for path in (*first.iterdir(), *second.iterdir())] == [theirs.name] * 2


def test_no_record_no_way_back(place: Place, ours: Path, theirs: Path) -> None:
    """What distributions install has no RECORD at times: it is not overwritten."""
    wheels.pip(place.machine.python, "install", theirs)
    info = place.target.dist_info[wheels.NAME]
    (info / "RECORD").unlink()
    before = wheels.tree(place.machine.site)
    with pytest.raises(Refused) as caught:
        place.install(ours)
    assert str(caught.value) == (f"{info} has no RECORD, so what is there could not be put back. Uninstall it first.")
    assert (wheels.tree(place.machine.site), place.state) == (before, {})


@pytest.mark.parametrize("content", [b"caf\xe9.py,,\n", b"x" * 200_000 + b",,\n"], ids=["latin-1", "endless"])
def test_a_record_that_cannot_be_read_is_no_way_back(place: Place, ours: Path, theirs: Path, content: bytes) -> None:
    wheels.pip(place.machine.python, "install", theirs)
    info = place.target.dist_info[wheels.NAME]
    (info / "RECORD").write_bytes(content)
    before = wheels.tree(place.machine.site)
    with pytest.raises(Refused) as caught:
        place.install(ours)
    assert str(caught.value) == (
        f"{info} has a RECORD that cannot be read, so what is there could not be put back. Uninstall it first."
    )
    assert (wheels.tree(place.machine.site), place.state) == (before, {})


def test_a_file_that_record_lists_is_gone(place: Place, ours: Path, theirs: Path) -> None:
    wheels.pip(place.machine.python, "install", theirs)
    gone = place.machine.site / wheels.PACKAGE / "_fused.abi3.so"
    gone.unlink()
    before = wheels.tree(place.machine.site)
    with pytest.raises(Refused) as caught:
        place.install(ours)
    assert str(caught.value) == (
        f"{gone} is gone though RECORD lists it. Reinstall tinyattn-0.9.dist-info or uninstall it first."
    )
    assert (wheels.tree(place.machine.site), place.state) == (before, {})


@pytest.mark.parametrize("with_uv", [True, False])
def test_variables_that_name_another_place_do_not_bend_an_install(
    place: Place, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_uv: bool
) -> None:
    """Images and users set these for other work; the target is the one that was chosen."""
    if not with_uv:
        wheels.lend_pip(place.machine.python)
        monkeypatch.setattr(installer, "uv_program", lambda settings: None)
    elsewhere = str(tmp_path / "elsewhere")
    bent = {"UV_TARGET": elsewhere, "UV_SYSTEM_PYTHON": "1", "PIP_TARGET": elsewhere, "PIP_DRY_RUN": "1"}
    bent |= {"PIP_USER": "1", "PYTHONPATH": elsewhere, "PIP_PREFIX": elsewhere}
    place.install(ours, replace(place.settings, environ={**place.settings.environ, **bent}))
    assert place.machine.import_version() == "ours"
    assert not Path(elsewhere).exists()


def test_a_universal_wheel_of_two_tags_is_put_back(place: Place, ours: Path, tmp_path: Path) -> None:
    older = wheels.make(
        tmp_path / "dist",
        {f"{wheels.PACKAGE}/__init__.py": b"mark = 'universal'\n"},
        version="0.7",
        tag="py2.py3-none-any",
    )
    wheels.pip(place.machine.python, "install", older)
    place.install(ours)
    assert place.restore() == f"{older.name} is back"
    assert place.machine.import_version() == "universal"


def test_what_the_user_installed_after_a_cut_off_install_is_not_ours(place: Place, ours: Path, theirs: Path) -> None:
    installed.write_state(place.settings, place.target, place.recipe, {"pending": ours.name, "previous": None})
    wheels.pip(place.machine.python, "install", theirs)
    assert place.restore() == "tinyattn was not installed by sagewheels and is left as it is"
    assert place.machine.import_version() == "theirs"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"prefix": 7}', '{"pending": 7, "prefix": "PREFIX"}', "[]", "\xff"])
def test_a_memory_of_other_types_is_none(place: Place, ours: Path, text: str) -> None:
    place.install(ours)
    path = installed.state_path(place.settings, place.target, place.recipe)
    path.write_text(text.replace("PREFIX", str(place.target.prefix)), encoding="latin-1")
    assert installed.read_state(place.settings, place.target, place.recipe) == {}
    place.install(ours)


def test_a_uv_toml_where_the_user_stands_does_not_bend_an_install(
    place: Place, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stand").mkdir()
    (tmp_path / "stand" / "uv.toml").write_text(f'[pip]\ntarget = "{tmp_path}/elsewhere"\n')
    monkeypatch.chdir(tmp_path / "stand")
    place.install(ours)
    assert place.machine.import_version() == "ours"
    assert not (tmp_path / "elsewhere").exists()
