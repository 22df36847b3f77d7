"""Real small wheels, and real small machines to install them in.

The wheels hold an extension module that the system's C compiler made, a Python module, and a RECORD that is true
until a test damages it. The machines are virtual environments with a torch and a triton of a few lines.
"""

from __future__ import annotations

import atexit
import base64
import csv
import functools
import hashlib
import io
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sagewheels import arch, manifest, recipe, wheel
from sagewheels.arch import Arch
from sagewheels.config import Settings
from sagewheels.job import Job
from sagewheels.manifest import WheelManifest
from sagewheels.match import Wanted
from sagewheels.recipe import Recipe

NAME = PACKAGE = "tinyattn"
VERSION = "1.0"
LABEL = "+cu130torch2.11sm120"
TAG = f"py3-none-linux_{platform.machine()}"
TORCH, CUDA, TRITON = "2.11.0+cu130", "13.0", "3.6.0"
GLIBC = platform.libc_ver()[1] or "2.28"

_MARKER = re.compile(rb"archs of this module: ([\w.;+]*)!")
_MODULE = """
extern void *PyModule_Create2(void *, int);
{declarations}
/* PyModuleDef as every CPython has laid it out since 3.3; without Python.h, which need not be installed. */
static struct {{
    long refs; void *type, *init; long index; void *copy; const char *name, *doc; long size; void *rest[5];
}} def = {{1, 0, 0, 0, 0, "{name}", 0, -1, {{0}}}};
const char sagewheels_archs[] = "archs of this module: {archs}!";
void *{entry}_{name}(void) {{ {calls} return PyModule_Create2(&def, 1013); }}
"""


