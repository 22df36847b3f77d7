"""The plan of a build: how many compilers, the wheel's label, the build key, and the line of a log that matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from sagewheels import arch, backend, bad, build, buildplan, describe, recipe, source
from sagewheels.buildplan import Plan
from sagewheels.config import Settings
from sagewheels.errors import BuildFailed, UsageError
from sagewheels.host import Host
from sagewheels.recipe import Recipe, UnitRule
from sagewheels.source import Checkout
from sagewheels.target import Target, Torch
from sagewheels.toolkit import Toolkit
from tests import wheels

GB = 1_000_000_000
NVCC_13 = "--compress-mode=size -Xptxas -split-compile=8"
"""What the manifest tells an nvcc of CUDA 13."""
COMMIT = "eb615cf6cf4d221338033340ee2de1c37fbdba4a"


@pytest.fixture(scope="module")
def sage() -> Recipe:
    return recipe.load("sageattention-2.2.0")


def host(cores: int, memory: int) -> Host:
    return Host(gpus=(), driver="", problem="", cores=cores, memory=memory, glibc="2.39")


@pytest.mark.parametrize(
    ("archs", "cores", "memory", "set_", "extensions", "at_once", "why"),
    [
        ("12.0", 1, 64 * GB, {}, 3, 1, "1 core, 64.0 GB free"),
        ("12.0", 2, 64 * GB, {}, 3, 2, "2 cores, 64.0 GB free"),
        ("12.0", 16, 8 * GB, {}, 3, 16, "16 cores, 8.0 GB free"),
        ("12.0", 4, 0, {}, 3, 4, "4 cores, 0.0 kB free"),
        ("8.0", 64, 64 * GB, {}, 2, 64, "64 cores, 64.0 GB free"),
        ("9.0", 8, 64 * GB, {}, 4, 8, "8 cores, 64.0 GB free"),
        # EXT_PARALLEL alone says nothing of how many compilers there may be.
        ("12.0", 2, 64 * GB, {"ext_parallel": 4}, 3, 2, "2 cores, 64.0 GB free"),
        ("12.0", 8, 64 * GB, {"ext_parallel": 1}, 1, 8, "8 cores, 64.0 GB free"),
        ("12.0", 2, 64 * GB, {"max_jobs": 8}, 3, 8, "MAX_JOBS; 2 cores, 64.0 GB free"),
        ("12.0", 8, 64 * GB, {"max_jobs": 1}, 3, 1, "MAX_JOBS; 8 cores, 64.0 GB free"),
        ("12.0", 16, 64 * GB, {"ext_parallel": 1, "max_jobs": 2}, 1, 2, "MAX_JOBS; 16 cores, 64.0 GB free"),
        ("12.0", 16, 64 * GB, {"ext_parallel": 3, "max_jobs": 2}, 3, 6, "MAX_JOBS; 16 cores, 64.0 GB free"),
        # What the source's own documentation says to set, whatever the machine.
        ("12.0", 2, 4 * GB, {"ext_parallel": 4, "max_jobs": 16}, 3, 2, "MAX_JOBS; 2 cores, 4.0 GB free"),
    ],
)
def test_how_many_compilers_run_at_once(
    sage: Recipe, archs: str, cores: int, memory: int, set_: dict[str, int], extensions: int, at_once: int, why: str
) -> None:
    settings = Settings(**set_)  # type: ignore[arg-type]
    plan = buildplan.jobs(settings, sage, arch.parse_list(archs), host(cores, memory))
    assert plan == buildplan.Jobs(at_once=at_once, memory=memory, extensions=extensions, why=why)


@pytest.fixture
def plan(sage: Recipe) -> Plan:
    """A build for the RTX 5090 on a machine of the usual kind."""
    archs = arch.parse_list("12.0")
    prefix = Path("/target")
    return Plan(
        recipe=sage,
        rules=tuple(sage.rules(archs)),
        archs=archs,
        target=Target(
            python=prefix / "bin/python",
            prefix=prefix,
            version="3.12.3",
            soabi="cpython-312-x86_64-linux-gnu",
            machine="x86_64",
            site=prefix,
            include=prefix,
            has_python_h=True,
            externally_managed=False,
            writable=True,
            torch=Torch(folder=prefix / "torch", version="2.11.0+cu130", cuda="13.0"),
            versions={},
            dist_info={},
            tags=("cp312-cp312-linux_x86_64",),
        ),
        toolkit=Toolkit(home=Path("/cuda"), version="13.0", build="V13.0.88", origin="CUDA_HOME", compiler="c++ 13.2"),
        jobs=buildplan.Jobs(at_once=8, memory=64 * GB, extensions=3, why="8 cores"),
        tools="setuptools-80.9.0 ninja-1.13.0",
        glibc="2.39",
        flags=buildplan.Flags(cxx="-g0", nvcc=NVCC_13, link="-Wl,-s"),
    )


def with_torch(plan: Plan, version: str, cuda: str) -> Plan:
    torch = Torch(folder=Path("/t"), version=version, cuda=cuda)
    return replace(plan, target=replace(plan.target, torch=torch))


def with_archs(plan: Plan, archs: str) -> Plan:
    parsed = arch.parse_list(archs)
    return replace(plan, archs=parsed, rules=tuple(plan.recipe.rules(parsed)))


@pytest.mark.parametrize(
    ("torch", "cuda", "archs", "label"),
    [
        ("2.11.0+cu130", "13.0", "12.0", "cu130torch2.11sm120.k01234567"),
        ("2.11.1+cu130", "13.0", "12.0", "cu130torch2.11.1sm120.k01234567"),
        ("2.10.0", "12.8", "8.9;12.0", "cu128torch2.10sm89sm120.k01234567"),
        ("2.12.0.dev20260101+cu130", "13.0", "9.0", "cu130torch2.12.0.dev20260101sm90.k01234567"),
        ("2.11.0+cu130", "13.0", "12.0+PTX", "cu130torch2.11sm120ptx.k01234567"),
    ],
)
def test_the_label_says_for_which_stack_a_wheel_is(plan: Plan, torch: str, cuda: str, archs: str, label: str) -> None:
    found = buildplan.label(with_archs(with_torch(plan, torch, cuda), archs), "0123456789abcdef" * 4)
    assert found == label
    assert Version(f"2.2.0+{found}").local == found, "a valid local version, and in its normal form"


@pytest.mark.parametrize(("torch", "cuda"), [("2.11.0+cu130", "13.0"), ("2.15.0+cu132", "13.2")])
def test_the_label_of_a_stable_wheel_names_neither_torch_nor_the_minor_of_cuda(
    plan: Plan, torch: str, cuda: str
) -> None:
    stable = replace(with_torch(plan, torch, cuda), recipe=recipe.load("sageattention-2.2.0-abi3"))
    assert buildplan.label(stable, "0123456789abcdef" * 4) == "cu13sm120.k01234567"


def key(plan: Plan, commit: str = COMMIT, patches: tuple[str, ...] = ("aa", "bb")) -> str:
    return buildplan.build_key(plan, commit, patches)


def with_recipe(plan: Plan, **changed: Any) -> Plan:
    return replace(plan, recipe=replace(plan.recipe, **changed))


def with_target(plan: Plan, **changed: Any) -> Plan:
    return replace(plan, target=replace(plan.target, **changed))


def with_toolkit(plan: Plan, **changed: Any) -> Plan:
    return replace(plan, toolkit=replace(plan.toolkit, **changed))


def variants(plan: Plan) -> dict[str, str]:
    """The key of every build that differs from this one in one declared input."""
    return {
        "commit": key(plan, commit="cd" * 20),
        "content of a patch": key(plan, patches=("aa", "cc")),
        "order of the patches": key(plan, patches=("bb", "aa")),
        "one patch less": key(plan, patches=("aa",)),
        "name": key(with_recipe(plan, name="other")),
        "version": key(with_recipe(plan, version="2.2.1")),
        "C++ flags": key(replace(plan, flags=replace(plan.flags, cxx="-g1"))),
        "nvcc flags": key(replace(plan, flags=replace(plan.flags, nvcc="--compress-mode=none"))),
        "link flags": key(replace(plan, flags=replace(plan.flags, link=""))),
        "the same flags elsewhere": key(replace(plan, flags=buildplan.Flags(cxx="-Wl,-s", nvcc="", link="-g0"))),
        "environment": key(with_recipe(plan, environment={"A": "1"})),
        "no light headers": key(with_recipe(plan, shims=None)),
        "parts": key(with_recipe(plan, unit_rules={"csrc/a.cu": recipe.UnitRule(parts=2)})),
        "more parts": key(with_recipe(plan, unit_rules={"csrc/a.cu": recipe.UnitRule(parts=3)})),
        "archs": key(with_archs(plan, "8.9;12.0")),
        "PTX": key(with_archs(plan, "12.0+PTX")),
        "torch": key(with_torch(plan, "2.11.1+cu130", "13.0")),
        "torch's CUDA": key(with_torch(plan, "2.11.0+cu132", "13.2")),
        "Python": key(with_target(plan, tags=("cp313-cp313-linux_x86_64",))),
        "free-threaded Python": key(with_target(plan, tags=("cp312-cp312t-linux_x86_64",))),
        "machine": key(with_target(plan, machine="aarch64")),
        "nvcc": key(with_toolkit(plan, build="V13.0.99")),
        "host compiler": key(with_toolkit(plan, compiler="c++ 14.1")),
        "glibc": key(replace(plan, glibc="2.36")),
        "build tools": key(replace(plan, tools="setuptools-81.0.0 ninja-1.13.0")),
    }


def test_the_build_key_changes_with_every_declared_input(plan: Plan) -> None:
    found = {"": key(plan), **variants(plan)}
    same = {name: other for name in found for other in found if name < other and found[name] == found[other]}
    assert same == {}
    assert all(len(text) == 64 and set(text) <= set("0123456789abcdef") for text in found.values())


def test_the_build_key_does_not_change_with_what_makes_no_other_wheel(plan: Plan) -> None:
    assert key(plan) == key(plan)
    rules = plan.recipe.unit_rules
    same = [
        replace(plan, jobs=buildplan.Jobs(at_once=1, memory=1, extensions=1, why="")),
        replace(plan, launcher="/usr/bin/ccache"),
        with_toolkit(plan, home=Path("/elsewhere"), origin="nvcc on PATH"),
        with_target(plan, python=Path("/other/bin/python"), prefix=Path("/other"), versions={"numpy": "2"}),
        with_target(plan, version="3.12.9"),
        with_recipe(plan, file=Path("/other/manifests/sageattention-2.2.0.toml"), memory_per_unit=1, smoke={}),
        with_recipe(plan, unit_rules={name: replace(rule, seconds=1, memory=1) for name, rule in rules.items()}),
    ]
    assert {key(one) for one in same} == {key(plan)}


@pytest.fixture
def prepare(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """prepare() where the toolkit is that of the plan, and the build tools are there."""

    def make(settings: Settings, *, cuda: str = "13.0", archs: str = "12.0", manifest: str = "") -> Plan:
        made_by = recipe.load(manifest) if manifest else plan.recipe
        kit = replace(plan.toolkit, version=cuda)
        monkeypatch.setattr(buildplan, "tools", lambda *args: plan.tools)
        return buildplan.prepare(settings, made_by, arch.parse_list(archs), plan.target, host(8, 64 * GB), kit)

    return make


def test_the_plan_is_what_is_here(plan: Plan, prepare: Callable[..., Plan]) -> None:
    made = prepare(Settings())
    assert made == replace(plan, jobs=made.jobs)
    assert (made.jobs.extensions, made.jobs.at_once, made.jobs.memory) == (3, 8, 64 * GB)


@pytest.mark.parametrize(
    ("settings", "cuda", "flags"),
    [
        (Settings(), "12.6", buildplan.Flags(cxx="-g0", nvcc="", link="-Wl,-s")),
        (Settings(), "12.8", buildplan.Flags(cxx="-g0", nvcc="--compress-mode=size", link="-Wl,-s")),
        (
            Settings(nvcc_append_flags="--threads 8"),
            "13.0",
            buildplan.Flags(cxx="-g0", nvcc=f"{NVCC_13} --threads 8", link="-Wl,-s"),
        ),
        (
            Settings(environ={"CXX_APPEND_FLAGS": " -O1  -g1 ", "LDFLAGS": "-L/x"}),
            "13.0",
            buildplan.Flags(cxx="-g0 -O1 -g1", nvcc=NVCC_13, link="-Wl,-s -L/x"),
        ),
    ],
)
def test_the_users_flags_follow_the_manifests_and_change_the_key(
    plan: Plan, prepare: Callable[..., Plan], settings: Settings, cuda: str, flags: buildplan.Flags
) -> None:
    made = prepare(settings, cuda=cuda)
    assert made.flags == flags
    assert key(made) != key(plan)


def test_archs_that_no_single_build_can_hold_are_refused(prepare: Callable[..., Plan]) -> None:
    """Where one list of archs serves all extensions, wgmma cannot be compiled beside another arch."""
    one_list = {"manifest": "spargeattn-0.1.0"}
    with pytest.raises(UsageError) as caught:
        prepare(Settings(), archs="9.0;12.0", **one_list)
    line = "spas-sage-attn 0.1.0 for 9.0 cannot be built together with another arch. Name one with --arch."
    assert str(caught.value) == line
    assert [str(rule.cubin) for rule in prepare(Settings(), archs="9.0", **one_list).rules] == ["9.0a"]
    assert [str(rule.cubin) for rule in prepare(Settings(), archs="8.9;12.0", **one_list).rules] == ["8.9", "12.0"]


def test_each_extension_has_its_own_archs(prepare: Callable[..., Plan]) -> None:
    """A patch sees to that, so that 9.0 may stand beside others; one plain cubin serves its neighbours too."""
    assert [str(rule.cubin) for rule in prepare(Settings(), archs="9.0;12.0").rules] == ["9.0a", "12.0"]
    plan = prepare(Settings(), archs="12.0;12.1+PTX;10.3")
    assert (arch.join(plan.archs), [str(rule.arch) for rule in plan.rules]) == ("10.0;12.0+PTX", ["10.0", "12.0"])


def test_every_field_of_a_plan_is_weighed_in_these_tests() -> None:
    """A new field is either an input of the key or it is not: say so above."""
    known = {"recipe", "rules", "archs", "target", "toolkit", "jobs", "tools", "glibc", "flags", "launcher"}
    assert {item.name for item in fields(Plan)} == known


def test_what_a_plan_compiles(plan: Plan) -> None:
    assert (plan.extensions, plan.units) == (("_qattn_sm80", "_qattn_sm89", "_fused"), 12)
    assert with_archs(plan, "8.0").units == 4


NINJA = "[3/12] /usr/local/cuda/bin/nvcc -Werror=all -DERROR: -Xcompiler -Werror -c /src/fused.cu -o /src/fused.o"
FAILED = "FAILED: [code=1] /src/fused.o"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        pytest.param(
            [
                NINJA,
                FAILED,
                "In file included from /src/fused.cu:3:",
                "/t/ATen/cuda/CUDAContextLight.h:12:10: fatal error: cusparse.h: No such file or directory",
                "   12 | #include <cusparse.h>",
                "compilation terminated.",
                "ninja: build stopped: subcommand failed.",
                "RuntimeError: Error compiling objects for extension",
            ],
            "/t/ATen/cuda/CUDAContextLight.h:12:10: fatal error: cusparse.h: No such file or directory (line 4)",
            id="a header is missing",
        ),
        pytest.param(
            [NINJA, FAILED, "Killed", "ninja: build stopped: subcommand failed.", "RuntimeError: Error compiling"],
            "Killed (line 3)",
            id="out of memory, by the shell",
        ),
        pytest.param(
            [FAILED, "c++: fatal error: Killed signal terminated program cc1plus", "compilation terminated."],
            "c++: fatal error: Killed signal terminated program cc1plus (line 2)",
            id="out of memory, by g++",
        ),
        pytest.param(
            [FAILED, "nvcc error   : 'cicc' died due to signal 9 (Kill signal)", "RuntimeError: Error compiling"],
            "nvcc error   : 'cicc' died due to signal 9 (Kill signal) (line 2)",
            id="out of memory, by nvcc",
        ),
        pytest.param(
            [
                NINJA,
                "/src/attn.cu(40): warning #177-D: variable was declared but never referenced",
                FAILED,
                "/usr/include/c++/15/type_traits(3240): error: no instance of function template matches",
                "          detected during instantiation of class std::tuple",
                "87 errors detected in the compilation of /src/attn.cu.",
            ],
            "/usr/include/c++/15/type_traits(3240): error: no instance of function template matches (line 4)",
            id="a template error",
        ),
        pytest.param(
            ["/src/a.cu(12): error #20: identifier is undefined", "RuntimeError: x"],
            "/src/a.cu(12): error #20: identifier is undefined (line 1)",
            id="a numbered error of nvcc",
        ),
        pytest.param(
            [FAILED, "nvcc fatal   : Unsupported gpu architecture 'compute_120'", "RuntimeError: Error compiling"],
            "nvcc fatal   : Unsupported gpu architecture 'compute_120' (line 2)",
            id="nvcc fatal",
        ),
        pytest.param(
            ["/usr/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version!", "terminated."],
            "/usr/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version! (line 1)",
            id="a compiler that is too new",
        ),
        pytest.param(
            ["/usr/bin/ld: cannot find -lcuda: No such file or directory", "collect2: error: ld returned 1"],
            "/usr/bin/ld: cannot find -lcuda: No such file or directory (line 1)",
            id="the linker",
        ),
        pytest.param(
            ["/usr/bin/ld: final link failed: No space left on device", "collect2: error: ld returned 1 exit status"],
            "/usr/bin/ld: final link failed: No space left on device (line 1)",
            id="the disk",
        ),
        pytest.param(
            [
                FAILED,
                "ptxas /tmp/x.ptx, line 64; error   : Instruction 'wgmma.fence' not supported on .target 'sm_120'",
                "ptxas fatal   : Ptx assembly aborted due to errors",
            ],
            "ptxas /tmp/x.ptx, line 64; error   : Instruction 'wgmma.fence' not supported on .target 'sm_120' (line 2)",
            id="ptxas",
        ),
        pytest.param(
            [NINJA, "Traceback (most recent call last):", "RuntimeError: ninja is required to load C++ extensions"],
            "RuntimeError: ninja is required to load C++ extensions (line 3)",
            id="Python alone",
        ),
        pytest.param(
            [
                FAILED,
                "Traceback (most recent call last):",
                '  File "/x/cpp_extension.py", line 2597, in _run_ninja_build',
                "    raise CalledProcessError(retcode, process.args)",
                "subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit status 1.",
                "",
                "Traceback (most recent call last):",
                '  File "/x/build_ext.py", line 9, in SomeError',
                "    raise RuntimeError(message) from e",
                "packaging.errors.InvalidThing.Error: the one that ends it",
                "ninja: build stopped: subcommand failed.",
            ],
            "packaging.errors.InvalidThing.Error: the one that ends it (line 10)",
            id="a traceback",
        ),
        pytest.param(
            [FAILED, "nvlink fatal   : Input file 'a.o' newer than toolkit (130 vs 128)", "RuntimeError: Error"],
            "nvlink fatal   : Input file 'a.o' newer than toolkit (130 vs 128) (line 2)",
            id="nvlink",
        ),
        pytest.param([NINJA, FAILED, "that was all"], f"{FAILED} (line 2)", id="ninja alone"),
        pytest.param(
            [NINJA, "    raise RuntimeError(", "Exception ignored in: <x>"], "Exception ignored in: <x> (line 3)",
            id="an exception in other words",
        ),
        pytest.param(
            [NINJA, "[4/12] c++ -c Exception.cpp", "that was all  "], "that was all (last line)", id="nothing says why"
        ),
        pytest.param(
            ["nvcc -I" + "x" * 1000 + " error: no", "done"], "done (last line)", id="a command that ninja shows"
        ),
        pytest.param(["a.cpp:1: error: " + "x" * 400], "a.cpp:1: error: " + "x" * 284 + " (line 1)", id="a long line"),
        pytest.param([], "the log is empty", id="no log"),
    ],
)  # fmt: skip
def test_the_line_of_a_log_that_matters(tmp_path: Path, log: list[str], line: str) -> None:
    path = tmp_path / "build.log"
    path.write_text("".join(f"{text}\n" for text in log), encoding="utf-8")
    assert backend.matters(path) == line


def test_a_log_that_is_no_text_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"caf\xe9\na.cpp:1: error: caf\xe9\n")
    assert backend.matters(tmp_path / "log") == "a.cpp:1: error: caf� (line 2)"


@pytest.mark.parametrize(
    ("version", "index"),
    [
        ("2.11.0+cu128", "https://download.pytorch.org/whl/cu128"),
        ("2.12.0.dev20260101+cu130", "https://download.pytorch.org/whl/nightly/cu130"),
        ("2.11.0", None),
        ("2.11.0+cpu", None),
        ("2.11.0a0+git1234", None),
    ],
)
def test_the_index_that_has_this_very_torch(version: str, index: str | None) -> None:
    assert describe._index(version) == index


def test_what_the_source_is_told(plan: Plan, tmp_path: Path) -> None:
    stubs = tmp_path / "cuda" / "lib64" / "stubs"
    stubs.mkdir(parents=True)
    (stubs / "libcuda.so").touch()
    plan = with_archs(with_toolkit(plan, home=tmp_path / "cuda"), "9.0")
    environ = {"PATH": "/bin", "LDFLAGS": "-L/x", "PYTHONPATH": "/p", "MAX_JOBS": "99"}
    settings = Settings(work_dir=tmp_path / "work", environ=environ)
    tree = Checkout(folder=tmp_path, repo="r", ref="v", commit=COMMIT, epoch=1700000000, patches=())
    env = backend.environment(settings, plan, tree, "0123456789abcdef" * 4, tmp_path)
    tools = env["PYTHONPATH"].split(":")[0]
    assert tools.startswith(str(tmp_path / "work" / "buildtools" / "cp312-"))
    assert env["PATH"] == f"{tools}/bin:{tmp_path}/cuda/bin:/bin"
    assert {name: env[name] for name in ("CXX_APPEND_FLAGS", "NVCC_APPEND_FLAGS", "LDFLAGS", "PYTHONPATH")} == {
        "CXX_APPEND_FLAGS": "-g0",
        "NVCC_APPEND_FLAGS": NVCC_13,
        "LDFLAGS": "-Wl,-s",
        "PYTHONPATH": tools,
    }
    assert (env["TORCH_CUDA_ARCH_LIST"], env["CUDAARCHS"]) == ("9.0", "90")
    assert (env["EXT_PARALLEL"], env["MAX_JOBS"], env["SOURCE_DATE_EPOCH"]) == ("3", "14", "1700000000")
    assert (env["CUDA_HOME"], env["LIBRARY_PATH"]) == (str(tmp_path / "cuda"), str(stubs))
    label = Path(env["DIST_EXTRA_CONFIG"]).read_text(encoding="utf-8")
    assert label == "[egg_info]\ntag_build = +cu130torch2.11sm90.k01234567\n"
    own = backend.environment(replace(settings, cudaarchs="90a"), plan, tree, "0" * 64, tmp_path)
    assert own["CUDAARCHS"] == "90a"


def test_a_build_that_is_known_to_be_bad_is_refused_at_once(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same inputs would give the same wheel, minutes later."""
    tree = Checkout(folder=tmp_path, repo="r", ref="v", commit=COMMIT, epoch=1700000000, patches=())
    monkeypatch.setattr(source, "checkout", lambda settings, recipe, folder: tree)
    bad_key = buildplan.build_key(plan, COMMIT, [])
    raw = {"wheel_sha256": "ab" * 32, "build_key": bad_key, "arch": "12.0", "at_utc": "2026-11-22T10:00:00Z"}
    mark = bad.read({**raw, "gpu": "RTX", "reason": "not finite"})
    assert mark
    settings = Settings(work_dir=tmp_path / "work", wheelhouse_dir=tmp_path / "house", log_dir=tmp_path / "logs")
    with pytest.raises(BuildFailed) as caught:
        build.run(settings, plan, known_bad=bad.by_name([mark]))
    assert str(caught.value) == (
        f"what would be compiled, build key {bad_key[:8]}, is known to be bad on arch 12.0: not finite "
        "(RTX, 2026-11-22). Change torch or patches; build --force and auto --rebuild compile it anyway."
    )
    assert list(tmp_path.iterdir()) == []
    spark = bad.by_name([replace(mark, arch="12.1")])
    with pytest.raises(BuildFailed, match=r" is known to be bad on arch 12\.1: not finite "):
        build.run(settings, plan, known_bad=spark, archs=arch.parse_list("12.1"))


