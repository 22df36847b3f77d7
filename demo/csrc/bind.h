// SPDX-License-Identifier: Apache-2.0
// The plain C API of Python, and no torch header: these units compile in less than a second.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "sagedemo.h"

using address = unsigned long long;

template <typename T>
T *pointer(address value) {
  return reinterpret_cast<T *>(static_cast<uintptr_t>(value));
}

// None, or a RuntimeError that names the kernel and says what CUDA said.
inline PyObject *launched(const char *kernel, cudaError_t error) {
  if (error == cudaSuccess) Py_RETURN_NONE;
  return PyErr_Format(PyExc_RuntimeError, "%s: %s (%s)", kernel, cudaGetErrorString(error), cudaGetErrorName(error));
}
