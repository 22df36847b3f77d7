"""Settings: where each comes from, what is refused and how that is said, and that .env.example tells the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from sagewheels import config
from sagewheels.config import FLAGS, KEYS, SECRETS, Settings, exposed, is_path, load
from sagewheels.errors import UsageError

EXAMPLE = Path(config.__file__).parents[1] / ".env.example"
SETTING = re.compile(r"# ([A-Z][A-Z0-9_]*)=(.*)")


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the one that holds tasks.py: a developer's own .env must not be read."""
    folder = tmp_path / "beside-tasks"
    folder.mkdir()
    monkeypatch.setattr(config, "ROOT", folder)
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder where the user stands."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def refused(text: str, here: Path, **environ: str) -> str:
    """The line that the user sees for this .env and environment, with the folder left out."""
    (here / ".env").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load(environ, cwd=here)
    return str(caught.value).replace(str(here), "HERE")


def test_the_defaults_that_existing_users_rely_on(here: Path) -> None:
    settings = load({}, cwd=here)
    assert (settings.sage_version, settings.sage_expect_version) == ("2.2.0", "2.2.0")
    assert (settings.torch_channel, settings.cuda_index_variant) == ("nightly", "cu128")
    assert (settings.triton_spec, settings.min_triton_for_50xx) == ("triton>=3.3,<4.0", "3.3")
    assert settings.min_cuda_for_sm120 == "12.8"
    assert (settings.hf_repo_id, settings.hf_repo_type) == ("adbrasi/sageattention220-wheels", "dataset")
    assert (settings.hf_repo_branch, settings.remote_dir) == ("main", "sageattention220")
    assert (settings.hf_private, settings.allow_unsafe_wheel) == (False, False)
    assert (settings.ext_parallel, settings.max_jobs) == (None, None)
    folders = (settings.work_dir, settings.wheelhouse_dir, settings.log_dir)
    assert folders == (here / ".build-sageattention", here / "wheelhouse", here / "logs")
    unset = "python_bin torch_index_url torch_version torchvision_version torchaudio_version triton_version".split()
    unset += "torch_cuda_arch_list cudaarchs hf_token wheel_url nvcc_append_flags sage_store".split()
    assert {name: getattr(settings, name) for name in unset} == dict.fromkeys(unset, "")


def test_a_flag_beats_the_environment_which_beats_the_env_files(here: Path, beside: Path) -> None:
    environ = {"TORCH_CUDA_ARCH_LIST": "9.0"}

    def arch(flag: str | None) -> str:
        return load(environ, cwd=here, flags={"arch": flag}).torch_cuda_arch_list

    (beside / ".env").write_text("TORCH_CUDA_ARCH_LIST=8.0\nTRITON_VERSION=3.6.0\n", encoding="utf-8")
    (here / ".env").write_text("TORCH_CUDA_ARCH_LIST=8.6\n", encoding="utf-8")
    assert arch("12.0") == "12.0"
    assert arch(None) == arch("") == load(environ, cwd=here).torch_cuda_arch_list == "9.0"
    environ.clear()
    assert arch(None) == "8.6"
    assert load({}, cwd=here).triton_version == "3.6.0", "the other file still counts for what this one leaves out"
    (here / ".env").unlink()
    assert arch(None) == "8.0"


def test_each_flag_overrides_its_setting(here: Path) -> None:
    for flag, key in FLAGS.items():
        if isinstance(KEYS[key].default, bool):
            assert getattr(load({key: "0"}, cwd=here, flags={flag: True}), key.lower()) is True
            assert getattr(load({key: "1"}, cwd=here, flags={flag: False}), key.lower()) is True, "a flag not given"
            continue
        settings = load({key: "of the environment"}, cwd=here, flags={flag: "of the flag"})
        meant = str(here / "of the flag") if is_path(key) else "of the flag"
        assert getattr(settings, key.lower()) == meant


