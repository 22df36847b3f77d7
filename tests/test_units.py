"""Compile commands: what torch's ninja writes is understood, and is the same on every machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewheels import units
from sagewheels.units import Unit

ROOTS = {
    "src": Path("/w/source"),
    "site": Path("/venv/lib/python3.12/site-packages"),
    "cuda": Path("/usr/local/cuda"),
    "python": Path("/usr/include/python3.12"),
    "prefix": Path("/venv"),
    "shims": Path("/w/my shims"),
}
CWD = Path("/w/source/build")
# As ninja runs them, written by torch.utils.cpp_extension.
NVCC = [
    *("--generate-dependencies-with-compile", "--dependency-output", "/w/source/build/temp/csrc/fused.o.d"),
    *("-I/venv/lib/python3.12/site-packages/torch/include", "-isystem", "/usr/local/cuda/include"),
    *("-I/usr/include/python3.12", "-c", "-c", "/w/source/csrc/fused.cu", "-o", "/w/source/build/temp/csrc/fused.o"),
    *("--compiler-options", "'-fPIC'", "-O3", "--threads=8", "-gencode", "arch=compute_120,code=sm_120"),
    *("-DTORCH_EXTENSION_NAME=_fused", "-std=c++17"),
]
CXX = [
    *("-MMD", "-MF", "temp/csrc/bind.o.d", "-pthread", "-B", "/venv/compiler_compat", "-fPIC"),
    *("-I/w/source/csrc", "-I/venv/lib/python3.12/site-packages/torch/include/torch/csrc/api/include"),
    *("-c", "-c", "../csrc/bind.cpp", "-o", "temp/csrc/bind.o", "-O3", '-DWORD="a.cpp"'),
]


def nvcc(*argv: str) -> Unit:
    unit = units.read("nvcc", argv or NVCC, CWD, ROOTS)
    assert unit
    return unit


def test_a_command_of_nvcc() -> None:
    assert nvcc() == Unit(
        compiler="nvcc",
        source="src/csrc/fused.cu",
        output=Path("/w/source/build/temp/csrc/fused.o"),
        dependencies=Path("/w/source/build/temp/csrc/fused.o.d"),
        flags=(
            *("-Isite/torch/include", "-isystem", "cuda/include", "-Ipython", "--compiler-options", "'-fPIC'", "-O3"),
            *("-gencode", "arch=compute_120,code=sm_120", "-DTORCH_EXTENSION_NAME=_fused", "-std=c++17"),
        ),
    )


def test_a_command_of_the_host_compiler() -> None:
    unit = units.read("cxx", CXX, CWD, ROOTS)
    assert unit
    assert (unit.source, unit.name) == ("src/csrc/bind.cpp", "bind.cpp")
    assert (unit.output, unit.dependencies) == (CWD / "temp/csrc/bind.o", CWD / "temp/csrc/bind.o.d")
    assert unit.flags == (
        *("-pthread", "-B", "prefix/compiler_compat", "-fPIC", "-Isrc/csrc"),
        *("-Isite/torch/include/torch/csrc/api/include", "-O3", '-DWORD="a.cpp"'),
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--version"],
        ["-V"],
        ["-v"],
        ["-dumpfullversion", "-dumpversion"],
        [],
        ["-shared", "a.o", "b.o", "-o", "x.so"],
        ["-E", "-c", "a.cpp", "-o", "a.i"],
        ["-c", "a.cpp"],
        ["-c", "a.cpp", "b.cpp", "-o", "x.o"],
        ["-c", "-o", "x.o"],
        ["-c", "a.cpp", "-o"],
        ["-c", "a.o", "-o", "b.o"],
        ["-dlink", "a.o", "-o", "b.o"],
        ["-c", "-o", "x.o", "-x", "c++", "-"],
        ["-c", "a.cpp", "-o", "x.o", "@more"],
        ["-c", "a.cpp", "-o", "x.o", "-Xcompiler", "@more"],
        ["-c", "a.cpp", "-o", "x.o", "--options-file", "more"],
        ["-c", "a.cpp", "-o", "x.o", "--options-file=more"],
        ["-c", "a.cpp", "-o", "x.o", "-optf", "more"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("compiler", ["nvcc", "cxx"])
def test_what_is_no_unit(compiler: str, argv: list[str]) -> None:
    assert units.read(compiler, argv, CWD, ROOTS) is None


@pytest.mark.parametrize("compiler", ["nvcc", "cxx"])
@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        ("-Iinc", "-Isrc/build/inc"),
        ("-I../csrc", "-Isrc/csrc"),
        ("-I.", "-Isrc/build"),
        ("-I inc", "-I src/build/inc"),
        ("-I ../../include", "-I /w/include"),
        ("-isysteminc", "-isystemsrc/build/inc"),
        ("-isystem inc", "-isystem src/build/inc"),
        ("-isystem=inc", "-isystem=src/build/inc"),
        ("--include-path=../csrc", "--include-path=src/csrc"),
        ("-I/usr/lib/x/../y", "-I/usr/lib/x/../y"),
        ("-I /w/source/x.cu", "-I src/x.cu"),
        ("-O3 -include stdint.h", "-O3 -include stdint.h"),
    ],
)
def test_folders_for_headers_are_where_the_command_would_find_them(compiler: str, argv: str, flags: str) -> None:
    """It runs elsewhere: in the folder of links."""
    unit = units.read(compiler, ["-c", *argv.split(), "a.cpp", "-o", "a.o"], CWD, ROOTS)
    assert unit
    assert (unit.flags, unit.source) == (tuple(flags.split()), "src/build/a.cpp")


def test_a_source_has_one_name() -> None:
    """The manifest's, so that its rule is found."""
    assert nvcc("-c", "/w/source/build/../csrc/./fused.cu", "-o", "a.o").source == "src/csrc/fused.cu"


