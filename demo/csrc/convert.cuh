// SPDX-License-Identifier: Apache-2.0
// Intrinsics, since torch compiles with the conversion operators of these types switched off.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(__half *p, float x) { *p = __float2half_rn(x); }
__device__ inline void store(__nv_bfloat16 *p, float x) { *p = __float2bfloat16_rn(x); }
