// SPDX-License-Identifier: Apache-2.0
#include "convert.cuh"
#include "sagedemo.h"

constexpr int WARPS = 4, MAX_DIM = 128, PER_LANE = MAX_DIM / 32;

// One warp per row: x ~ out * scale, with scale = max|x| / 127. The padding up to padded_dim is zero.
template <typename T>
__global__ void __launch_bounds__(WARPS * 32) sagedemo_quant_kernel(SagedemoQuant p) {
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  if (row >= int64_t(p.batch) * p.heads * p.length) return;  // the same for the whole warp
  const int64_t l = row % p.length, h = row / p.length % p.heads, b = row / p.length / p.heads;
  const T *x = static_cast<const T *>(p.x) + b * p.x_stride[0] + h * p.x_stride[1] + l * p.x_stride[2];

  float value[PER_LANE];
  unsigned top = 0;  // |x| as bits: ordered like the numbers, and NaN is above all, so that it is not lost
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    const int d = lane + 32 * i;
    value[i] = d < p.head_dim ? to_float(x[d]) : 0.f;
    top = max(top, __float_as_uint(fabsf(value[i])));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, step));

  const float amax = __uint_as_float(top);
  const float inverse = amax == 0.f ? 0.f : 127.f / amax;
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    const int d = lane + 32 * i;
    const int rounded = max(-127, min(127, __float2int_rn(value[i] * inverse)));
    if (d < p.padded_dim) p.out[row * p.padded_dim + d] = int8_t(rounded);
  }
  if (lane == 0) p.scale[row] = amax / 127.f;
}

cudaError_t sagedemo_quant(const SagedemoQuant &p, cudaStream_t stream) {
  if (p.head_dim < 1 || p.head_dim > p.padded_dim || p.padded_dim > MAX_DIM) return cudaErrorInvalidValue;
  const int64_t rows = int64_t(p.batch) * p.heads * p.length, blocks = (rows + WARPS - 1) / WARPS;
  if (rows == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  auto kernel = p.bf16 ? sagedemo_quant_kernel<__nv_bfloat16> : sagedemo_quant_kernel<__half>;
  kernel<<<unsigned(blocks), WARPS * 32, 0, stream>>>(p);
  return cudaGetLastError();
}