def test_the_environment_is_read_when_settings_are_loaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setenv("MAX_JOBS", "3")
    assert (load().max_jobs, load().log_dir) == (3, here / "logs")
    monkeypatch.setenv("MAX_JOBS", "4")
    assert load().max_jobs == 4


def test_an_empty_value_means_not_set(here: Path) -> None:
    (here / ".env").write_text("".join(f"{key}=\n" for key in KEYS if key != "SAGE_EXPECT_VERSION"), encoding="utf-8")
    folders = {"work_dir": ".build-sageattention", "wheelhouse_dir": "wheelhouse", "log_dir": "logs"}
    assert load({}, cwd=here) == Settings(**{key: here / name for key, name in folders.items()})  # type: ignore[arg-type]
    assert load({"TORCH_CHANNEL": "  "}, cwd=here).torch_channel == "nightly"


def test_an_empty_variable_hides_the_value_of_the_env_file(here: Path) -> None:
    (here / ".env").write_text("TORCH_CHANNEL=pypi\nHF_TOKEN=hf_secret\n", encoding="utf-8")
    settings = load({"TORCH_CHANNEL": "", "HF_TOKEN": ""}, cwd=here)
    assert (settings.torch_channel, settings.hf_token) == ("nightly", "")


@pytest.mark.parametrize("text", ["SAGE_EXPECT_VERSION=\n", "SAGE_EXPECT_VERSION=''\n", "SAGE_EXPECT_VERSION\n"])
def test_an_empty_expected_version_means_any(here: Path, text: str) -> None:
    (here / ".env").write_text(text, encoding="utf-8")
    assert load({}, cwd=here).sage_expect_version == ""
    assert load({"SAGE_EXPECT_VERSION": "2.2.1"}, cwd=here).sage_expect_version == "2.2.1"
    assert load({"SAGE_EXPECT_VERSION": ""}, cwd=here.parent).sage_expect_version == ""


def test_what_people_write_in_env_files_is_read(here: Path) -> None:
    lines = [
        "# a comment",
        "",
        "export TORCH_CHANNEL=stable   # why",
        "TRITON_SPEC='triton>=3.3,<4.0'",
        'NVCC_APPEND_FLAGS="--threads 8"',
        "HF_PRIVATE=Yes",
        "SOMETHING_ELSE=of another program",
        "REMOTE_DIR=${NOT_EXPANDED}",
        "MAX_JOBS= 7 ",
    ]
    (here / ".env").write_bytes("\r\n".join(lines).encode())
    settings = load({}, cwd=here)
    assert (settings.torch_channel, settings.triton_spec) == ("stable", "triton>=3.3,<4.0")
    assert (settings.nvcc_append_flags, settings.max_jobs) == ("--threads 8", 7)
    assert (settings.hf_private, settings.remote_dir) == (True, "${NOT_EXPANDED}")


