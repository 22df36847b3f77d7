"""Smoke: the installed kernels run on every GPU of this machine and are compared with a float32 reference."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sagewheels
from sagewheels import blame, proc, symptoms, ui
from sagewheels.arch import Arch
from sagewheels.blame import Fault
from sagewheels.config import Settings
from sagewheels.errors import SmokeFailed
from sagewheels.host import Host
from sagewheels.recipe import Recipe
from sagewheels.resources import probe_source
from sagewheels.target import Target

_SECONDS = 900
"""A smoke that takes longer hangs: on an H200 the whole of it is done in well under a minute."""
_NO_DRIVER = "libcuda.so.1"
_NUMBER = itertools.count(1)
AT = "at: "
"""Begins the line by which a probe says what it is about to do, for the case that it does not come back."""
PROBES = ("smoke", "full", "bench", "comfyui")
"""All use what the short checks are made of."""


class Crashed(SmokeFailed):
    """The `probe` ended without an answer; `ended` is its exit code, negative for a signal."""

    def __init__(self, what: str, remedy: str, *, probe: str, ended: int) -> None:
        super().__init__(what, remedy)
        self.probe, self.ended = probe, ended


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What smoke found: `failures` empty means that it passed; `proofs` is empty where nothing could be computed.

    `faults` are the failures that are the wheel's own, whatever the machine; `gpus` are the figures of each GPU; `log`
    is all that the probe said.
    """

    failures: tuple[str, ...]
    proofs: tuple[dict[str, Any], ...]
    loaded_only: bool
    faults: tuple[Fault, ...] = ()
    gpus: tuple[dict[str, Any], ...] = ()
    log: Path | None = None

    def after(self, failures: Sequence[str], faults: Sequence[Fault], checks: Sequence[str]) -> Outcome:
        """This outcome after more checks: the proofs name them, or are no proofs any more."""
        if failures:
            return replace(self, failures=tuple(failures), proofs=(), loaded_only=False, faults=tuple(faults))
        return replace(self, proofs=tuple({**proof, "full": list(checks)} for proof in self.proofs))

    @property
    def words(self) -> str:
        """One line for people."""
        if self.failures:
            return self.failures[0]
        if self.loaded_only:
            return "loaded only: there is no GPU here, nothing was computed and nothing is proven"
        return ", ".join(f"proven on {proof['gpu']} (arch {proof['arch']})" for proof in self.proofs)


def run(settings: Settings, recipe: Recipe, found: Target, host: Host, extensions: Sequence[str]) -> Outcome:
    """Runs the probe in the target from an empty directory, shows the table, and judges what it printed.

    Raises Crashed only when the probe gave no answer that could be judged.
    """
    order = {
        "package": recipe.package,
        "extensions": list(extensions),
        "call": recipe.smoke["call"],
        "smoke": dict(recipe.smoke),
    }
    answer = ask(settings, found, "smoke", order, _SECONDS)
    outcome = replace(judge(answer, recipe, host, found), log=Path(answer["log"]))
    for gpu in answer["gpus"]:
        show(gpu, recipe)
    return outcome


def ask(settings: Settings, found: Target, probe: str, order: Mapping[str, Any], seconds: int) -> dict[str, Any]:
    """What a probe prints when it runs in the target, from an empty directory, with the short checks beside it.

    Its `log` is where all that it said is.

    Raises Crashed when that is no answer.
    """
    with tempfile.TemporaryDirectory(prefix="sagewheels-smoke-") as name:
        folder = Path(name)
        (folder / "empty").mkdir()
        for each in {"smoke", probe}:
            (folder / f"sagewheels_{each}.py").write_text(probe_source(each), encoding="utf-8")
        # PYTHONPATH and the source tree must not decide what is imported; -I would also hide a user's site.
        env = {key: value for key, value in settings.environ.items() if not key.startswith("PYTHON")}
        argv: list[str | Path] = [found.python, "-B", folder / f"sagewheels_{probe}.py", json.dumps(order)]
        log = _log_path(settings)
        code = _watched(argv, env, folder / "empty", log, seconds, "smoke" if probe == "full" else probe)
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    try:
        answer: dict[str, Any] = json.loads([line for line in lines if line.startswith("{")][-1])
        if not isinstance(answer["gpus"], list):
            raise ValueError("not an answer")
    except (ValueError, IndexError, KeyError):
        what = f"the kernels brought the interpreter down ({proc.ending(code)}): {_where(lines, code)[:200]}"
        known = symptoms.remedy("\n".join(lines), "run")
        raise Crashed(what, f"{known and known + '. '}The whole output is {log}", probe=probe, ended=code) from None
    if code:
        ui.warn("smoke", f"the interpreter ended badly after it had answered ({proc.ending(code)}): see {log}")
    return {**answer, "log": str(log)}


