"""The light headers: each says why it exists, holds nothing but torch's own headers, and compiles with new torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from sagewheels.resources import ROOT
from tests.wheels import uv

SHIMS = sorted(path for path in (ROOT / "shims").rglob("*") if path.is_file())

CUDA = """
#include <torch/extension.h>
torch::Tensor made(torch::Tensor like) {
  TORCH_CHECK(like.dtype() == torch::kHalf && like.sizes() == torch::IntArrayRef({1, 2}), "words");
  return torch::empty({like.size(0), 3}, like.options().dtype(torch::kFloat32));
}
torch::Tensor plain() { return torch::empty({0}); }
"""
BINDING = """
#include <torch/extension.h>
torch::Tensor same(torch::Tensor x, torch::ScalarType dtype, torch::optional<torch::Tensor> other) { return x; }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("same", py::overload_cast<torch::Tensor, torch::ScalarType, torch::optional<torch::Tensor>>(&same), "words");
}
"""


def test_shims_are_for_nvcc_and_for_the_host_compiler() -> None:
    assert [path.relative_to(ROOT / "shims").as_posix() for path in SHIMS] == [
        "torch-light/cxx/torch/extension.h",
        "torch-light/nvcc/torch/extension.h",
    ]


@pytest.mark.parametrize("path", SHIMS, ids=lambda path: path.parts[-3])
def test_a_shim_says_why_and_has_only_headers_of_torch(path: Path) -> None:
    text = path.read_text()
    reason, _, code = text.partition("#pragma once\n")
    assert "// What " in reason and all(line.startswith("//") for line in reason.splitlines())
    included = re.findall(r"#\s*include\s+(\S+)", code)
    assert included and all(re.fullmatch(r"<(ATen|torch/csrc)/[\w/]+\.h>", name) for name in included)
    assert not re.search(r"\b(struct|class|enum)\s+\w+\s*[:{]", code), "types are torch's own"


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The headers of the newest torch, which needs no CUDA for these."""
    folder = tmp_path_factory.mktemp("torch")
    subprocess.run([uv(), "pip", "install", "-q", "--no-deps", "--target", folder, "torch"], check=True, timeout=900)
    return folder / "torch" / "include"


@pytest.mark.slow
@pytest.mark.index
@pytest.mark.parametrize(("kind", "unit"), [("nvcc", CUDA), ("cxx", BINDING)])
def test_a_shim_has_what_units_use(kind: str, unit: str, headers: Path, tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("needs a C++ compiler and the headers of Python")
    source = tmp_path / "unit.cpp"
    source.write_text(unit)
    first = ROOT / "shims" / "torch-light" / kind
    places = [headers, headers / "torch" / "csrc" / "api" / "include", Path(sysconfig.get_path("include"))]
    argv = [compiler, "-std=c++20", "-fsyntax-only", "-DTORCH_EXTENSION_NAME=unit", f"-I{first}"]
    argv += [word for place in places for word in ("-isystem", str(place))]
    done = subprocess.run([*argv, str(source)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[:3000]
