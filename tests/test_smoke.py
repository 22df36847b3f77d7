"""Smoke's verdict: what the probe printed, made by hand, and what follows from it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sagewheels
from sagewheels import arch, recipe, smoke
from sagewheels.config import Settings
from sagewheels.errors import SmokeFailed
from sagewheels.host import Gpu, Host
from sagewheels.recipe import Recipe
from sagewheels.target import Target, Torch

RTX, H200 = "NVIDIA GeForce RTX 5090", "NVIDIA H200"
KERNEL = "void qk_int_sv_f8_attn_kernel<128, 64>(signed char*)"


@pytest.fixture(scope="module")
def sage() -> Recipe:
    return recipe.load("sageattention-2.2.0")


@pytest.fixture
def found(tmp_path: Path) -> Target:
    return target_in(tmp_path)


def target_in(tmp_path: Path) -> Target:
    """A target whose package lies in a real folder."""
    site = tmp_path / "target" / "site-packages"
    (site / "sageattention").mkdir(parents=True)
    (site / "sageattention" / "__init__.py").touch()
    return Target(
        python=tmp_path / "target/bin/python",
        prefix=tmp_path / "target",
        version="3.12.3",
        soabi="cpython-312-x86_64-linux-gnu",
        machine="x86_64",
        site=site,
        include=tmp_path,
        has_python_h=True,
        externally_managed=False,
        writable=True,
        torch=Torch(folder=site / "torch", version="2.11.0+cu130", cuda="13.0"),
        versions={"triton": "3.6.0"},
        dist_info={},
        tags=("cp312-cp312-linux_x86_64",),
    )


def host(*gpus: tuple[str, str], driver: str = "580.65.06") -> Host:
    """A machine with these GPUs, each a name and an arch."""
    listed = [
        Gpu(index=index, name=name, arch=arch.parse(text), memory=32607) for index, (name, text) in enumerate(gpus)
    ]
    return Host(gpus=tuple(listed), driver=driver, problem="", cores=8, memory=1 << 34, glibc="2.39")


ONE = host((RTX, "12.0"))
NONE = host(driver="")


def case(**changed: Any) -> dict[str, Any]:
    return {
        "head_dim": 128,
        "dtype": "bfloat16",
        "causal": False,
        "length": 503,
        "layout": "NHD",
        "heads": [8, 2],
        "finite": True,
        "cosine": 0.9998,
        "relative_l2": 0.017,
        **changed,
    }


def gpu(index: int = 0, name: str = RTX, capability: str = "12.0", **changed: Any) -> dict[str, Any]:
    timed = {"shape": [2, 16, 4096, 128], "ms": 0.5, "sdpa_ms": 1.25, "finite": True, "cosine": 0.9999}
    return {
        "index": index,
        "name": name,
        "arch": capability,
        "cases": [case(), case(head_dim=64, cosine=0.9995012345, relative_l2=0.0311119), case(causal=True)],
        "kernels": ["Memcpy HtoD", KERNEL],
        "timed": [{**timed, "relative_l2": 0.02}],
        **changed,
    }


def answer(found: Target, *gpus: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """What the probe prints where all is well."""
    return {
        "torch": "2.11.0+cu130",
        "imports": {"sageattention": "", "sageattention._qattn_sm89": "", "sageattention._fused": ""},
        "gpus": list(gpus),
        "origin": str(found.site / "sageattention" / "__init__.py"),
        "gpu_count": len(gpus),
        "seconds": 12.5,
        **changed,
    }


def failures(said: dict[str, Any], sage: Recipe, machine: Host, found: Target) -> tuple[str, ...]:
    """The failures of an answer, with no proof beside them."""
    outcome = smoke.judge(json.loads(json.dumps(said)), sage, machine, found)
    assert (outcome.proofs, outcome.loaded_only) == ((), False)
    assert outcome.words == outcome.failures[0]
    return outcome.failures


def test_all_right_is_a_proof(sage: Recipe, found: Target) -> None:
    outcome = smoke.judge(answer(found, gpu()), sage, ONE, found)
    assert (outcome.failures, outcome.loaded_only) == ((), False)
    (proof,) = copy.deepcopy(outcome.proofs)
    at_utc = proof.pop("at_utc")
    assert len(at_utc) == 20 and at_utc[10] == "T" and at_utc.endswith("Z")
    assert proof == {
        "gpu": RTX,
        "arch": "12.0",
        "driver": "580.65.06",
        "torch_version": "2.11.0+cu130",
        "triton_version": "3.6.0",
        "python_version": "3.12.3",
        "cases": 3,
        "worst_cosine": 0.999501,
        "worst_relative_l2": 0.031112,
        "kernel": "qk_int_sv_f8_attn_kernel",
        "speedup": {"2x16x4096x128": 2.5},
        "sagewheels": sagewheels.__version__,
    }
    assert outcome.words == f"proven on {RTX} (arch 12.0)"


def test_each_gpu_has_its_proof(sage: Recipe, found: Target) -> None:
    hopper = gpu(1, H200, "9.0", kernels=["qk_int8_sv_f8_attn_kernel"])
    outcome = smoke.judge(answer(found, gpu(), hopper), sage, host((RTX, "12.0"), (H200, "9.0")), found)
    assert [(proof["gpu"], proof["kernel"]) for proof in outcome.proofs] == [
        (RTX, "qk_int_sv_f8_attn_kernel"),
        (H200, "qk_int8_sv_f8_attn_kernel"),
    ]
    assert outcome.words == f"proven on {RTX} (arch 12.0), proven on {H200} (arch 9.0)"


def test_one_bad_gpu_leaves_no_proof_for_the_other(sage: Recipe, found: Target) -> None:
    """A wheel is proven by the machine that it runs on as a whole."""
    hopper = gpu(1, H200, "9.0", kernels=["qk_int8_sv_f8_attn_kernel"], cases=[case(cosine=0.0)])
    said = answer(found, gpu(), hopper)
    (failure,) = failures(said, sage, host((RTX, "12.0"), (H200, "9.0")), found)
    assert failure.startswith(f"GPU 1 ({H200}): 1 of 1 cases are wrong")


@pytest.mark.parametrize(
    ("cases", "what"),
    [
        (
            [case(), case(finite=False, cosine=None, relative_l2=None, length=17, layout="HND", causal=True)],
            "1 of 2 cases are wrong, first head_dim 128 bfloat16 causal length 17 HND 8/2 heads: not finite",
        ),
        (
            [case(cosine=0.9), case(cosine=0.5)],
            "2 of 2 cases are wrong, first head_dim 128 bfloat16 full length 503 NHD 8/2 heads: "
            "cosine 0.9000, relative L2 0.017",
        ),
        (
            [case(relative_l2=0.0501)],
            "1 of 1 cases are wrong, first head_dim 128 bfloat16 full length 503 NHD 8/2 heads: "
            "cosine 0.9998, relative L2 0.050",
        ),
        (
            [case(), {**case(error="RuntimeError: head_dim"), "finite": None}],
            "1 of 2 cases are wrong, first head_dim 128 bfloat16 full length 503 NHD 8/2 heads: RuntimeError: head_dim",
        ),
    ],
)
def test_wrong_numbers_fail(sage: Recipe, found: Target, cases: list[dict[str, Any]], what: str) -> None:
    assert failures(answer(found, gpu(cases=cases)), sage, ONE, found) == (f"GPU 0 ({RTX}): {what}",)


@pytest.mark.parametrize(
    ("changed", "is_right"),
    [
        ({}, True),
        ({"cosine": 0.999, "relative_l2": 0.05}, True),
        ({"cosine": 0.998999}, False),
        ({"relative_l2": 0.050001}, False),
        ({"row_relative_l2": 0.5}, True),
        ({"row_relative_l2": 0.51}, False),
        ({"finite": False}, False),
        ({"finite": None}, False),
        ({"cosine": float("nan")}, False),
        ({"error": "x"}, False),
    ],
)
def test_the_bounds_are_those_of_the_manifest(sage: Recipe, changed: dict[str, Any], *, is_right: bool) -> None:
    assert smoke.right(case(**changed), sage) is is_right


def test_one_row_alone_can_be_wrong(sage: Recipe) -> None:
    """The rows at the end that nobody wrote hardly count in a head, whose first rows are the largest."""
    assert smoke.how(case(row_relative_l2=1.0)) == "cosine 0.9998, relative L2 0.017, 1.000 in one row"
    bounds = {key: value for key, value in sage.smoke.items() if key != "max_row_relative_l2"}
    assert smoke.within(case(row_relative_l2=1.0), bounds), "a manifest need not bound rows"


def test_an_interpreter_that_dies_after_its_answer_is_spoken_of(
    sage: Recipe, prints: Prints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "said"
    target = prints(f"cat {said}; kill -11 $$")
    said.write_text(json.dumps(answer(target, gpu())), encoding="utf-8")
    assert smoke.run(settings(tmp_path), sage, target, ONE, []).failures == ()
    line = "[smoke] warning: the interpreter ended badly after it had answered (killed by SIGSEGV): see "
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", '{"gpus": 3}'])
def test_other_json_is_no_answer(sage: Recipe, prints: Prints, tmp_path: Path, text: str) -> None:
    with pytest.raises(SmokeFailed, match="brought the interpreter down"):
        smoke.run(settings(tmp_path), sage, prints(f"echo '{text}'"), ONE, [])


def test_where_a_probe_was_when_it_ended_is_named(sage: Recipe, prints: Prints, tmp_path: Path) -> None:
    script = "echo 'at: lengths of attn' >&2; echo 'Fatal Python error: Segmentation fault' >&2; kill -11 $$"
    with pytest.raises(SmokeFailed, match=r"\(killed by SIGSEGV\): in lengths of attn\. The whole"):
        smoke.run(settings(tmp_path), sage, prints(script), ONE, [])


def test_a_case_that_was_not_computed_is_not_right(sage: Recipe) -> None:
    bare = {key: value for key, value in case().items() if key not in ("finite", "cosine", "relative_l2")}
    assert smoke.right(bare, sage) is False


@pytest.mark.parametrize(
    ("kernels", "ran"),
    [
        (["flash_fwd_kernel", "Memcpy HtoD"], "flash_fwd_kernel, Memcpy HtoD"),
        ([], "none was seen"),
        (["k" * 400], "k" * 300),
    ],
)
def test_a_fallback_that_computes_rightly_is_no_success(
    sage: Recipe, found: Target, kernels: list[str], ran: str
) -> None:
    what = f"qk_int_sv_f8_attn_kernel did not run; kernels that did: {ran}"
    assert failures(answer(found, gpu(kernels=kernels)), sage, ONE, found) == (f"GPU 0 ({RTX}): {what}",)


def test_the_kernel_is_that_of_the_arch(sage: Recipe, found: Target) -> None:
    """The kernel of 12.0 is another one than that of 9.0, and one name must not pass for the other."""
    hopper = gpu(0, H200, "9.0")
    (failure,) = failures(answer(found, hopper), sage, host((H200, "9.0")), found)
    assert failure.startswith(f"GPU 0 ({H200}): qk_int8_sv_f8_attn_kernel did not run; kernels that did: Memcpy HtoD, ")


def test_an_arch_that_the_manifest_does_not_know_is_no_success(sage: Recipe, found: Target) -> None:
    said = answer(found, gpu(0, "Thor", "11.0"))
    what = "sageattention-2.2.0.toml does not say which kernel must run on arch 11.0"
    assert failures(said, sage, host(("Thor", "11.0")), found) == (f"GPU 0 (Thor): {what}",)


def test_an_error_after_the_cases_is_a_failure(sage: Recipe, found: Target) -> None:
    broken = gpu(error="RuntimeError: CUPTI is not there", kernels=[], timed=[])
    want = (f"GPU 0 ({RTX}): RuntimeError: CUPTI is not there",)
    assert failures(answer(found, broken), sage, ONE, found) == want


def test_a_lost_context_is_told_by_its_case(sage: Recipe, found: Target) -> None:
    """The probe stops there: neither kernels nor times follow."""
    lost = {**case(), "error": "AcceleratorError: CUDA error: no kernel image is available for execution"}
    broken = {key: value for key, value in gpu(cases=[lost], timed=[]).items() if key != "kernels"}
    (failure,) = failures(answer(found, broken), sage, ONE, found)
    assert failure.startswith(f"GPU 0 ({RTX}): 1 of 1 cases are wrong, first head_dim 128 ")
    assert failure.endswith(": AcceleratorError: CUDA error: no kernel image is available for execution")


def test_a_wrong_long_shape_is_a_failure(sage: Recipe, found: Target) -> None:
    one = {"shape": [1, 16, 16384, 128], "ms": 1.0, "sdpa_ms": 2.0, "finite": True, "cosine": 0.5, "relative_l2": 0.9}
    what = "shape [1, 16, 16384, 128]: cosine 0.5000, relative L2 0.900"
    assert failures(answer(found, gpu(timed=[one])), sage, ONE, found) == (f"GPU 0 ({RTX}): {what}",)


def test_an_extension_that_does_not_import_is_a_failure(sage: Recipe, found: Target) -> None:
    """Though the package itself imports, and even computes: it hides the error."""
    said = answer(found, gpu())
    said["imports"]["sageattention._fused"] = "ImportError: undefined symbol: _ZN3c106detail14torchCheckFail"
    want = "import sageattention._fused failed: ImportError: undefined symbol: _ZN3c106detail14torchCheckFail"
    assert failures(said, sage, ONE, found) == (want,)


NO_LIBCUDA = "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory"


def test_a_machine_without_a_gpu_loads_only(sage: Recipe, found: Target, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = smoke.judge(answer(found), sage, NONE, found)
    assert (outcome.failures, outcome.proofs, outcome.loaded_only) == ((), (), True)
    assert outcome.words == "loaded only: there is no GPU here, nothing was computed and nothing is proven"
    assert "[smoke] import sageattention._qattn_sm89: ok\n" in capsys.readouterr().out


def test_libcuda_is_only_missing_where_there_is_no_driver(
    sage: Recipe, found: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    said = answer(found)
    said["imports"]["sageattention._qattn_sm90"] = NO_LIBCUDA
    outcome = smoke.judge(said, sage, NONE, found)
    assert (outcome.failures, outcome.loaded_only) == ((), True)
    line = "[smoke] sageattention._qattn_sm90 cannot be loaded without the NVIDIA driver, which is not here\n"
    assert line in capsys.readouterr().out
    want = f"import sageattention._qattn_sm90 failed: {NO_LIBCUDA}"
    assert failures(said, sage, host(), found) == (want,), "with a driver it is a fault"


def test_a_missing_library_other_than_the_drivers_is_a_failure(sage: Recipe, found: Target) -> None:
    error = "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"
    said = answer(found)
    said["imports"]["sageattention._fused"] = error
    assert failures(said, sage, NONE, found) == (f"import sageattention._fused failed: {error}",)


def test_gpus_that_torch_does_not_see_are_a_failure(sage: Recipe, found: Target) -> None:
    want = ("torch 2.11.0+cu130 sees no GPU, nvidia-smi lists 1",)
    assert failures(answer(found), sage, ONE, found) == want
    said = answer(found)
    said["imports"]["sageattention"] = "ImportError: no"
    assert failures(said, sage, ONE, found) == ("import sageattention failed: ImportError: no",), "the cause alone"


def test_a_package_from_elsewhere_proves_nothing(sage: Recipe, found: Target, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout" / "sageattention" / "__init__.py"
    want = f"{checkout} was imported, which is not in {found.site}"
    assert failures(answer(found, gpu(), origin=str(checkout)), sage, ONE, found) == (want,)


def test_a_package_behind_a_link_is_in_place(sage: Recipe, found: Target, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(found.site)
    there = str(tmp_path / "link" / "sageattention" / "__init__.py")
    assert smoke.judge(answer(found, gpu(), origin=there), sage, ONE, found).failures == ()


@pytest.mark.parametrize("origin", ["", None])
def test_a_package_that_was_not_imported_has_no_place(sage: Recipe, found: Target, origin: str | None) -> None:
    said = answer(found, origin=origin)
    said["imports"]["sageattention"] = "ModuleNotFoundError: No module named 'sageattention'"
    want = "import sageattention failed: ModuleNotFoundError: No module named 'sageattention'"
    assert failures(said, sage, NONE, found) == (want,)


def test_whose_fault_it_is(sage: Recipe, found: Target) -> None:
    """Wrong numbers condemn the wheel on their arch, with the line that people see; a lack of memory does not."""
    said = answer(found, gpu(cases=[case(), case(cosine=0.5)]))
    (fault,) = smoke.judge(said, sage, ONE, found).faults
    assert (fault.arch, fault.gpu) == ("12.0", RTX)
    assert fault.reason.startswith("1 of 2 cases are wrong, first head_dim 128 bfloat16 full length 503 NHD 8/2 heads")
    twins = answer(found, gpu(cases=[case(cosine=0.5)]), gpu(1))
    assert smoke.judge(twins, sage, host((RTX, "12.0"), (RTX, "12.0")), found).faults == ()
    memory = {**case(error="OutOfMemoryError: CUDA out of memory"), "finite": None}
    for innocent in (gpu(cases=[memory]), gpu(kernels=[]), gpu(), gpu(0, "Thor", "11.0", cases=[case()])):
        assert smoke.judge(answer(found, innocent), sage, ONE, found).faults == ()
    other = answer(found, gpu(kernels=["_attn_fwd"]))
    assert [one.reason for one in smoke.judge(other, sage, ONE, found).faults] == [
        "qk_int_sv_f8_attn_kernel did not run; kernels that did: _attn_fwd"
    ]


def test_no_case_at_all_is_no_success(sage: Recipe, found: Target) -> None:
    assert failures(answer(found, gpu(cases=[])), sage, ONE, found)


Prints = Callable[[str], Target]


@pytest.fixture
def prints(found: Target) -> Prints:
    """Makes the target's interpreter a script with this text, in place of a Python."""

    return lambda script: printing(found, script)


