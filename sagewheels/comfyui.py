"""ComfyUI: which folder and which Python it runs with, and whether its attention call reaches the installed kernels."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewheels.errors import SmokeFailed, UsageError

if TYPE_CHECKING:
    from sagewheels.config import Settings
    from sagewheels.job import Job
    from sagewheels.recipe import Recipe

_ENVIRONMENTS = ("venv", ".venv")
_PORTABLE = ("python_embeded", "python_embedded")
"""The folders of the portable builds; the first is how they spell it."""
_USUAL = ("~/ComfyUI", "/workspace/ComfyUI", "/ComfyUI", "/opt/ComfyUI")
"""Where images put it: suggested, never used without being asked."""
_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Python:
    """An interpreter that belongs to a ComfyUI, and why it does."""

    path: Path
    why: str


def is_checkout(folder: Path) -> bool:
    """Whether it holds a ComfyUI."""
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def folder_of(named: Path) -> Path:
    """The folder of main.py, for that folder, main.py itself or the folder of a portable build. Raises UsageError."""
    for folder in (named.parent if named.name == "main.py" else named, named / "ComfyUI"):
        if is_checkout(folder):
            return folder
    raise UsageError(f"{named} holds no ComfyUI (main.py beside comfy/)", "Name its folder with --comfyui")


def pythons(folder: Path) -> list[Python]:
    """The interpreters that belong to the ComfyUI in `folder`, each once: beside main.py, then beside the folder.

    Raises UsageError for a portable build for Windows.
    """
    found: list[Python] = []
    for place in places(folder):
        path = place / "python"
        # Beside the folder may lie an environment that has nothing to do with ComfyUI, as in a home.
        is_its = place.parent.parent == folder or place.parent.name in _PORTABLE or _serves(place.parent)
        if path.exists() and is_its and not any(_same(one.path, path) for one in found):
            found.append(Python(path=path, why=f"the {place.parent.name} of {folder}"))
    windows = [place / name / "python.exe" for place in (folder, folder.parent) for name in _PORTABLE]
    if not found and (there := [path for path in windows if path.exists()]):
        raise UsageError(f"{there[0]} is a Python for Windows", "sagewheels is for Linux, WSL included")
    return found


def _serves(environment: Path) -> bool:
    """Whether an environment has the package without which ComfyUI does not start."""
    return any(environment.glob("lib/python3*/site-packages/comfyui_frontend_package-*.dist-info"))


def running(folder: Path, processes: Path = Path("/proc")) -> list[Python]:
    """The interpreter of a ComfyUI that runs from `folder` now, as it was started."""
    found = []
    for entry in processes.glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            here = (entry / "cwd").resolve()
        except OSError:  # it has ended, or is another user's
            continue
        is_main = any(Path(here, word).resolve() == (folder / "main.py").resolve() for word in words[1:3] if word)
        if is_main and Path(words[0]).is_absolute() and os.access(words[0], os.X_OK):
            found.append(Python(path=Path(words[0]), why=f"the Python that runs {folder} now"))
    return found[:1]


def around(here: Path) -> Path | None:
    """The ComfyUI in whose folder, or a folder of which, one stands; also that of a portable build around it."""
    for place in (here, here / "ComfyUI", *here.parents):
        if is_checkout(place):
            return place
    return None


def places(folder: Path) -> list[Path]:
    """Where an environment would be that changes which Python belongs to the ComfyUI in `folder`."""
    return [place / name / "bin" for place in (folder, folder.parent) for name in (*_ENVIRONMENTS, *_PORTABLE)]


def chosen(settings: Settings) -> Python | None:
    """The Python of the ComfyUI that COMFYUI_PATH names; None where it is not set, or has no Python of its own.

    Raises UsageError where it has several, or where PYTHON_BIN names another one.
    """
    if not settings.comfyui_path:
        return None
    folder = folder_of(Path(settings.comfyui_path))
    own = pythons(folder)
    # One that was left behind must not win against the one in use.
    own += [one for one in running(folder) if not any(_same(one.path, other.path) for other in own)]
    if settings.python_bin:
        named = Path(settings.python_bin).expanduser()
        given = Path(shutil.which(named, path=settings.variable("PATH") or None) or named)
        if own and not any(_same(one.path, given) for one in own):
            what = f"PYTHON_BIN={given} is not the Python of the ComfyUI in {folder}, which is {own[0].path}"
            raise UsageError(what, "Leave --comfyui (COMFYUI_PATH) or --python (PYTHON_BIN) out")
        return None
    if len(own) > 1:
        what = f"the ComfyUI in {folder} has two Pythons, {own[0].path} and {own[1].path}"
        raise UsageError(what, "Name the one that it is started with: --python")
    return own[0] if own else None


def demand_meant(settings: Settings, path: Path, why: str) -> None:
    """Who stands in a ComfyUI that has a Python of its own means that one. Raises UsageError where it is another."""
    here = around(Path.cwd())
    if settings.python_bin or settings.comfyui_path or here is None:
        return
    own = pythons(here)
    if own and not any(_same(one.path, path) for one in own):
        what = f"the ComfyUI in {here} runs with {own[0].path}, and {path} ({why}) would be installed into"
        raise UsageError(what, f"Add --comfyui {here}, or --python {path} if you mean that one")


def _same(one: Path, other: Path) -> bool:
    """Whether both are of one environment: its python is a link to another one's."""
    return (
        one.parent.parent.resolve() == other.parent.parent.resolve() and one.parent.resolve() == other.parent.resolve()
    )


