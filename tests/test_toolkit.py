"""CUDA toolkits: found, tried with a compiler that answers as nvcc does, and refused for a reason."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import recipe, toolkit
from sagewheels.arch import parse_list
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.recipe import Recipe
from sagewheels.target import Target, Torch

NVCC = r"""#!/bin/sh
# Answers as nvcc does; --dryrun says where its files are, and what is preprocessed goes through a real compiler.
version={version}
printf '%s\n' "$*" >>{log}
case " $* " in
*" --version "*)
  echo 'nvcc: NVIDIA (R) Cuda compiler driver'
  echo "Cuda compilation tools, release $version, V$version.88"
  echo "Build cuda_$version.r$version/compiler.1_0" ;;
*" --dryrun "*)
  echo '#$ _SPACE_= ' >&2
  {top}
  echo '#$ "cicc" --gnu_version=120300' >&2 ;;
*" -E "*)
  for word; do
    shift
    case $word in -gencode=*) ;; *) set -- "$@" "$word" ;; esac
  done
  exec c++ -x c++ "$@" ;;
*) {compile} ;;
esac
"""
MISSING_HEADER = "fatal error: cusparse.h: No such file or directory"


def make_toolkit(home: Path, *, version: str = "13.0", top: str = "", compile_: str = "exit 0") -> Path:
    """A CUDA_HOME whose nvcc is a script; every call goes into `nvcc.log`."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    says = f"echo '#$ TOP={top}' >&2" if top else ":"
    log = shlex.quote(str(home / "nvcc.log"))
    nvcc.write_text(NVCC.format(version=version, log=log, top=says, compile=compile_), encoding="utf-8")
    nvcc.chmod(0o755)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").write_text("// the runtime\n", encoding="utf-8")
    return home


def calls(home: Path) -> list[str]:
    return (home / "nvcc.log").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "cuda"


@pytest.fixture
def found(tmp_path: Path) -> Target:
    """A target with a CUDA 13.0 torch, which has one header."""
    prefix = tmp_path / "target"
    torch = prefix / "torch"
    (torch / "include" / "torch").mkdir(parents=True)
    (torch / "include" / "torch" / "extension.h").write_text("#include <cstddef>\n", encoding="utf-8")
    return Target(
        python=prefix / "bin/python",
        prefix=prefix,
        version="3.12.3",
        soabi="cpython-312-x86_64-linux-gnu",
        machine="x86_64",
        site=prefix,
        include=prefix / "include",
        has_python_h=True,
        externally_managed=False,
        writable=True,
        torch=Torch(folder=torch, version="2.11.0+cu130", cuda="13.0"),
        versions={},
        dist_info={},
        tags=("cp312-cp312-linux_x86_64",),
    )


THING: dict[str, Any] = {
    "schema": 1,
    "name": "thing",
    "version": "1",
    "package": "thing",
    "source": {"path": "thing"},
    "build": {
        "requires": [],
        "headers": ["cuda_runtime.h", "torch/extension.h"],
        "nvcc_flags_since": {"12.8": ["--compress-mode=size"], "13.1": ["--newer"]},
    },
    "extension": {"_a": {"units": 1}},
    "arch": {
        "9.0": {"cubin": "9.0a", "min_cuda": "12.3", "extensions": ["_a"], "kernel": "k"},
        "12.0": {"cubin": "12.0", "min_cuda": "12.8", "extensions": ["_a"], "kernel": "k"},
    },
    "smoke": {
        "call": "thing:attn",
        "min_cosine": 0.9,
        "max_relative_l2": 0.1,
        "head_dims": [64],
        "lengths": [17],
        "dtypes": ["float16"],
        "layouts": ["HND"],
        "heads": [[8, 2]],
    },
}


@pytest.fixture
def thing() -> Recipe:
    return recipe.parse(THING, Path("thing.toml"))


def settings(**environ: str) -> Settings:
    return Settings(environ={"PATH": "/usr/bin:/bin", **environ})


