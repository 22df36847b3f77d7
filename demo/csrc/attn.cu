// SPDX-License-Identifier: Apache-2.0
#include "convert.cuh"
#include "sagedemo.h"

constexpr int ROWS = 32, KEYS = 32, PARTS = 4, THREADS = ROWS * PARTS;
constexpr int MINE = KEYS / PARTS;  // scores per thread and tile
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

template <bool SUM>
__device__ inline float over_quad(float x) {
#pragma unroll
  for (int step = 1; step < PARTS; step *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, x, step);
    x = SUM ? x + other : fmaxf(x, other);
  }
  return x;
}

// Online softmax in base 2. A block has ROWS queries of one head and walks over the keys, KEYS at a time.
// Four neighbouring threads own a row: each computes every fourth score and a quarter of the output.
template <typename T, int DIM>
__global__ void __launch_bounds__(THREADS) sagedemo_attn_kernel(SagedemoAttn p) {
  constexpr int WORDS = DIM / 4;  // four int8 in each
  __shared__ int q_tile[ROWS][WORDS + 1], k_tile[KEYS][WORDS + 1];
  __shared__ float k_scale[KEYS], weight[ROWS][KEYS + 1];
  __shared__ float4 v_tile[KEYS][WORDS];

  const int tiles = (p.q_len + ROWS - 1) / ROWS;
  const int first = int(blockIdx.x) % tiles * ROWS;
  const int head = int(blockIdx.x) / tiles % p.q_heads, batch = int(blockIdx.x) / tiles / p.q_heads;
  const int kv_head = head / (p.q_heads / p.kv_heads);
  const int64_t q_base = (int64_t(batch) * p.q_heads + head) * p.q_len;
  const int64_t k_base = (int64_t(batch) * p.kv_heads + kv_head) * p.kv_len;
  const int *q = reinterpret_cast<const int *>(p.q) + q_base * WORDS;
  const int *k = reinterpret_cast<const int *>(p.k) + k_base * WORDS;
  const T *v = static_cast<const T *>(p.v) + batch * p.v_stride[0] + kv_head * p.v_stride[1];

  const int thread = threadIdx.x, r = thread / PARTS, part = thread % PARTS, row = first + r;
  for (int i = thread; i < ROWS * WORDS; i += THREADS) {
    const int n = i / WORDS, w = i % WORDS;
    q_tile[n][w] = first + n < p.q_len ? q[int64_t(first + n) * WORDS + w] : 0;
  }
  const float q_scale = row < p.q_len ? p.q_scale[q_base + row] * p.sm_scale * LOG2E : 0.f;

  float top = -INFINITY, total = 0.f;
  float4 out[WORDS / PARTS] = {};
  const int end = p.causal ? min(p.kv_len, first + ROWS) : p.kv_len;
  for (int start = 0; start < end; start += KEYS) {
    __syncthreads();  // the last tile is no longer read
    for (int i = thread; i < KEYS * WORDS; i += THREADS) {
      const int n = i / WORDS, w = i % WORDS;
      k_tile[n][w] = start + n < p.kv_len ? k[int64_t(start + n) * WORDS + w] : 0;
    }
    for (int i = thread; i < KEYS * DIM; i += THREADS) {
      const int n = i / DIM, d = i % DIM;
      const bool inside = start + n < p.kv_len && d < p.head_dim;  // zero elsewhere: 0 * NaN would be NaN
      reinterpret_cast<float *>(v_tile[n])[d] = inside ? to_float(v[(start + n) * p.v_stride[2] + d]) : 0.f;
    }
    if (thread < KEYS) k_scale[thread] = start + thread < p.kv_len ? p.k_scale[k_base + start + thread] : 0.f;
    __syncthreads();

    int dot[MINE] = {};
#pragma unroll 4
    for (int w = 0; w < WORDS; w++) {
#pragma unroll
      for (int j = 0; j < MINE; j++) dot[j] = __dp4a(q_tile[r][w], k_tile[part + PARTS * j][w], dot[j]);
    }

    float score[MINE], new_top = top;
#pragma unroll
    for (int j = 0; j < MINE; j++) {
      const int c = part + PARTS * j, key = start + c;
      const bool visible = key < p.kv_len && (!p.causal || key <= row);
      score[j] = visible ? float(dot[j]) * q_scale * k_scale[c] : -INFINITY;
      new_top = fmaxf(new_top, score[j]);
    }
    new_top = over_quad<false>(new_top);  // finite from the first tile on: every row sees key 0

    const float shrink = exp2f(top - new_top);
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < MINE; j++) {
      const float e = exp2f(score[j] - new_top);
      weight[r][part + PARTS * j] = e;
      sum += e;
    }
    total = total * shrink + over_quad<true>(sum);
    top = new_top;
    __syncwarp();  // a row of weights is written and read by its own quad only

#pragma unroll
    for (int i = 0; i < WORDS / PARTS; i++) {
      out[i].x *= shrink, out[i].y *= shrink, out[i].z *= shrink, out[i].w *= shrink;
    }
#pragma unroll 2
    for (int c = 0; c < KEYS; c++) {
      const float e = weight[r][c];
#pragma unroll
      for (int i = 0; i < WORDS / PARTS; i++) {
        const float4 x = v_tile[c][part + PARTS * i];
        out[i].x += e * x.x, out[i].y += e * x.y, out[i].z += e * x.z, out[i].w += e * x.w;
      }
    }
  }

  if (row >= p.q_len) return;
  T *o = static_cast<T *>(p.o) + batch * p.o_stride[0] + head * p.o_stride[1] + row * p.o_stride[2];
#pragma unroll
  for (int i = 0; i < WORDS / PARTS; i++) {
    const int d = 4 * (part + PARTS * i);
    const float y[4] = {out[i].x, out[i].y, out[i].z, out[i].w};
#pragma unroll
    for (int n = 0; n < 4; n++)
      if (d + n < p.head_dim) store(o + d + n, y[n] / total);
  }
  if (p.lse && part == 0) p.lse[q_base + row] = (top + log2f(total)) * LN2;
}

template <typename T>
static auto kernel_for(int padded_dim) {
  return padded_dim == 64 ? sagedemo_attn_kernel<T, 64> : sagedemo_attn_kernel<T, 128>;
}

cudaError_t sagedemo_attn(const SagedemoAttn &p, cudaStream_t stream) {
  if (p.padded_dim != 64 && p.padded_dim != 128) return cudaErrorInvalidValue;
  if (p.head_dim < 1 || p.head_dim > p.padded_dim) return cudaErrorInvalidValue;
  if (p.kv_heads < 1 || p.q_heads % p.kv_heads || p.kv_len < 1) return cudaErrorInvalidValue;
  const int64_t blocks = (int64_t(p.q_len) + ROWS - 1) / ROWS * p.q_heads * p.batch;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  auto kernel = p.bf16 ? kernel_for<__nv_bfloat16>(p.padded_dim) : kernel_for<__half>(p.padded_dim);
  kernel<<<unsigned(blocks), THREADS, 0, stream>>>(p);
  return cudaGetLastError();
}