@pytest.mark.parametrize("threads", [["--threads", "8"], ["--threads=8"], ["-t", "8"], ["-t=8"], []])
def test_threads_of_nvcc_are_granted_by_us(threads: list[str]) -> None:
    """And another number of them makes no other object."""
    unit = nvcc("-c", *threads, "a.cu", "-o", "a.o", "-O3")
    assert unit.flags == ("-O3",)
    assert units.command(unit, ["nvcc"], "1.o").count("--threads=1") == 1


def test_a_flag_that_only_looks_like_threads() -> None:
    unit = units.read("cxx", ["-c", "-t", "a.cpp", "-o", "a.o", "-threads"], CWD, ROOTS)
    assert unit
    assert unit.flags == ("-t", "-threads")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/w/source", "src"),
        ("/w/source/a.cu", "src/a.cu"),
        ("/w/sources/a.cu", "/w/sources/a.cu"),
        ("/w/source2", "/w/source2"),
        ("/x/w/source/a.cu", "/x/w/source/a.cu"),
        ("-I/w/source", "-Isrc"),
        ("-L/usr/local/cuda/lib64", "-Lcuda/lib64"),
        ("-I/usr/local/cuda-13.0/include", "-I/usr/local/cuda-13.0/include"),
        ("-I/w/my shims/nvcc", "-Ishims/nvcc"),
        ("-I/w/my", "-I/w/my"),
        ("--include-path=/venv/include", "--include-path=prefix/include"),
        ("/venv/lib/python3.12/site-packages/torch", "site/torch"),
        ("/venv/lib/python3.12/site-packages2", "prefix/lib/python3.12/site-packages2"),
        ("a,/w/source/x:/venv/y", "a,src/x:/venv/y"),
        ("/x /w/source/a", "/x /w/source/a"),
        ("-isystem /w/source/a", "-isystem src/a"),
        ("-isystem/usr/local/cuda/include", "-isystemcuda/include"),
        ("-iquote/w/source", "-iquotesrc"),
        ("-idirafter/venv/include", "-idirafterprefix/include"),
        ("-include/w/source/a.h", "-includesrc/a.h"),
        ("-B/venv/compiler_compat", "-Bprefix/compiler_compat"),
        ("-X/w/source", "-X/w/source"),
        ("-O3", "-O3"),
        ("", ""),
    ],
)
def test_folders_of_this_machine_become_the_names_of_their_links(text: str, found: str) -> None:
    assert units.relative(text, ROOTS) == found


PART = st.text("ab.+$( -", min_size=1, max_size=4).filter(lambda text: text not in (".", ".."))
FOLDER = st.lists(PART, min_size=1, max_size=3).map(lambda names: Path("/", *names))


@given(
    roots=st.dictionaries(st.sampled_from(["src", "site", "cuda", "prefix"]), FOLDER, min_size=1),
    below=st.lists(PART, max_size=3),
    data=st.data(),
)
def test_a_file_below_a_root_is_found_again(roots: dict[str, Path], below: list[str], data: st.DataObject) -> None:
    """Also where one root lies in another, or begins as another does."""
    path = Path(data.draw(st.sampled_from(sorted(roots.values()))), *below)
    name = units.relative(str(path), roots)
    assert not name.startswith("/")
    assert units.absolute(name, roots) == path


@given(roots=st.dictionaries(st.sampled_from(["src", "site", "cuda"]), FOLDER), path=FOLDER)
def test_any_other_file_stays_what_it_is(roots: dict[str, Path], path: Path) -> None:
    if not any(path.is_relative_to(root) for root in roots.values()):
        assert units.relative(str(path), roots) == str(path)
        assert units.absolute(str(path), roots) == path


