"""The target: real environments, asked by the real probe; and interpreters that answer badly."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import target
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.resources import probe_source
from sagewheels.target import TOOL_MARKER, Target
from tests import wheels

REMEDY = "Set PYTHON_BIN to a CPython 3.9 or newer."


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment that no test of this module changes."""
    return wheels.venv(tmp_path_factory.mktemp("shared") / "env")


def settings(python: str | Path = "", **environ: str) -> Settings:
    return Settings(python_bin=str(python), environ={"PATH": os.environ["PATH"], **environ})


def refused(given: Settings, *packages: str) -> str:
    """The line for the user when there is no such target."""
    with pytest.raises(UsageError) as caught:
        target.probe(given, *packages)
    assert caught.value.code == 2
    return str(caught.value)


def other_python(minor: int) -> str:
    """A real python3.<minor>, on PATH or kept by pyenv; where there is none, the test is skipped."""
    kept = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".pyenv" / "versions"
    for path in (shutil.which(f"python3.{minor}"), *kept.glob(f"3.{minor}.*/bin/python")):
        # On PATH it may be a shim of pyenv, which answers only for the versions that are switched on.
        if path and subprocess.run([path, "-V"], capture_output=True, check=False).returncode == 0:
            return str(path)
    pytest.skip(f"needs python3.{minor}")


def answering(path: Path, python: Path, **changes: Any) -> Path:
    """An interpreter that tells the facts of `python` with some of them changed."""
    text = f"""#!{python}
import io, json, sys
out, sys.stdout = sys.stdout, io.StringIO()
source, sys.argv = sys.argv[3], ["-c", sys.argv[4]]
exec(compile(source, "probe", "exec"), {{"__name__": "__main__"}})
facts = dict(json.loads(sys.stdout.getvalue()), **json.loads({json.dumps(changes)!r}))
print(json.dumps(facts), file=out)
"""
    return wheels.script(path, text)


def test_facts_of_an_environment(shared: Path) -> None:
    found = target.probe(settings(shared))
    assert (found.python, found.prefix, found.site) == (shared, shared.parent.parent, wheels.site(shared))
    assert found.version == sys.version.split()[0]
    assert found.machine == os.uname().machine
    assert (found.torch, found.versions, found.dist_info) == (None, {}, {})
    assert found.writable and not found.externally_managed
    assert found.has_python_h == (found.include / "Python.h").exists()
    assert found.soabi.startswith("cpython-")


def test_the_probe_leaves_nothing_behind(shared: Path) -> None:
    before = wheels.tree(shared.parent.parent)
    target.probe(settings(shared), "pip")
    assert wheels.tree(shared.parent.parent) == before


def test_versions_of_the_stack_and_of_what_is_asked_for(tmp_path: Path) -> None:
    python = wheels.venv(tmp_path / "env")
    for name, version in (("triton", "3.6.0"), ("torchvision", "0.26.0+cu130"), ("tinyattn", "1.0"), ("other", "2")):
        wheels.put_distribution(python, name, version)
    found = target.probe(settings(python), "tinyattn", "missing")
    assert found.versions == {"triton": "3.6.0", "torchvision": "0.26.0+cu130", "tinyattn": "1.0"}
    assert found.dist_info["tinyattn"] == found.site / "tinyattn-1.0.dist-info"


def test_tags_are_those_of_the_target(shared: Path) -> None:
    found = target.probe(settings(shared))
    native = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert (found.python_tag, found.tags[-1]) == (native, "py30-none-any")
    assert {f"{native}-{native}-linux_{found.machine}", f"cp39-abi3-linux_{found.machine}", "py3-none-any"} <= {
        *found.tags
    }
    assert f"cp38-cp38-linux_{found.machine}" not in found.tags


@pytest.mark.parametrize(
    ("version", "free_threaded", "native"),
    [("3.9.18", False, "cp39"), ("3.12.1", False, "cp312"), ("3.13.0", True, "cp313t")],
)
def test_tags_of_another_python_than_ours(
    tmp_path: Path, shared: Path, version: str, free_threaded: bool, native: str
) -> None:
    python = answering(tmp_path / "python", shared, version=version, free_threaded=free_threaded)
    found = target.probe(settings(python))
    interpreter = native.removesuffix("t")
    assert (found.version, found.python_tag) == (version, native)
    assert f"{interpreter}-{native}-linux_{found.machine}" in found.tags
    assert all(tag.split("-")[1] in (native, "abi3", "abi3t", "none") for tag in found.tags)
    # A free-threaded interpreter loads no module of the stable ABI.
    assert any("-abi3-" in tag for tag in found.tags) != free_threaded


@pytest.mark.parametrize("minor", [9, 10, 12, 13])
def test_a_real_python_of_another_version(tmp_path: Path, minor: int) -> None:
    python = other_python(minor)
    found = target.probe(settings(python))
    assert found.python_tag.startswith(f"cp3{minor}")


