"""The source's own build backend, run in the target with compilers that answer to us; its log, and what it says."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from sagewheels import arch, buildplan, diagnosis, proc, remotecache, toolkit, ui
from sagewheels.buildplan import Plan
from sagewheels.compilers import Compilers, Counted, Tools
from sagewheels.config import Settings
from sagewheels.errors import BuildFailed
from sagewheels.resources import probe_source
from sagewheels.schedule import Appetite, Pool
from sagewheels.source import Checkout

_RAISED = re.compile(r"^[\w.]*(?:Error|Exception)(?::|$)")
_MATTERS = (
    re.compile(r"\bKilled\b|signal 9|out of memory|No space left"),
    re.compile(r"\b(?:fatal )?error\b *:|\berror #\d|^#error|undefined reference|cannot find -l|No such file"),
    re.compile(r"(?:ptxas|nvcc) fatal|nvlink (?:fatal|error)|cicc.*fail|Segmentation"),
    _RAISED,
    re.compile(r"\b(?:\w+Error|Exception)\b"),
    re.compile(r"\bFAILED\b"),
)
"""The most telling one first."""

_ECHOED = re.compile(r"\[|\s+(?:raise |File \")")
"""ninja shows whole compiler commands, in which -Werror and the like are no errors, and a traceback shows source."""


def run(settings: Settings, plan: Plan, tree: Checkout, key: str, out: Path, log: Path) -> None:
    """Runs the source's own build to its end, showing what is done. Raises BuildFailed."""
    pool = Pool(plan.jobs.at_once, plan.jobs.memory)
    tools = _tools(settings, plan, tree)
    serving = Compilers(
        tools,
        out,
        pool,
        settings.objects,
        appetite=lambda source: _appetite(plan, source),
        parts=lambda source: plan.recipe.unit(source).parts,
    )
    argv: list[str | Path] = [plan.target.python, "-c", probe_source("build"), out.resolve(), str(os.getpid())]
    ui.say(
        "build",
        f"{plan.units} units for {arch.join(plan.archs)}, {plan.jobs.at_once} at once ({plan.jobs.why}), log {log}",
    )
    if plan.launcher:
        ui.say("build", f"what is compiled goes through {plan.launcher}")
    with log.open("w", encoding="utf-8") as stream, ui.progress("build") as shown, serving.serving() as stand_ins:
        print(json.dumps({"build_key": key, "label": buildplan.label(plan, key)}), file=stream, flush=True)
        decides = {"identities": tools.identities, "environment": tools.environment, "shims": tools.shims}
        own = {**stand_ins, **remotecache.environment(plan.launcher, decides)}
        env = {**environment(settings, plan, tree, key, out), **own}
        with proc.stream(argv, log=stream, env=env, cwd=tree.folder) as process:
            while process.poll() is None:
                counted = serving.counted()
                seconds_left = serving.compiles(plan.units).left(plan.jobs.at_once)
                share = counted.done / max(plan.units, counted.known, 1)
                shown.update(_standing(counted, plan.units), share=share, seconds_left=seconds_left)
                proc.wait(process, 1.0)
    counted = serving.counted()
    if serving.problem:
        raise serving.problem
    if process.returncode:
        what = f"the compile failed ({proc.ending(process.returncode)}): {matters(log)}"
        known = diagnosis.of_file(log, "build")
        raise BuildFailed(what, f"{known and known + '. '}The whole log is {log}; what was installed is untouched")
    if counted.reused:
        ui.say("build", f"{counted.reused} of {counted.done} objects were compiled before")


def environment(settings: Settings, plan: Plan, tree: Checkout, key: str, out: Path) -> dict[str, str]:
    """What the source's setup.py and its compilers are told."""
    extra = out / "label.cfg"
    extra.write_text(f"[egg_info]\ntag_build = +{buildplan.label(plan, key)}\n", encoding="utf-8")
    tools = buildplan.tools_folder(settings, plan.target, plan.recipe)
    env = toolkit.environment(settings, plan.toolkit.home)
    stubs = _stubs(settings, plan)
    own = {
        "PATH": f"{tools / 'bin'}:{env['PATH']}",
        "PYTHONPATH": str(tools),
        "LIBRARY_PATH": ":".join(filter(None, [str(stubs), settings.variable("LIBRARY_PATH")])),
        "DIST_EXTRA_CONFIG": str(extra),
        "SOURCE_DATE_EPOCH": str(tree.epoch),
        "TORCH_CUDA_ARCH_LIST": arch.join(plan.archs),
        "CUDAARCHS": settings.cudaarchs or ";".join(one.plain.number for one in plan.archs),
        # All compile commands come at once and wait for their turn with us.
        "EXT_PARALLEL": str(plan.jobs.extensions),
        "MAX_JOBS": str(plan.units),
        "CXX_APPEND_FLAGS": plan.flags.cxx,
        "NVCC_APPEND_FLAGS": plan.flags.nvcc,
        "LDFLAGS": plan.flags.link,
        **plan.recipe.environment,
    }
    # Another PYTHONPATH may hold another torch, against whose headers the wheel would then be compiled.
    return {**{key: value for key, value in env.items() if not key.startswith("PYTHON")}, **own}


