"""Shows the verdict for `latest.json` files as the first installer wrote them, by the real task on real stores.

Run it with the Python that sagewheels is installed for; PYTHON_BIN names the target, as always:

    PYTHON_BIN=~/ComfyUI/venv/bin/python python benchmarks/old_manifests.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_WHEEL = "sageattention-2.2.0-{py}-{py}-linux_x86_64.whl"
_FULL: dict[str, Any] = {
    "created_at_utc": "2025-09-01T12:00:00Z",
    "wheel_sha256": "0" * 64,
    "hf_wheel_url": None,
    "sageattention_version": "2.2.0",
    "expected_sageattention_version": "2.2.0",
    "torch_version": "{torch}",
    "torchvision_version": None,
    "torchaudio_version": None,
    "triton_version": "3.6.0",
    "torch_index_url": "https://download.pytorch.org/whl/nightly/cu128",
    "target_arch": "12.0",
    "cudaarchs": "120",
    "required_min_cuda": "12.8",
    "built_for": "RTX 5090",
    "built_from_repo": "https://github.com/thu-ml/SageAttention.git",
    "built_from_ref": "v2.2.0",
    "built_from_commit": None,
    "builder_gpu_name": "NVIDIA GeForce RTX 5090",
    "builder_gpu_compute_capability": "12.0",
    "python_version": "{python}",
    "python_tag": "{py}",
    "platform": "linux_x86_64",
    "machine": "x86_64",
}
_CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("everything there, this very stack", {}),
    ("nulls wherever null is allowed", {"torchvision_version": None, "triton_version": None, "built_for": None}),
    ("target_arch 12.0+PTX", {"target_arch": "12.0+PTX"}),
    ("target_arch sm_120", {"target_arch": "sm_120"}),
    ("target_arch 8.9;12.0", {"target_arch": "8.9;12.0"}),
    ("target_arch null, cudaarchs 120", {"target_arch": None}),
    ("target_arch and cudaarchs missing", {"target_arch": ..., "cudaarchs": ...}),
    ("wrong arch", {"target_arch": "8.9", "cudaarchs": "89"}),
    ("arch that is none", {"target_arch": "blackwell"}),
    ("nightly torch that no longer exists", {"torch_version": "2.9.0.dev20250701+cu128"}),
    ("torch_version missing", {"torch_version": ...}),
    ("torch without CUDA in its name, CUDA from the index", {"torch_version": "{torch_public}"}),
    ("another Python", {"wheel_file": "sageattention-2.2.0-cp39-cp39-linux_x86_64.whl"}),
    ("Windows", {"wheel_file": "sageattention-2.2.0-cp312-cp312-win_amd64.whl"}),
    ("another version", {"wheel_file": "sageattention-2.1.1-{py}-{py}-linux_x86_64.whl"}),
    ("sha256 null", {"wheel_sha256": None}),
    ("wheel_file missing", {"wheel_file": ...}),
    ("wheel_file that leads elsewhere", {"wheel_file": "../../etc/passwd"}),
    ("a number where text belongs", {"torch_version": 2.9}),
)


def main() -> None:
    """Prints one row a case."""
    facts = _facts()
    print(f"target: Python {facts['python']}, torch {facts['torch']}; wanted arch 12.0\n")
    print("| latest.json | verdict |\n|---|---|")
    for name, changes in _CASES:
        data = {"wheel_file": _WHEEL, **_FULL, **changes}
        data = {key: value.format(**facts) if isinstance(value, str) else value for key, value in data.items()}
        print(f"| {name} | {_verdict({key: value for key, value in data.items() if value is not ...})} |")


def _facts() -> dict[str, str]:
    """Versions of the target, so that the first case is one that fits."""
    code = (
        "import sys, importlib.util as u, runpy; s = u.find_spec('torch').submodule_search_locations[0];"
        "v = runpy.run_path(s + '/version.py')['__version__'];"
        "print('%d.%d.%d' % sys.version_info[:3], 'cp%d%d' % sys.version_info[:2], v)"
    )
    out = subprocess.run([os.environ["PYTHON_BIN"], "-c", code], check=True, capture_output=True, text=True).stdout
    python, tag, torch = out.split()
    return {"python": python, "py": tag, "torch": torch, "torch_public": torch.partition("+")[0]}


def _verdict(data: dict[str, Any]) -> str:
    """What `sagewheels list` says of a store that holds only this latest.json."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "latest.json").write_text(json.dumps(data), encoding="utf-8")
        argv = [sys.executable, "-m", "sagewheels", "list", "--store", folder, "--arch", "12.0"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=folder)
        rows = re.findall(r"^\| sageattention\S* .*\| (.*?) *\|$", done.stdout, re.MULTILINE)
        return rows[0] if rows else done.stderr.strip().replace(folder, "").replace("/latest.json", "latest.json")


if __name__ == "__main__":
    main()
