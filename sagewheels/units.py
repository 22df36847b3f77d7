"""One compile command of a build: what it makes, the same without this machine's folders, and its parts. Pure."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

SOURCES = (".cu", ".cpp", ".cc", ".cxx", ".c")
"""What counts as the source of a unit; any other command is none, and passes through as it is."""

_WRITES_DEPENDENCIES = {"-MD", "-MMD", "--generate-dependencies-with-compile"}
_NAMES_DEPENDENCIES = {"-MF", "--dependency-output"}
_SEARCHES = re.compile(r"(-I|-isystem|-iquote|-idirafter|--include-path|--system-include)(=?)(.*)")
_BEFORE_A_PATH = r"-(?:[BIL]|isystem|iquote|idirafter|include)|[^/]*[=:,\s]|"
_READS_WORDS = re.compile(r"@|(?:--options-file|-optf)(?:=|$)")
"""More words are in a file, whose content we would miss."""

_THREADS = re.compile(r"(?:--threads|-t)(?:=|$)")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A translation unit: `source` and `flags` are as seen from the folder of links, `output` is where it is wanted."""

    compiler: str
    source: str
    output: Path
    dependencies: Path | None
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """`qk_int_sv_f16_cuda_sm80.cu (2)`: for people."""
        part = next((flag.partition("=")[2] for flag in self.flags if flag.startswith("-DSAGE_PART=")), "")
        return PurePosixPath(self.source).name + (f" ({int(part) + 1})" if part else "")


def read(compiler: str, argv: Sequence[str], cwd: Path, roots: Mapping[str, Path]) -> Unit | None:
    """The unit that a command compiles; None for any other command, such as a link or a question for the version.

    `roots` are the folders that differ from machine to machine, by the names of the links to them.
    """
    if "-c" not in argv or "-E" in argv or any(_READS_WORDS.match(word) for word in argv):
        return None
    sources: list[str] = []
    output, dependencies = "", ""
    flags: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "-o":
            output = next(words, "")
        elif word in _NAMES_DEPENDENCIES:
            dependencies = next(words, "")
        elif compiler == "nvcc" and _THREADS.match(word):
            # nvcc's own threads are granted by us, like cores; they do not change what comes out.
            if "=" not in word:
                next(words, "")
        elif word == "-c" or word in _WRITES_DEPENDENCIES:
            continue
        elif searches := _SEARCHES.fullmatch(word):
            option, equals, folder = searches.groups()
            flags += [f"{option}{equals}{_at(cwd, folder)}"] if folder else [word, _at(cwd, next(words, ""))]
        elif word.endswith(SOURCES) and not word.startswith("-"):
            sources.append(word)
        else:
            flags.append(word)
    if len(sources) != 1 or not output:
        return None
    return Unit(
        compiler=compiler,
        source=relative(os.path.normpath(cwd / sources[0]), roots),
        output=cwd / output,
        dependencies=cwd / dependencies if dependencies else None,
        flags=tuple(relative(flag, roots) for flag in flags),
    )


def _at(cwd: Path, folder: str) -> str:
    """A folder as the command means it, since it runs elsewhere; a whole path stays what it is."""
    return folder if folder.startswith("/") else os.path.normpath(cwd / folder)


def relative(text: str, roots: Mapping[str, Path]) -> str:
    """The text with the root folder of the path in it replaced by the name of its link: the longest that matches."""
    for name, folder in sorted(roots.items(), key=lambda item: len(str(item[1])), reverse=True):
        text = re.sub(rf"^({_BEFORE_A_PATH}){re.escape(str(folder))}(?=/|$)", rf"\g<1>{name}", text)
    return text


def absolute(name: str, roots: Mapping[str, Path]) -> Path:
    """The file that a name relative to the folder of links means."""
    first, _, rest = name.partition("/")
    return roots[first] / rest if first in roots else Path("/") / name


def parts(unit: Unit, count: int) -> tuple[Unit, ...]:
    """The unit as `count` compiles, each with -DSAGE_PARTS and its own -DSAGE_PART; itself where that is 1."""
    if count == 1:
        return (unit,)
    both = ((*unit.flags, f"-DSAGE_PARTS={count}", f"-DSAGE_PART={part}") for part in range(count))
    return tuple(replace(unit, flags=flags) for flags in both)


def command(unit: Unit, program: Sequence[str], output: str, *, shims: str = "", threads: int = 1) -> list[str]:
    """The argument list that compiles the unit to `output`, run in the folder of links; dependencies go to `output`.d.

    `shims` is a folder that is searched for headers before all others.
    """
    own = [f"-I{shims}"] if shims else []
    if unit.compiler == "nvcc":
        # The names of internal symbols hash this path, which would else be the absolute one.
        own += ["-Xcudafe", f"--orig_src_path_name {unit.source}", f"--threads={threads}"]
    return [*program, *own, *unit.flags, "-MD", "-MF", f"{output}.d", "-c", unit.source, "-o", output]


def key(unit: Unit, identity: str, shims: str, environment: Mapping[str, str]) -> str:
    """sha256 over all that decides the object, but for the contents of the files it is compiled from.

    `identity` says which compiler it is, `shims` what the headers of ours are, `environment` what compilers read.
    """
    inputs = {
        "compiler": [unit.compiler, identity],
        "source": unit.source,
        "flags": list(unit.flags),
        "shims": shims,
        "environment": dict(environment),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def dependencies(text: str) -> Iterator[str]:
    """The files that a dependency file in the format of make lists, each once."""
    rules = (line.partition(": ")[2] for line in text.replace("\\\n", " ").splitlines())
    listed = (name for rule in rules for name in re.findall(r"(?:\\.|[^\s\\])+", rule))
    yield from dict.fromkeys(re.sub(r"\\(.)", r"\1", name).replace("$$", "$") for name in listed)