def _watched(
    argv: Sequence[str | Path], env: Mapping[str, str], folder: Path, log: Path, seconds: int, topic: str
) -> int:
    """Runs a probe to its end, showing what it is at; its exit code, SIGKILL's when it took too long."""
    end = time.monotonic() + seconds
    with log.open("w", encoding="utf-8") as stream, ui.progress(topic) as shown:
        with proc.stream(argv, log=stream, env=env, cwd=folder) as process:
            while process.poll() is None and time.monotonic() < end:
                shown.update(_at(log.read_text(encoding="utf-8", errors="replace").splitlines()) or "loading")
                proc.wait(process, 1.0)
        if time.monotonic() >= end:
            print(f"\ndid not end within {seconds} s", file=stream)
    return process.returncode


def _at(lines: Sequence[str]) -> str:
    """What a probe said last that it is about to do."""
    return next((line[len(AT) :] for line in reversed(lines) if line.startswith(AT)), "")


def _where(lines: Sequence[str], code: int) -> str:
    """What a probe was at when it ended, else its last line; faulthandler's stack is in the log."""
    if at := _at(lines):
        return f"in {at}"
    return lines[-1] if lines else f"no output, {proc.ending(code)}"


def _log_path(settings: Settings) -> Path:
    settings.log_dir.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return settings.log_dir / f"smoke-{stamp}-{os.getpid()}-{next(_NUMBER)}.log"


def judge(answer: Mapping[str, Any], recipe: Recipe, host: Host, found: Target) -> Outcome:
    """Failures and proofs from what the probe printed. Pure."""
    failures = [*_import_failures(answer, found, host)]
    faults = blame.of_imports(answer, recipe.package, host)
    proofs, right_on = [], []
    if host.gpus and not answer["gpus"] and not failures:
        failures.append(f"torch {answer['torch']} sees no GPU, nvidia-smi lists {len(host.gpus)}")
    for gpu in answer["gpus"]:
        wrong = list(_gpu_failures(gpu, recipe))
        failures += [f"GPU {gpu['index']} ({gpu['name']}): {text}" for text in wrong]
        if wrong and _is_wheels(gpu, recipe):
            faults.append(Fault(arch=gpu["arch"], gpu=gpu["name"], reason=wrong[0]))
        if not wrong:
            proofs.append(_proof(gpu, answer, found, host, recipe))
            right_on.append(gpu["arch"])
    passed = not failures
    return Outcome(
        failures=tuple(failures),
        proofs=tuple(proofs) if passed else (),
        loaded_only=passed and not answer["gpus"],
        faults=blame.settled(faults, right_on),
        gpus=tuple(_figures(gpu, recipe) for gpu in answer["gpus"]),
    )


