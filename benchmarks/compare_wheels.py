"""Says what two wheels of the same source hold: extension modules, archs, functions bound for Python, kernels.

    python benchmarks/compare_wheels.py ONE.whl TWO.whl --package sageattention --python TARGET

TARGET has the torch of the wheels; nothing is installed into it. Machine code is compared where nvdisasm is on PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare_sass

from sagewheels import arch, wheel

_IMPORTS = 5
_LOAD = """
import importlib.machinery, importlib.util, json, sys, time, torch
started, found = time.perf_counter(), {}
for name, path in json.loads(sys.argv[1]).items():
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    found[name.rpartition(".")[2]] = sorted(each for each in dir(module) if each[:2] != "__")
print(json.dumps([time.perf_counter() - started, found]))
"""


class Side:
    """One wheel, unpacked."""

    def __init__(self, path: Path, package: str, folder: Path) -> None:
        self.package = package
        self.facts = wheel.inspect(path, package)
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.namelist() if item.endswith(".so")]
            archive.extractall(folder, members)
        self.modules = {PurePosixPath(item).name.split(".")[0]: folder / item for item in members}

    def load(self, python: Path) -> tuple[float, dict[str, list[str]]]:
        """Seconds that loading the modules takes, torch aside, and the names that each has for Python."""
        told = json.dumps({f"{self.package}.{name}": str(path) for name, path in self.modules.items()})
        argv = [str(python), "-I", "-W", "ignore", "-c", _LOAD, told]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self.facts.path.name} cannot be loaded: {done.stderr.strip().splitlines()[-1]}")
        seconds, names = json.loads(done.stdout)
        return seconds, names


def kernels(module: Path) -> set[str]:
    """Mangled names of the kernels of a module, whatever arch."""
    argv = [str(wheel.cuobjdump()), "-symbols", str(module)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    # `FUNC GLOBAL DEFAULT ENTRY name`, before CUDA 13 `STT_FUNC STB_GLOBAL STO_ENTRY name`.
    return set(re.findall(r"^\s*(?:STT_)?FUNC\s.*\b(?:STO_)?ENTRY\s+(\S+)$", said, re.MULTILINE))


def compare(one: Path, two: Path, package: str, python: Path | None) -> Iterator[str]:
    """A line for each thing that is the same or not; `one` is what `two` is held against."""
    # cuobjdump finds nvdisasm on PATH, and compare_sass finds cuobjdump there.
    os.environ["PATH"] += f":{wheel.cuobjdump().parent}"
    with tempfile.TemporaryDirectory() as name:
        sides = [Side(path, package, Path(name) / str(number)) for number, path in enumerate((one, two))]
        yield _said("extension modules", *(set(side.modules) for side in sides))
        yield _said("archs", *({f"{key} {arch.join(held)}" for key, held in side.facts.held.items()} for side in sides))
        if python:
            times: list[list[float]] = [[], []]
            for _ in range(_IMPORTS):
                loaded = [side.load(python) for side in sides]
                for column, (seconds, _names) in zip(times, loaded, strict=True):
                    column.append(seconds)
            yield _said("names for Python", *({f"{key}.{n}" for key in has for n in has[key]} for _, has in loaded))
            first, second = (statistics.median(column) * 1000 for column in times)
            ratio = f"{second / first:.2f}x, median of {_IMPORTS}"
            yield f"loading the modules: {first:.1f} ms and {second:.1f} ms, {ratio}"
        for module in sorted(sides[0].modules.keys() & sides[1].modules.keys()):
            yield _said(f"kernels of {module}", *(kernels(side.modules[module]) for side in sides))
            if shutil.which("nvdisasm"):
                yield from _code(module, *sides)


def _code(module: str, one: Side, two: Side) -> Iterator[str]:
    """How many kernels that both have are the same, instruction by instruction."""
    for each in one.facts.extensions[module].archs:
        first, second = (compare_sass.kernels(side.modules[module], f"sm_{each.number}") for side in (one, two))
        both = first.keys() & second.keys()
        same = sum(first[name] == second[name] for name in both)
        yield f"machine code of {module} for {each}: {same} of {len(both)} kernels that both have are the same"


def _said(what: str, one: set[str], two: set[str]) -> str:
    """`kernels: the same 12`, or what only one of them has."""
    if one == two:
        return f"{what}: the same {len(one)}"
    only = [f"{len(more)} only in the {side} ({', '.join(sorted(more)[:3])}{', ...' if len(more) > 3 else ''})"
            for side, more in (("first", one - two), ("second", two - one)) if more]  # fmt: skip
    return f"{what}: {len(one & two)} the same, {', '.join(only)}"


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("two", type=Path)
    parser.add_argument("--package", default="sageattention", help="what is imported (default: %(default)s)")
    parser.add_argument("--python", type=Path, help="load the modules in this interpreter and compare what they offer")
    asked = parser.parse_args()
    for line in compare(asked.one, asked.two, asked.package, asked.python):
        print(line, flush=True)


if __name__ == "__main__":
    main()
