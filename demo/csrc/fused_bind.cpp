// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

static PyObject *quant(PyObject *, PyObject *args) {
  address x, out, scale, stream;
  long long xs[3];
  SagedemoQuant p = {};
  if (!PyArg_ParseTuple(args, "(KKK)(iiiii)(LLL)pK:quant",
                        &x, &out, &scale,
                        &p.batch, &p.heads, &p.length, &p.head_dim, &p.padded_dim,
                        &xs[0], &xs[1], &xs[2],
                        &p.bf16, &stream))
    return nullptr;
  p.x = pointer<const void>(x);
  p.out = pointer<int8_t>(out);
  p.scale = pointer<float>(scale);
  for (int i = 0; i < 3; i++) p.x_stride[i] = xs[i];
  cudaError_t error;
  Py_BEGIN_ALLOW_THREADS
  error = sagedemo_quant(p, pointer<CUstream_st>(stream));
  Py_END_ALLOW_THREADS
  return launched("sagedemo_quant_kernel", error);
}

static PyMethodDef methods[] = {
    {"quant", quant, METH_VARARGS, 
     "quant((x, out, scale), (batch, heads, length, head_dim, padded_dim), x_strides, bf16, stream)"},
    {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fused", "Quantisation kernels.", 0, methods, nullptr, nullptr,
                             nullptr, nullptr};

PyMODINIT_FUNC PyInit__fused() { return PyModule_Create(&module); }
