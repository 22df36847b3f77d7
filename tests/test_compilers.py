"""The compilers of a build, with real launchers, sockets and processes; what compiles are strict little scripts."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sagewheels import compilers, launcher
from sagewheels.compilers import Compilers, Tools
from sagewheels.errors import BuildFailed
from sagewheels.resources import ROOT
from sagewheels.schedule import Appetite, Pool

FAKE = """\
#!{python} -IS
# A compiler that takes its orders from the source, and refuses what the real ones would not understand.
import os, signal, sys, time

argv, calls = sys.argv[1:], os.environ["CALLS"]
with open(calls, "a") as stream:
    print(os.getpid(), *argv, sep="\\t", file=stream)
if "-c" not in argv:
    print("passed through:", *argv)
    sys.exit(7)
source, output = argv[argv.index("-c") + 1], argv[argv.index("-o") + 1]
assert argv[argv.index("-MF") + 1] == output + ".d" and "-MD" in argv, argv
assert not os.path.isabs(source) and not os.path.isabs(output), argv
part = [word for word in argv if word.startswith("-DSAGE_PART=")]
found, content = [source], []
for line in open(source):
    word, _, rest = line.strip().partition(" ")
    if word == "#part":
        if part != ["-DSAGE_PART=" + rest[0]]:
            continue
        word, _, rest = rest[2:].partition(" ")
    if word == "#include":
        folders = [flag[2:] for flag in argv if flag.startswith("-I")]
        places = [place for place in (os.path.join(folder, rest) for folder in folders) if os.path.exists(place)]
        if not places:
            sys.exit(source + ":1: fatal error: " + rest + ": No such file or directory")
        found.append(places[0])
        content.append(open(places[0]).read())
        if "#unfit" in content[-1]:
            sys.exit(places[0] + ":1: error: unfit")
    elif word == "#say":
        print(rest, flush=True)
    elif word == "#sleep":
        time.sleep(float(rest))
    elif word == "#fail":
        sys.exit(source + ":1: error: " + rest)
    elif word == "#killed":
        if sum("\\t" + source + "\\t" in call for call in open(calls)) <= int(rest):
            print("so far", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        content.append(line)
open(output, "w").write("compiled: " + "".join(content))
open(output + ".d", "w").write(output + ": " + " ".join(found) + "\\n")
"""


@dataclass
class Place:
    """A source, its fake compilers, and the object cache."""

    folder: Path
    cache: Path
    calls: Path
    parts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cores: int = 4
    cxx: tuple[str, ...] = ()
    shims: str = ""
    served: int = 0

    def source(self, name: str, text: str) -> str:
        path = self.folder / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    def compiled(self) -> list[str]:
        """The sources that a compiler was run for, in that order."""
        lines = self.calls.read_text(encoding="utf-8").splitlines() if self.calls.exists() else []
        words = [line.split("\t") for line in lines]
        return [argv[argv.index("-c") + 1] for argv in words if "-c" in argv]

    def pid(self, name: str) -> int:
        """The compiler that runs for this source."""
        until(lambda: f"src/{name}" in self.compiled())
        lines = self.calls.read_text(encoding="utf-8").splitlines()
        return next(int(line.split("\t")[0]) for line in lines if f"src/{name}" in line.split("\t"))

    def tools(self) -> Tools:
        roots = {"src": self.folder / "src", "cuda": self.folder / "cuda"}
        return Tools(
            programs={"nvcc": ("cuda/bin/nvcc",), "cxx": self.cxx or (str(self.folder / "bin" / "g++"),)},
            identities={"nvcc": "V13.0", "cxx": "g++ 13"},
            roots={**roots, "shims": self.folder / "shims"} if self.shims else roots,
            shims=self.shims,
        )

    def made(self) -> Compilers:
        self.served += 1
        return Compilers(
            self.tools(),
            self.folder / f"out{self.served}",
            Pool(self.cores, 1000, settle=0.1),
            self.cache,
            appetite=lambda source: Appetite(seconds=self.seconds.get(source, 1), memory=1),
            parts=lambda source: self.parts.get(source, 1),
        )


def place_at(folder: Path, cache: Path) -> Place:
    text = FAKE.format(python=sys.executable)
    for path in (folder / "bin" / "g++", folder / "cuda" / "bin" / "nvcc"):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Place(folder, cache, folder / "calls")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_at(tmp_path / "place", tmp_path / "cache")


@dataclass
class Running:
    """A build that is being answered."""

    place: Place
    compilers: Compilers
    env: Mapping[str, str]

    def start(self, variable: str, *argv: str) -> subprocess.Popen[str]:
        """A command of the build; the launcher makes itself a process group of its own."""
        return subprocess.Popen(
            [self.env[variable], *argv],
            cwd=self.place.folder / "src",
            env={**os.environ, "CALLS": str(self.place.calls)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def compile(self, name: str, text: str = "x\n", *flags: str) -> subprocess.Popen[str]:
        source = self.place.source(name, text)
        made = self.object(name)
        variable = "PYTORCH_NVCC" if name.endswith(".cu") else "CXX"
        return self.start(variable, "-MMD", "-MF", f"{made}.d", *flags, "-c", source, "-o", str(made))

    def object(self, name: str) -> Path:
        return self.place.folder / f"objects{self.place.served}" / f"{name}.o"


@contextmanager
def serving(place: Place) -> Iterator[Running]:
    made = place.made()
    with made.serving() as env:
        yield Running(place, made, env)


def ended(process: subprocess.Popen[str], seconds: float = 10) -> tuple[int, str]:
    """Exit code and output of a launcher."""
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int, seconds: float = 3) -> bool:
    """Whether the process ends in good time; ended here otherwise, so that no test leaves one behind."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    left = alive(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    return not left


# What is made


@pytest.mark.parametrize("name", ["a.cu", "a.cpp"])
def test_a_unit_is_compiled_once(place: Place, name: str) -> None:
    text = "#say a.cu(1): warning: the words of a compiler\n#include a.h\ncode\n"
    place.source("a.h", "header\n")
    with serving(place) as build:
        said = ended(build.compile(name, text, f"-I{place.folder}/src"))
        assert said == (0, "a.cu(1): warning: the words of a compiler\n")
        assert build.object(name).read_text() == "compiled: header\ncode\n"
        assert build.compilers.counted() == compilers.Counted(done=1, known=1, reused=0, running=())
    with serving(place) as build:
        assert ended(build.compile(name, text, f"-I{place.folder}/src")) == (0, "")
        assert build.object(name).read_text() == "compiled: header\ncode\n"
        assert build.compilers.counted() == compilers.Counted(done=1, known=1, reused=1, running=())
        assert build.compilers.problem is None
    assert place.compiled() == [f"src/{name}"]
    place.source("a.h", "another\n")
    with serving(place) as build:
        assert ended(build.compile(name, text, f"-I{place.folder}/src"))[0] == 0
        assert build.object(name).read_text() == "compiled: another\ncode\n"
        assert build.compilers.counted().reused == 0


@pytest.mark.parametrize("flag", ["-Iinclude", "-I../src/include"])
def test_headers_are_found_from_where_the_command_stands(place: Place, flag: str) -> None:
    place.source("include/a.h", "header\n")
    with serving(place) as build:
        assert ended(build.compile("a.cpp", "#include a.h\n", flag)) == (0, "")
        assert build.object("a.cpp").read_text() == "compiled: header\n"


def test_another_machine_finds_what_the_first_has_compiled(place: Place, tmp_path: Path) -> None:
    other = place_at(tmp_path / "elsewhere" / "deep", place.cache)
    for one in (place, other):
        one.source("a.h", "header\n")
        with serving(one) as build:
            assert ended(build.compile("a.cu", "#include a.h\n", f"-I{one.folder}/src")) == (0, "")
            assert build.object("a.cu").read_text() == "compiled: header\n"
    assert (place.compiled(), other.compiled()) == (["src/a.cu"], [])


def test_two_builds_at_once_share_a_cache(place: Place, tmp_path: Path) -> None:
    other = place_at(tmp_path / "other", place.cache)
    with serving(place) as one, serving(other) as two:
        names = [f"{number}.cu" for number in range(4)]
        started = [(build, name, build.compile(name, f"{name}\n")) for name in names for build in (one, two)]
        for build, name, process in started:
            assert ended(process) == (0, "")
            assert build.object(name).read_text() == f"compiled: {name}\n"
    with serving(place) as build:
        for name in names:
            assert ended(build.compile(name, f"{name}\n")) == (0, "")
        assert build.compilers.counted().reused == 4


CXX = shutil.which("c++")
IN_PARTS = """
#ifdef SAGE_PART
#if SAGE_PART == 0
int zero() { return 40; }
#else
int one() { return 2; }
#endif
#else
#error not in parts
#endif
"""


@pytest.mark.skipif(not CXX or not shutil.which("ld"), reason="needs a C++ compiler")
def test_a_unit_in_parts_is_one_object(place: Place, tmp_path: Path) -> None:
    assert CXX
    place.cxx, place.parts = (CXX,), {"parts.cpp": 2}
    for reused in (0, 2):
        with serving(place) as build:
            assert ended(build.compile("parts.cpp", IN_PARTS, "-fPIC")) == (0, "")
            counted = build.compilers.counted()
            assert (counted.done, counted.known, counted.reused) == (2, 2, reused)
            main = tmp_path / "main.cpp"
            main.write_text("int zero(); int one(); int main() { return zero() + one(); }")
            subprocess.run([CXX, main, build.object("parts.cpp"), "-o", tmp_path / "program"], check=True)
            assert subprocess.run([tmp_path / "program"], check=False).returncode == 42


@pytest.mark.skipif(not CXX or not shutil.which("ld"), reason="needs a C++ compiler")
def test_a_source_that_heeds_no_parts(place: Place) -> None:
    assert CXX
    place.cxx, place.parts = (CXX,), {"csrc/all.cpp": 3}
    line = (
        "csrc/all.cpp in 3 parts does not join: multiple definition of `all()'. "
        'Does the source heed SAGE_PART? Else take parts out of [unit."csrc/all.cpp"].'
    )
    with serving(place) as build:
        assert ended(build.compile("csrc/all.cpp", "int all() { return 1; }\n")) == (1, f"BuildFailed: {line}\n")
        assert str(build.compilers.problem) == line


@pytest.mark.parametrize(
    ("variable", "argv"), [("PYTORCH_NVCC", ["--version"]), ("CXX", ["-v"]), ("CXX", ["-shared", "a b.o", "-o", "x"])]
)
def test_what_compiles_nothing_passes_through(place: Place, variable: str, argv: list[str]) -> None:
    place.source("a.cpp", "")
    with serving(place) as build:
        assert ended(build.start(variable, *argv)) == (7, f"passed through: {' '.join(argv)}\n")
        assert build.compilers.counted().known == 0


# What goes wrong


def test_what_was_killed_for_memory_is_compiled_again_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(place) as build:
        other = build.compile("other.cu", "#sleep 1\n")
        pid = place.pid("other.cu")
        assert ended(build.compile("big.cu", "#killed 1\ncode\n")) == (0, "")
        assert not alive(pid), "nothing else ran meanwhile"
        assert ended(other) == (0, "")
        assert build.object("big.cu").read_text() == "compiled: code\n"
    assert place.compiled() == ["src/other.cu", "src/big.cu", "src/big.cu"]
    assert capsys.readouterr().out == "[build] big.cu was killed for want of memory: once more, alone\n"


def test_what_is_killed_twice_fails(place: Place) -> None:
    with serving(place) as build:
        assert ended(build.compile("big.cu", "#killed 2\ncode\n")) == (9, "so far\n")
        assert not build.object("big.cu").exists()
    assert place.compiled() == ["src/big.cu"] * 2


def with_shims(place: Place, text: str) -> None:
    for name in ("nvcc", "cxx"):
        (place.folder / "shims" / name).mkdir(parents=True)
        (place.folder / "shims" / name / "torch.h").write_text(text)
    place.source("include/torch.h", "torch's own\n")
    place.shims = "ab" * 32


def test_our_headers_come_before_torchs(place: Place) -> None:
    with_shims(place, "light\n")
    with serving(place) as build:
        assert ended(build.compile("a.cu", "#include torch.h\n", f"-I{place.folder}/src/include")) == (0, "")
        assert build.object("a.cu").read_text() == "compiled: light\n"


def test_where_our_headers_do_not_fit_torchs_are_taken(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with_shims(place, "#unfit\n")
    text = "#include torch.h\n"
    for _ in range(2):
        with serving(place) as build:
            assert ended(build.compile("a.cu", text, f"-I{place.folder}/src/include")) == (0, "")
            assert build.object("a.cu").read_text() == "compiled: torch's own\n"
    line = "[build] a.cu does not compile with our light headers: once more, with torch's own\n"
    assert capsys.readouterr().out == line, "and the second build knows it"
    assert place.compiled() == ["src/a.cu"] * 2


def test_torchs_own_headers_may_want_all_the_memory(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """They are the heavier ones: what is killed with them is compiled once more, alone, as any other."""
    with_shims(place, "#unfit\n")
    text = "#include torch.h\n#killed 2\n"
    with serving(place) as build:
        assert ended(build.compile("a.cu", text, f"-I{place.folder}/src/include")) == (0, "")
    assert len(place.compiled()) == 3
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_error_is_told_with_torchs_own_headers(place: Place) -> None:
    with_shims(place, "light\n")
    with serving(place) as build:
        said = ended(build.compile("a.cu", "#include torch.h\n#fail no\n", f"-I{place.folder}/src/include"))
    assert said == (1, "src/a.cu:1: error: no\n")
    assert place.compiled() == ["src/a.cu"] * 2


def test_a_unit_that_fails_ends_the_build_at_once(place: Place) -> None:
    place.cores = 2
    with serving(place) as build:
        long = build.compile("long.cu", "#sleep 30\n")
        bad = build.compile("bad.cu", "#sleep 0.5\n#fail the reason\n")
        pid = place.pid("long.cu")
        place.pid("bad.cu")
        waiting = [build.compile(name) for name in ("one.cu", "two.cu")]
        assert ended(bad) == (1, "src/bad.cu:1: error: the reason\n")
        assert [ended(process, 3) for process in (long, *waiting)] == [(1, "")] * 3
        assert gone(pid)
        assert ended(build.compile("late.cu")) == (1, "")
    assert sorted(place.compiled()) == ["src/bad.cu", "src/long.cu"]


def test_a_part_that_fails_does_not_wait_for_the_others(place: Place) -> None:
    place.parts = {"a.cu": 3}
    with serving(place) as build:
        text = "#part 0 #sleep 30\n#part 2 #sleep 30\n#part 1 #fail the reason\n"
        assert ended(build.compile("a.cu", text), 5) == (1, "src/a.cu:1: error: the reason\n")
    for line in place.calls.read_text().splitlines():
        assert gone(int(line.split("\t")[0]))


def test_a_launcher_that_is_killed_does_not_keep_its_core(place: Place) -> None:
    """The others would wait for it for ever, and ninja for them."""
    place.cores = 1
    with serving(place) as build:
        first = build.compile("first.cu", "#sleep 30\n")
        pid = place.pid("first.cu")
        second = build.compile("second.cu")
        first.kill()
        # Whether it is still started or ended with the build, it does not wait.
        assert ended(second, 5)[0] in (0, 1)
        first.wait()
        os.kill(pid, signal.SIGKILL)
        assert first.stdout
        first.stdout.close()


def test_a_compiler_that_is_not_there(place: Place) -> None:
    place.cxx = (str(place.folder / "none"),)
    with serving(place) as build:
        program = place.folder / "none"
        said = ended(build.compile("a.cpp"))
        assert said == (127, f"{program}: [Errno 2] No such file or directory: '{program}'\n")


def test_a_problem_of_ours_is_told_to_the_build_and_to_us(place: Place) -> None:
    with serving(place) as build:
        build.object("a.cu").mkdir(parents=True)
        code, text = ended(build.compile("a.cu"))
        assert (code, text.partition(":")[0]) == (1, "IsADirectoryError")
        assert isinstance(build.compilers.problem, IsADirectoryError)


def test_a_folder_for_sockets_with_too_long_a_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    long = place.folder / ("ü" * 40)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(BuildFailed) as caught, place.made().serving():
        pytest.fail("it was served")
    assert str(caught.value) == f"TMPDIR {long} is too long a name. Set TMPDIR to a short one."


# Nothing is left behind

SERVER = """
import sys
from pathlib import Path
from sagewheels import proc
from sagewheels.compilers import Compilers, Tools
from sagewheels.schedule import Appetite, Pool

folder = Path(sys.argv[1])
tools = Tools(
    programs={"nvcc": ("cuda/bin/nvcc",), "cxx": (str(folder / "bin" / "g++"),)},
    identities={"nvcc": "V13.0", "cxx": "g++ 13"},
    roots={"src": folder / "src", "cuda": folder / "cuda"},
)
appetite = Appetite(seconds=1, memory=1)
pool = Pool(4, 1000, settle=0.1)
served = Compilers(tools, folder / "out", pool, folder / "cache", appetite=lambda name: appetite, parts=lambda name: 2)
with (folder / "log").open("w") as log, served.serving() as env:
    rules = (folder / "rules.ninja").read_text()
    (folder / "build.ninja").write_text(f"nvcc = {env['PYTORCH_NVCC']}\\n{rules}")
    with proc.stream(["ninja", "-C", folder, "-v", "-j", "8"], log=log) as process:
        process.wait()
print(process.returncode, served.counted().done)
"""
RULES = """
rule cuda
  depfile = $out.d
  deps = gcc
  command = $nvcc --generate-dependencies-with-compile --dependency-output $out.d -c $in -o $out
"""


def under_ninja(place: Place, sources: Mapping[str, str], before: str = "") -> subprocess.Popen[str]:
    """A process of its own that answers the compilers of a real ninja, as build does; `before` is run first."""
    rules = RULES
    for name, text in sources.items():
        source = place.source(name, text).replace(" ", "$ ")
        made = str(place.folder / "objects" / f"{name}.o").replace(" ", "$ ")
        rules += f"build {made}: cuda {source}\n"
    (place.folder / "rules.ninja").write_text(rules)
    return subprocess.Popen(
        [sys.executable, "-c", before + SERVER, str(place.folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CALLS": str(place.calls)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job that a script put into the background ignores SIGINT, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no threads here
    )


needs_ninja = pytest.mark.skipif(not shutil.which("ninja"), reason="needs ninja")


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue
    return found + [below for one in found for below in descendants(one)]


@needs_ninja
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_what_the_build_started_ends_with_it(place: Place, kind: signal.Signals) -> None:
    """ninja, which gives each job a process group of its own, the launchers, and the compilers of each."""
    with under_ninja(place, {"a.cu": "#sleep 30\n", "b.cu": "#sleep 30\n"}) as process:
        until(lambda: len(place.compiled()) == 4)
        below = descendants(process.pid)
        assert len(below) >= 1 + 2 + 4
        process.send_signal(kind)
        assert process.wait(10) != 0
        assert [pid for pid in below if not gone(pid, 2)] == []


@needs_ninja
def test_a_cache_that_does_not_answer_holds_nobody(place: Place) -> None:
    """An NFS server that is gone: Ctrl-C ends the build all the same."""
    before = """
import pathlib, sys, time
from sagewheels.objects import Objects
def find(*_):
    pathlib.Path(sys.argv[1], "asked").touch()
    time.sleep(30)
Objects.find = find
"""
    with under_ninja(place, {"a.cu": "code\n"}, before) as process:
        until((place.folder / "asked").exists)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(5) != 0
        finally:
            process.kill()


@needs_ninja
def test_the_word_killed_is_in_no_log_of_a_compile_error(place: Place) -> None:
    """The compilers that are ended for it would else be taken for the reason."""
    with under_ninja(place, {"a.cu": "#sleep 30\n", "b.cu": "#sleep 0.2\n#fail the reason\n"}) as process:
        out, err = process.communicate(timeout=10)
    log = (place.folder / "log").read_text()
    assert (out, err) == ("1 0\n", "")
    assert "error: the reason" in log and "Killed" not in log and "Traceback" not in log, log
    assert "FAILED" in log


@needs_ninja
def test_folders_with_blanks(tmp_path: Path) -> None:
    place = place_at(tmp_path / "a b", tmp_path / "cache")
    compiler = place.folder / "cuda" / "bin" / "nvcc"
    # Objects of a fake compiler cannot be joined: one that is real enough for ld.
    compiler.write_text(compiler.read_text() + 'os.system("echo | as -o " + output)\n')
    with under_ninja(place, {"a.cu": "code\n"}) as process:
        out, err = process.communicate(timeout=10)
    assert (out, err) == ("0 2\n", ""), (place.folder / "log").read_text()
    assert (place.folder / "objects" / "a.cu.o").exists()


# The launcher


def test_a_launcher_without_its_build_fails_without_a_word(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", launcher.__file__, str(tmp_path / "socket"), "nvcc", "-c", "a.cu"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_the_output_of_a_compiler_needs_no_language(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """g++ quotes with more than ASCII; the launcher must not stumble over it."""
    monkeypatch.setenv("LC_ALL", "POSIX")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    with serving(place) as build:
        process = build.compile("a.cu", "#say «quoted»\n")
        assert process.stdout
        raw = process.stdout.buffer.read()  # type: ignore[attr-defined]
        assert (process.wait(10), raw.decode()) == (0, "«quoted»\n")
        process.stdout.close()


def test_a_thread_that_lags_is_no_compiler_that_still_runs(tmp_path: Path) -> None:
    """The last order may come before the thread of the last compile has ended."""
    code = f"""
import sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from sagewheels import launcher
class Lagging(threading.Thread):
    def run(self):
        super().run()
        time.sleep(1)
threading.Thread = Lagging
sys.exit(launcher.main(*sys.argv[1:3], sys.argv[3:]))
"""
    place = place_at(tmp_path / "place", tmp_path / "cache")
    with serving(place) as build:
        path = Path(build.env["PYTORCH_NVCC"])
        words = shlex.split(path.read_text().splitlines()[1])
        address = words[words.index(launcher.__file__) + 1]
        made = build.object("a.cu")
        argv = [sys.executable, "-c", code, address, "nvcc", "-c", place.source("a.cu", "x"), "-o", str(made)]
        done = subprocess.run(argv, env={**os.environ, "CALLS": str(place.calls)}, check=False, timeout=10)
        assert done.returncode == 0
        assert made.exists()


def test_the_launcher_needs_nothing_but_the_standard_library() -> None:
    """It runs for each command, in a bare interpreter."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import launcher; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code, str(ROOT / "sagewheels")]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert not {"typing", "pathlib", "sagewheels"} & set(done.stdout.split())