def try_out(home: Path, found: Target, thing: Recipe, archs: str = "12.0", **environ: str) -> str:
    return toolkit.try_out(settings(**environ), home, found, thing, thing.rules(parse_list(archs)))


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
        ("error: " + "x" * 300, "error: " + "x" * 193),
    ],
)
def test_the_line_of_a_compiler_that_matters(text: str, line: str) -> None:
    assert toolkit.complaint(text) == line


def test_a_toolkit_that_compiles(home: Path, found: Target, thing: Recipe) -> None:
    make_toolkit(home)
    assert try_out(home, found, thing, "9.0;12.0") == ""
    (compiled,) = [call for call in calls(home) if " -c " in call]
    assert "-gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_120,code=sm_120" in compiled
    assert "--compress-mode=size" in compiled and "--newer" not in compiled
    assert "-ccbin" not in compiled


def test_headers_are_read_for_the_archs_that_are_built(home: Path, found: Target, thing: Recipe) -> None:
    """nvcc of CUDA 12 would take 5.2 otherwise, for which <cuda/pipeline> stops: every such toolkit was refused."""
    make_toolkit(home)
    assert try_out(home, found, thing, "9.0;12.0") == ""
    (read,) = [call for call in calls(home) if " -E " in call]
    assert "-gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_120,code=sm_120" in read


def test_the_host_compiler_of_the_user_is_used(home: Path, found: Target, thing: Recipe) -> None:
    make_toolkit(home)
    try_out(home, found, thing, CXX="g++-12 -O1")
    assert next(call.split()[:2] for call in calls(home) if "--version" not in call) == ["-ccbin", "g++-12"]


@pytest.mark.parametrize(
    ("version", "archs", "problem"),
    [
        ("12.8", "12.0", "its nvcc is CUDA 12.8, torch has CUDA 13.0"),
        ("14.0", "12.0", "its nvcc is CUDA 14.0, torch has CUDA 13.0"),
        ("13.2", "12.0", ""),
    ],
)
def test_the_major_of_nvcc_is_torchs(
    home: Path, found: Target, thing: Recipe, version: str, archs: str, problem: str
) -> None:
    make_toolkit(home, version=version)
    assert try_out(home, found, thing, archs) == problem


@pytest.mark.parametrize(
    ("version", "archs", "problem"),
    [
        ("12.4", "12.0", "its nvcc is CUDA 12.4, arch 12.0 needs 12.8"),
        ("12.4", "9.0;12.0", "its nvcc is CUDA 12.4, arch 12.0 needs 12.8"),
        ("12.2", "9.0", "its nvcc is CUDA 12.2, arch 9.0 needs 12.3"),
        ("12.10", "9.0;12.0", ""),
        ("12.4", "9.0", ""),
    ],
)
def test_nvcc_knows_every_arch(
    home: Path, found: Target, thing: Recipe, version: str, archs: str, problem: str
) -> None:
    make_toolkit(home, version=version)
    assert found.torch
    old = replace(found, torch=replace(found.torch, cuda="12.8"))
    assert try_out(home, old, thing, archs) == problem


def test_a_toolkit_without_a_compiler_or_its_headers(home: Path, found: Target, thing: Recipe) -> None:
    assert try_out(home, found, thing) == f"{home}/bin/nvcc cannot be run (No such file or directory)"
    make_toolkit(home)
    (home / "include" / "cuda_runtime.h").unlink()
    assert try_out(home, found, thing) == f"{home}/include has no cuda_runtime.h"
    (home / "bin" / "nvcc").write_text("#!/bin/sh\necho 'nvcc: not here' >&2\n", encoding="utf-8")
    assert try_out(home, found, thing) == f"{home}/bin/nvcc does not say its version (nvcc: not here)"


def test_a_header_that_is_missing_is_named_without_its_folder(home: Path, found: Target, thing: Recipe) -> None:
    make_toolkit(home)
    assert found.torch
    header = found.torch.folder / "include" / "torch" / "extension.h"
    header.write_text("#include <cusparse.h>\n", encoding="utf-8")
    assert try_out(home, found, thing) == f"extension.h:1:10: {MISSING_HEADER}"
    (home / "include" / "cusparse.h").write_text("// there\n", encoding="utf-8")
    assert try_out(home, found, thing) == ""


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'x.h(5): error: no' >&2; exit 1", "x.h(5): error: no"),
        ("echo 'something else' >&2; exit 1", "something else"),
        ("exit 4", "no output, exit code 4"),
        ("kill -9 $$", "no output, killed by SIGKILL"),
    ],
)
def test_a_compile_that_fails_is_told_by_its_line(
    home: Path, found: Target, thing: Recipe, script: str, problem: str
) -> None:
    make_toolkit(home, compile_=script)
    assert try_out(home, found, thing) == problem


