// SPDX-License-Identifier: Apache-2.0
// Launchers of the kernels. Strides count elements, in the order batch, head, row; the last dimension is dense.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>

struct SagedemoQuant {
  const void *x;  // fp16 or bf16 [batch, heads, length, head_dim]
  int8_t *out;    // dense [batch, heads, length, padded_dim]
  float *scale;   // dense [batch, heads, length]
  int batch, heads, length, head_dim, padded_dim;
  int64_t x_stride[3];
  int bf16;
};

struct SagedemoAttn {
  const int8_t *q, *k;            // as sagedemo_quant leaves them
  const float *q_scale, *k_scale;
  const void *v;                  // fp16 or bf16 [batch, kv_heads, kv_len, head_dim]
  void *o;                        // fp16 or bf16 [batch, q_heads, q_len, head_dim]
  float *lse;                     // dense [batch, q_heads, q_len], or null
  int batch, q_heads, kv_heads, q_len, kv_len, head_dim, padded_dim;
  int64_t v_stride[3], o_stride[3];
  int bf16, causal;
  float sm_scale;
};

cudaError_t sagedemo_quant(const SagedemoQuant &p, cudaStream_t stream);
cudaError_t sagedemo_attn(const SagedemoAttn &p, cudaStream_t stream);
