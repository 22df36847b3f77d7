"""Preflight: what a build needs is looked at in seconds, and everything that is wrong is said at once."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import buildplan, host, installer, preflight, recipe, source, toolkit, trial
from sagewheels.arch import parse_list
from sagewheels.config import Settings
from sagewheels.errors import SageError, StoreError, UsageError
from sagewheels.host import Host
from sagewheels.recipe import Recipe
from sagewheels.target import Target
from tests.toolkits import THING, calls, make_target, make_toolkit

GB = 1_000_000_000
HERE = Host(gpus=(), driver="", problem="", cores=2, memory=8 * GB, glibc="2.39")
TORCH = "no CUDA toolkit here compiles for torch 2.11.0+cu130: "
GCC_16 = "x.h:137:2: error: #error -- unsupported GNU version! gcc versions later than 15 are not supported"
GLIBC = 'm.h(79): error: exception specification is incompatible with that of previous function "cospi"'
ARCH = "nvcc fatal   : Unsupported gpu architecture 'compute_120'"


def complains(line: str) -> str:
    """What an nvcc does that refuses."""
    return f"echo {shlex.quote(line)} >&2; exit 1"


@pytest.fixture(autouse=True)
def _nothing_in_usr_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toolkits of the machine that runs the tests are out of sight."""
    homes = toolkit._homes
    monkeypatch.setattr(toolkit, "_homes", lambda *args: [item for item in homes(*args) if item[1] != "/usr/local"])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_toolkit(tmp_path / "cuda")


@pytest.fixture
def found(tmp_path: Path) -> Target:
    return make_target(tmp_path / "target")


@pytest.fixture
def thing() -> Recipe:
    """A source that lies in this repository, so that no network is asked."""
    return recipe.parse({**THING, "source": {"path": "demo"}}, Path("thing.toml"))


@pytest.fixture
def settings(tmp_path: Path, home: Path, found: Target, thing: Recipe) -> Settings:
    """CUDA_HOME is a good toolkit, and the build tools are there."""
    given = Settings(work_dir=tmp_path / "work", environ={"PATH": "/usr/bin:/bin", "CUDA_HOME": str(home)})
    tools = buildplan.tools_folder(given, found, thing)
    (tools / "setuptools").mkdir(parents=True)
    (tools / "setuptools" / "__init__.py").touch()
    (tools / "setuptools" / "build_meta.py").touch()
    (tools / "bin").mkdir()
    (tools / "bin" / "ninja").write_text("#!/bin/sh\necho 1.13.0\n", encoding="utf-8")
    (tools / "bin" / "ninja").chmod(0o755)
    (tools / "complete").write_text("ninja-1.13.0 setuptools-80.9.0", encoding="utf-8")
    return given


def having(settings: Settings, **environ: str) -> Settings:
    return replace(settings, environ={**settings.environ, **environ})


def check(settings: Settings, found: Target, thing: Recipe, archs: str = "12.0", here: Host = HERE, **more: Any) -> str:
    """The home of the toolkit that passed, else the error's line."""
    try:
        return str(preflight.check(settings, thing, parse_list(archs), found, here, **more).home)
    except SageError as error:
        assert type(error) is UsageError
        return str(error)


# What a toolkit is tried with


def problems(settings: Settings, home: Path, found: Target, thing: Recipe, archs: str = "12.0", **more: Any) -> str:
    (kit,) = [kit for kit, _ in toolkit.survey(settings, found) if kit.home == home]
    rules = thing.rules(parse_list(archs))
    tried = trial.Trial(settings=settings, target=found, recipe=thing, rules=rules, until=time.monotonic() + 30, **more)
    return "; ".join(trial.kernel(tried, kit))


def test_a_toolkit_that_compiles(settings: Settings, home: Path, found: Target, thing: Recipe) -> None:
    assert problems(settings, home, found, thing, "9.0;12.0") == ""
    both = "-gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_120,code=sm_120"
    kernel, own = (next(call for call in calls(home) if f"/{name}.cu" in call) for name in ("kernel", "own"))
    assert both in kernel
    assert "--compress-mode=size" in kernel and "--newer" not in kernel and "-ccbin" not in kernel
    assert both not in own and "compute_120" in own, "one arch is enough for headers"
    (read,) = [call for call in calls(home) if " -E " in call]
    assert both in read, "nvcc of CUDA 12 would take 5.2 otherwise, for which <cuda/pipeline> stops"


def test_headers_are_found_as_torchs_build_finds_them(
    settings: Settings, home: Path, found: Target, thing: Recipe
) -> None:
    """As system headers (-isystem), those of CUDA would hide what they clash with."""
    assert problems(settings, home, found, thing) == ""
    assert found.torch
    want = f"-I {found.torch.folder}/include -I {found.torch.folder}/include/torch/csrc/api/include -I {home}/include"
    assert all(want in call and "-isystem" not in call for call in calls(home) if " -I " in call)