def test_a_torch_that_wants_a_newer_standard_is_compiled_with_it(home: Path, found: Target, thing: Recipe) -> None:
    make_toolkit(home)
    assert found.torch
    header = found.torch.folder / "include" / "torch" / "extension.h"
    header.write_text('#if __cplusplus < 202002L\n#error "C++20 or later"\n#endif\n', encoding="utf-8")
    newer = replace(found, torch=replace(found.torch, version="2.14.0+cu130"))
    assert try_out(home, newer, thing) == ""


def test_a_compiler_behind_a_launcher_is_the_compiler(home: Path, found: Target, thing: Recipe) -> None:
    make_toolkit(home)
    try_out(home, found, thing, CXX="ccache g++")
    assert not [call for call in calls(home) if "-ccbin ccache" in call]


def test_where_nvcc_says_its_files_are(tmp_path: Path) -> None:
    real = make_toolkit(tmp_path / "real")
    wrapper = make_toolkit(tmp_path / "wrapper", top=str(real / "bin" / ".."))
    assert toolkit._home_of(settings(), wrapper / "bin" / "nvcc") == real
    (call,) = calls(wrapper)
    assert call == "--dryrun -E -x cu /dev/null"


def test_an_nvcc_that_does_not_say_is_taken_by_its_real_place(tmp_path: Path) -> None:
    real = make_toolkit(tmp_path / "real")
    link = tmp_path / "bin" / "nvcc"
    link.parent.mkdir()
    link.symlink_to(real / "bin" / "nvcc")
    assert toolkit._home_of(settings(), link) == real


def test_the_order_of_toolkits_is_how_much_the_user_meant_them(tmp_path: Path, found: Target) -> None:
    first, second, third = (make_toolkit(tmp_path / name) for name in ("first", "second", "third"))
    (tmp_path / "link").symlink_to(first)
    assert found.torch
    environ = {"CUDA_HOME": str(second), "CUDA_PATH": str(tmp_path / "gone"), "PATH": f"{third}/bin:/bin"}
    homes = list(toolkit._homes(settings(**environ), found.torch))
    assert homes[:2] == [(second, "CUDA_HOME"), (third, "nvcc on PATH")]
    assert all(origin == "/usr/local" for _, origin in homes[2:])
    environ = {"CUDA_HOME": str(first), "CUDA_PATH": str(tmp_path / "link"), "PATH": f"{first}/bin:/bin"}
    homes = list(toolkit._homes(settings(**environ), found.torch))
    assert [item for item in homes if item[1] != "/usr/local"] == [(first, "CUDA_HOME")], "each once"