def test_folders_are_fixed_to_where_the_user_stood(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    settings = load({"WORK_DIR": "~/work", "LOG_DIR": "sub/logs", "WHEELHOUSE_DIR": "/mnt/wheels"}, cwd=here)
    folders = (settings.work_dir, settings.log_dir, settings.wheelhouse_dir)
    assert folders == (Path("/home/someone/work"), here / "sub/logs", Path("/mnt/wheels"))


@pytest.mark.parametrize(
    ("text", "line"), [("=broken\n", 1), ("MAX_JOBS=1\nthis is no setting\n", 2), ('A=1\nB=2\nC="open\n', 3)]
)
def test_a_broken_env_file_is_refused_with_its_line(here: Path, text: str, line: int) -> None:
    assert refused(text, here) == f"HERE/.env line {line} cannot be read. Write KEY=value."


def test_blank_lines_before_a_broken_line_do_not_move_its_number(here: Path) -> None:
    assert refused("MAX_JOBS=1\n\n\n=broken\n", here) == "HERE/.env line 4 cannot be read. Write KEY=value."


def test_an_env_file_that_is_not_utf8_is_refused(here: Path) -> None:
    (here / ".env").write_bytes(b"REMOTE_DIR=caf\xe9\n")
    with pytest.raises(UsageError, match=r"/\.env cannot be read: 'utf-8' codec .*\. Save it as UTF-8 text\.$"):
        load({}, cwd=here)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("TORCH_CHANNEL", "beta", "='beta' in {} is not known. Use one of nightly, stable, pypi."),
        ("HF_REPO_TYPE", "datasets", "='datasets' in {} is not known. Use one of dataset, model, space."),
        ("CUDA_INDEX_VARIANT", "cpu", "='cpu' in {} is not of the right form. Write it like cu128."),
        ("CUDA_INDEX_VARIANT", "12.8", "='12.8' in {} is not of the right form. Write it like cu128."),
        ("HF_REPO_ID", "name", "='name' in {} is not of the right form. Write it like name/repository."),
        ("MIN_CUDA_FOR_SM120", "12", "='12' in {} is not of the right form. Write it like 12.8."),
        ("MIN_TRITON_FOR_50XX", ">=3", "='>=3' in {} is not of the right form. Write it like 3.3."),
        ("HF_PRIVATE", "maybe", "='maybe' in {} is neither true nor false. Write 1 or 0."),
        ("ALLOW_UNSAFE_WHEEL", "2", "='2' in {} is neither true nor false. Write 1 or 0."),
        ("MAX_JOBS", "0", "='0' in {} is not a count. Write a whole number from 1 to 9999."),
        ("MAX_JOBS", "-1", "='-1' in {} is not a count. Write a whole number from 1 to 9999."),
        ("EXT_PARALLEL", "four", "='four' in {} is not a count. Write a whole number from 1 to 9999."),
        ("REMOTE_DIR", "a\nb", " in {} holds control characters. Write it on one line, as plain text."),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_place(here: Path, key: str, value: str, line: str) -> None:
    assert refused("", here, **{key: value}) == key + line.format("the environment")
    assert refused(f'{key}="{value}"\n', here) == key + line.format("HERE/.env")


def test_a_wrong_flag_is_named_as_the_flag(here: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load({}, cwd=here, flags={"python": "py\tthon"})
    want = "PYTHON_BIN in --python holds control characters. Write it on one line, as plain text."
    assert str(caught.value) == want


def test_the_home_of_nobody_is_a_wrong_setting_and_no_bug(here: Path) -> None:
    assert refused("WORK_DIR=~nobody-of-this-name/work\n", here).startswith("WORK_DIR=")


def test_a_secret_is_in_no_text_and_no_child(here: Path) -> None:
    environ = dict.fromkeys(SECRETS, "hf_secret") | {"PATH": "/usr/bin", "HF_ENDPOINT": "http://127.0.0.1"}
    settings = load(environ, cwd=here)
    assert settings.hf_token == "hf_secret"
    assert "hf_secret" not in repr(settings) + str(settings)
    assert dict(settings.environ) == {"PATH": "/usr/bin", "HF_ENDPOINT": "http://127.0.0.1"}
    assert (settings.variable("PATH"), settings.variable("CUDA_HOME")) == ("/usr/bin", "")
    assert refused('HF_TOKEN="hf_\nsecret"\n', here) == (
        "HF_TOKEN in HERE/.env holds control characters. Write it on one line, as plain text."
    )


def warnings(here: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is said when the settings are loaded, by two tasks of one run."""
    load({}, cwd=here)
    load({}, cwd=here)
    return capsys.readouterr().err.replace(str(here), "HERE").splitlines()


READABLE = "[settings] warning: HERE/.env holds HF_TOKEN, and others can read it. Run chmod 600 HERE/.env"


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("HF_TOKEN=hf_secret\n", 0o644, [READABLE]),
        ("HF_TOKEN=hf_secret\n", 0o640, [READABLE]),
        ("HF_TOKEN=hf_secret\n", 0o604, [READABLE]),
        ("HUGGING_FACE_HUB_TOKEN=hf_secret\n", 0o644, [READABLE.replace("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]),
        ("HF_TOKEN=hf_secret\n", 0o600, []),
        ("HF_TOKEN=\nMAX_JOBS=3\n", 0o644, []),
        ("MAX_JOBS=3\n", 0o666, []),
    ],
)
def test_a_dotenv_whose_secret_others_can_read_is_told_once(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, mode: int, said: list[str]
) -> None:
    (here / ".env").write_text(text, encoding="utf-8")
    (here / ".env").chmod(mode)
    assert warnings(here, capsys) == said
    assert [
        f"[settings] warning: {fault}. {remedy}".replace(str(here), "HERE") for fault, remedy in exposed(here)
    ] == said


def test_behind_a_link_the_file_itself_counts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = here.parent / "real.env"
    real.write_text("HF_TOKEN=hf_secret\n", encoding="utf-8")
    (here / ".env").symlink_to(real)
    real.chmod(0o600)
    assert warnings(here, capsys) == []
    real.chmod(0o644)
    assert warnings(here, capsys) == [READABLE]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_dotenv_of_another_user_with_a_secret_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / ".env").write_text("HF_TOKEN=hf_secret\n", encoding="utf-8")
    (here / ".env").chmod(0o600)
    os.chown(here / ".env", 65534, 65534)
    line = "[settings] warning: HERE/.env holds HF_TOKEN, and belongs to another user. Write a file of your own"
    assert warnings(here, capsys) == [line]


def test_settings_cannot_be_changed_and_the_callers_environment_is_not(here: Path) -> None:
    environ = {"HF_TOKEN": "hf_secret", "MAX_JOBS": "2"}
    settings = load(environ, cwd=here)
    with pytest.raises(FrozenInstanceError):
        settings.max_jobs = 3  # type: ignore[misc]
    assert environ == {"HF_TOKEN": "hf_secret", "MAX_JOBS": "2"}


def test_nothing_is_read_when_the_module_is_imported(here: Path) -> None:
    (here / ".env").write_text("=broken\n", encoding="utf-8")
    env = {**os.environ, "MAX_JOBS": "nonsense", "PYTHONPATH": str(Path(config.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", "import sagewheels.config"], cwd=here, env=env, check=True)


def documented() -> dict[str, str]:
    """Key and value of each setting that .env.example shows."""
    found = map(SETTING.fullmatch, EXAMPLE.read_text(encoding="utf-8").splitlines())
    return {match[1]: match[2] for match in found if match}


def test_the_example_documents_every_key_and_no_other_in_full() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    keys = [match[1] for line in lines if (match := SETTING.fullmatch(line))]
    assert sorted(keys) == sorted(KEYS) == sorted({item.name.upper() for item in fields(Settings)} - {"ENVIRON"})
    for place, line in enumerate(lines):
        if SETTING.fullmatch(line):
            above = next(text for text in reversed(lines[:place]) if not SETTING.fullmatch(text))
            assert re.match(r"# (?!---)\S", above), f"{line} has no comment"
    assert max(map(len, lines)) <= 120


def test_the_example_shows_the_defaults(here: Path) -> None:
    """Every setting that it shows may be made without changing anything."""
    shown = "".join(f"{key}={value}\n" for key, value in documented().items())
    (here / ".env").write_text(shown, encoding="utf-8")
    with_example = load({}, cwd=here)
    (here / ".env").unlink()
    assert with_example == load({}, cwd=here)
    empty = {key for key, value in documented().items() if not value}
    assert empty == {key for key, item in KEYS.items() if item.default in ("", None)}, "a default that is not shown"


def test_the_example_changes_nothing_as_it_is(here: Path) -> None:
    (here / ".env").write_bytes(EXAMPLE.read_bytes())
    with_example = load({}, cwd=here)
    (here / ".env").unlink()
    assert with_example == load({}, cwd=here)
