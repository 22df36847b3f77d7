"""What people see, as compilers, loaders, torch, pip and ComfyUI print it, by the id of the symptom; and healthy logs."""

# ruff: noqa: E501, RUF001  lines and letters are those of other programs
from __future__ import annotations

SEEN: dict[str, str] = {
    "glibc-too-new": """\
[1/3] /usr/local/cuda-12.8/bin/nvcc --generate-dependencies-with-compile -c /src/csrc/fused/fused.cu -o /b/fused.o
FAILED: /b/fused.o
/usr/include/x86_64-linux-gnu/bits/mathcalls.h(79): error: exception specification is incompatible with that of previous \
function "cospi" (declared at line 5554 of /usr/local/cuda-12.8/include/crt/math_functions.h)
   extern double cospi (double __x) noexcept (true); extern double __cospi (double __x) noexcept (true);
                                    ^
4 errors detected in the compilation of "/src/csrc/fused/fused.cu".
ninja: build stopped: subcommand failed.
subprocess.CalledProcessError: Command '['ninja', '-v', '-j', '15']' returned non-zero exit status 1.
""",
    "compiler-too-new": """\
In file included from /usr/local/cuda/include/cuda_runtime.h:82,
                 from <command-line>:
/usr/local/cuda/include/crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 13 are \
not supported! The nvcc flag '-allow-unsupported-compiler' can be used to override this version check; however, using an \
unsupported host compiler may cause compilation failure or incorrect run time execution. Use at your own risk.
  143 | #error -- unsupported GNU version! gcc versions later than 13 are not supported!
      |  ^~~~~
ninja: build stopped: subcommand failed.
""",
    "compiler-headers-too-new": """\
/usr/include/c++/11/bits/std_function.h:435:145: error: parameter packs not expanded with ‘...’:
  435 |         function(_Functor&& __f)
      |                                                             ^
/usr/include/c++/11/bits/std_function.h:435:145: note:         ‘_ArgTypes’
ninja: build stopped: subcommand failed.
""",
    "killed-for-memory": """\
[5/15] c++ -MMD -MF /b/pybind_sm80.o.d -c /src/csrc/qattn/pybind_sm80.cpp -o /b/pybind_sm80.o
FAILED: /b/pybind_sm80.o
c++: fatal error: Killed signal terminated program cc1plus
compilation terminated.
ninja: build stopped: subcommand failed.
RuntimeError: Error compiling objects for extension
""",
    "two-archs-in-one-build": """\
ptxas /tmp/tmpxft_00001_00000000-7_qk_int_sv_f8_cuda_sm90.ptx, line 912; error   : Instruction 'wgmma.fence' not \
supported on .target 'sm_120'
ptxas /tmp/tmpxft_00001_00000000-7_qk_int_sv_f8_cuda_sm90.ptx, line 950; error   : Instruction 'wgmma.mma_async with \
integer types' not supported on .target 'sm_120'
ptxas fatal   : Ptx assembly aborted due to errors
ninja: build stopped: subcommand failed.
""",
    "nvcc-too-old": """\
Detect GPUs with compute capabilities: {'12.0'}
Traceback (most recent call last):
  File "/home/user/ComfyUI/SageAttention/setup.py", line 95, in <module>
    raise RuntimeError(
RuntimeError: CUDA 12.8 or higher is required for compute capability 12.0.
""",
    "library-headers-missing": """\
In file included from /venv/lib/python3.12/site-packages/torch/include/ATen/cuda/CUDAContext.h:3:
/venv/lib/python3.12/site-packages/torch/include/ATen/cuda/CUDAContextLight.h:7:10: fatal error: cusparse.h: No such file \
or directory
    7 | #include <cusparse.h>
      |          ^~~~~~~~~~~~
compilation terminated.
ninja: build stopped: subcommand failed.
""",
    "python-headers-missing": """\
/tmp/tmps1rkq3y3/main.c:5:10: fatal error: Python.h: No such file or directory
    5 | #include <Python.h>
      |          ^~~~~~~~~~
compilation terminated.
subprocess.CalledProcessError: Command '['/usr/bin/gcc', '/tmp/tmps1rkq3y3/main.c', '-O3']' returned non-zero exit status 1.
""",
    "stale-triton-cache": """\
  File ".venv/lib/python3.12/site-packages/triton/compiler/compiler.py", line 408, in _init_handles
    self.module, self.function, self.n_regs, self.n_spills = driver.active.utils.load_binary()
SystemError: PY_SSIZE_T_CLEAN macro must be defined for '#' formats
""",
    "torch-check-symbol": """\
    from . import _fused
ImportError: /usr/local/lib/python3.10/dist-packages/sageattention/_fused.cpython-310-x86_64-linux-gnu.so: undefined \
symbol: _ZN3c106detail14torchCheckFailEPKcS2_jRKSs
""",
    "torch-assert-symbol": """\
    from . import _fused
ImportError: /home/anaconda3/envs/comfyui_py311/lib/python3.11/site-packages/sageattention/_fused.cpython-311-x86_64-linux-\
gnu.so: undefined symbol: _ZN3c106detail23torchInternalAssertFailEPKcS2_jS2_RKNSt7__cxx1112basic_stringIcSt11char_traitsIcE\
SaIcEEE
""",
    "module-of-another-torch": "ImportError: DLL load failed while importing _fused: The specified procedure could not be found.\n",
    "libcudart-missing": """\
    from . import _fused
ImportError: libcudart.so.12: cannot open shared object file: No such file or directory
""",
    "glibc-too-old": """\
!!! Exception during processing !!! /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.32' not found (required by /home/fangg/\
tools/anaconda3/envs/sage/lib/python3.12/site-packages/sageattention/_fused.cpython-312-x86_64-linux-gnu.so)
Traceback (most recent call last):
  File "/home/fangg/other/tts/ComfyUI/execution.py", line 361, in execute
""",
    "torch-lacks-arch": """\
/venv/lib/python3.12/site-packages/torch/cuda/__init__.py:235: UserWarning:
NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.
The current PyTorch install supports CUDA capabilities sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90.
RuntimeError: CUDA error: no kernel image is available for execution on the device
""",
    "kernel-for-other-arch": """\
[2026-07-12 02:10:24.500] Error running sage attention: CUDA error: no kernel image is available for execution on the device
Search for `cudaErrorNoKernelImageForDevice' in the CUDA documentation for more information.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
, using pytorch attention instead.
""",
    "kernel-not-available": """\
Error running sage attention: SM89 kernel is not available. Make sure you GPUs with compute capability 8.9., using pytorch \
attention instead.
""",
    "gpu-too-old": "ValueError: Unsupported CUDA architecture: sm75\n",
    "arch-has-no-dispatch": "ValueError: Unsupported CUDA architecture: sm121\n",
    "driver-too-old": """\
RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
""",
    "no-cuda-home": """\
  error: subprocess-exited-with-error
  × python setup.py egg_info did not run successfully.
      RuntimeError: Cannot find CUDA_HOME. CUDA must be available to build the package.
      [end of output]
error: metadata-generation-failed
""",
    "no-arch-given": """\
RuntimeError: No GPUs found. Please specify the target GPU architectures or build on a machine with GPUs.
""",
    "nvcc-of-another-cuda": """\
RuntimeError:
      The detected CUDA version (12.0) mismatches the version that was used to compile
      PyTorch (11.8). Please make sure to use the same CUDA versions.
""",
    "not-on-the-index": """\
ERROR: Could not find a version that satisfies the requirement sageattention==2.2.0 (from versions: 0.1.0, 1.0.0, 1.0.6)
ERROR: No matching distribution found for sageattention==2.2.0
""",
    "torch-not-seen-by-the-build": """\
        File "<string>", line 27, in <module>
      ModuleNotFoundError: No module named 'torch'
      [end of output]
  note: This error originates from a subprocess, and is likely not a problem with pip.
× Getting requirements to build editable did not run successfully.
""",
    "setuptools-downgraded": """\
  Attempting uninstall: setuptools
    Found existing installation: setuptools 80.9.0
ERROR: pip's dependency resolver does not currently take into account all the packages that are installed. This behaviour \
is the source of the following dependency conflicts.
torch 2.11.0 requires setuptools>=77.0.3; python_version >= "3.12", but you have setuptools 75.8.2 which is incompatible.
Successfully installed setuptools-75.8.2
""",
    "black-images": """\
Using sage attention
got prompt
/workspace/ComfyUI/nodes.py:1590: RuntimeWarning: invalid value encountered in cast
  img = Image.fromarray(np.clip(i, 0, 255).astype(np.uint8))
Prompt executed in 12.41 seconds
""",
    "nan-from-constant-channels": """\
smoke failed: GPU 0 (NVIDIA GeForce RTX 5090): 2 of 16 cases are wrong, first head_dim 64 float16 full length 512 HND 8/8 \
heads: not finite. The machine is as it was: sageattention is not installed, as before; the wheel is not proven.
""",
    "noise-on-hopper": """\
smoke failed: GPU 0 (NVIDIA H200): 128 of 128 cases are wrong, first head_dim 64 bfloat16 full length 17 HND 8/8 heads: \
cosine -0.0336, relative L2 3.363. The machine is as it was: sageattention is not installed, as before.
""",
    "comfyui-falls-back": """\
Using sage attention
[2025-11-09 10:39:33.383] Error running sage attention: Unsupported head_dim: 256, using pytorch attention instead.
[2025-11-09 10:39:33.384] Error running sage attention: Unsupported head_dim: 256, using pytorch attention instead.
""",
}

