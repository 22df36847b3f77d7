"""bench: how fast the installed package is on this GPU, against torch's attention, and whether each result is right.

It only reads: nothing is put back or marked, whatever it finds; `smoke` decides about a wheel.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagewheels import benchfile, extras, smoke, ui
from sagewheels.errors import SageError, SmokeFailed, UsageError
from sagewheels.files import explained, unfinished
from sagewheels.job import Job
from sagewheels.recipe import Recipe

LENGTHS, QUICK = "1024,2048,4096,8192,16384,32768", "1024,4096,16384"
"""Lengths, batch and heads are by default those by which the authors of such kernels show their speed."""
_ROUNDS, _SECONDS, _QUICK_SECONDS = 5, 0.25, 0.05
"""Turns for each point, and seconds of calls for each function at it."""
_LIMIT = 3600
_CAUSAL = {"both": (False, True), "yes": (True,), "no": (False,)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured: shapes are batch, heads, length, head_dim, causal; `seconds` are for one function at each."""

    shapes: tuple[tuple[int, int, int, int, bool], ...]
    dtype: str
    seconds: float


def plan(*, lengths: str, head_dims: str, causal: str, dtype: str, batch: str, heads: str, quick: bool) -> Plan:
    """The points in the order in which they are measured. Raises UsageError that names the flag."""
    if causal not in _CAUSAL:
        raise UsageError(f"--causal {causal!r} is not known", f"Use one of {', '.join(_CAUSAL)}")
    if dtype not in ("bfloat16", "float16"):
        raise UsageError(f"--dtype {dtype!r} is not known", "Use bfloat16 or float16")
    (one,), (many,) = _numbers("--batch", batch, most=1), _numbers("--heads", heads, most=1)
    long = _numbers("--lengths", lengths or (QUICK if quick else LENGTHS), most=benchfile.LENGTHS)
    shapes = itertools.product(_CAUSAL[causal], _numbers("--head-dims", head_dims, most=benchfile.HEAD_DIMS), long)
    return Plan(
        shapes=tuple((one, many, length, dim, masked) for masked, dim, length in shapes),
        dtype=dtype,
        seconds=_QUICK_SECONDS if quick else _SECONDS,
    )


def _numbers(flag: str, text: str, *, most: int) -> list[int]:
    found = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,6}", part) for part in found) or len(found) > most:
        example = "4096" if most == 1 else "1024,4096"
        kind = "a number" if most == 1 else f"a list of up to {most} numbers"
        raise UsageError(f"{flag} {text[:40]!r} is not {kind}", f"Write it like {example}")
    return sorted(set(map(int, found)))


def measure(job: Job, wish: Plan, folder: Path) -> None:
    """Measures, prints the table, writes JSON and chart into `folder`.

    Raises UsageError without a GPU or the package, SmokeFailed where a result is wrong or the GPU is lost.
    """
    target = job.target
    if job.recipe.name not in target.versions:
        raise UsageError(f"{job.recipe.name} is not installed in {target.prefix}", "Run install or auto first")
    if not job.host.gpus:
        raise UsageError(f"bench needs an NVIDIA GPU: {job.host.problem}", "Run it where the kernels shall run")
    count = ui.count(len(wish.shapes), "point")
    if job.dry_run:
        ui.say("bench", f"would measure {job.recipe.name} {target.versions[job.recipe.name]} at {count}")
        return
    _writable(folder)
    ui.say("bench", f"{job.recipe.name} {target.versions[job.recipe.name]} on {job.host.gpus[0].name}: {count}")
    with tempfile.TemporaryDirectory(prefix="sagewheels-bench-") as name:
        kept = Path(name) / "points.jsonl"
        kept.touch()
        try:
            smoke.ask(job.settings, target, "bench", _order(job.recipe, wish, kept), _LIMIT)
        except (KeyboardInterrupt, SageError):
            if found := _result(job, wish, kept):
                show(job, found, folder)
            raise
        found = _result(job, wish, kept)
    if found is None:
        raise UsageError(f"torch in {target.prefix} sees no GPU, nvidia-smi lists {len(job.host.gpus)}", "Run doctor")
    show(job, found, folder)
    if wrong := list(benchfile.wrong(found)):
        what = f"{ui.count(len(wrong), 'result')} wrong, first {wrong[0]}"
        raise SmokeFailed(what, "Nothing was changed: smoke says whether the wheel is to blame")