def test_flags_of_the_user_are_given_once(settings: Settings, home: Path, found: Target, thing: Recipe) -> None:
    script = 'case $* in *--mine*) [ -z "$NVCC_APPEND_FLAGS" ] || exit 9 ;; *) exit 8 ;; esac'
    other = make_toolkit(home.parent / "other", compile_=script)
    given = replace(having(settings, CUDA_HOME=str(other), NVCC_APPEND_FLAGS="--mine"), nvcc_append_flags="--mine")
    assert problems(given, other, found, thing) == ""


def test_the_host_compiler_of_the_user_is_used(
    settings: Settings, home: Path, found: Target, thing: Recipe, tmp_path: Path
) -> None:
    """Without what launches it."""
    (tmp_path / "ccache").write_text('#!/bin/sh\nexec "$@"\n', encoding="utf-8")
    (tmp_path / "ccache").chmod(0o755)
    assert problems(having(settings, CXX=f"{tmp_path}/ccache c++ -O1"), home, found, thing) == ""
    assert [call for call in calls(home) if " -c " in call and "-ccbin c++ " not in call] == []


def test_a_header_that_is_missing_is_named(settings: Settings, home: Path, found: Target, thing: Recipe) -> None:
    assert found.torch
    header = found.torch.folder / "include" / "torch" / "extension.h"
    header.write_text("#include <cusparse.h>\n", encoding="utf-8")
    line = "extension.h:1:10: fatal error: cusparse.h: No such file or directory"
    assert problems(settings, home, found, thing) == line
    (home / "include" / "cusparse.h").write_text("// there\n", encoding="utf-8")
    assert problems(settings, home, found, thing) == ""


def test_a_shim_comes_first(settings: Settings, home: Path, found: Target, thing: Recipe, tmp_path: Path) -> None:
    """Then what torch's own header would include is not needed."""
    assert found.torch
    header = found.torch.folder / "include" / "torch" / "extension.h"
    header.write_text("#include <cusparse.h>\n", encoding="utf-8")
    shim = tmp_path / "light" / "nvcc"
    (shim / "torch").mkdir(parents=True)
    (shim / "torch" / "extension.h").write_text("// light\n", encoding="utf-8")
    assert problems(settings, home, found, thing, nvcc_shims=[shim]) == ""
    assert check(settings, found, replace(thing, shims=tmp_path / "light")) == str(home)


def test_a_torch_that_wants_a_newer_standard(settings: Settings, home: Path, found: Target, thing: Recipe) -> None:
    assert found.torch
    header = found.torch.folder / "include" / "torch" / "extension.h"
    header.write_text('#if __cplusplus < 202002L\n#error "C++20 or later"\n#endif\n', encoding="utf-8")
    newer = replace(found, torch=replace(found.torch, version="2.14.0+cu130"))
    assert problems(settings, home, newer, thing) == ""


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'x.h(5): error: no' >&2; exit 1", "x.h(5): error: no"),
        ("echo 'something else' >&2; exit 1", "something else"),
        ("exit 4", "no output, exit code 4"),
        ("kill -9 $$", "no output, killed by SIGKILL"),
    ],
)
def test_a_compile_that_fails_is_told_by_its_line_once(
    settings: Settings, tmp_path: Path, found: Target, thing: Recipe, script: str, problem: str
) -> None:
    broken = make_toolkit(tmp_path / "broken", compile_=script)
    assert problems(having(settings, CUDA_HOME=str(broken)), broken, found, thing) == problem


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("all is well\n12 warnings generated\n", ""),
        (
            "In file included from /usr/include/a.h:1,\n"
            "/opt/cuda-13.0/include/ATen/cuda/CUDAContextLight.h:12:10: fatal error: cusparse.h: No such file\n"
            "compilation terminated.\n",
            "CUDAContextLight.h:12:10: fatal error: cusparse.h: No such file",
        ),
        (
            "/usr/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc later than 13",
            "host_config.h:143:2: error: #error -- unsupported GNU version! gcc later than 13",
        ),
        (
            '/usr/include/math_functions.h(2556): error: exception specification is incompatible with "cospi"\n',
            'math_functions.h(2556): error: exception specification is incompatible with "cospi"',
        ),
        (
            "nvcc fatal   : Unsupported gpu architecture 'compute_120'",
            "nvcc fatal   : Unsupported gpu architecture 'compute_120'",
        ),
        (
            "ptxas /tmp/tmpxft.ptx, line 5; error   : Instruction 'wgmma.fence' not supported on .target 'sm_120'",
            "ptxas tmpxft.ptx, line 5; error   : Instruction 'wgmma.fence' not supported on .target 'sm_120'",
        ),
        ("c++ -Werror -DERRORS=1 error_code.cpp\nx.cpp:1: error: no\n", "x.cpp:1: error: no"),
        ("Error: the licence\n", "Error: the licence"),
        (
            "/usr/bin/ld: cannot find -lc10: No such file or directory\ncollect2: error: ld returned 1 exit status\n",
            "ld: cannot find -lc10: No such file or directory",
        ),
        (
            "x.h:1:2: error: #error -- unsupported GNU version! The nvcc flag '-allow-unsupported-compiler' can",
            "x.h:1:2: error: #error -- unsupported GNU version!",
        ),
        ("error: " + "x" * 300, "error: " + "x" * 193),
    ],
)
def test_the_line_of_a_compiler_that_matters(text: str, line: str) -> None:
    assert trial.complaint(text) == line


