"""Prints a sha256 of what each function of an installed SageAttention computes, a line a case, to compare two builds.

Runs in the interpreter that the wheel is installed in, with a GPU:

    $PATCHED benchmarks/output_hashes.py > patched.txt
    $UNPATCHED benchmarks/output_hashes.py > unpatched.txt
    diff unpatched.txt patched.txt

Inputs are [batch 2, heads 8 or 8/2, length, head_dim], float16 and bfloat16, drawn from fixed seeds.
"""

from __future__ import annotations

import hashlib
import itertools
import sys

if sys.argv[1:]:  # --help is answered where neither of the two below is installed
    print(__doc__)
    sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)

import sageattention
import torch

VARIANTS: dict[str, list[dict[str, object]]] = {
    "sageattn": [{}],
    "sageattn_qk_int8_pv_fp16_cuda": [
        {"pv_accum_dtype": accum, "qk_quant_gran": gran}
        for accum in ("fp32", "fp16", "fp16+fp32")
        for gran in ("per_warp", "per_thread")
    ]
    + [{"pv_accum_dtype": "fp16", "smooth_v": True}],
    "sageattn_qk_int8_pv_fp8_cuda": [
        {"pv_accum_dtype": accum, "qk_quant_gran": gran}
        for accum in ("fp32", "fp32+fp32", "fp32+fp16")
        for gran in ("per_warp", "per_thread")
    ]
    + [{"pv_accum_dtype": "fp32", "smooth_v": True}],
    "sageattn_qk_int8_pv_fp8_cuda_sm90": [{"qk_quant_gran": gran} for gran in ("per_warp", "per_thread")],
    "sageattn_qk_int8_pv_fp16_triton": [{}, {"quantization_backend": "cuda"}],
}


def real_sm90() -> None:
    """Upstream's module has the fake of an operator under its name: the kernels behind it are to be compared."""
    from sageattention import sm90_compile

    name = "qk_int8_sv_f8_accum_f32_fuse_v_scale_attn_inst_buf"
    setattr(sm90_compile, name, getattr(torch.ops.sageattention_sm90, name))


def digest(tensor: torch.Tensor) -> str:
    """sha256 of the bytes, or `not finite`: NaN depends on what was in memory before."""
    if not torch.isfinite(tensor).all():
        return "not finite"
    plain = tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return hashlib.sha256(plain).hexdigest()[:16]


def main() -> None:
    """Every variant of every function that this GPU has."""
    if torch.cuda.get_device_capability() == (9, 0):
        real_sm90()
    axes = ([64, 128], [torch.float16, torch.bfloat16], [False, True], ["HND", "NHD"], [(8, 8), (8, 2)])
    for name, variants in VARIANTS.items():
        for variant, lse in itertools.product(variants, (False, True)):
            for dim, dtype, causal, layout, heads in itertools.product(*axes):
                for length in (1, 17, 64, 128, 503, 1024, 2048):
                    generator = torch.Generator("cuda").manual_seed(length)
                    q, k, v = (
                        torch.randn(
                            (2, n, length, dim) if layout == "HND" else (2, length, n, dim),
                            generator=generator,
                            device="cuda",
                        ).to(dtype)
                        for n in (heads[0], heads[1], heads[1])
                    )
                    case = f"{name} {variant} lse={lse} {dim} {dtype} causal={causal} {layout} {heads} {length}"
                    try:
                        out = getattr(sageattention, name)(
                            q, k, v, tensor_layout=layout, is_causal=causal, return_lse=lse, **variant
                        )
                    except (AssertionError, RuntimeError, ValueError) as error:
                        print(case, f"raises {type(error).__name__}")
                        continue
                    print(case, *(digest(one) for one in (out if lse else (out,))))
    print(torch.__version__, torch.cuda.get_device_name(), file=sys.stderr)


if __name__ == "__main__":
    main()
