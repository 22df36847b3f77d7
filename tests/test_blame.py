"""Whose fault a failure of smoke is: what condemns a wheel, and what is the machine's."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from sagewheels import arch, blame
from sagewheels.blame import Fault
from sagewheels.host import Gpu, Host

RTX, KERNEL = "NVIDIA GeForce RTX 5090", "qk_int_sv_f8_attn_kernel"
WRONG = {"finite": True, "cosine": 0.5, "relative_l2": 0.9}
SEEN = ["Memcpy HtoD", "void at::native::fill()", "_attn_fwd"]


def host(*archs: str) -> Host:
    gpus = tuple(Gpu(index=at, name=RTX, arch=arch.parse(one), memory=32607) for at, one in enumerate(archs))
    return Host(gpus=gpus, driver="580.65.06", problem="", cores=8, memory=1 << 34, glibc="2.39")


def failed(text: str) -> dict[str, Any]:
    return {"error": text}


@pytest.mark.parametrize(
    ("gpu", "wrong"),
    [
        ({}, [WRONG]),
        ({}, [{"finite": False, "cosine": None, "relative_l2": None}]),
        ({}, [failed("OutOfMemoryError: CUDA out of memory"), WRONG]),
        ({}, [failed("AcceleratorError: CUDA error: an illegal memory access was encountered")]),
        ({}, [failed("RuntimeError: CUDA error: no kernel image is available for execution on the device")]),
        ({"error": "AcceleratorError: CUDA error: misaligned address"}, []),
        ({"kernels": SEEN}, []),
    ],
)
def test_the_wheels_fault(gpu: dict[str, Any], wrong: list[dict[str, Any]]) -> None:
    assert blame.of_gpu(gpu, wrong, KERNEL)


@pytest.mark.parametrize(
    ("gpu", "wrong"),
    [
        ({}, []),
        ({"kernels": []}, []),
        ({"kernels": SEEN[:2]}, []),
        ({"kernels": [f"void {KERNEL}<64>()"]}, []),
        ({"error": "RuntimeError: CUPTI is not there", "kernels": SEEN}, []),
        ({}, [failed("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")]),
        ({}, [failed("RuntimeError: Failed to find C compiler. Please specify via CC environment variable.")]),
        (
            {},
            [failed("CalledProcessError: Command '['/usr/bin/gcc', 'main.c']' returned non-zero exit status 1.")],
        ),
        ({}, [failed("AssertionError: libcuda.so cannot found!")]),
        ({}, [failed("AcceleratorError: CUDA error: uncorrectable ECC error encountered")]),
        ({}, [failed("RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable")]),
        ({}, [failed("TypeError: attn() got an unexpected keyword argument")]),
    ],
)
def test_what_may_be_the_machines_condemns_nobody(gpu: dict[str, Any], wrong: list[dict[str, Any]]) -> None:
    assert not blame.of_gpu(gpu, wrong, KERNEL)


def test_another_kernel_is_no_fault_where_the_manifest_knows_none() -> None:
    assert not blame.of_gpu({"kernels": SEEN}, [], "")


OWN = "ImportError: /env/site-packages/sage/_fused.abi3.so: undefined symbol: _ZN3c106detail14torchCheckFailE"


@pytest.mark.parametrize(
    ("error", "is_wheels"),
    [
        (OWN, True),
        ("ImportError: dynamic module does not define module export function (PyInit__fused)", True),
        ("", False),
        ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", False),
        ("ImportError: libcudart.so.12: cannot open shared object file: No such file or directory", False),
        ("ImportError: /env/nvidia/libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4", False),
        ("ModuleNotFoundError: No module named 'triton'", False),
    ],
)
def test_a_module_that_does_not_fit_its_torch(error: str, *, is_wheels: bool) -> None:
    answer = {"imports": {"sage": "", "sage._fused": error}}
    fault = Fault(arch="12.0", gpu=RTX, reason=f"import sage._fused failed: {error}")
    assert blame.of_imports(answer, "sage", host("12.0")) == ([fault] if is_wheels else [])
    assert blame.of_imports(answer, "sage", host()) == [], "without a GPU there is no arch to speak of"


@pytest.mark.parametrize(
    ("code", "archs", "is_wheels"),
    [
        (-signal.SIGSEGV, ["12.0"], True),
        (-signal.SIGABRT, ["12.0", "12.0"], True),
        (-signal.SIGKILL, ["12.0"], False),
        (-signal.SIGILL, ["12.0"], False),
        (-signal.SIGBUS, ["12.0"], False),
        (1, ["12.0"], False),
        (0, ["12.0"], False),
        (-signal.SIGSEGV, [], False),
        (-signal.SIGSEGV, ["9.0", "12.0"], False),
    ],
)
def test_crashes(code: int, archs: list[str], *, is_wheels: bool) -> None:
    fault = Fault(arch="12.0", gpu=RTX, reason="it crashed")
    assert blame.of_crash(code, "it crashed", host(*archs)) == ([fault] if is_wheels else [])


def test_a_gpu_that_differs_from_its_twin_is_itself_at_fault() -> None:
    here, again = Fault(arch="12.0", gpu="a", reason="first"), Fault(arch="12.0", gpu="b", reason="second")
    hopper = Fault(arch="9.0", gpu="c", reason="other")
    assert blame.settled([here, again, hopper], []) == (here, hopper), "one for each arch"
    assert blame.settled([here, hopper], ["12.0"]) == (hopper,)
