// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

static PyObject *attn(PyObject *, PyObject *args) {
  address q, k, q_scale, k_scale, v, o, lse, stream;
  long long vs[3], os[3];
  SagedemoAttn p = {};
  if (!PyArg_ParseTuple(args, "(KKKKKKK)(iiiiiii)(LLL)(LLL)ppfK:attn",
                        &q, &k, &q_scale, &k_scale, &v, &o, &lse,
                        &p.batch, &p.q_heads, &p.kv_heads, &p.q_len, &p.kv_len, &p.head_dim, &p.padded_dim,
                        &vs[0], &vs[1], &vs[2], &os[0], &os[1], &os[2],
                        &p.bf16, &p.causal, &p.sm_scale, &stream))
    return nullptr;
  p.q = pointer<const int8_t>(q);
  p.k = pointer<const int8_t>(k);
  p.q_scale = pointer<const float>(q_scale);
  p.k_scale = pointer<const float>(k_scale);
  p.v = pointer<const void>(v);
  p.o = pointer<void>(o);
  p.lse = pointer<float>(lse);
  for (int i = 0; i < 3; i++) {
    p.v_stride[i] = vs[i];
    p.o_stride[i] = os[i];
  }
  cudaError_t error;
  Py_BEGIN_ALLOW_THREADS
  error = sagedemo_attn(p, pointer<CUstream_st>(stream));
  Py_END_ALLOW_THREADS
  return launched("sagedemo_attn_kernel", error);
}

static PyMethodDef methods[] = {
    {"attn", attn, METH_VARARGS,
     "attn((q, k, q_scale, k_scale, v, o, lse or 0), "
     "(batch, q_heads, kv_heads, q_len, kv_len, head_dim, padded_dim), "
     "v_strides, o_strides, bf16, causal, sm_scale, stream)"},
    {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_attn", "Attention kernel.", 0, methods, nullptr, nullptr,
                             nullptr, nullptr};

PyMODINIT_FUNC PyInit__attn() { return PyModule_Create(&module); }