def printing(found: Target, script: str) -> Target:
    """The target, with this script in place of its interpreter."""
    found.python.parent.mkdir()
    found.python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    found.python.chmod(0o755)
    return found


def settings(tmp_path: Path, **environ: str) -> Settings:
    return Settings(log_dir=tmp_path / "logs", environ={"PATH": "/usr/bin:/bin", **environ})


def test_what_the_probe_prints_is_judged_shown_and_logged(
    sage: Recipe, prints: Prints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "said"
    target = prints(f"echo 'a warning' >&2; echo 'chatter'; cat {said}")
    said.write_text(json.dumps(answer(target, gpu())), encoding="utf-8")
    outcome = smoke.run(settings(tmp_path), sage, target, ONE, ["_fused"])
    assert [proof["gpu"] for proof in outcome.proofs] == [RTX]
    shown = capsys.readouterr().out
    assert f"GPU 0, {RTX}, arch 12.0, against float32" in shown
    assert "2 x 16 x 4096 x 128" in shown and "2.50x" in shown
    assert f"[smoke] kernels seen: {KERNEL[:60]}" in shown
    (log,) = (tmp_path / "logs").glob("smoke-*.log")
    assert "a warning" in log.read_text(encoding="utf-8")


def test_the_probe_stands_in_an_empty_folder_without_the_callers_python_path(
    sage: Recipe, prints: Prints, tmp_path: Path
) -> None:
    """What is imported is what is installed, not what lies where the user stands."""
    target = prints(
        f'pwd >{tmp_path}/seen; ls -A >>{tmp_path}/seen; env >>{tmp_path}/seen; echo "$4" >{tmp_path}/order; exit 9'
    )
    with pytest.raises(SmokeFailed):
        smoke.run(settings(tmp_path, PYTHONPATH="/checkout", OTHER="kept"), sage, target, NONE, ["_fused"])
    folder, *environ = (tmp_path / "seen").read_text(encoding="utf-8").splitlines()
    assert folder.endswith("/empty") and not Path(folder).exists()
    assert "OTHER=kept" in environ
    assert [line for line in environ if line.startswith("PYTHON") or "=" not in line] == []


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo 'CUDA error' >&2; exit 1", r"exit code 1\): CUDA error"),
        ("kill -11 $$", r"killed by SIGSEGV\): no output, killed by SIGSEGV"),
        ("echo 'not JSON'", r"exit code 0\): not JSON"),
    ],
)
def test_a_probe_without_an_answer_is_a_failure(
    sage: Recipe, prints: Prints, tmp_path: Path, script: str, what: str
) -> None:
    line = rf"^the kernels brought the interpreter down \({what}\. The whole output is {tmp_path}/logs/smoke-.*\.log\.$"
    with pytest.raises(SmokeFailed, match=line):
        smoke.run(settings(tmp_path), sage, prints(script), ONE, [])


def test_a_probe_that_died_of_what_is_known_names_the_remedy(sage: Recipe, prints: Prints, tmp_path: Path) -> None:
    target = prints("echo '/tmp/a/main.c:5:10: fatal error: Python.h: No such file or directory' >&2; exit 1")
    with pytest.raises(SmokeFailed) as caught:
        smoke.run(settings(tmp_path), sage, target, NONE, [])
    known = "Install the headers (apt-get install python3-dev; python3.12-dev for a Python 3.12 beside the system's)"
    assert f"Python.h: No such file or directory. {known}. The whole output is " in str(caught.value)