@functools.cache
def workshop() -> Path:
    """Where this run of the tests compiles; gone at its end."""
    folder = Path(tempfile.mkdtemp(prefix="sagewheels-wheels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def compiler() -> str:
    """The system's C compiler; without one, the test is skipped."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        pytest.skip("needs a C compiler")
    return found


@functools.cache
def library(soname: str, symbol: str, version: str = "") -> Path:
    """A shared library of this soname with one function, under a symbol version if one is given."""
    folder = workshop() / f"lib-{soname}-{version or 'plain'}-{symbol}"
    folder.mkdir()
    (folder / "lib.c").write_text(f"void {symbol}(void) {{}}\n")
    (folder / "lib.map").write_text(f"{version} {{ global: {symbol}; }};\n")
    script = [f"-Wl,--version-script={folder / 'lib.map'}"] if version else []
    made = folder / soname
    _cc("-nostdlib", "-o", made, folder / "lib.c", f"-Wl,-soname,{soname}", *script)
    return made


@functools.cache
def extension(
    name: str = "_fused",
    *,
    archs: str = "12.0",
    needs: tuple[Path, ...] = (),
    calls: tuple[str, ...] = (),
    entry: str = "PyInit",
    fatbin: Path | None = None,
    extra: str = "",
) -> bytes:
    """An extension module that Python can import; with another `entry` it raises ImportError."""
    folder = Path(tempfile.mkdtemp(dir=workshop()))
    declarations = "".join(f"void {call}(void);\n" for call in calls) + extra
    text = _MODULE.format(
        name=name, archs=archs, entry=entry, declarations=declarations, calls=" ".join(f"{call}();" for call in calls)
    )
    (folder / "module.c").write_text(text)
    parts = [folder / "module.c"]
    if fatbin:
        (folder / "fatbin.s").write_text(
            f'.section .nv_fatbin,"a"\n.incbin "{fatbin}"\n.section .note.GNU-stack,"",%progbits\n'
        )
        parts.append(folder / "fatbin.s")
    _cc("-o", folder / "module.so", *parts, "-Wl,--no-as-needed", *needs)
    return (folder / "module.so").read_bytes()


def _cc(*arguments: str | Path) -> None:
    argv = [compiler(), "-shared", "-fPIC", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@functools.cache
def fatbin(*codes: str) -> Path:
    """A real fatbin with these codes, such as `sm_120` or `compute_90`; skipped where there is no nvcc."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("needs nvcc")
    folder = Path(tempfile.mkdtemp(dir=workshop()))
    (folder / "k.cu").write_text('extern "C" __global__ void k(float *x) { x[0] = 1; }\n')
    options = [f"-gencode=arch={code.replace('sm_', 'compute_')},code={code}" for code in codes]
    argv = [nvcc, "-fatbin", *options, str(folder / "k.cu"), "-o", str(folder / "k.fatbin")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this nvcc cannot make {', '.join(codes)}")
    return folder / "k.fatbin"


def marked_archs(path: Path) -> tuple[Arch, ...]:
    """Stands in for cuobjdump: the archs that `extension` wrote into the module, from a file that must be one."""
    content = path.read_bytes()
    assert path.suffix == ".so" and content.startswith(b"\x7fELF"), path
    found = _MARKER.search(content)
    assert found, f"{path} was not made by tests/wheels.py"
    return arch.parse_list(found[1].decode()) if found[1] else ()


def without_cuobjdump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archs come from the marks of `extension`, so that neither CUDA nor its tools have to be there."""
    monkeypatch.setattr(wheel, "cubins", marked_archs)


Member = tuple[str | zipfile.ZipInfo, bytes]


def content(**modules: bytes) -> dict[str, bytes]:
    """The files of the package: its Python, and the extension modules by name (default: `_fused` for 12.0)."""
    python = b"def attn(q, k, v, tensor_layout='HND', is_causal=False):\n    return v\n"
    binaries = modules or {"_fused": extension()}
    return {
        f"{PACKAGE}/__init__.py": python,
        **{f"{PACKAGE}/{name}.abi3.so": data for name, data in binaries.items()},
    }


def make(
    folder: Path,
    files: Mapping[str, bytes] | None = None,
    *,
    name: str = NAME,
    version: str = VERSION + LABEL,
    tag: str = TAG,
    info: Mapping[str, bytes | None] | None = None,
    record: Callable[[list[list[str]]], list[list[str]]] | None = None,
    late: Sequence[Member] = (),
    python: str = "",
) -> Path:
    """A wheel in `folder`. `info` replaces files of dist-info (None: left out), `record` changes its rows, `late`
    members go in behind RECORD's back, `python` is the text of __init__.py.
    """
    dist_info = f"{name}-{version}.dist-info"
    tags = "".join(f"Tag: {one}\n" for one in _tags(tag))
    inside: dict[str, bytes | None] = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\n{tags}".encode(),
        **(info or {}),
    }
    members = dict(content() if files is None else files)
    if python:
        members[f"{PACKAGE}/__init__.py"] = python.encode()
    members.update({f"{dist_info}/{key}": value for key, value in inside.items() if value is not None})
    listed = f"{dist_info}/RECORD"
    if inside.get("RECORD", b"") is not None:
        rows = [row(key, value) for key, value in members.items()] + [[listed, "", ""]]
        members.setdefault(listed, to_csv(record(rows) if record else rows))
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicates, which are made on purpose here
        for key, data in [*members.items(), *late]:
            archive.writestr(key if isinstance(key, zipfile.ZipInfo) else zipfile.ZipInfo(key), data, 8)
    return place


def _tags(tag: str) -> list[str]:
    pythons, abis, places = (part.split(".") for part in tag.split("-"))
    return [f"{python}-{abi}-{place}" for python in pythons for abi in abis for place in places]


def row(name: str, data: bytes) -> list[str]:
    """The line of RECORD for one file."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return [name, f"sha256={digest}", str(len(data))]


def to_csv(rows: Iterable[Sequence[str]]) -> bytes:
    """The text of a RECORD."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def describe(path: Path, **changes: Any) -> WheelManifest:
    """A manifest that is true of the wheel, less what `changes` say (None: not known)."""
    digest, size = wheel.file_hash(path)
    data: dict[str, Any] = {
        "schema": 1,
        "created_at_utc": "2026-01-01T00:00:00Z",
        "wheel_file": path.name,
        "wheel_sha256": digest,
        "size": size,
        "torch_version": TORCH,
        "cuda_version": CUDA,
        "target_arch": "12.0",
        "archs": ["12.0"],
        "extensions": {"_fused": ["12.0"]},
        "proofs": [],
    }
    return manifest.parse({**data, **changes}, path.name)


def wanted(**changes: Any) -> Wanted:
    """The facts of a machine that the wheel of `make` fits."""
    facts: dict[str, Any] = {
        "name": NAME,
        "version": VERSION,
        "tags": frozenset({TAG, "py3-none-any"}),
        "torch": "2.11.0",
        "cuda": CUDA,
        "archs": (arch.parse("12.0"),),
        "glibc": GLIBC,
    }
    return Wanted(**{**facts, **changes})


RECIPE = f"""
schema = 1
name = "{NAME}"
version = "{VERSION}"
package = "{PACKAGE}"
{{patches}}
[source]
{{source}}
[build]
requires = ["setuptools"]
memory_per_unit_mb = 1
[extension._fused]
units = 1
[arch."8.9"]
cubin = "8.9"
min_cuda = "12.0"
extensions = ["_fused"]
kernel = "tiny_kernel"
[arch."9.0"]
cubin = "9.0a"
min_cuda = "12.0"
extensions = ["_fused"]
kernel = "tiny_kernel"
[arch."12.0"]
cubin = "12.0"
min_cuda = "12.8"
extensions = ["_fused"]
kernel = "tiny_kernel"
[smoke]
call = "{PACKAGE}:attn"
min_cosine = 0.999
max_relative_l2 = 0.05
head_dims = [64]
lengths = [17]
dtypes = ["float16"]
layouts = ["HND"]
heads = [[8, 8]]
timed = []
"""


def write_recipe(folder: Path, source: str = 'path = "demo"', patches: Mapping[str, str] | None = None) -> Path:
    """A build manifest with its patches, laid out as in the checkout; the path of the .toml."""
    path = folder / "manifests" / "tiny.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    series = folder / "patches" / "tiny"
    series.mkdir(parents=True, exist_ok=True)
    for name, text in (patches or {}).items():
        (series / name).write_text(text)
    line = f"patches = [{', '.join(repr(name) for name in patches)}]" if patches else ""
    path.write_text(RECIPE.format(source=source, patches=line.replace("'", '"')))
    return path


def load_recipe(folder: Path, source: str = 'path = "demo"', patches: Mapping[str, str] | None = None) -> Recipe:
    """The build manifest of `write_recipe`, read."""
    return recipe.load(str(write_recipe(folder, source, patches)))


def uv() -> str:
    """The uv of the tool's environment, which sagewheels itself depends on."""
    from uv import find_uv_bin

    return str(find_uv_bin())


def venv(folder: Path, python: str = sys.executable) -> Path:
    """The python of a new virtual environment."""
    subprocess.run([uv(), "venv", "--quiet", "--no-project", "--python", python, str(folder)], check=True)
    return folder / "bin" / "python"


def pip(python: Path, *arguments: str | Path) -> None:
    """uv pip in that environment, with nothing from an index."""
    verb, *rest = map(str, arguments)
    offline = ["--no-index", "--no-deps"] if verb == "install" else []
    argv = [uv(), "pip", verb, "--quiet", "--python", str(python), *offline, *rest]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def lend_pip(python: Path) -> None:
    """Gives an environment the pip of the Python under it; where that has none, the test is skipped."""
    argv = [os.path.realpath(python), "-I", "-c", "import pip; print(pip.__path__[0])"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("needs a Python with pip")
    (site(python) / "pip").symlink_to(done.stdout.strip())


def site(python: Path) -> Path:
    """The site-packages of an environment made by `venv`."""
    return next((python.parent.parent / "lib").glob("python3*/site-packages"))


_TORCH = """
from torch.version import __version__

class backends:
    class cuda:
        class matmul:
            allow_tf32 = True

class cuda:
    @staticmethod
    def is_available():
        return False

    @staticmethod
    def device_count():
        return 0
"""


def put_torch(python: Path, version: str = TORCH, cuda: str | None = CUDA) -> Path:
    """A torch that can be imported, says what it is, and sees no GPU; the path of its version.py."""
    folder = site(python) / "torch"
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text(_TORCH)
    (folder / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\nhip = None\n")
    return folder / "version.py"


def put_distribution(python: Path, name: str, version: str) -> None:
    """A distribution that is nothing but its metadata."""
    folder = site(python) / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def script(path: Path, text: str) -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Machine:
    """A target with a stack, a driver or none, and the settings that lead there."""

    folder: Path
    python: Path
    settings: Settings

    @property
    def site(self) -> Path:
        """Where packages lie."""
        return site(self.python)

    def job(self, *, dry_run: bool = False, **changes: Any) -> Job:
        """One run on this machine; every fact is found anew."""
        values = {**{key: getattr(self.settings, key) for key in Settings.__dataclass_fields__}, **changes}
        return Job(Settings(**values), dry_run=dry_run)

    def import_version(self) -> str:
        """What the installed package says of itself when it is imported, `none` when it is not there."""
        code = "try:\n import tinyattn\n print(getattr(tinyattn, 'mark', 'ours'))\nexcept ImportError:\n print('none')"
        done = subprocess.run([self.python, "-I", "-B", "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.strip()


def machine(folder: Path, *, gpu: str = "", torch: bool = True, **settings: Any) -> Machine:
    """A machine below `folder` for arch 12.0; `gpu` is a line of nvidia-smi, without one there is no driver."""
    python = venv(folder / "env")
    if torch:
        put_torch(python)
        put_distribution(python, "triton", TRITON)
    answer = f"echo '{gpu}'" if gpu else "echo 'NVIDIA-SMI has failed' >&2; exit 9"
    script(folder / "bin" / "nvidia-smi", f"#!/bin/sh\n{answer}\n")
    defaults: dict[str, Any] = {
        "sage_manifest": str(write_recipe(folder)),
        "sage_store": str(folder / "store"),
        "python_bin": str(python),
        "torch_cuda_arch_list": "12.0",
        "work_dir": folder / "work",
        "wheelhouse_dir": folder / "wheelhouse",
        "log_dir": folder / "logs",
        "environ": {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
    }
    return Machine(folder, python, Settings(**{**defaults, **settings}))


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its content, every folder and link: to compare before and after."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


RTX = "0, NVIDIA GeForce RTX 5090, 12.0, 32607, 580.65.06"
_ANSWER = """
import importlib, itertools, json, sys
order = json.loads(sys.argv[1])
imports = {}
for name in ["", *order["extensions"]]:
    module = order["package"] + ("." + name if name else "")
    try:
        importlib.import_module(module)
        imports[module] = ""
    except ImportError as error:
        imports[module] = "ImportError: %s" % error
package = sys.modules.get(order["package"])
keys = ("head_dim", "dtype", "causal", "length", "layout", "heads")
smoke = order["smoke"]
lists = (smoke["head_dims"], smoke["dtypes"], [False, True], smoke["lengths"], smoke["layouts"], smoke["heads"])
result = {"finite": True, "cosine": getattr(package, "cosine", 0.9999), "relative_l2": 0.01}
cases = [dict(zip(keys, values), **result) for values in itertools.product(*lists)]
gpu = {"index": 0, "name": "NVIDIA GeForce RTX 5090", "arch": "12.0", "cases": cases, "timed": [],
       "kernels": ["void tiny_kernel<64>()"]}
print(json.dumps({"torch": "2.11.0+cu130", "imports": imports, "gpus": [gpu], "origin": package.__file__}))
"""


_FULL_ANSWER = """
import importlib, json, sys

order = json.loads(sys.argv[1])
call = order["calls"][0]
package = importlib.import_module(call["call"].partition(":")[0])
case = {"case": "head_dim 64", **getattr(package, "late", {})}
checks = [{"check": check, "call": 0, "cases": [case], "seconds": 0.1} for check in order["full"]["checks"]]
gpu = {"index": 0, "name": "NVIDIA GeForce RTX 5090", "arch": "12.0", "checks": checks}
print(json.dumps({"gpus": [{**gpu, "calls": [{**call, "arguments": {}}]}]}))
"""


def with_gpu_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke probe imports for real and then says what an RTX 5090 would have computed.

    That is right unless the installed package has a `cosine` of its own, which is then what comes out. The long checks
    find what it has as `late`, if anything.
    """
    from sagewheels import smoke

    def probe(name: str) -> str:
        assert name in smoke.PROBES
        return _ANSWER if name == "smoke" else _FULL_ANSWER

    monkeypatch.setattr(smoke, "probe_source", probe)


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between tries, which are drawn at random, are all of 0 s."""

    def none(shortest: float, longest: float) -> float:
        assert 0 < shortest < longest
        return 0.0

    monkeypatch.setattr(random, "uniform", none)
