"""Running programs: real processes, no shell, no secrets, and nothing left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sagewheels import host, proc
from sagewheels.config import SECRETS
from sagewheels.errors import BuildFailed, SageError, StoreError, UsageError


def python(script: str) -> list[str | Path]:
    """An argument list that runs this script."""
    return [sys.executable, "-I", "-S", "-c", script]


def program(path: Path, text: str) -> Path:
    """An executable file."""
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def within(seconds: float, path: Path) -> int:
    """The process id that a child writes to `path`, in good time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.is_file() and (text := path.read_text(encoding="utf-8")).endswith("\n"):
            return int(text)
        time.sleep(0.01)
    raise AssertionError(f"{path.name} was not written")


def gone(pid: int, seconds: float = 3) -> bool:
    """Whether the process ends in good time; ended here otherwise, so that no test leaves one behind."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    left = alive(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    return not left


def test_output_and_code_come_back_and_stdin_is_closed() -> None:
    script = "import sys; print('out'); print('err', file=sys.stderr); print(len(sys.stdin.read())); sys.exit(3)"
    done = proc.run(python(script), timeout=30)
    assert (done.code, done.out, done.err, done.last_line) == (3, "out\n0\n", "err\n", "err")
    assert done.argv == tuple(map(str, python(script)))


def test_a_program_does_not_read_what_is_typed_for_us() -> None:
    """git would ask for a password there; nothing that sagewheels runs may wait for an answer."""
    script = "import sys; from sagewheels import proc; print(proc.run([sys.executable, '-c', sys.argv[1]]).out)"
    env = {**os.environ, "PYTHONPATH": str(Path(proc.__file__).parents[1])}
    argv = [sys.executable, "-c", script, "import sys; print(repr(sys.stdin.read()))"]
    done = subprocess.run(argv, input="typed", env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "''\n\n"


def test_arguments_reach_the_program_as_they_are() -> None:
    words = ["a b", "$HOME", "*", ";", "'"]
    done = proc.run([*python("import sys; print(sys.argv[1:])"), *words], timeout=30)
    assert done.out == f"{words}\n"


def test_output_that_is_no_text_is_still_read() -> None:
    done = proc.run(python(r"import os; os.write(1, b'caf\xe9\n')"), timeout=30)
    assert done.out == "caf�\n"


@pytest.mark.parametrize(
    ("out", "err", "code", "line"),
    [
        ("one\ntwo\n\n", "", 1, "two"),
        ("one\n", "  why  \n \n", 1, "why"),
        ("", "warning: x\nfatal: no such ref\nfatal: second\nPlease make sure", 128, "fatal: no such ref"),
        ("", "", 2, "no output, exit code 2"),
        ("\n", "", -9, "no output, killed by SIGKILL"),
    ],
)
def test_the_line_that_says_something(out: str, err: str, code: int, line: str) -> None:
    assert proc.Result(("x",), code, out, err).last_line == line


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (137, "exit code 137"),
        (-11, "killed by SIGSEGV"),
        (-15, "killed by SIGTERM"),
        (-250, "killed by signal 250"),
    ],
)
def test_how_a_program_ended(code: int, words: str) -> None:
    assert proc.ending(code) == words


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("git", "Install git (apt-get install git)."),
        ("c++", "Install a C++ compiler (apt-get install g++)."),
        ("g++", "Install a C++ compiler (apt-get install g++)."),
        ("uv", "Install uv (pip install uv)."),
        ("nvcc", "Install nvcc, or correct its path."),
    ],
)
def test_a_missing_program_is_named_with_its_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    path = tmp_path / "bin" / name
    line = f"{path} cannot be run (No such file or directory). {remedy}"
    with pytest.raises(UsageError) as caught:
        proc.run([path, "--version"])
    assert str(caught.value) == line
    with (tmp_path / "log").open("w") as log, pytest.raises(UsageError) as caught:
        with proc.stream([path], log=log):
            pass
    assert str(caught.value) == line


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "nvcc").write_text("#!/bin/sh\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"nvcc cannot be run \(Permission denied\)\. Install nvcc, or correct its"):
        proc.run([tmp_path / "nvcc"])
    with pytest.raises(UsageError, match=r"nvcc/bin/nvcc cannot be run \(Not a directory\)"):
        proc.run([tmp_path / "nvcc" / "bin" / "nvcc"])


def test_a_program_of_another_kind_of_machine_is_named(tmp_path: Path) -> None:
    path = program(tmp_path / "nvcc", "neither a script nor a program\n")
    with pytest.raises(UsageError, match=r"nvcc cannot be run \(Exec format error\)"):
        proc.run([path])


def test_an_nvidia_smi_that_cannot_run_is_a_problem_of_the_host(tmp_path: Path) -> None:
    program(tmp_path / "nvidia-smi", "neither a script nor a program\n")
    assert "Exec format error" in host.probe({"PATH": str(tmp_path)}).problem


def test_a_missing_folder_is_not_taken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises((SageError, OSError)) as caught:
        proc.run(python(""), cwd=tmp_path / "gone", timeout=30)
    assert "gone" in str(caught.value)


@pytest.mark.parametrize("kind", [StoreError, BuildFailed])
def test_a_failure_is_raised_as_the_caller_wants_it(kind: type[SageError]) -> None:
    with pytest.raises(kind) as caught:
        proc.run(python("import sys; sys.exit('first\\nlast')"), error=kind, timeout=30)
    assert str(caught.value) == f"{Path(sys.executable).name} failed (exit code 1): last."


def test_the_subcommand_is_part_of_the_line() -> None:
    with pytest.raises(StoreError, match=r"^git frobnicate failed \(exit code 1\): git: 'frobnicate' is not a git"):
        proc.run(["git", "frobnicate"], error=StoreError, timeout=30)


def test_a_signal_is_named() -> None:
    script = "import os; os.kill(os.getpid(), 11)"
    assert proc.run(python(script), timeout=30).code == -11
    with pytest.raises(BuildFailed, match=r"failed \(killed by SIGSEGV\): no output, killed by SIGSEGV\.$"):
        proc.run(python(script), error=BuildFailed, timeout=30)


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"import os, time; print(os.getpid(), file=open({str(pid)!r}, 'w'), flush=True); time.sleep(60)"
    done = proc.run(python(script), timeout=1)
    assert (done.code, done.last_line) == (-9, "did not end within 1 s")
    assert gone(within(1, pid))
    with pytest.raises(StoreError, match=r"failed \(killed by SIGKILL\): did not end within 0\.1 s\.$"):
        proc.run(python("import time; time.sleep(60)"), timeout=0.1, error=StoreError)


def test_secrets_reach_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os; print(sorted(os.environ))"
    given = dict.fromkeys(SECRETS, "hf_secret") | {"LC_ALL": "C.UTF-8", "ITS_OWN": "1"}
    assert proc.run(python(script), env=given, timeout=30).out == "['ITS_OWN', 'LC_ALL']\n"
    for key in SECRETS:
        monkeypatch.setenv(key, "hf_secret")
    monkeypatch.setenv("ITS_OWN", "1")
    inherited = proc.run(python(script), timeout=30).out
    assert "'ITS_OWN'" in inherited
    assert not [key for key in SECRETS if key in inherited]
    with (tmp_path / "log").open("w+") as log:
        with proc.stream(python(script), log=log, env=given) as process:
            assert process.wait(30) == 0
        log.seek(0)
        assert log.read() == "['ITS_OWN', 'LC_ALL']\n"


def test_a_stream_goes_to_its_log_from_both_outputs(tmp_path: Path) -> None:
    script = (
        "import os; os.write(1, b'out\\n'); os.write(2, b'err\\n'); print(os.getcwd(), os.getsid(0) == os.getpid())"
    )
    with (tmp_path / "log").open("w+") as log:
        with proc.stream(python(script), log=log, cwd=tmp_path) as process:
            assert process.wait(30) == 0
        log.seek(0)
        assert log.read() == f"out\nerr\n{tmp_path} True\n"


PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[1], sys.argv[2]])
time.sleep(float(sys.argv[3]))
"""
CHILD = "import os, signal, sys, time; {}; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); time.sleep(60)"