@pytest.mark.parametrize(
    ("problem", "cuda", "remedy"),
    [
        ("host_config.h: #error -- unsupported GNU version!", "", "Install an older g++ and set CXX and CC to it"),
        (
            "x.h: error: #error -- unsupported GNU version! gcc versions later than 15 are not supported!",
            "13.0",
            "Install g++ 15 or older (apt-get install g++-15) and set CXX and CC to it",
        ),
        (
            "#error -- unsupported clang version! must be less than 21",
            "",
            "Install an older g++ and set CXX and CC to it",
        ),
        (
            "error: exception specification is incompatible",
            "12.8",
            "This glibc is too new for this CUDA: use torch with a newer CUDA, or an older distribution",
        ),
        (
            "a.h:1:2: fatal error: cusparse.h: No such file or directory",
            "12.8",
            "Install the whole CUDA 12.8 toolkit (apt-get install libcusparse-dev-12-8)",
        ),
        (
            "a.h:1:2: fatal error: cuda/pipeline: No such file or directory",
            "12.8",
            "Install the whole CUDA 12.8 toolkit (apt-get install cuda-cccl-12-8)",
        ),
        ("nvcc fatal : Unsupported gpu architecture", "", "Install a newer CUDA toolkit, or set CUDA_HOME to one"),
        ("a.h:1:2: fatal error: Python.h: No such file", "", "Install the headers (apt-get install python3-dev)"),
        ("ld: cannot find -ltorch_cpu: No such file", "", "torch is not whole: install it again"),
        ("fatal error: error writing to x.s: No space left on device", "", "Free space where TMPDIR points, or set it"),
        ("anything else", "12.8", ""),
    ],
)
def test_what_to_do_about_a_compiler_that_complains(problem: str, cuda: str, remedy: str) -> None:
    assert trial.remedy(problem, cuda).startswith(remedy) if remedy else trial.remedy(problem, cuda) == ""


# A real nvcc, where the machine has one


@pytest.fixture
def real(settings: Settings, found: Target) -> tuple[Settings, Path, Target]:
    """The toolkit of the nvcc on PATH, and a target whose torch has its CUDA."""
    program = shutil.which("nvcc")
    if not program:
        pytest.skip("no nvcc on PATH")
    home = toolkit._home_of(settings, Path(program))
    version, _ = toolkit._nvcc(settings, home)
    assert found.torch
    return having(settings, CUDA_HOME=str(home)), home, replace(found, torch=replace(found.torch, cuda=version))


def test_a_real_toolkit_compiles(real: tuple[Settings, Path, Target], thing: Recipe) -> None:
    given, home, found = real
    assert problems(given, home, found, thing, "12.0") == ""


def test_a_real_nvcc_refuses_a_newer_compiler(
    real: tuple[Settings, Path, Target], thing: Recipe, tmp_path: Path
) -> None:
    """A g++ that tells nvcc, and only nvcc, that it is release 99."""
    newer = tmp_path / "g++"
    lie = 'case " $* " in *__CUDACC__*) exec g++ -U__GNUC__ -D__GNUC__=99 "$@" ;; esac'
    newer.write_text(f'#!/bin/sh\n{lie}\nexec g++ "$@"\n', encoding="utf-8")
    newer.chmod(0o755)
    given, home, found = real
    told = problems(having(given, CXX=str(newer)), home, found, thing)
    assert "unsupported GNU version! gcc versions later than" in told and "allow-unsupported" not in told
    assert re.match(r"Install g\+\+ (\d\d) or older \(apt-get install g\+\+-\1\)", trial.remedy(told))


def test_a_real_nvcc_clashes_with_a_newer_glibc(
    real: tuple[Settings, Path, Target], thing: Recipe, tmp_path: Path
) -> None:
    """Which declares functions of its own under names that CUDA has, as glibc 2.41 and 2.42 do."""
    (tmp_path / "bits").mkdir()
    more = "#ifndef NEWER\n#define NEWER\nextern double rsqrt(double) noexcept(true);\n#endif\n"
    (tmp_path / "bits" / "mathcalls.h").write_text(f"#include_next <bits/mathcalls.h>\n{more}", encoding="utf-8")
    given, home, found = real
    told = problems(having(given, CPATH=str(tmp_path)), home, found, thing)
    assert 'exception specification is incompatible with that of previous function "rsqrt"' in told


