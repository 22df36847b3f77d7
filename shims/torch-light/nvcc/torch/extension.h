// What CUDA sources take from <torch/extension.h>, without the rest: torch's own header brings all operators, autograd and
// pybind11, which nvcc parses three times per unit. That is 36 s and 3 GB of a unit whose kernels take 20 s.
//
// Every type here is torch's own, from torch's own headers. A name that is missing is an error of the compiler; whoever
// needs more than a few names compiles without this shim.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>

namespace torch {

using namespace at;
using Dtype = c10::ScalarType;
using std::nullopt;
using std::optional;

constexpr auto kUInt8 = c10::ScalarType::Byte;
constexpr auto kInt8 = c10::ScalarType::Char;
constexpr auto kInt16 = c10::ScalarType::Short;
constexpr auto kInt32 = c10::ScalarType::Int;
constexpr auto kInt64 = c10::ScalarType::Long;
constexpr auto kFloat16 = c10::ScalarType::Half;
constexpr auto kFloat32 = c10::ScalarType::Float;
constexpr auto kFloat64 = c10::ScalarType::Double;

// <ATen/ops/empty.h> has this too, and brings 3 s of headers. The operator behind it is the same.
static inline Tensor empty(
    c10::IntArrayRef size, const c10::TensorOptions& options = {}, std::optional<c10::MemoryFormat> format = std::nullopt)
{
  return _ops::empty_memory_format::call(c10::fromIntArrayRefSlow(size), c10::optTypeMetaToScalarType(options.dtype_opt()),
      options.layout_opt(), options.device_opt(), options.pinned_memory_opt(),
      format ? format : options.memory_format_opt());
}

}  // namespace torch
