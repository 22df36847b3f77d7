"""Compiles the units of SageAttention 2.2.0 one at a time, and prints where the time of each goes, as a Markdown table.

    SAGE_SOURCE_REPO=... PYTHON_BIN=... python benchmarks/build_profile.py --arch 12.0
    PYTHON_BIN=... python benchmarks/build_profile.py --source FOLDER --headers light --unit fused.cu

The settings are those of the tasks (`.env`, the environment); target and toolkit are found as a build finds them. Each
unit is compiled with torch's own headers and with the light ones of `shims/`, in as many parts as --parts says for it,
by the flags that setup.py and torch pass. CPU is user and system time; the phases are nvcc's own, of `--time`.
Nothing is kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from packaging.version import Version

from sagewheels import config, recipe, source, toolkit
from sagewheels.job import Job
from sagewheels.resources import ROOT

_PHASES = {
    "preprocessing": ("gcc (preprocessing 4)", "gcc (preprocessing 1)"),
    "cudafe++": ("cudafe++",),
    "cicc": ("cicc",),
    "ptxas": ("ptxas",),
    "host compiler": ("gcc (compiling)",),
}
_COLUMNS = ("unit", "headers", "CPU s", "wall s", "peak MB", *_PHASES)
_CXX = "-fPIC -g -O3 -fopenmp -DENABLE_BF16 -g0".split()
_NVCC = (
    "-Xcompiler -fPIC -O3 -DENABLE_BF16 --use_fast_math -diag-suppress=174 --expt-relaxed-constexpr "
    "-U__CUDA_NO_HALF_OPERATORS__ -U__CUDA_NO_HALF_CONVERSIONS__"
).split()
_INCLUDES = "import json, torch.utils.cpp_extension as e; print(json.dumps(e.include_paths('cuda')))"


def measure(argv: list[str], cwd: Path, environment: dict[str, str]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds, and megabytes of the largest process; exits with the compiler's words if it fails."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(argv, cwd=cwd, env=environment, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(argv)}\n{output.read().decode(errors='replace')[-3000:]}")
    return used.ru_utime + used.ru_stime, time.monotonic() - started, used.ru_maxrss / 1000


def phases(file: Path) -> list[str]:
    """Seconds of each phase; empty for a unit that nvcc did not compile."""
    if not file.exists():
        return [""] * len(_PHASES)
    seconds: defaultdict[str, float] = defaultdict(float)
    with file.open() as stream:
        for row in list(csv.reader(stream))[1:]:
            seconds[row[1].strip()] += float(row[-2]) / 1000
    return [f"{sum(seconds[name] for name in names):.1f}" for names in _PHASES.values()]


def _is_asked_for(name: str, units: list[str], extensions: set[str]) -> bool:
    """By name, or because it belongs to an extension of the arch."""
    return name in units if units else ("sm90" not in name or "_qattn_sm90" in extensions)


def main(options: argparse.Namespace, work: Path) -> None:
    """A line of the table for each unit, kind of headers and part."""
    settings = config.load({**os.environ, "TORCH_CUDA_ARCH_LIST": options.arch})
    job = Job(settings)
    book = recipe.load("sageattention-2.2.0")
    rules = book.rules(job.archs)
    kit = toolkit.find(settings, job.target, book, rules)
    assert job.target.torch
    tree = options.source or source.checkout(settings, book, work / "source").folder
    said = subprocess.check_output([job.target.python, "-c", _INCLUDES], text=True, env=dict(settings.environ))
    standard = f"-std=c++{20 if Version(job.target.torch.public) >= Version('2.13.0.dev0') else 17}"
    places = [*json.loads(said), str(kit.home / "include"), str(job.target.include)]
    common = [standard, "-DTORCH_API_INCLUDE_EXTENSION_H", "-DTORCH_EXTENSION_NAME=_x"]
    common += [word for place in places for word in ("-isystem", place)]
    cubins = [f"-gencode=arch=compute_{rule.cubin.number},code=sm_{rule.cubin.number}" for rule in rules]
    nvcc = [str(kit.home / "bin" / "nvcc"), *_NVCC, *book.nvcc(kit.version), *cubins]
    parts = {name: int(count) for name, _, count in (text.partition("=") for text in options.parts)}
    wanted = {one for rule in rules for one in rule.extensions}
    print("|", " | ".join(_COLUMNS), "|")
    print("|---" * len(_COLUMNS) + "|", flush=True)
    for unit in sorted([*tree.glob("csrc/*/*.cu"), *tree.glob("csrc/*/pybind*.cpp")]):
        if not _is_asked_for(unit.name, options.unit, wanted):
            continue
        for headers in options.headers:
            count = parts.get(unit.name, 1) if headers == "light" else 1
            for part in range(count):
                times = work / "times.csv"
                times.unlink(missing_ok=True)
                cuda = unit.suffix == ".cu"
                argv = [*nvcc, "--time", str(times)] if cuda else ["c++", *_CXX]
                if headers == "light":
                    argv.append(f"-I{ROOT / 'shims/torch-light' / ('nvcc' if cuda else 'cxx')}")
                if count > 1:
                    argv += [f"-DSAGE_PARTS={count}", f"-DSAGE_PART={part}"]
                argv += [*common, "-c", str(unit.relative_to(tree)), "-o", str(work / "unit.o")]
                cpu, wall, peak = measure(argv, tree, toolkit.environment(settings, kit.home))
                name = unit.name + (f" ({part + 1} of {count})" if count > 1 else "")
                cells = (name, headers, f"{cpu:.1f}", f"{wall:.1f}", f"{peak:.0f}", *phases(times))
                print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="12.0")
    parser.add_argument("--source", type=lambda text: Path(text).resolve(), help="a tree with its patches applied")
    parser.add_argument("--headers", nargs="+", choices=("full", "light"), default=["full", "light"])
    parser.add_argument("--unit", nargs="+", default=[], help="names of files; all of the arch unless given")
    parser.add_argument("--parts", nargs="+", default=["qk_int_sv_f16_cuda_sm80.cu=4"], metavar="UNIT=COUNT")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="build-profile-") as folder:
        main(arguments, Path(folder))