# The whole of it


def test_a_machine_that_can_build(
    settings: Settings, home: Path, found: Target, thing: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(settings, found, thing) == str(home)
    said = capsys.readouterr()
    names = "memory, disk, TMPDIR, source, host compiler, toolkit, build tools"
    assert said.out.startswith(f"[preflight] {names}: all good, in ") and said.err == ""


def test_the_first_toolkit_that_compiles_is_used(
    settings: Settings, home: Path, found: Target, thing: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = make_toolkit(tmp_path / "old", version="12.4")
    assert check(having(settings, CUDA_HOME=str(old), CUDA_PATH=str(home)), found, thing) == str(home)
    line = f"[toolkit] not {old} (CUDA_HOME): its nvcc is CUDA 12.4, torch has CUDA 13.0"
    assert capsys.readouterr().out.splitlines()[0] == line


def cuda_12(found: Target) -> Target:
    """For CUDA 12 the package index has no compiler: what is here is all there is."""
    assert found.torch
    return replace(found, torch=replace(found.torch, version="2.8.0+cu128", cuda="12.8"))


def test_every_toolkit_that_was_tried_is_in_the_error(
    settings: Settings, home: Path, found: Target, thing: Recipe, tmp_path: Path
) -> None:
    none = "no CUDA toolkit here compiles for torch 2.8.0+cu128: "
    remedy = ". Install the CUDA 12.8 toolkit, or set CUDA_HOME."
    assert check(having(settings, CUDA_HOME=""), cuda_12(found), thing) == f"{none}none was found{remedy}"
    old = make_toolkit(tmp_path / "old", version="12.4")
    tried = f"{home} (CUDA_HOME): its nvcc is CUDA 13.0, torch has CUDA 12.8; "
    tried += f"{old} (CUDA_PATH): its nvcc is CUDA 12.4, arch 12.0 needs 12.8"
    assert check(having(settings, CUDA_PATH=str(old)), cuda_12(found), thing) == f"{none}{tried}{remedy}"


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        (GCC_16, "Install g++ 15 or older (apt-get install g++-15) and set CXX and CC to it"),
        (GLIBC, "This glibc is too new for this CUDA: use torch with a newer CUDA, or an older distribution"),
        (ARCH, "Install a newer CUDA toolkit, or set CUDA_HOME to one"),
    ],
)
def test_what_a_compile_finds_out(
    settings: Settings, found: Target, thing: Recipe, tmp_path: Path, complaint: str, remedy: str
) -> None:
    broken = make_toolkit(tmp_path / "broken", version="12.8", compile_=complains(complaint))
    line = check(having(settings, CUDA_HOME=str(broken)), cuda_12(found), thing)
    none = "no CUDA toolkit here compiles for torch 2.8.0+cu128: "
    assert line == " ".join(f"{none}{broken} (CUDA_HOME): {complaint}. {remedy}.".split())