def _stubs(settings: Settings, plan: Plan) -> Path:
    """A folder with a libcuda.so to link against: on a machine without a driver there is none.

    An empty library will do: nothing is resolved from it when a shared library is linked, only its name is recorded.
    """
    shipped = plan.toolkit.home / "lib64" / "stubs"
    if (shipped / "libcuda.so").exists():
        return shipped
    folder = settings.work_dir / "stubs"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "libcuda.so").exists():
        part = folder / ".libcuda.part.so"
        soname = "-Wl,-soname,libcuda.so.1"
        argv: list[str | Path] = [
            *toolkit.cxx(settings),
            "-shared",
            "-nostdlib",
            soname,
            "-x",
            "c++",
            os.devnull,
            "-o",
            part,
        ]
        proc.run(argv, env=settings.environ, error=BuildFailed)
        part.replace(folder / "libcuda.so")
    return folder


def _tools(settings: Settings, plan: Plan, tree: Checkout) -> Tools:
    """What compiles, and the folders that another machine has elsewhere."""
    torch = plan.target.torch
    assert torch is not None
    roots = {
        "src": tree.folder.resolve(),
        "site": torch.folder.parent,
        "cuda": plan.toolkit.home,
        "python": plan.target.include,
        "prefix": plan.target.prefix,
    }
    # nvcc by its link, so that the headers it finds by itself have names that are the same everywhere.
    programs = {"nvcc": ("cuda/bin/nvcc",), "cxx": tuple(toolkit.cxx(settings))}
    path = settings.variable("PATH")
    return Tools(
        programs=programs,
        identities={"nvcc": f"{plan.toolkit.build} with {plan.toolkit.compiler}", "cxx": plan.toolkit.compiler},
        roots={**roots, "shims": plan.recipe.shims} if plan.recipe.shims else roots,
        shims=buildplan.shims(plan.recipe),
        environment={"read": plan.flags.environment, "nvcc": plan.flags.nvcc},
        threads=_threads(plan),
        launchers={name: remotecache.words(plan.launcher, words, path) for name, words in programs.items()},
    )


def _threads(plan: Plan) -> int:
    """Archs that nvcc may work on at once in each unit: more than one where there are more cores than units."""
    return max(1, min(len(plan.archs), plan.jobs.at_once // plan.units))


def _appetite(plan: Plan, source: str) -> Appetite:
    """What a unit takes, as the manifest has it; CUDA units go before others where it says nothing."""
    rule = plan.recipe.unit(source)
    return Appetite(
        seconds=rule.seconds or (30 if source.endswith(".cu") else 10),
        memory=(rule.memory or plan.recipe.memory_per_unit) * _threads(plan),
    )


def _standing(counted: Counted, expected: int) -> str:
    """`3/15 units, fused.cu, pybind.cpp and 2 more`."""
    names, rest = counted.running, "linking" if counted.done else "preparing"
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{counted.done}/{max(expected, counted.known)} units, {', '.join(names[:2]) or rest}{more}"


def matters(log: Path) -> str:
    """The line of a build log that says why it failed, with its number."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [(number, line) for number, line in enumerate(lines, 1) if len(line) < 1000 and not _ECHOED.match(line)]
    for pattern in _MATTERS:
        found = [f"{line.strip()[:300]} (line {number})" for number, line in said if pattern.search(line)]
        if found:
            # The first complaint of a compiler brings the others; of Python's errors the last is the one that ends it.
            return found[-1 if pattern is _RAISED else 0]
    return f"{lines[-1].strip()[:300]} (last line)" if lines else "the log is empty"