ALSO: list[tuple[str, str]] = [
    (
        "no-arch-given",
        "RuntimeError: No target compute capabilities. Set TORCH_CUDA_ARCH_LIST or build on a machine with GPUs.\n",
    ),
    ("no-cuda-home", "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.\n"),
    (
        "killed-for-memory",
        "nvcc error   : 'cicc' died due to signal 9 (Kill signal)\nninja: build stopped: subcommand failed.\n",
    ),
    ("killed-for-memory", "Killed\nninja: build stopped: subcommand failed.\n"),
    ("killed-for-memory", "/bin/sh: line 1:   312 Killed                  /usr/local/cuda/bin/nvcc -c x.cu -o x.o\n"),
    ("nvcc-too-old", "nvcc fatal   : Unsupported gpu architecture 'compute_120'\n"),
    (
        "not-on-the-index",
        "cannot import name 'sageattn_qk_int8_pv_fp16_triton' from 'sageattention' (/v/sageattention/__init__.py)\n",
    ),
    ("not-on-the-index", "Successfully installed sageattention-1.0.6\n"),
    (
        "driver-too-old",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver\n",
    ),
    ("python-headers-missing", "/tmp/tmpa/cuda_utils.c:13: error: include file 'Python.h' not found\n"),
    (
        "glibc-too-new",
        'mathcalls.h(206): error: exception\n  specification is incompatible with that of previous function "rsqrtf"\n',
    ),
    (
        "module-of-another-torch",
        "import sageattention._qattn_sm89 failed: ImportError: /v/sageattention/_qattn_sm89.abi3.so: undefined symbol: "
        "_ZN2at4_ops10empty_like4callERKNS_6TensorE\n",
    ),
]
"""Other words for the same."""