def test_the_end_of_a_stream_ends_its_grandchildren(tmp_path: Path) -> None:
    """As Ctrl-C does: the compilers are children of the build, which is our child."""
    pid = tmp_path / "pid"
    with (tmp_path / "log").open("w") as log, pytest.raises(KeyboardInterrupt):
        with proc.stream([*python(PARENT), CHILD.format("0"), pid, "60"], log=log) as process:
            grandchild = within(10, pid)
            assert alive(process.pid) and alive(grandchild)
            raise KeyboardInterrupt
    assert process.returncode == -signal.SIGTERM
    assert gone(grandchild)


def test_a_stream_that_ended_by_itself_leaves_no_grandchildren(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with (tmp_path / "log").open("w") as log:
        with proc.stream([*python(PARENT), CHILD.format("0"), pid, "0"], log=log) as process:
            grandchild = within(10, pid)
            assert process.wait(10) == 0
    assert gone(grandchild)


def test_a_grandchild_that_ignores_sigterm_ends_with_its_stream_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    deaf = CHILD.format("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    with (tmp_path / "log").open("w") as log:
        with proc.stream([*python(PARENT), deaf, pid, "60"], log=log):
            grandchild = within(10, pid)
    assert gone(grandchild, seconds=1)


def test_a_program_that_hangs_takes_its_children_along(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    proc.run([*python(PARENT), CHILD.format("0"), pid, "60"], timeout=1)
    assert gone(within(1, pid), seconds=0.5)


def test_what_a_program_reads_is_what_it_was_given() -> None:
    echo = [sys.executable, "-c", "import sys; print(sys.stdin.read().upper())"]
    assert proc.run(echo).out == "\n"
    assert proc.run(echo, input="text").out == "TEXT\n"
    # More than a pipe holds, to one that does not read it.
    assert proc.run([sys.executable, "-c", "print(1)"], input="x" * 1_000_000).out == "1\n"


def test_each_line_of_stderr_is_heard_and_stays_in_the_result() -> None:
    heard: list[str] = []
    code = "import sys; print('out'); print('one\\ntwo', file=sys.stderr); sys.exit(3)"
    done = proc.run([sys.executable, "-c", code], heard=heard.append)
    assert (done.code, done.out, done.err, heard) == (3, "out\n", "one\ntwo\n", ["one", "two"])
    with pytest.raises(StoreError) as caught:
        proc.run([sys.executable, "-c", code], heard=heard.append, error=StoreError)
    assert str(caught.value).endswith(" failed (exit code 3): two.")