def test_parts() -> None:
    unit = nvcc()
    assert units.parts(unit, 1) == (unit,)
    made = units.parts(unit, 3)
    assert [piece.flags for piece in made] == [
        (*unit.flags, "-DSAGE_PARTS=3", f"-DSAGE_PART={part}") for part in range(3)
    ]
    assert [piece.name for piece in made] == ["fused.cu (1)", "fused.cu (2)", "fused.cu (3)"]
    assert {replace(piece, flags=()) for piece in made} == {replace(unit, flags=())}
    assert len({units.key(piece, "13.0", "", {}) for piece in (unit, *made)}) == 4


def test_the_command_that_is_run() -> None:
    unit = replace(nvcc(), flags=("-O3", "-Isite/torch/include"))
    assert units.command(unit, ["cuda/bin/nvcc"], "made/1.o", shims="shims/nvcc", threads=2) == [
        *("cuda/bin/nvcc", "-Ishims/nvcc", "-Xcudafe", "--orig_src_path_name src/csrc/fused.cu", "--threads=2"),
        *("-O3", "-Isite/torch/include", "-MD", "-MF", "made/1.o.d", "-c", "src/csrc/fused.cu", "-o", "made/1.o"),
    ]
    host = replace(unit, compiler="cxx")
    assert units.command(host, ["ccache", "g++"], "made/1.o") == [
        *("ccache", "g++", "-O3", "-Isite/torch/include", "-MD", "-MF", "made/1.o.d"),
        *("-c", "src/csrc/fused.cu", "-o", "made/1.o"),
    ]


def test_the_key_changes_with_each_input() -> None:
    unit = nvcc()
    keys = [
        units.key(unit, "V13.0.88", "", {}),
        units.key(unit, "V13.0.89", "", {}),
        units.key(unit, "V13.0.88", "ab", {}),
        units.key(unit, "V13.0.88", "", {"CPATH": "/x"}),
        units.key(unit, "V13.0.88", "", {"CPATH": "/y"}),
        units.key(replace(unit, compiler="cxx"), "V13.0.88", "", {}),
        units.key(replace(unit, source="src/csrc/other.cu"), "V13.0.88", "", {}),
        units.key(replace(unit, flags=unit.flags[1:]), "V13.0.88", "", {}),
        units.key(replace(unit, flags=(*unit.flags[1:], unit.flags[0])), "V13.0.88", "", {}),
        units.key(replace(unit, flags=(*unit.flags[:-2], " ".join(unit.flags[-2:]))), "V13.0.88", "", {}),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)


def test_the_key_is_the_same_on_another_machine() -> None:
    """Other folders, another number of threads, another place for what is made."""
    elsewhere = {name: Path("/another place") / name for name in ROOTS}
    places = sorted(ROOTS.items(), key=lambda item: len(str(item[1])), reverse=True)
    argv = [word.replace("--threads=8", "--threads=2") for word in NVCC]
    for name, folder in places:
        argv = [word.replace(str(folder), str(elsewhere[name])) for word in argv]
    other = units.read("nvcc", argv, elsewhere["src"], elsewhere)
    assert other and other.output == elsewhere["src"] / "build/temp/csrc/fused.o"
    assert units.key(other, "V13.0.88", "ab", {}) == units.key(nvcc(), "V13.0.88", "ab", {})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("made/1.o: src/a.cu /usr/include/x.h\n", ["src/a.cu", "/usr/include/x.h"]),
        ("made/1.o : src/a.cu \\\n    cuda/include/cuda.h \\\n  src/a.cu\n", ["src/a.cu", "cuda/include/cuda.h"]),
        ("made/1.o: \\\n src/a.cu", ["src/a.cu"]),
        ("made/1.o: a\\ b/x.h c\\:d.h e$$f.h g\\#h.h\n", ["a b/x.h", "c:d.h", "e$f.h", "g#h.h"]),
        ("1.o: a.h b.h\n\na.h:\n\nb.h:\n", ["a.h", "b.h"]),
        ("1.o: a.h\n1.o: b.h\n", ["a.h", "b.h"]),
        ("1.o: C:/x.h\n", ["C:/x.h"]),
        ("made/1.o:\n", []),
        ("", []),
    ],
)
def test_dependency_files(text: str, names: list[str]) -> None:
    assert list(units.dependencies(text)) == names


@given(st.lists(st.text("ab/.:$# -+~", min_size=1, max_size=8), unique=True))
def test_every_name_that_a_compiler_escapes_is_read_back(names: list[str]) -> None:
    escaped = [name.replace("$", "$$").replace(" ", "\\ ").replace("#", "\\#").replace(":", "\\:") for name in names]
    assert list(units.dependencies("made/1.o: " + " \\\n  ".join(escaped) + "\n")) == names
