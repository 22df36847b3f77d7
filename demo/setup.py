# SPDX-License-Identifier: Apache-2.0
"""Build sagedemo: two CUDA modules, for the archs in TORCH_CUDA_ARCH_LIST."""

import copy
import os
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CUDAExtension


def flags(default, variable):
    """The default flags, then what the environment appends (the last one wins)."""
    return default + os.environ.get(variable, "").split()


def extension(name):
    """The module sagedemo._<name>: kernels without torch or Python, and their binding."""
    return CUDAExtension(
        f"sagedemo._{name}",
        [f"csrc/{name}.cu", f"csrc/{name}_bind.cpp"],
        depends=["csrc/sagedemo.h", "csrc/bind.h", "csrc/convert.cuh"],
        extra_compile_args={  # no -std here: torch knows which one its version wants
            "cxx": flags(["-O2"], "CXX_APPEND_FLAGS"),
            "nvcc": flags(["-O3"], "NVCC_APPEND_FLAGS"),
        },
    )


class ParallelBuild(BuildExtension):
    """EXT_PARALLEL modules at a time, each with its own ninja of MAX_JOBS."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = int(os.environ.get("EXT_PARALLEL") or 0) or self.parallel

    def build_extension(self, ext):
        # torch writes build.ninja into build_temp: in a shared one, two threads overwrite each other's.
        own = copy.copy(self)
        own.build_temp = str(Path(self.build_temp) / ext.name)
        super(ParallelBuild, own).build_extension(ext)


setup(
    name="sagedemo",
    version="0.1.0",
    description="A small int8 attention kernel that builds like SageAttention, in seconds",
    license="Apache-2.0",
    python_requires=">=3.9",
    install_requires=["torch"],
    packages=["sagedemo"],
    ext_modules=[extension("attn"), extension("fused")],
    cmdclass={"build_ext": ParallelBuild},
)