def _figures(gpu: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """What one GPU computed, in a few numbers; null where no case was finite."""
    cases = gpu["cases"]
    finite = [case for case in cases if case.get("finite") and not case.get("error")]
    return {
        "index": gpu["index"],
        "name": gpu["name"],
        "arch": gpu["arch"],
        "verdict": "wrong" if any(_gpu_failures(gpu, recipe)) else "right",
        "cases": len(cases),
        "wrong_cases": sum(not right(case, recipe) for case in cases),
        "worst_cosine": min((case["cosine"] for case in finite), default=None),
        "worst_relative_l2": max((case["relative_l2"] for case in finite), default=None),
        "kernels": [kernel for kernel in gpu.get("kernels", ()) if not kernel.startswith(blame.NOT_A_KERNEL)],
        "speed": [
            {"shape": one["shape"], "ms": one["ms"], "sdpa_ms": one["sdpa_ms"], "faster": one["sdpa_ms"] / one["ms"]}
            for one in gpu["timed"]
            if not one.get("error")
        ],
    }


def _is_wheels(gpu: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether what is wrong on this GPU is the wheel's fault and not the machine's."""
    rule = recipe.archs.get(_arch(gpu["arch"]))
    wrong = [case for case in (*gpu["cases"], *gpu["timed"]) if not right(case, recipe)]
    return blame.of_gpu(gpu, wrong, rule.kernel if rule else "")


def _import_failures(answer: Mapping[str, Any], found: Target, host: Host) -> Iterator[str]:
    for module, error in answer["imports"].items():
        if _NO_DRIVER in error and not host.driver:
            ui.say("smoke", f"{module} cannot be loaded without the NVIDIA driver, which is not here")
        elif error:
            yield f"import {module} failed: {error}"
        else:
            ui.say("smoke", f"import {module}: ok")
    origin = answer.get("origin") or ""
    if origin and not Path(origin).resolve().is_relative_to(found.site.resolve()):
        yield f"{origin} was imported, which is not in {found.site}"


def _gpu_failures(gpu: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """What is wrong on one GPU, the worst first."""
    bad = [case for case in gpu["cases"] if not right(case, recipe)]
    if not gpu["cases"]:
        yield "no case was run"
    if bad:
        yield f"{len(bad)} of {len(gpu['cases'])} cases are wrong, first {name(bad[0])}: {how(bad[0])}"
    if gpu.get("error"):
        yield gpu["error"]
    rule = recipe.archs.get(_arch(gpu["arch"]))
    if rule is None:
        yield f"{recipe.file.name} does not say which kernel must run on arch {gpu['arch']}"
    elif not gpu.get("error") and not bad and not any(rule.kernel in kernel for kernel in gpu.get("kernels", ())):
        ran = ", ".join(gpu.get("kernels", ())) or "none was seen"
        yield f"{rule.kernel} did not run; kernels that did: {ran[:300]}"
    for case in gpu["timed"]:
        if not right(case, recipe):
            yield f"shape {case['shape']}: {how(case)}"


def right(case: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether one case ran, is finite, and agrees with the reference within the manifest's bounds."""
    if case.get("error") or not case.get("finite"):
        return False
    return within(case, recipe.smoke)


def within(case: Mapping[str, Any], bounds: Mapping[str, Any]) -> bool:
    """Whether the numbers of a finite case are within a manifest's bounds; that for single rows may be missing."""
    heads = case["cosine"] >= bounds["min_cosine"] and case["relative_l2"] <= bounds["max_relative_l2"]
    return bool(heads and case.get("row_relative_l2", 0) <= bounds.get("max_row_relative_l2", float("inf")))


def name(case: Mapping[str, Any]) -> str:
    """`head_dim 64 float16 causal length 17 HND 8/2 heads`."""
    causal = "causal" if case["causal"] else "full"
    heads = "/".join(map(str, case["heads"]))
    return (
        f"head_dim {case['head_dim']} {case['dtype']} {causal} length {case['length']} {case['layout']} {heads} heads"
    )


def how(case: Mapping[str, Any]) -> str:
    """What is wrong with a case."""
    if case.get("error"):
        return str(case["error"])
    if not case.get("finite"):
        return "not finite"
    row = f", {case['row_relative_l2']:.3f} in one row" if "row_relative_l2" in case else ""
    return f"cosine {case['cosine']:.4f}, relative L2 {case['relative_l2']:.3f}{row}"


def _arch(text: str) -> Arch:
    major, minor = text.split(".")
    return Arch(int(major), int(minor))


def _proof(
    gpu: Mapping[str, Any], answer: Mapping[str, Any], found: Target, host: Host, recipe: Recipe
) -> dict[str, Any]:
    cases = gpu["cases"]
    return {
        "gpu": gpu["name"],
        "arch": gpu["arch"],
        "driver": host.driver,
        "at_utc": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "torch_version": answer["torch"],
        "triton_version": found.versions.get("triton"),
        "python_version": found.version,
        "cases": len(cases),
        "worst_cosine": round(min(case["cosine"] for case in cases), 6),
        "worst_relative_l2": round(max(case["relative_l2"] for case in cases), 6),
        "kernel": recipe.archs[_arch(gpu["arch"])].kernel,
        "speedup": {"x".join(map(str, one["shape"])): round(one["sdpa_ms"] / one["ms"], 2) for one in gpu["timed"]},
        "sagewheels": sagewheels.__version__,
    }


def show(gpu: Mapping[str, Any], recipe: Recipe) -> None:
    """The table of one GPU: the worst figures of each kind of case, then the times against SDPA."""
    groups: dict[tuple[int, str, bool], list[Mapping[str, Any]]] = {}
    for case in gpu["cases"]:
        groups.setdefault((case["head_dim"], case["dtype"], case["causal"]), []).append(case)
    rows = []
    for (dim, dtype, causal), cases in groups.items():
        numbers = [case for case in cases if case.get("finite")]
        cosine = min((case["cosine"] for case in numbers), default=None)
        l2 = max((case["relative_l2"] for case in numbers), default=None)
        bad = sum(not right(case, recipe) for case in cases)
        verdict = f"{bad} of {len(cases)} WRONG" if bad else "ok"
        rows.append((str(dim), dtype, "causal" if causal else "full", str(len(cases)), _4(cosine), _4(l2), verdict))
    columns = ("head_dim", "dtype", "mask", "cases", "worst cosine", "worst rel. L2", "verdict")
    ui.table(f"GPU {gpu['index']}, {gpu['name']}, arch {gpu['arch']}, against float32", columns, rows)
    if gpu["timed"]:
        against = ("batch x heads x length x head_dim", "ms", "SDPA ms", "faster", "cosine to SDPA", "verdict")
        ui.table("bfloat16, not causal, median of 7", against, [_timed(one, recipe) for one in gpu["timed"]])
    mine = [kernel for kernel in gpu.get("kernels", ()) if not kernel.startswith(blame.NOT_A_KERNEL)]
    if mine:
        ui.say("smoke", f"kernels seen: {', '.join(kernel[:60] for kernel in mine)}")


def _timed(one: Mapping[str, Any], recipe: Recipe) -> tuple[str, ...]:
    shape, faster = " x ".join(map(str, one["shape"])), f"{one['sdpa_ms'] / one['ms']:.2f}x"
    verdict = "ok" if right(one, recipe) else "WRONG"
    return (shape, f"{one['ms']:.3f}", f"{one['sdpa_ms']:.3f}", faster, _4(one["cosine"]), verdict)


def _4(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.4f}"
