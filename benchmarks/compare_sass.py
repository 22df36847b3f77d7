"""Compares the machine code of two wheels, kernel by kernel: which kernels are the same, instruction by instruction.

    python benchmarks/compare_sass.py UNPATCHED.whl PATCHED.whl sm_90a

Needs cuobjdump and nvdisasm (nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, or a CUDA toolkit) on PATH.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath


def kernels(module: Path, arch: str) -> dict[str, str]:
    """Mangled name of each kernel -> sha256 of its instructions, addresses and encodings left out."""
    done = subprocess.run(["cuobjdump", "-sass", "-arch", arch, module], capture_output=True, text=True, check=False)
    found: dict[str, str] = {}
    for part in re.split(r"^\s*Function : ", done.stdout, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", body)
        found[name.strip()] = hashlib.sha256("\n".join(code).encode()).hexdigest()
    return found


def main(first: str, second: str, arch: str) -> None:
    """A line for each extension module."""
    with tempfile.TemporaryDirectory() as name:
        sides: list[dict[str, dict[str, str]]] = []
        for number, wheel in enumerate((first, second)):
            folder = Path(name) / str(number)
            with zipfile.ZipFile(wheel) as archive:
                members = [item for item in archive.namelist() if item.endswith(".so")]
                archive.extractall(folder, members)
            sides.append({PurePosixPath(item).name.split(".")[0]: kernels(folder / item, arch) for item in members})
        for module in sorted(sides[0].keys() | sides[1].keys()):
            one, two = (side.get(module, {}) for side in sides)
            both = one.keys() & two.keys()
            same = sum(one[kernel] == two[kernel] for kernel in both)
            print(f"{module}: {same} of {len(one)} kernels are the same, {len(both) - same} differ, "
                  f"{len(two.keys() - one.keys())} are new, {len(one.keys() - two.keys())} are gone")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