def test_a_rule_for_a_unit_that_is_not_there(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error would else count for nothing; another commit than the pinned one may lack the file."""
    tree = Checkout(folder=tmp_path, repo="r", ref="v", commit=COMMIT, epoch=1700000000, patches=())
    monkeypatch.setattr(source, "checkout", lambda settings, recipe, folder: tree)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "attn.cu").touch()
    rules = {"csrc/attn.cu": UnitRule(parts=2), "csrc/atn.cu": UnitRule(parts=3)}
    typed = replace(plan, recipe=replace(plan.recipe, unit_rules=rules))
    settings = Settings(work_dir=tmp_path / "work", wheelhouse_dir=tmp_path / "house", log_dir=tmp_path / "logs")
    with pytest.raises(UsageError) as caught:
        build.run(settings, typed)
    what = f'{plan.recipe.file}: unit."csrc/atn.cu" is no file of the source'
    assert str(caught.value) == f"{what}. Name it as the source does, or take it out."
    assert [path.name for path in tmp_path.iterdir()] == ["csrc"]
    build._units_are_there(typed.recipe, replace(tree, commit="0" * 40))
    good = replace(plan.recipe, unit_rules={"csrc/attn.cu": UnitRule(parts=2)})
    build._units_are_there(good, tree)


@pytest.mark.parametrize(("set_", "extensions"), [({}, 1), ({"ext_parallel": 2}, 2)])
def test_a_source_that_builds_one_extension_after_the_other(
    sage: Recipe, set_: dict[str, int], extensions: int
) -> None:
    """All cores go to the one that is under way."""
    one = replace(sage, extensions_at_once=1)
    settings = Settings(**set_)  # type: ignore[arg-type]
    plan = buildplan.jobs(settings, one, arch.parse_list("12.0"), host(16, 64 * GB))
    assert (plan.extensions, plan.at_once) == (extensions, 16)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (
            "c++: fatal error: Killed signal terminated program cc1plus",
            "Set MAX_JOBS=1, free memory or add swap; build plans the number from what this process may really use. ",
        ),
        ("x.cu(7): error: no", ""),
    ],
)
def test_a_compile_that_fails_names_the_remedy(plan: Plan, tmp_path: Path, said: str, remedy: str) -> None:
    """The source's own build is a program that says this and fails."""
    python = wheels.script(tmp_path / "python", f"#!/bin/sh\necho '{said}'\nexit 1\n")
    (tmp_path / "cuda" / "lib64" / "stubs").mkdir(parents=True)
    (tmp_path / "cuda" / "lib64" / "stubs" / "libcuda.so").touch()
    plan = with_target(with_toolkit(plan, home=tmp_path / "cuda"), python=python)
    settings = Settings(work_dir=tmp_path / "work", environ={"PATH": "/usr/bin:/bin"})
    tree = Checkout(folder=tmp_path, repo="r", ref="v", commit=COMMIT, epoch=1700000000, patches=())
    out, log = tmp_path / "out", tmp_path / "build.log"
    out.mkdir()
    with pytest.raises(BuildFailed) as caught:
        backend.run(settings, plan, tree, "0123456789abcdef" * 4, out, log)
    assert str(caught.value) == (
        f"the compile failed (exit code 1): {said} (line 2). "
        f"{remedy}The whole log is {log}; what was installed is untouched."
    )