def _writable(folder: Path) -> None:
    """Raises UsageError where no figures could be written: better now than when all is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished(folder):
            pass
    except OSError as error:
        raise explained(error, folder) from None


def _order(recipe: Recipe, wish: Plan, kept: Path) -> dict[str, Any]:
    return {
        "package": recipe.package,
        "call": recipe.smoke["call"],
        "arguments": recipe.smoke.get("arguments", {}),
        "shapes": [list(shape) for shape in wish.shapes],
        "dtype": wish.dtype,
        "seconds": wish.seconds,
        "rounds": _ROUNDS,
        "out": str(kept),
    }


def _result(job: Job, wish: Plan, kept: Path) -> dict[str, Any] | None:
    """What the probe had measured when it ended, however it ended; None where no GPU was seen."""
    # A line without its end was being written when the probe was ended.
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").split("\n")[:-1]]
    if not lines:
        return None
    head, points = lines[0], lines[1:]
    bounds = {key: job.recipe.smoke[key] for key in benchfile.BOUNDS if key in job.recipe.smoke}
    return {
        "schema": benchfile.SCHEMA,
        "at_utc": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "gpu": head["gpus"][0]["name"],
        "arch": head["gpus"][0]["arch"],
        "driver": job.host.driver,
        "torch": head["torch"],
        "cuda": head["cuda"],
        "package": job.recipe.name,
        "version": job.target.versions[job.recipe.name],
        "function": job.recipe.smoke["call"].partition(":")[2],
        "dtype": wish.dtype,
        "bounds": bounds,
        "points": [benchfile.judged(point, bounds) for point in points],
    }


def again(job: Job, file: Path, folder: Path) -> None:
    """Table and chart of what was measured before, elsewhere or here. Raises UsageError for a file that is none."""
    found = benchfile.load(file)
    if not job.dry_run:
        _writable(folder)
    show(job, found, folder, write=False)


def show(job: Job, found: Mapping[str, Any], folder: Path, *, write: bool = True) -> None:
    """The tables, the JSON file and, with matplotlib, the chart."""
    job.report["bench"] = dict(found)
    for title, columns, rows in tables(found):
        ui.table(title, columns, rows)
    if not found["points"]:
        ui.say("bench", "no point was measured")
        return
    base = folder / f"bench-{re.sub(r'[^a-z0-9]+', '-', found['gpu'].lower()).strip('-')[:80]}"
    if job.dry_run:
        ui.say("bench", f"would draw {base.with_suffix('.png')}")
        return
    if write:
        benchfile.save(base.with_suffix(".json"), found)
        ui.say("bench", f"the figures are in {base.with_suffix('.json')}")
    try:
        from sagewheels import chart

        chart.draw(found, base.with_suffix(".png"))
    except ImportError:
        ui.say("bench", f"no chart: matplotlib is missing. {extras.remedy('matplotlib')}, then bench --from draws it")
        return
    ui.say("bench", f"the chart is in {base.with_suffix('.png')}")


def tables(found: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """One table for each mask and head_dim: title, columns, rows. Pure."""
    own = found["function"]
    for (dim, causal), points in benchfile.panels(found).items():
        names = benchfile.names(points)
        others = [name for name in names if name != own]
        rows = [
            (str(one["shape"][2]), *_own(one, own), *(_other(one, name) for name in others), _verdict(one, own))
            for one in points
        ]
        batch, heads = points[0]["shape"][:2]
        title = f"{found['gpu']}, head_dim {dim}, {'causal' if causal else 'full'}, {found['dtype']}, "
        columns = ("length", f"{own} ms", "TFLOPS", "vs SDPA", *(f"{name} ms" for name in others), "result")
        yield f"{title}batch {batch}, {heads} heads; median", columns, rows


def _own(point: Mapping[str, Any], own: str) -> tuple[str, str, str]:
    one = point.get("functions", {}).get(own, {})
    if "ms" not in one:
        return "-", "-", "-"
    sdpa = point["functions"].get("SDPA", {}).get("ms")
    faster = f"{sdpa / one['ms']:.2f}x" if sdpa else "-"
    return f"{one['ms']:.3f}", f"{benchfile.tflops(point['shape'], one['ms']):.0f}", faster


def _other(point: Mapping[str, Any], name: str) -> str:
    one = point.get("functions", {}).get(name, {})
    if "ms" not in one:
        return "-"
    return f"{one['ms']:.3f}" + ("" if one["result"] == "right" else " WRONG")


def _verdict(point: Mapping[str, Any], own: str) -> str:
    if "skipped" in point:
        return str(point["skipped"])
    one = point["functions"].get(own, {})
    return str(one.get("error") or one.get("skipped") or {"right": "ok", "wrong": "WRONG"}[one["result"]])
