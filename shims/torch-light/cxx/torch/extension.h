// What units with a PYBIND11_MODULE take from <torch/extension.h>, without the rest: tensors, and pybind11 with torch's
// conversions of tensors, scalars, dtypes and devices. The C++ frontend and all operators are 15 of 20 s per unit.
//
// Every type here is torch's own, from torch's own headers. A name that is missing is an error of the compiler; whoever
// needs more than a few names compiles without this shim.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

namespace torch {

using namespace at;
using Dtype = c10::ScalarType;
using std::nullopt;
using std::optional;

}  // namespace torch
