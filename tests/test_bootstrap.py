"""install_sageattention220_wheel.sh, really run on copies of this checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagewheels import __version__
from sagewheels.resources import ROOT

NAME = "install_sageattention220_wheel.sh"
SCRIPT = ROOT / NAME
_NEEDED = "bash cat chmod dirname env flock ls mkdir printf readlink rm tail timeout touch".split()
_NOT_COPIED = ".git .tool* .venv .build-* .*_cache .hypothesis wheelhouse logs dist __pycache__".split()

_REPORT = """
import json, os, sys
print(json.dumps({"args": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "path": sys.path}))
"""


def run(*args: str | Path, stdin: str = "", env: dict[str, str] | None = None, cwd: Path | None = None) -> Any:
    """The finished process, with its text."""
    merged = {**os.environ, **(env or {})}
    return subprocess.run(args, input=stdin, env=merged, cwd=cwd, capture_output=True, text=True, check=False)


def start(*args: str | Path, **more: Any) -> subprocess.Popen[str]:
    """The running process, with its text to come."""
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def copy_checkout(to: Path) -> Path:
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    return to


def toolbox(folder: Path, *, without: str = "") -> str:
    """A PATH that holds what the script needs, but no Python, pip, uv or (if so asked) git."""
    folder.mkdir()
    for name in (*_NEEDED, "git"):
        found = shutil.which(name)
        if found and name != without:
            (folder / name).symlink_to(found)
    return str(folder)


def trap(folder: Path, *names: str) -> Path:
    """Programs that fail and leave a trace when they are run."""
    folder.mkdir()
    for name in names:
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "$0 $*" >>"{folder}/called"\nexit 99\n')
        program.chmod(0o755)
    return folder / "called"


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout, in a path with spaces, whose first set-up was killed half way."""
    checkout = copy_checkout(tmp_path_factory.mktemp("with spaces") / "the check out")
    process = start(checkout / NAME, "--version", start_new_session=True)
    wait_for(checkout / ".tool" / "bin" / "python", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return checkout


@pytest.fixture(scope="module")
def repaired(killed: Path) -> tuple[Path, Any]:
    """The same checkout after the next run, and that run."""
    half_made = (killed / ".tool" / "bin" / "python").exists() and not (killed / ".tool" / "complete").exists()
    assert half_made, "the first set-up was not killed half way"
    # NGC images pin what their torch needs in this way; ours must not be bent by it.
    pins = killed.parent / "pins.txt"
    pins.write_text("requests==2.0.0\n")
    return killed, run(killed / NAME, "--version", env={"PIP_CONSTRAINT": str(pins), "PIP_USER": "1"})


@pytest.fixture
def reporting(repaired: tuple[Path, Any]) -> Iterator[Path]:
    """That checkout, where the command prints what it was given."""
    entry = repaired[0] / "sagewheels" / "__main__.py"
    text = entry.read_text()
    entry.write_text(_REPORT)
    yield repaired[0]
    entry.write_text(text)


@pytest.mark.index
def test_killed_setup_is_repaired_by_the_next_run(repaired: tuple[Path, Any]) -> None:
    checkout, done = repaired
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout
    assert done.stderr == f"[setup] making the tool's environment in {checkout}/.tool (once)\n"
    assert (checkout / ".tool" / ".sagewheels-tool").is_file()


@pytest.mark.index
def test_second_run_needs_no_network_python_pip_or_git(repaired: tuple[Path, Any], tmp_path: Path) -> None:
    called = trap(tmp_path / "traps", "git", "pip", "uv", "curl", *(f"python3{minor}" for minor in ("", ".10", ".13")))
    offline = {
        "PATH": f"{called.parent}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "UV_OFFLINE": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    done = run(repaired[0] / NAME, "--version", env=offline)
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout
    assert not called.exists(), called.read_text()


@pytest.mark.index
def test_users_environment_and_place_are_left_alone(reporting: Path, tmp_path: Path) -> None:
    venv = tmp_path / "the user's venv"
    (venv / "bin").mkdir(parents=True)
    here = tmp_path / "ComfyUI"
    (here / "sagewheels").mkdir(parents=True)
    (here / "requests.py").write_text("raise SystemExit('the wrong requests')\n")
    env = {"VIRTUAL_ENV": str(venv), "CONDA_PREFIX": str(venv), "PATH": f"{venv}/bin:{os.environ['PATH']}"}
    done = run(reporting / NAME, "smoke", "--arch", "8.9;12.0", "", env={**env, "PYTHONPATH": str(here)}, cwd=here)
    report = json.loads(done.stdout)
    assert report["args"] == ["smoke", "--arch", "8.9;12.0", ""]
    assert report["cwd"] == str(here)
    assert {key: report["env"][key] for key in env} == env
    assert report["env"]["PYTHONPATH"] == str(here)
    assert not {str(here), ""} & set(report["path"])
    assert list(venv.rglob("*")) == [venv / "bin"]


@pytest.mark.index
def test_auto_is_the_default_also_through_a_link(reporting: Path, tmp_path: Path) -> None:
    (tmp_path / "sage").symlink_to(reporting / NAME)
    assert json.loads(run(tmp_path / "sage").stdout)["args"] == ["auto"]


@pytest.mark.index
def test_changed_pins_or_a_moved_checkout_make_the_environment_anew(repaired: tuple[Path, Any], tmp_path: Path) -> None:
    def complete(checkout: Path) -> bool:
        env = {"SAGEWHEELS_PYTHON": "no-such-python", "PATH": toolbox(tmp_path / f"bin{time.monotonic_ns()}")}
        # With a Python that cannot be, only an environment that is already complete works.
        asked = stamp.replace(f"{checkout}\n\n", f"{checkout}\nno-such-python\n", 1)
        (checkout / ".tool" / "complete").write_text(asked)
        return bool(run(checkout / NAME, "--version", env=env).returncode == 0)

    checkout = repaired[0]
    stamp = (checkout / ".tool" / "complete").read_text()
    pins = checkout / "constraints.txt"
    text = pins.read_text()
    try:
        assert complete(checkout)
        pins.write_text(text + "# one more\n")
        assert not complete(checkout)
        pins.write_text(text)
        moved = checkout.rename(checkout.with_name("elsewhere"))
        assert not complete(moved)
        moved.rename(checkout)
    finally:
        pins.write_text(text)
        (checkout / ".tool" / "complete").write_text(stamp)


@pytest.mark.index
def test_piped_twice_at_once_then_offline(tmp_path: Path) -> None:
    repository = _light(copy_checkout(tmp_path / "repository"))
    for args in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "All"]):
        subprocess.run(["git", "-C", repository, *args], check=True)
    home = tmp_path / "share" / "sage wheels"
    env = {**os.environ, "SAGEWHEELS_REPO": str(repository), "SAGEWHEELS_HOME": str(home)}

    def pipe() -> subprocess.Popen[str]:
        with SCRIPT.open() as script:
            return start("bash", "-s", "--", "--version", stdin=script, env=env)

    first = pipe()
    wait_for(home / ".git" / "HEAD", first)
    second = pipe()
    (first_out, first_err), (second_out, second_err) = first.communicate(), second.communicate()
    assert (first.returncode, second.returncode) == (0, 0), first_err + second_err
    assert __version__ in first_out and __version__ in second_out
    assert first_err == f"[setup] making the tool's environment in {home}/.tool (once)\n"
    assert second_err == f"[setup] waiting for another set-up in {home}\n"

    (repository / "sagewheels" / "__init__.py").write_text('__version__ = "7.7.7"\n')
    subprocess.run(["git", "-C", repository, "commit", "-q", "-a", "-m", "Newer"], check=True)
    (home / ".git" / "shallow.lock").touch()
    (home / ".env").write_text("TORCH_CHANNEL=stable\n")
    newer = pipe().communicate()
    assert "7.7.7" in newer[0] and newer[1] == ""
    assert (home / ".env").read_text() == "TORCH_CHANNEL=stable\n"

    repository.rename(tmp_path / "gone")
    out, err = pipe().communicate()
    assert "7.7.7" in out
    assert err.startswith("[setup] cannot update (fatal: ") and err.endswith(f"going on with what is in {home}\n")
    assert err.count("\n") == 1