def version(folder: Path) -> str:
    """The release that the checkout says it is; empty where it does not."""
    try:
        text = (folder / "comfyui_version.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"""__version__\s*=\s*["']([^"'\n]{1,40})["']""", text)
    return found[1] if found else ""


def find(settings: Settings) -> Path:
    """The ComfyUI that is meant: COMFYUI_PATH, else where the user stands. Raises UsageError, naming those it sees."""
    if settings.comfyui_path:
        return folder_of(Path(settings.comfyui_path))
    if here := around(Path.cwd()):
        return here
    seen = [place for place in map(Path, map(os.path.expanduser, _USUAL)) if is_checkout(place)]
    raise UsageError(
        "there is no ComfyUI here", f"Name its folder: --comfyui {seen[0] if seen else '/path/to/ComfyUI'}"
    )


def show(job: Job, *, check: bool) -> None:
    """Says what ComfyUI runs with, and with `check` proves what its attention call reaches.

    Raises UsageError where there is no ComfyUI, SmokeFailed where its call does not reach the kernels.
    """
    from sagewheels import ui

    folder, recipe = find(job.settings), job.recipe
    # Nothing is installed: who stands in a ComfyUI asks about that one, whatever Python is active.
    if not job.settings.python_bin:
        job.settings = replace(job.settings, comfyui_path=str(folder))
    found = job.target
    release = version(folder)
    start = f"{found.python} {folder / 'main.py'} {' '.join(recipe.comfyui_arguments)}"
    ui.say("comfyui", f"ComfyUI {release or 'of unknown version'} in {folder}, with {found.python}")
    have = found.versions.get(recipe.name)
    ui.say("comfyui", f"{recipe.name} {have}" if have else f"{recipe.name} is not installed there: run auto")
    ui.say("comfyui", f"start it with: {start.strip()}")
    job.report["comfyui"] = {"folder": str(folder), "version": release or None, "start": start.split(), "cases": []}
    if not check:
        return
    if not recipe.comfyui_function:
        raise UsageError(f"{recipe.file.name} does not say what ComfyUI calls (comfyui.function)", "Leave --check out")
    if not have:
        raise UsageError(f"{recipe.name} is not installed in {found.prefix}", "Run install or auto first")
    answer = _ask(job, folder)
    _tell(job, recipe, answer)


def _ask(job: Job, folder: Path) -> dict[str, Any]:
    from sagewheels import smoke

    recipe = job.recipe
    order = {
        "folder": str(folder),
        "arguments": list(recipe.comfyui_arguments),
        "call": recipe.smoke["call"],
        "has_gpu": bool(job.host.gpus),
    }
    return smoke.ask(job.settings, job.target, "comfyui", order, _SECONDS)


def _tell(job: Job, recipe: Recipe, answer: Mapping[str, Any]) -> None:
    from sagewheels import ui

    if answer.get("error"):
        what = f"ComfyUI's attention module cannot be loaded: {answer['error']}"
        raise UsageError(what, f"Start ComfyUI once, which says what it lacks. The whole output is {answer['log']}")
    if job.host.gpus and not answer["gpus"]:
        what = f"torch in {job.target.prefix} sees no GPU, nvidia-smi lists {len(job.host.gpus)}"
        raise SmokeFailed(what, f"Run doctor, which says why. The whole output is {answer['log']}")
    cases = [{**case, "verdict": verdict(case, recipe, answer)} for case in answer["cases"]]
    job.report["comfyui"].update(function=answer["function"], cases=cases)
    for line in answer["said"]:
        ui.say("comfyui", f"ComfyUI says: {line}")
    rows = [(_name(case), case["verdict"], _kernel(case, recipe, answer), _numbers(case)) for case in cases]
    ui.table(
        f"{answer['function']}, on {answer['where']}", ("call", "verdict", "kernel", "against pytorch attention"), rows
    )
    if answer["function"] != recipe.comfyui_function:
        what = f"ComfyUI calls {answer['function']}, not {recipe.comfyui_function}"
        raise SmokeFailed(what, f"Start it with {' '.join(recipe.comfyui_arguments)}")
    bad = [case for case in cases if not _is_fine(case)]
    if bad:
        what = f"ComfyUI's call does not reach the kernels: {_name(bad[0])}: {bad[0]['verdict']}"
        raise SmokeFailed(
            what, f"Run smoke, which says whether the kernels are right. The whole output is {answer['log']}"
        )
    if any(case["verdict"] == "mask ignored" for case in cases):
        ui.say(
            "comfyui", f"what ComfyUI calls with a mask, {recipe.name} computes without it: nothing here changes that"
        )
    if not answer["gpus"]:
        ui.say(
            "comfyui", "without a GPU no kernel ran: the installed package accepts ComfyUI's calls, nothing is proven"
        )
        return
    ui.say("comfyui", f"proven: ComfyUI's attention call runs {_kernel(cases[0], recipe, answer)} on {answer['where']}")


def _is_fine(case: Mapping[str, Any]) -> bool:
    """Newer releases hand over no call with a mask where the package takes none: that is as it should be."""
    fine = {"reached", "accepted", "mask ignored"}
    return case["verdict"] in fine or bool(case["mask"] and case["verdict"].startswith("not handed"))


def verdict(case: Mapping[str, Any], recipe: Recipe, answer: Mapping[str, Any]) -> str:
    """What became of one call, in a few words. Pure."""
    from sagewheels import smoke

    if case.get("error"):
        return str(case["error"])
    if case["fallback"]:
        return f"falls back: {case['fallback'][0]}"
    if not answer["gpus"]:
        return "accepted" if case.get("handed_over") else "not handed to the package, by ComfyUI's design"
    if not _kernel(case, recipe, answer) and case["mask"] and _is_right(case, recipe):
        return "not handed to the package, by ComfyUI's design"
    if not _kernel(case, recipe, answer):
        return f"another kernel ran: {', '.join(case['kernels'])[:120] or 'none was seen'}"
    if _is_right(case, recipe):
        return "reached"
    if case["mask"] and _is_right(case["without_mask"], recipe):
        return "mask ignored"
    return f"reached, and wrong: {smoke.how(_of_heads(case))}"


def _is_right(numbers: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether they are finite and within the build manifest's bounds."""
    from sagewheels import smoke

    return bool(numbers["finite"] and smoke.within(_of_heads(numbers), recipe.smoke))


def _of_heads(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of whole heads: what smoke demands of single rows is against float32, not against ComfyUI's half floats."""
    return {key: value for key, value in numbers.items() if key != "row_relative_l2"}


def _kernel(case: Mapping[str, Any], recipe: Recipe, answer: Mapping[str, Any]) -> str:
    """The kernel that the build manifest names for this GPU, if the call ran it."""
    arch = answer["gpus"][0]["arch"] if answer["gpus"] else ""
    named = next((rule.kernel for gpu, rule in recipe.archs.items() if str(gpu) == arch), "")
    return named if named and any(named in kernel for kernel in case.get("kernels", ())) else ""


def _name(case: Mapping[str, Any]) -> str:
    words = f"{case['dtype']}, {case['heads']} heads of {case['head_dim']}, {case['length']} on {case['keys']} keys"
    return words + (", split heads" if case["skip_reshape"] else "") + (", mask" if case["mask"] else "")


def _numbers(case: Mapping[str, Any]) -> str:
    if case.get("cosine") is None:
        return "-"
    return f"cosine {case['cosine']:.4f}, relative L2 {case['relative_l2']:.3f}"