def test_no_toolkit_is_made_where_it_would_have_the_same_limits(
    settings: Settings, found: Target, thing: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nor is another of the same release tried."""
    first, second = (make_toolkit(tmp_path / name, compile_=complains(GCC_16)) for name in ("first", "second"))
    monkeypatch.setattr(toolkit, "make", lambda *args: pytest.fail("made"))
    line = check(having(settings, CUDA_HOME=str(first), CUDA_PATH=str(second)), found, thing)
    assert line.startswith(f"{TORCH}{first} (CUDA_HOME), {second} (CUDA_PATH): {GCC_16}. Install g++ 15 or older")
    assert calls(second) == ["--version"]


@pytest.mark.parametrize(
    ("complaint", "given", "blamed"),
    [
        (
            "nvcc fatal   : Option '--dependency-file' requires one of '-M', '-MM', '-MD' or '-MMD' to be specified",
            {"nvcc_append_flags": "-MF x"},
            "NVCC_APPEND_FLAGS",
        ),
        ("nvcc fatal   : Unknown option '--foo'", {"prepend": "--foo"}, "NVCC_PREPEND_FLAGS"),
        (
            "ptxas fatal   : Unknown option '-bad'",
            {"prepend": "-g", "nvcc_append_flags": "-Xptxas --bad"},
            "NVCC_PREPEND_FLAGS and NVCC_APPEND_FLAGS",
        ),
        ("gcc: error: unrecognized command-line option '-fb'", {"nvcc_append_flags": "-Xc=-fb"}, "NVCC_APPEND_FLAGS"),
        ("Command-line error: invalid option: --bad", {"nvcc_append_flags": "-Xcicc --bad"}, "NVCC_APPEND_FLAGS"),
    ],
)
@pytest.mark.parametrize("version", ["13.0", "13.1"])
def test_flags_of_the_user_that_no_toolkit_takes(
    settings: Settings,
    found: Target,
    thing: Recipe,
    tmp_path: Path,
    complaint: str,
    given: dict[str, str],
    blamed: str,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another toolkit would not help, and none is made."""
    monkeypatch.setattr(toolkit, "make", lambda *args: pytest.fail("made"))
    broken = make_toolkit(tmp_path / "broken", version=version, compile_=complains(complaint))
    given = {**given}
    own = having(settings, CUDA_HOME=str(broken), NVCC_PREPEND_FLAGS=given.pop("prepend", ""))
    line = check(replace(own, **given), found, thing)  # type: ignore[arg-type]
    told = f"{TORCH}{broken} (CUDA_HOME): {complaint} (with {blamed}). Look at {blamed}."
    assert line == " ".join(told.split())


def test_flags_of_the_user_that_the_host_compiler_does_not_take(
    settings: Settings, found: Target, thing: Recipe
) -> None:
    for name, flag in (("CXX_APPEND_FLAGS", "-fnonsense"), ("LDFLAGS", "-Wl,--nonsense")):
        finding = preflight._host_compiler(_trial(having(settings, **{name: flag}), found, thing))
        assert finding.bad and "unrecognized" in finding.found and finding.found.endswith(f" (with {name})")
        assert finding.remedy == f"Look at {name}"


@pytest.mark.parametrize(
    "told",
    [ARCH, GLIBC, "error: unrecognized command line option '-std=c++20'", "x.h:1:2: fatal error: a.h: No such file"],
)
def test_what_flags_of_the_user_are_not_blamed_for(settings: Settings, told: str) -> None:
    assert trial._own_flags(replace(settings, nvcc_append_flags="-lineinfo"), "nvcc", told) == ""


@pytest.mark.parametrize("hang", ["trap '' TERM; sleep 60", "exec sleep 60"])
def test_a_compiler_that_hangs_is_a_failure_in_good_time(
    settings: Settings, found: Target, thing: Recipe, tmp_path: Path, hang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_SECONDS", 3.0)
    broken = make_toolkit(tmp_path / "broken", version="12.8", compile_=hang)
    started = time.monotonic()
    line = check(having(settings, CUDA_HOME=str(broken)), cuda_12(found), thing)
    assert time.monotonic() - started < 5
    assert "(CUDA_HOME): did not end in time. " in line
    assert line.endswith(". Something hangs, or the machine is too busy: look with ps, then run it again.")


def test_ctrl_c_does_not_wait_for_what_hangs(
    settings: Settings, found: Target, thing: Recipe, tmp_path: Path, silent: str
) -> None:
    broken = make_toolkit(tmp_path / "broken", version="12.8", compile_="exec sleep 60")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        check(having(settings, CUDA_HOME=str(broken)), cuda_12(found), cloned(thing, silent))
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 5


def test_a_compiler_that_is_at_work_is_not_refused(
    settings: Settings,
    found: Target,
    thing: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A busy machine can build."""
    monkeypatch.setattr(preflight, "_SECONDS", 3.0)
    slow = make_toolkit(tmp_path / "slow", compile_="while :; do :; done")
    assert check(having(settings, CUDA_HOME=str(slow)), found, thing) == str(slow)
    assert capsys.readouterr().err == "[preflight] warning: nvcc, nvcc still at work after 3 s: not waited for\n"


def test_all_that_is_wrong_is_said_at_once(
    settings: Settings, found: Target, thing: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python.h, nvcc, build tools, source and memory, each with its remedy; then one line that ends it."""
    old = make_toolkit(tmp_path / "old", version="12.4")
    tools = buildplan.tools_folder(settings, found, thing)
    (tools / "bin" / "ninja").write_text("#!/bin/sh\necho 'no ninja' >&2; exit 1\n", encoding="utf-8")
    away = replace(thing, source=replace(thing.source, path="gone"), memory_per_unit=900 * GB)
    bare = replace(cuda_12(found), has_python_h=False)
    line = check(having(settings, CUDA_HOME=str(old)), bare, away)
    assert line == (
        "a build cannot succeed here: memory, source, host compiler, toolkit, build tools. See the remedies above."
    )
    said = [text for text in capsys.readouterr().out.splitlines() if text.startswith("[preflight]")]
    assert said == [
        "[preflight] FAILED: 2 cores, 8.0 GB of memory free for this process. "
        "A compiler needs 900.0 GB: free some memory, or add swap.",
        "[preflight] FAILED: thing.toml: source.path gone is not a folder.",
        f"[preflight] FAILED: {found.python} has no Python.h in {found.include}. "
        "Install the headers (apt-get install python3-dev).",
        f"[preflight] FAILED: no CUDA toolkit here compiles for torch 2.8.0+cu128: {old} (CUDA_HOME): "
        "its nvcc is CUDA 12.4, arch 12.0 needs 12.8. Install the CUDA 12.8 toolkit, or set CUDA_HOME.",
        "[preflight] FAILED: ninja-1.13.0 setuptools-80.9.0: ninja failed (exit code 1): no ninja. "
        f"Check the package index, or install setuptools and ninja into {found.prefix}.",
    ]


def test_a_target_without_a_cuda_torch(settings: Settings, found: Target, thing: Recipe) -> None:
    line = check(settings, replace(found, torch=None), thing)
    remedy = "Run stack, or name another Python with --python."
    assert line == f"{found.python} has no CUDA torch to compile against. {remedy}"


# Host compiler and build tools


def test_a_machine_without_a_host_compiler(
    settings: Settings, home: Path, found: Target, thing: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    old = cuda_12(found)
    assert check(having(settings, CXX="/nowhere/g++"), old, thing) == (
        "a build cannot succeed here: host compiler, toolkit. See the remedies above."
    )
    failed = [text for text in capsys.readouterr().out.splitlines() if "FAILED" in text]
    assert failed[0] == (
        "[preflight] FAILED: /nowhere/g++ cannot be run (No such file or directory). "
        "Install a C++ compiler (apt-get install g++)."
    )


def test_a_host_compiler_that_makes_no_module(settings: Settings, found: Target, thing: Recipe) -> None:
    """The libraries of torch are linked too."""
    assert found.torch
    (found.torch.folder / "lib" / "libtorch_python.so").unlink()
    (found.include / "Python.h").write_text("#include <pyconfig-64.h>\n", encoding="utf-8")
    finding = preflight._host_compiler(_trial(settings, found, thing))
    assert finding.bad and finding.found.endswith("fatal error: pyconfig-64.h: No such file or directory")
    (found.include / "Python.h").write_text("inline int Py_IsInitialized() { return 1; }\n", encoding="utf-8")
    finding = preflight._host_compiler(_trial(settings, found, thing))
    assert finding.bad and "cannot find -ltorch_python" in finding.found
    assert finding.remedy == "torch is not whole: install it again"


def _trial(settings: Settings, found: Target, thing: Recipe) -> trial.Trial:
    return preflight._trial(settings, thing, parse_list("12.0"), found)


def test_build_tools_that_the_index_does_not_give(
    settings: Settings, found: Target, thing: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's own will do where they are there; uv is not waited for longer than is sensible."""
    (buildplan.tools_folder(settings, found, thing) / "complete").unlink()
    asked: list[float | None] = []

    def dead(*args: Any, timeout: float | None) -> None:
        asked.append(timeout)
        raise SageError("uv failed")

    monkeypatch.setattr(installer, "into_folder", dead)
    bare = make_target(found.prefix.parent / "bare")
    (bare.prefix / "bin" / "python").unlink()
    (bare.prefix / "bin" / "python").write_text(
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'setuptools'\" >&2\nexit 1\n", encoding="utf-8"
    )
    (bare.prefix / "bin" / "python").chmod(0o755)
    line = check(settings, bare, thing)
    assert line == (
        "the target's own build tools: python failed (exit code 1): ModuleNotFoundError: No module named 'setuptools'. "
        f"Check the package index, or install setuptools and ninja into {bare.prefix}."
    )
    assert asked == [10.0]


def test_looking_installs_nothing(settings: Settings, home: Path, found: Target, thing: Recipe) -> None:
    """doctor shows the same findings."""
    tools = buildplan.tools_folder(settings, found, thing)
    (tools / "complete").unlink()
    looked = preflight.look(settings, thing, parse_list("12.0"), found, installs=False)
    assert [(item.what, item.found) for item in looked.findings if item.what in ("toolkit", "build tools")] == [
        ("toolkit", "CUDA 13.0 from CUDA_HOME: a kernel was compiled and linked"),
        ("build tools", "a build gets them from the package index first"),
    ]
    assert not (tools / "complete").exists()


# Memory and disk


def room(settings: Settings, thing: Recipe, **more: Any) -> dict[str, preflight.Finding]:
    return {item.what: item for item in preflight.room(settings, thing, HERE, **more)}


def test_memory_counts_swap(settings: Settings, thing: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    needy = replace(thing, memory_per_unit=9 * GB)
    monkeypatch.setattr(host, "swap", lambda: 0)
    assert room(settings, needy)["memory"].bad
    monkeypatch.setattr(host, "swap", lambda: GB)
    assert not room(settings, needy)["memory"].bad


def test_too_little_disk(settings: Settings, thing: Recipe, tmp_path: Path) -> None:
    work = settings.work_dir
    finding = room(settings, thing, work=1 << 60)["disk"]
    assert finding.bad and finding.found.endswith(f" free in {work}")
    assert finding.remedy == "Free 1152921504.6 GB, or set WORK_DIR to a folder on another disk"
    later = replace(settings, work_dir=tmp_path / "not" / "there")
    assert room(later, thing)["disk"].found.endswith(f" free in {tmp_path}")


def test_a_temporary_folder_that_is_full(
    settings: Settings, thing: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(host, "free_disk", lambda folder: 50_000_000 if folder == tmp_path else GB)
    finding = room(settings, thing)["TMPDIR"]
    assert (finding.bad, finding.found) == (True, f"50.0 MB free in {tmp_path}")
    assert finding.remedy == "Free 0.1 GB, or set TMPDIR to a folder on another disk"


def test_a_work_folder_that_cannot_be_used(settings: Settings, thing: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    work = settings.work_dir
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path) != work)
        finding = room(settings, thing)["disk"]
    assert (finding.bad, finding.found) == (True, f"{work} cannot be written to")
    assert finding.remedy == "Set WORK_DIR to a folder on another disk"
    real = os.statvfs(work)
    *rest, length = (real[place] for place in range(10))
    noexec = os.statvfs_result([*rest[:8], rest[8] | os.ST_NOEXEC, length])
    monkeypatch.setattr(os, "statvfs", lambda path: noexec if Path(path) == work else real)
    finding = room(settings, thing)["disk"]
    assert finding.found == f"{work} is mounted noexec: the build tools that go there could not run"
    assert finding.remedy == "Set WORK_DIR to a folder on another disk"


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("a$b", "$"),
        ("a:b", ":"),
        ("a'b", "'"),
        ('a"b', '"'),
        ("a\\b", "\\"),
        ("a;b", ";"),
        ("a & b", "&"),
        ("a|b", "|"),
        ("(a)", "( and )"),
        ("a<b>c", "< and >"),
        ("a`b", "`"),
        ("a\nb", "a newline"),
    ],
)
def test_a_work_folder_with_a_name_that_the_build_cannot_take(
    settings: Settings, thing: Recipe, tmp_path: Path, name: str, held: str
) -> None:
    """Each of them was seen to fail in ninja, in setuptools or in a shell."""
    odd = replace(settings, work_dir=tmp_path / name / "work")
    finding = room(odd, thing)["disk"]
    assert finding.bad
    assert finding.found == f"WORK_DIR {tmp_path}/{name}/work holds {held}, which torch's build cannot take"
    assert finding.remedy == "Set WORK_DIR to a folder of another name"


def test_a_link_to_such_a_work_folder(settings: Settings, thing: Recipe, tmp_path: Path) -> None:
    """The source's own build sees where it leads."""
    (tmp_path / "link").symlink_to(tmp_path / "a$b")
    finding = room(replace(settings, work_dir=tmp_path / "link"), thing)["disk"]
    assert finding.found == f"WORK_DIR {tmp_path}/a$b holds $, which torch's build cannot take"


def test_work_folders_that_are_as_good_as_any(
    settings: Settings, thing: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds ended well in these."""
    odd = replace(settings, work_dir=tmp_path / "a b*?#!%[]{}~=,@+^\u00e9")
    assert not room(odd, thing)["disk"].bad
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "t t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t t"))
    finding = room(odd, thing)["disk"]
    assert finding.found == f"WORK_DIR {odd.work_dir} holds a blank, as TMPDIR does, which torch's build cannot take"


@pytest.mark.parametrize("key", ["WHEELHOUSE_DIR", "LOG_DIR"])
def test_folders_for_what_comes_out_of_a_build(settings: Settings, thing: Recipe, tmp_path: Path, key: str) -> None:
    """They are said where they are bad, before anything is compiled for them."""
    assert key not in room(settings, thing)
    (tmp_path / "file").touch()
    below: dict[str, Any] = {key.lower(): tmp_path / "file" / "below"}
    given = replace(settings, **below)
    finding = room(given, thing)[key]
    assert (finding.bad, finding.found) == (True, f"{tmp_path}/file is not a folder")
    assert finding.remedy == f"Set {key} to a folder"


def test_folders_that_cannot_be_written(
    settings: Settings,
    found: Target,
    thing: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A build can do without its object cache."""
    shut = tmp_path / "shut"
    shut.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut)
    assert check(replace(settings, object_cache_dir=str(shut / "objects")), found, thing) != ""
    said = capsys.readouterr()
    assert ": all good, in " in said.out
    assert said.err == (
        f"[preflight] warning: OBJECT_CACHE_DIR: {shut} cannot be written to: no object is kept for the next build\n"
    )
    line = check(replace(settings, wheelhouse_dir=shut / "wheels"), found, thing)
    assert line == f"{shut} cannot be written to. Set WHEELHOUSE_DIR to a folder on another disk."


@pytest.fixture
def making(settings: Settings, home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, list[str]]:
    """No toolkit is here; the package index gives `home`, and what is asked of it is noted."""
    asked: list[str] = []

    def make(given: Settings, found: Target) -> toolkit.Toolkit:
        asked.append("made")
        return toolkit.Toolkit(home=home, version="13.0", build="V13.0.88", origin="the package index", compiler="c++")

    monkeypatch.setattr(toolkit, "make", make)
    return having(settings, CUDA_HOME=""), asked


def test_a_toolkit_is_made_when_all_else_is_good(
    making: tuple[Settings, list[str]], home: Path, found: Target, thing: Recipe
) -> None:
    given, asked = making
    assert check(given, found, replace(thing, source=replace(thing.source, path="gone"))).startswith("thing.toml: ")
    assert asked == []
    assert check(given, found, thing) == str(home)
    assert asked == ["made"]


def test_a_toolkit_that_was_made_is_tried_too(
    making: tuple[Settings, list[str]], home: Path, found: Target, thing: Recipe
) -> None:
    assert found.torch
    header = found.torch.folder / "include" / "torch" / "extension.h"
    header.write_text("#include <cusparse.h>\n", encoding="utf-8")
    line = check(making[0], found, thing)
    assert line == (
        f"{TORCH}{home} (the package index): extension.h:1:10: fatal error: cusparse.h: No such file or directory. "
        "Install the whole CUDA 13.0 toolkit (apt-get install libcusparse-dev-13-0)."
    )


def test_a_toolkit_that_the_index_does_not_give(
    settings: Settings, found: Target, thing: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with those that are here is said again: to mend one of them is the other way."""

    def dead(*args: Any) -> None:
        raise SageError("uv failed", "Check the package index")

    monkeypatch.setattr(installer, "into_folder", dead)
    assert found.torch
    (found.torch.folder.parent / "nvidia" / "cu13" / "include").mkdir(parents=True)
    line = check(having(settings, CUDA_HOME=""), found, thing)
    why = "none was found; and the CUDA compiler could not be installed: uv failed"
    remedy = "Install the CUDA 13.0 toolkit, or set CUDA_HOME, or let the package index be reached."
    assert line == f"{TORCH}{why}. {remedy}"


def test_no_toolkit_is_made_without_room_for_it(
    making: tuple[Settings, list[str]], found: Target, thing: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, asked = making
    monkeypatch.setattr(host, "free_disk", lambda folder: 900_000_000 if folder == given.work_dir else GB)
    line = check(given, found, thing)
    assert line == f"0.9 GB free in {given.work_dir}. Free 1.0 GB, or set WORK_DIR to a folder on another disk."
    assert asked == []


# The source


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "thing.git"
    for argv in (["init", "-q", "."], ["commit", "-q", "--allow-empty", "-m", "a"], ["tag", "v1"]):
        folder.mkdir(exist_ok=True)
        subprocess.run(["git", *argv], cwd=folder, check=True)
    return folder


def cloned(thing: Recipe, repo: Path | str, ref: str = "v1") -> Recipe:
    return replace(thing, source=replace(thing.source, path="", repo=str(repo), ref=ref, commit="a" * 40))


def test_a_repository_that_has_the_ref(settings: Settings, thing: Recipe, repository: Path) -> None:
    assert source.answers(settings, cloned(thing, repository), 10) == "v1 of local:thing.git"
    commit = "0123456789" * 4
    assert source.answers(settings, cloned(thing, repository, commit), 10) == f"{commit} of local:thing.git"


def test_a_repository_that_lacks_the_ref(settings: Settings, thing: Recipe, repository: Path, found: Target) -> None:
    line = check(settings, found, cloned(thing, repository, "v2"))
    assert line == "local:thing.git has no v2. Correct SAGE_SOURCE_REF or SAGE_SOURCE_REPO."


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a repository that takes a connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://user:secret@127.0.0.1:{server.getsockname()[1]}/thing.git"


def test_a_repository_that_does_not_answer(
    settings: Settings, thing: Recipe, found: Target, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a word of the address's password; nothing else is wrong, so that it is the network's exit code."""
    monkeypatch.setattr(preflight, "_SOURCE_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        preflight.check(settings, cloned(thing, silent), parse_list("12.0"), found, HERE)
    assert time.monotonic() - started < 10
    name = silent.replace("user:secret@", "")
    assert str(caught.value) == (f"{name} does not give v1: no answer in 1 s. Check the network, and SAGE_SOURCE_REPO.")


def test_a_machine_without_git(settings: Settings, thing: Recipe, found: Target, tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    with pytest.raises(UsageError) as caught:
        source.answers(having(settings, PATH=str(bare)), cloned(thing, "https://127.0.0.1/x.git"), 1)
    assert str(caught.value) == "git cannot be run (No such file or directory). Install git (apt-get install git)."
