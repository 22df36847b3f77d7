# SPDX-License-Identifier: Apache-2.0
"""int8 attention for CUDA, called like sageattn."""

import torch

from . import _attn, _fused  # after torch, which loads the CUDA libraries that they link to

__all__ = ["attn", "quant"]

_DTYPES = (torch.float16, torch.bfloat16)
_AXES = {"HND": (0, 1, 2), "NHD": (0, 2, 1)}  # where batch, head and length are


def attn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False):
    """softmax(q k^T * sm_scale) v with int8 q and k, and float32 log-sum-exp [batch, heads, length] if wanted.

    HND is [batch, heads, length, head_dim], NHD is [batch, length, heads, head_dim]. fp16 or bf16, head_dim up
    to 128, q heads a multiple of kv heads; causal wants equal lengths. Runs on the current stream of q's device.
    """
    axes = _axes(tensor_layout)
    q, k, v = _rows(q, "q"), _rows(k, "k"), _rows(v, "v")
    batch, q_heads, q_len, head_dim = _sizes(q, axes)
    _, kv_heads, kv_len, _ = _sizes(k, axes)
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError("sagedemo: q, k and v must share dtype and device")
    if k.shape != v.shape or _sizes(k, axes) != (batch, kv_heads, kv_len, head_dim):
        raise ValueError(
            f"sagedemo: shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} ({tensor_layout})"
        )
    if kv_heads < 1 or kv_len < 1 or q_heads % kv_heads:
        raise ValueError(f"sagedemo: {q_heads} q heads, {kv_heads} kv heads, {kv_len} keys")
    if is_causal and q_len != kv_len:
        raise ValueError(f"sagedemo: causal wants equal lengths, not {q_len} and {kv_len}")

    q_int8, q_scale = quant(q, tensor_layout)
    k_int8, k_scale = quant(k, tensor_layout)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, q_heads, q_len), dtype=torch.float32, device=q.device) if return_lse else None
    tensors = (q_int8, k_int8, q_scale, k_scale, v, o)
    with torch.cuda.device(q.device):
        _attn.attn(
            (*(x.data_ptr() for x in tensors), 0 if lse is None else lse.data_ptr()),
            (batch, q_heads, kv_heads, q_len, kv_len, head_dim, q_int8.shape[-1]),
            _strides(v, axes),
            _strides(o, axes),
            q.dtype == torch.bfloat16,
            bool(is_causal),
            head_dim**-0.5 if sm_scale is None else float(sm_scale),
            torch.cuda.current_stream().cuda_stream,
        )
    return o if lse is None else (o, lse)


def quant(x, tensor_layout="HND"):
    """int8 rows [batch, heads, length, 64 or 128] and float32 scales [batch, heads, length]: x ~ int8 * scale."""
    axes = _axes(tensor_layout)
    x = _rows(x, "x")
    batch, heads, length, head_dim = _sizes(x, axes)
    padded = 64 if head_dim <= 64 else 128
    out = torch.empty((batch, heads, length, padded), dtype=torch.int8, device=x.device)
    scale = torch.empty((batch, heads, length), dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        _fused.quant(
            (x.data_ptr(), out.data_ptr(), scale.data_ptr()),
            (batch, heads, length, head_dim, padded),
            _strides(x, axes),
            x.dtype == torch.bfloat16,
            torch.cuda.current_stream().cuda_stream,
        )
    return out, scale


def _axes(tensor_layout):
    if tensor_layout not in _AXES:
        raise ValueError(f"sagedemo: tensor_layout is HND or NHD, not {tensor_layout!r}")
    return _AXES[tensor_layout]


def _rows(x, name):
    """x with dense rows, or an error that says what it should have been."""
    if not x.is_cuda or x.dtype not in _DTYPES or x.dim() != 4 or not 1 <= x.shape[-1] <= 128:
        raise ValueError(
            f"sagedemo: {name} must be fp16 or bf16 on a CUDA device, with 4 dimensions and head_dim 1 to 128, "
            f"not {x.dtype} {tuple(x.shape)} on {x.device}"
        )
    return x if x.stride(-1) == 1 else x.contiguous()


def _sizes(x, axes):
    return (*(x.shape[axis] for axis in axes), x.shape[-1])


def _strides(x, axes):
    return tuple(x.stride(axis) for axis in axes)