def test_a_python_that_is_named(shared: Path, tmp_path: Path) -> None:
    wheels.script(tmp_path / "bin" / "mypython", f'#!/bin/sh\nexec {shared} "$@"\n')
    given = settings("mypython", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert target.locate(given) == (tmp_path / "bin" / "mypython", "PYTHON_BIN")
    assert target.probe(given).prefix == shared.parent.parent


def test_a_relative_path_is_made_absolute(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shared.parent)
    assert target.locate(settings("./python"))[0] == shared


def test_a_python_in_the_home(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.env` file has no shell that would expand it; in the folders that it names, ~ is expanded."""
    monkeypatch.setenv("HOME", str(shared.parent.parent))
    given = settings("~/bin/python", HOME=str(shared.parent.parent))
    assert target.probe(given).prefix == shared.parent.parent


@pytest.mark.parametrize("name", ["nonsense", "/nowhere/python", "/"])
def test_a_python_that_is_not_there(name: str) -> None:
    line = f"PYTHON_BIN={name} cannot be run. Give the path of a python executable."
    assert refused(settings(name)) == line


def test_who_comes_first(shared: Path, tmp_path: Path) -> None:
    """PYTHON_BIN, the virtual environment, the conda environment, python3 on PATH."""
    pythons = {name: wheels.script(tmp_path / name / "bin" / "python", "") for name in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    on_path = wheels.script(tmp_path / "path" / "python3", "")
    environ = {name: str(path.parent.parent) for name, path in pythons.items()} | {"PATH": str(on_path.parent)}
    chosen = [target.locate(settings(shared, **environ))]
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "PATH"):
        chosen.append(target.locate(settings(**environ)))
        del environ[name]
    assert chosen == [
        (shared, "PYTHON_BIN"),
        (pythons["VIRTUAL_ENV"], "the active environment (VIRTUAL_ENV)"),
        (pythons["CONDA_PREFIX"], "the active environment (CONDA_PREFIX)"),
        (on_path, "python3 on PATH"),
    ]


def test_nobody(tmp_path: Path) -> None:
    line = "no Python to install into was found. Set PYTHON_BIN, or activate an environment."
    assert refused(settings(PATH=str(tmp_path))) == line


@pytest.mark.parametrize("name", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_environment_that_was_removed(tmp_path: Path, name: str) -> None:
    """It must not fall through to another python, which the user did not mean."""
    line = f"{name} is set, but {tmp_path}/gone/bin/python does not exist. Activate it again, or set PYTHON_BIN."
    assert refused(settings(**{name: f"{tmp_path}/gone"})) == line


@pytest.mark.parametrize("by", ["PYTHON_BIN", "VIRTUAL_ENV", "CONDA_PREFIX", "PATH"])
def test_the_own_environment_is_never_a_target(tmp_path: Path, by: str) -> None:
    python = wheels.script(tmp_path / "env" / "bin" / "python", "")
    (python.parent / "python3").symlink_to("python")
    (tmp_path / "env" / TOOL_MARKER).touch()
    given = {
        "PYTHON_BIN": settings(python),
        "VIRTUAL_ENV": settings(VIRTUAL_ENV=str(tmp_path / "env")),
        "CONDA_PREFIX": settings(CONDA_PREFIX=str(tmp_path / "env")),
        "PATH": settings(PATH=str(python.parent)),
    }[by]
    shown = python.parent / "python3" if by == "PATH" else python
    line = f"{shown} belongs to sagewheels itself. Set PYTHON_BIN to the Python that runs your code."
    assert refused(given) == line


def test_a_broken_interpreter(tmp_path: Path) -> None:
    python = wheels.script(tmp_path / "python", "#!/bin/sh\necho 'libpython3.12.so.1.0: cannot open' >&2\nexit 127\n")
    line = f"{python} (PYTHON_BIN) does not answer: libpython3.12.so.1.0: cannot open. {REMEDY}"
    assert refused(settings(python)) == line


def test_an_interpreter_whose_own_interpreter_is_gone(tmp_path: Path) -> None:
    python = wheels.script(tmp_path / "python", "#!/nowhere/python\n")
    assert refused(settings(python)) == (
        f"{python} cannot be run (No such file or directory). Install python, or correct its path."
    )


@pytest.mark.parametrize("text", ["", "hello", '{"version": '])
def test_a_script_that_prints_something_else(tmp_path: Path, text: str) -> None:
    python = wheels.script(tmp_path / "python", f"#!/bin/sh\necho '{text}'\n")
    assert refused(settings(python)) == f"{python} (PYTHON_BIN) printed something else than its facts. {REMEDY}"


@pytest.mark.parametrize(
    "text", ["42", "{}", "[]", '{"version": "3.12.1"}', '{"version": 3, "implementation": "cpython"}']
)
def test_a_script_that_prints_other_json(tmp_path: Path, text: str) -> None:
    python = wheels.script(tmp_path / "python", f"#!/bin/sh\necho '{text}'\n")
    assert refused(settings(python)) == f"{python} (PYTHON_BIN) printed something else than its facts. {REMEDY}"


def test_what_is_printed_before_the_facts_does_not_matter(tmp_path: Path, shared: Path) -> None:
    python = wheels.script(tmp_path / "python", f'#!/bin/sh\necho "Activating ..."\nexec {shared} "$@"\n')
    assert target.probe(settings(python)).prefix == shared.parent.parent


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"version": "3.8.18"}, "cpython 3.8.18"),
        ({"version": "2.7.18"}, "cpython 2.7.18"),
        ({"implementation": "pypy"}, f"pypy {sys.version.split()[0]}"),
    ],
)
def test_a_python_that_will_not_do(tmp_path: Path, shared: Path, facts: dict[str, str], said: str) -> None:
    python = answering(tmp_path / "python", shared, **facts)
    assert refused(settings(python)) == f"{python} (PYTHON_BIN) is {said}. {REMEDY}"


@pytest.mark.parametrize("minor", [6, 7, 8])
def test_a_real_python_that_is_too_old(minor: int) -> None:
    python = other_python(minor)
    assert f" (PYTHON_BIN) is cpython 3.{minor}." in refused(settings(python))


@pytest.mark.parametrize(
    ("version", "cuda", "public"),
    [
        ("2.11.0+cu130", "13.0", "2.11.0"),
        ("2.12.0.dev20260101+cu128", "12.8", "2.12.0.dev20260101"),
        ("2.10.0+cpu", None, "2.10.0"),
    ],
)
def test_torch_is_read_from_its_files(tmp_path: Path, version: str, cuda: str | None, public: str) -> None:
    python = wheels.venv(tmp_path / "env")
    where = wheels.put_torch(python, version, cuda)
    # The probe must not import it: that takes seconds, and fails where a library is missing.
    (where.parent / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
    found = target.probe(settings(python)).torch
    assert found is not None
    assert (found.folder, found.version, found.cuda, found.public) == (where.parent, version, cuda or "", public)


@pytest.mark.parametrize(
    "text", ["raise RuntimeError('half installed')\n", "__version__ = \n", "", "import nothing_here\n"]
)
def test_a_broken_torch_counts_as_none(tmp_path: Path, text: str) -> None:
    python = wheels.venv(tmp_path / "env")
    wheels.put_torch(python).write_text(text)
    assert target.probe(settings(python)).torch is None


def test_a_torch_without_its_version_file_counts_as_none(tmp_path: Path) -> None:
    """What an uninstall that was cut off leaves: a folder with nothing in it."""
    python = wheels.venv(tmp_path / "env")
    (wheels.site(python) / "torch").mkdir()
    assert target.probe(settings(python)).torch is None


def test_the_source_tree_and_pythonpath_do_not_count(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '9.9'\ncuda = '99.0'\n")
    monkeypatch.chdir(tmp_path)
    assert target.probe(settings(shared, PYTHONPATH=str(tmp_path))).torch is None


def test_an_externally_managed_python(tmp_path: Path, shared: Path) -> None:
    """The real probe, told that this is no virtual environment and where the standard library is."""
    (tmp_path / "stdlib").mkdir()
    text = f"""#!{shared}
import sys, sysconfig
paths = dict(sysconfig.get_paths(), stdlib={str(tmp_path / "stdlib")!r})
sysconfig.get_paths = lambda: paths
sys.base_prefix = sys.prefix
source, sys.argv = sys.argv[3], ["-c", sys.argv[4]]
exec(compile(source, "probe", "exec"), {{"__name__": "__main__"}})
"""
    python = wheels.script(tmp_path / "python", text)
    assert not target.probe(settings(python)).externally_managed
    (tmp_path / "stdlib" / "EXTERNALLY-MANAGED").touch()
    assert target.probe(settings(python)).externally_managed


def test_the_probe_runs_where_it_is_told_to_be_isolated(tmp_path: Path) -> None:
    """-I and one JSON argument: nothing of the caller's environment or folder decides what is found."""
    said = tmp_path / "said"
    python = wheels.script(tmp_path / "python", f'#!/bin/sh\nprintf "%s\\n" "$1" "$2" "$4" > {said}\necho "no" \n')
    refused(settings(python), "tinyattn")
    assert said.read_text().splitlines() == [
        "-I",
        "-c",
        '["torch", "torchvision", "torchaudio", "triton", "tinyattn"]',
    ]


def test_no_secret_reaches_the_target(tmp_path: Path) -> None:
    python = wheels.script(tmp_path / "python", '#!/bin/sh\necho "token=$HF_TOKEN" >&2\nexit 1\n')
    given = replace(settings(python), environ={"PATH": os.environ["PATH"], "HF_TOKEN": "hf_secret"})
    assert refused(given) == f"{python} (PYTHON_BIN) does not answer: token=. {REMEDY}"


def test_the_probe_needs_nothing_but_the_standard_library(shared: Path) -> None:
    source = probe_source("target")
    done = subprocess.run([shared, "-I", "-S", "-c", source, "[]"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["executable"] == str(shared)


@pytest.fixture
def plain(shared: Path) -> Callable[[], Target]:
    return lambda: target.ask(shared, "the target", {"PATH": os.environ["PATH"]}, ())


def test_asking_again_gives_the_same_facts(plain: Callable[[], Target]) -> None:
    assert plain() == plain()