@pytest.fixture
def nothing_in_usr_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toolkits of the machine that runs the tests are out of sight."""
    homes = toolkit._homes
    monkeypatch.setattr(toolkit, "_homes", lambda *args: [item for item in homes(*args) if item[1] != "/usr/local"])


@pytest.mark.usefixtures("nothing_in_usr_local")
def test_the_first_toolkit_that_compiles_is_found(
    tmp_path: Path, found: Target, thing: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    old, good = make_toolkit(tmp_path / "old", version="12.4"), make_toolkit(tmp_path / "good")
    environ = settings(CUDA_HOME=str(old), CUDA_PATH=str(good))
    kit = toolkit.find(environ, found, thing, thing.rules(parse_list("12.0")))
    assert (kit.home, kit.version, kit.build, kit.origin) == (good, "13.0", "V13.0.88", "CUDA_PATH")
    assert kit.compiler.startswith("c++ ")
    line = f"[toolkit] not {old} (CUDA_HOME): its nvcc is CUDA 12.4, torch has CUDA 13.0\n"
    assert capsys.readouterr().out == line


@pytest.mark.usefixtures("nothing_in_usr_local")
def test_every_toolkit_that_was_tried_is_in_the_error(tmp_path: Path, found: Target, thing: Recipe) -> None:
    """For CUDA 12 the package index has no compiler, so this is the end."""
    assert found.torch
    old = replace(found, torch=replace(found.torch, version="2.8.0+cu128", cuda="12.8"))
    rules = thing.rules(parse_list("12.0"))
    newer, broken = make_toolkit(tmp_path / "newer"), make_toolkit(tmp_path / "broken", version="12.4")
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "c++").symlink_to(shutil.which("c++") or "c++")
    places = {"PATH": str(tmp_path / "compiler")}
    none = "no CUDA toolkit here compiles for torch 2.8.0+cu128: "
    remedy = ". Install the CUDA 12.8 toolkit, or set CUDA_HOME."
    with pytest.raises(UsageError) as caught:
        toolkit.find(settings(**places), old, thing, rules)
    assert str(caught.value) == f"{none}none was found{remedy}"
    with pytest.raises(UsageError) as caught:
        toolkit.find(settings(CUDA_HOME=str(newer), CUDA_PATH=str(broken), **places), old, thing, rules)
    tried = f"{newer} (CUDA_HOME): its nvcc is CUDA 13.0, torch has CUDA 12.8; "
    tried += f"{broken} (CUDA_PATH): its nvcc is CUDA 12.4, arch 12.0 needs 12.8"
    assert str(caught.value) == f"{none}{tried}{remedy}"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"torch": None}, "the target has no CUDA torch to compile against. Run the stack task first."),
        (
            {"torch": Torch(folder=Path("/t"), version="2.11.0+cpu", cuda="")},
            "the target has no CUDA torch to compile against. Run the stack task first.",
        ),
        (
            {"has_python_h": False, "include": Path("/i"), "python": Path("/p")},
            "/p has no Python.h in /i. Install the headers (apt-get install python3-dev).",
        ),
    ],
)
def test_what_a_target_needs_to_be_compiled_for(
    found: Target, thing: Recipe, changed: dict[str, Any], line: str
) -> None:
    with pytest.raises(UsageError) as caught:
        toolkit.find(settings(), replace(found, **changed), thing, [])
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("host_config.h: #error -- unsupported GNU version!", "Install an older g++ and set CXX and CC to it"),
        (
            "error: exception specification is incompatible",
            "This glibc is too new for this CUDA: use torch with a newer CUDA, or an older distribution",
        ),
        ("anything else", "See the line of the compiler above"),
    ],
)
def test_what_to_do_about_a_probe_that_failed(problem: str, remedy: str) -> None:
    assert toolkit._remedy(problem) == remedy


def test_the_environment_of_a_compiler() -> None:
    env = toolkit.environment(settings(CUDA_HOME="/old", OTHER="kept"), Path("/cuda"))
    want = {"CUDA_HOME": "/cuda", "CUDA_PATH": "/cuda", "PATH": "/cuda/bin:/usr/bin:/bin", "OTHER": "kept"}
    assert env == want


def test_a_toolkit_of_links_has_what_torchs_packages_lack(tmp_path: Path) -> None:
    """The folder that the package index gives becomes a CUDA_HOME, with torch's library headers in it."""
    home, made, own = (tmp_path / name for name in ("home", "made", "own"))
    for path in ("made/bin/nvcc", "made/include/cuda_runtime.h", "made/lib/libcudart.so.13", "own/include/cusparse.h"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path, encoding="utf-8")
    (own / "include" / "cuda_runtime.h").write_text("torch's own, which is not the compiler's", encoding="utf-8")
    home.mkdir()
    toolkit._link(home, made, own)
    assert (home / "bin" / "nvcc").read_text(encoding="utf-8") == "made/bin/nvcc"
    assert (home / "include" / "cuda_runtime.h").read_text(encoding="utf-8") == "made/include/cuda_runtime.h"
    assert (home / "include" / "cusparse.h").read_text(encoding="utf-8") == "own/include/cusparse.h"
    assert (home / "lib64" / "libcudart.so").read_text(encoding="utf-8") == "made/lib/libcudart.so.13"