HEALTHY: dict[str, str] = {
    "build": """\
{"build_key": "057f48aa", "label": "cu130torch2.11sm120.k057f48aa"}
Target compute capabilities: {'12.0'}
running bdist_wheel
running build_ext
W1122 16:37:16.120000 4711 torch/utils/cpp_extension.py:680] CUDA_HOME is /usr/local/cuda, its version 13.0
building 'sageattention._qattn_sm89' extension
Emitting ninja build file /b/build.ninja...
Compiling objects...
[1/8] /usr/local/cuda/bin/nvcc -Xcompiler -Werror=format-security -DTORCH_EXTENSION_NAME=_fused -c fused.cu -o fused.o
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma \
instructions defining accumulator registers of a wgmma between start and end of the pipeline stage
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z11probeKilledPf' for 'sm_120'
fused.cu(12): warning #177-D: variable "error" was declared but never referenced
x86_64-linux-gnu-g++ -shared fused.o -L/venv/torch/lib -lc10 -ltorch -lcudart -o build/sageattention/_fused.abi3.so
creating 'dist/sageattention-2.2.0-cp312-cp312-linux_x86_64.whl' and adding 'build' to it
adding 'sageattention/_fused.cpython-312-x86_64-linux-gnu.so'
adding 'sageattention/_qattn_sm80.cpython-312-x86_64-linux-gnu.so'
""",
    "comfyui": """\
Checkpoint files will always be loaded safely.
Total VRAM 32607 MB, total RAM 128568 MB
pytorch version: 2.11.0+cu130
Set vram state to: NORMAL_VRAM
Device: cuda:0 NVIDIA GeForce RTX 5090 : cudaMallocAsync
Using sage attention
Python version: 3.12.3 (main) [GCC 13.3.0]
ComfyUI version: 0.3.66
Import times for custom nodes:
   0.0 seconds: /workspace/ComfyUI/custom_nodes/websocket_image_save.py
Starting server
To see the GUI go to: http://127.0.0.1:8188
got prompt
Patching comfy attention to use sageattn
Requested to load Flux
loaded completely 30000.0 11350.0 True
 95%|#########5| 19/20 [00:05<00:00,  3.50it/s]\r100%|##########| 20/20 [00:05<00:00,  3.55it/s]
Prompt executed in 6.72 seconds
""",
    "pip": """\
Looking in indexes: an index
Collecting sageattention==2.2.0
Requirement already satisfied: torch in ./venv/lib/python3.12/site-packages (2.11.0)
Collecting setuptools<82
  Attempting uninstall: setuptools
    Found existing installation: setuptools 75.8.2
    Uninstalling setuptools-75.8.2:
      Successfully uninstalled setuptools-75.8.2
Installing collected packages: setuptools, sageattention
Successfully installed sageattention-2.2.0 setuptools-80.9.0
""",
    "a model that makes black images by itself": """\
Using pytorch attention
/workspace/ComfyUI/nodes.py:1590: RuntimeWarning: invalid value encountered in cast
""",
    "another program that was killed": "worker 7: Killed\nrestarting worker 7\n",
    "another package of the index": "ERROR: No matching distribution found for flash-attn==9\n",
    "another header": "main.c:1:10: fatal error: zlib.h: No such file or directory\n",
}