def _light(checkout: Path) -> Path:
    """The checkout without its dependencies, whose installation another test sees."""
    project = checkout / "pyproject.toml"
    before, _, rest = project.read_text().partition("\ndependencies = [")
    project.write_text(f"{before}\ndependencies = []\n{rest.partition(chr(10) + ']' + chr(10))[2]}")
    (checkout / "sagewheels" / "__main__.py").write_text("import sagewheels\nprint(sagewheels.__version__)\n")
    return checkout


def _refusal(env: dict[str, str], *, stdin: str = "", script: Path = SCRIPT) -> str:
    """The one line that a run which cannot work prints; nothing may be on stdout."""
    done = run(*(["bash", "-s", "--", "--version"] if stdin else [script, "--version"]), stdin=stdin, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    return str(done.stderr).rstrip("\n")


def test_too_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -c "import sys; sys.version_info = (3, 9, 18)\n$3"\n')
    old.chmod(0o755)
    line = _refusal({"SAGEWHEELS_PYTHON": str(old)}, script=copy_checkout(tmp_path / "checkout") / NAME)
    assert line == (
        f"No Python 3.10+ runs (tried {old}). "
        "Install one (apt-get install python3 python3-venv) or set SAGEWHEELS_PYTHON."
    )
    assert not (tmp_path / "checkout" / ".tool").exists()


def test_no_python_that_runs(tmp_path: Path) -> None:
    path = toolbox(tmp_path / "bin")
    trap(tmp_path / "shims", "python3.13", "python3")
    line = _refusal({"PATH": f"{path}:{tmp_path}/shims"}, script=copy_checkout(tmp_path / "checkout") / NAME)
    assert line.startswith("No Python 3.10+ runs (tried python3.13 python3.12 python3.11 python3.10 python3). Install")


def test_python_without_venv(tmp_path: Path) -> None:
    bare = tmp_path / "python3.12"
    bare.write_text(
        '#!/bin/sh\ncase "$3" in *ensurepip*) exit 1;; esac\n'
        f'exec "{sys.executable}" -I -c "import sys; sys._base_executable = \'$0\'\n$3"\n'
    )
    bare.chmod(0o755)
    env = {"PATH": toolbox(tmp_path / "bin"), "SAGEWHEELS_PYTHON": str(bare)}
    line = _refusal(env, script=copy_checkout(tmp_path / "checkout") / NAME)
    assert line == f"{bare} lacks venv. Install it (apt-get install python3.12-venv) or uv."


def test_piped_without_git(tmp_path: Path) -> None:
    env = {"PATH": toolbox(tmp_path / "bin", without="git"), "SAGEWHEELS_HOME": str(tmp_path / "home")}
    assert _refusal(env, stdin=SCRIPT.read_text()) == "git is missing. Install it (apt-get install git)."


def test_piped_into_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years of work\n")
    line = _refusal({"SAGEWHEELS_HOME": str(tmp_path / "work")}, stdin=SCRIPT.read_text())
    assert line.startswith(f"{tmp_path}/work holds something else, which would be overwritten. Set SAGEWHEELS_HOME")
    assert not (tmp_path / "work" / ".git").exists()


def test_piped_without_a_network_and_nothing_here(tmp_path: Path) -> None:
    env = {"SAGEWHEELS_REPO": str(tmp_path / "nothing"), "SAGEWHEELS_HOME": str(tmp_path / "home")}
    line = _refusal(env, stdin=SCRIPT.read_text())
    assert line.startswith("The repository cannot be fetched (fatal: ")
    assert line.endswith("Check the network, SAGEWHEELS_REPO and SAGEWHEELS_REF.")


def test_half_a_download_runs_nothing(tmp_path: Path) -> None:
    lines = SCRIPT.read_text().splitlines(keepends=True)
    done = run("bash", "-s", stdin="".join(lines[:-1]), env={"SAGEWHEELS_HOME": str(tmp_path / "home")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "home").exists()


def test_it_is_short_and_shellcheck_is_silent() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 80
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed: it comes with the extra `lint`")
    done = run(shellcheck, SCRIPT, ROOT / ".ci" / "run")
    assert (done.returncode, done.stdout) == (0, "")
