"""A user's whole session with a token, every task of it a real process on a machine of its own, everything recorded.

What is compiled is a package that reads what it can find: its environment, and that of the process that builds it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sagewheels import buildplan, recipe, target
from sagewheels.config import Settings
from sagewheels.resources import ROOT
from tests import toolkits, wheels
from tests.hub import Hub
from tests.recorder import Recorder, Start

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
REPO = "me/wheels"
DEBUGGING = {
    "INVOKE_DEBUG": "1",
    "HF_DEBUG": "1",
    "HF_HUB_VERBOSITY": "debug",
    "PYTHONDEVMODE": "1",
    "PYTHONFAULTHANDLER": "1",
}
"""All that makes libraries and the interpreter talkative."""

_PR_CAPBSET_DROP = 24
_LOOKS_INTO_OTHERS = (19, 21, 38)
"""CAP_SYS_PTRACE, CAP_SYS_ADMIN and CAP_PERFMON."""

_SETUP = r'''
import base64, configparser, hashlib, json, os, subprocess, zipfile

def peek(path):
    """What this user can read there."""
    try:
        with open(path, "rb") as file:
            return file.read(1).hex() if path.endswith("/mem") else file.read().decode("utf-8", "replace")
    except OSError as error:
        return type(error).__name__

places = ["/proc/self/environ", *("/proc/%d/%s" % (os.getppid(), name) for name in ("environ", "cmdline", "mem"))]
peeked = {"environ": dict(os.environ), "parent": os.getppid(), **{path: peek(path) for path in places}}
json.dump(peeked, open("peeked.json", "w"))

cxx = os.environ["CXX"]
subprocess.run([cxx, "-fPIC", "-c", os.path.abspath("fused.cpp"), "-o", os.path.abspath("fused.o")], check=True)
subprocess.run([cxx, "-shared", "fused.o", "-o", "_fused.so"], check=True)
label = configparser.ConfigParser()
label.read(os.environ["DIST_EXTRA_CONFIG"])
version, tag = "1.0" + label["egg_info"]["tag_build"], "TAG"
info = "tinyattn-%s.dist-info/" % version
members = {
    "tinyattn/__init__.py": b"def attn(q, k, v, tensor_layout='HND', is_causal=False):\n    return v\n",
    "tinyattn/_fused.abi3.so": open("_fused.so", "rb").read(),
    info + "METADATA": ("Metadata-Version: 2.1\nName: tinyattn\nVersion: %s\n" % version).encode(),
    info + "WHEEL": ("Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\nTag: %s\n" % tag).encode(),
}
def row(name, data):
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return "%s,sha256=%s,%d\n" % (name, digest, len(data))
rows = "".join(row(*member) for member in members.items()) + info + "RECORD,,\n"
with zipfile.ZipFile(os.path.join(OUT, "tinyattn-%s-%s.whl" % (version, tag)), "w") as archive:
    for name, data in [*members.items(), (info + "RECORD", rows.encode())]:
        archive.writestr(name, data)
'''
_BACKEND = "def build_wheel(out):\n    exec(open('setup.py').read(), {'OUT': out})\n"

_DRIVER = """
import sys
from pathlib import Path
from sagewheels import cli, wheel
wheel.cuobjdump = lambda: Path({cuobjdump!r})
sys.argv[0] = "sagewheels"
cli.main()
"""


def without_tracing() -> None:
    """What containers take away from root, and what nobody else has: the right to look into any process."""
    for capability in _LOOKS_INTO_OTHERS:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, *map(ctypes.c_ulong, (capability, 0, 0, 0)))


@dataclass(frozen=True)
class Ran:
    """One task: how it ended, what it said, and what began below it."""

    words: tuple[str, ...]
    process: int
    code: int
    out: str
    err: str
    starts: tuple[Start, ...]

    @property
    def below(self) -> list[Start]:
        """All but the task's own process."""
        return [start for start in self.starts if start.process != self.process]


class Session:
    """A machine below `folder`, where everything is that tasks write; `environ` and `dotenv` are what the user set."""

    def __init__(self, folder: Path, environ: Mapping[str, str], dotenv: Mapping[str, str]) -> None:
        if not Path(sysconfig.get_path("include"), "Python.h").exists() or not shutil.which("c++"):
            pytest.skip("needs a C++ compiler and Python.h")
        self.folder = folder
        self.ran: list[Ran] = []
        self._recorder = Recorder(folder.parent / f"{folder.name}-recorder")
        self._python = _target(folder / "target")
        self._second = wheels.machine(folder / "second").python
        self._bare = wheels.venv(folder / "bare")
        home = toolkits.make_toolkit(folder / "cuda")
        self._manifest = _source(folder / "manifest")
        self._hosts = folder / "hosts"
        self._hosts.write_text("127.0.0.1:9 SAGE_STORE= SAGE_MANIFEST=demo\n")
        cuobjdump = wheels.script(
            folder / "bin" / "cuobjdump", '#!/bin/sh\n[ "$1" = --list-ptx ] || echo "ELF file 1: tiny.1.sm_120.cubin"\n'
        )
        wheels.script(folder / "bin" / "nvidia-smi", "#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2; exit 9\n")
        self._driver = _DRIVER.format(cuobjdump=str(cuobjdump))
        own = {name: str(folder / name.lower()) for name in ("HOME", "TMPDIR", "UV_CACHE_DIR", "HF_HOME")}
        for path in own.values():
            Path(path).mkdir()
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("XDG_")},
            **own,
            **self._recorder.environ,
            # Ours last, for a uv that looks for this very Python.
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}:{sys.base_prefix}/bin",
            "PYTHONPATH": str(ROOT),
            "PYTHON_BIN": str(self._python),
            "SAGE_MANIFEST": str(self._manifest),
            "TORCH_CUDA_ARCH_LIST": "12.0",
            "CUDA_HOME": str(home),
            "HF_REPO_ID": REPO,
            "UV_OFFLINE": "1",
            **environ,
        }
        self.here = folder / "here"
        self.here.mkdir()
        self.dotenv = self.here / ".env"
        self.dotenv.write_text("".join(f"{key}='{value}'\n" for key, value in dotenv.items()))
        self.dotenv.chmod(0o600)
        self._put_tools()

    def __call__(self, *words: str, **environ: str) -> Ran:
        """Runs a task to its end."""
        self._recorder.starts()
        process = subprocess.Popen(
            [sys.executable, "-c", self._driver, *words],
            cwd=self.here,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=without_tracing,  # noqa: PLW1509  the Hub's threads hold no lock that the child wants
        )
        out, err = process.communicate(timeout=120)
        starts = tuple(self._recorder.starts())
        self.ran.append(Ran(words, process.pid, process.returncode, out, err, starts))
        return self.ran[-1]

    def whole(self) -> None:
        """Every task but clean, in the order in which a user comes to them, with those that fail."""
        second = {"PYTHON_BIN": str(self._second)}
        self("doctor")
        self("init-hf", **DEBUGGING)
        self("auto")
        for task in ("auto", "list", "fetch", "verify", "smoke", "build", "upload"):
            self(task)
        self("stack", PYTHON_BIN=str(self._bare))
        self("install", **second)
        broken = wheels.content(_fused=wheels.extension(entry="NoInit"))
        wheels.pip(self._second, "install", wheels.make(self.folder / "dist", broken))
        self("smoke", **second)
        self("rollback")
        self("matrix", "--python", OWN, "--torch", "2.11.0")
        self("fleet", "--hosts", str(self._hosts), "--ssh-config", "/dev/null", "--retry", "0")
        self("bench", "--from", "nothing.json")
        self("comfyui")
        self("generate", "sky", SAGE_STORE="", SAGE_MANIFEST="demo")
        self("demo")
        self._put_test_tools()
        self("lint")
        self("test")

    def _put_tools(self) -> None:
        """What a build gets from the package index: here a backend that runs setup.py, and a ninja."""
        one = recipe.load(str(self._manifest))
        settings = Settings(work_dir=self.here / ".build-sageattention", environ=self.environ)
        found = target.ask(self._python, "the test", self.environ)
        tools = buildplan.tools_folder(settings, found, one)
        wheels.script(tools / "bin" / "ninja", "#!/bin/sh\necho 1.13.0\n")
        (tools / "setuptools").mkdir()
        (tools / "setuptools" / "__init__.py").touch()
        (tools / "setuptools" / "build_meta.py").write_text(_BACKEND)
        (tools / "complete").write_text("ninja-1.13.0 setuptools-80.9.0")

    def _put_test_tools(self) -> None:
        """The environment of the tests, with programs that find nothing wrong."""
        home = self.here / ".build-sageattention" / "test-env"
        for name in ("python", "ruff", "shellcheck"):
            wheels.script(home / "bin" / name, "#!/bin/sh\nexit 0\n")
        content = (ROOT / "constraints.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
        stamp = hashlib.sha256(f"{ROOT}\0{sys.version}\0".encode() + content).hexdigest()
        (home / "complete").write_text(stamp)


def _target(folder: Path) -> Path:
    """A target against whose torch something can be compiled and linked."""
    python = wheels.machine(folder).python
    torch = wheels.site(python) / "torch"
    (torch / "include" / "torch").mkdir(parents=True)
    (torch / "include" / "torch" / "extension.h").write_text("#include <cstddef>\n")
    (torch / "lib").mkdir()
    toolkits.empty_libraries(torch / "lib", "c10", "torch", "torch_cpu", "torch_python", "c10_cuda", "torch_cuda")
    return python


def _source(folder: Path) -> Path:
    """The build manifest of a package in a real repository."""
    repository = folder / "upstream"
    repository.mkdir(parents=True)
    code = wheels._MODULE.format(name="_fused", archs="12.0", entry="PyInit", declarations="", calls="")
    (repository / "fused.cpp").write_text(f'extern "C" {{\n{code}}}\n')
    (repository / "setup.py").write_text(_SETUP.replace('"TAG"', repr(wheels.TAG)))
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "All"], ["tag", "v1"]):
        subprocess.run(["git", "-C", repository, *words], check=True)
    head = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return wheels.write_recipe(folder, f'repo = "{repository}"\nref = "v1"\ncommit = "{head.stdout.strip()}"')


def listening(hub: Hub, heard: list[bytes]) -> None:
    """Everything that is sent to the Hub goes into `heard`, but for the Authorization header."""
    plain: Any = hub._server.RequestHandlerClass

    class Listening(plain):  # type: ignore[misc]
        def do_GET(self) -> None:
            headers = "".join(
                f"{key}: {value}\n" for key, value in self.headers.items() if key.lower() != "authorization"
            )
            heard.append(f"{self.requestline}\n{headers}".encode())
            self._serve()

        do_HEAD = do_POST = do_PUT = do_GET

    answer = hub.answer

    def answering(method: str, url: str, body: bytes, token: str, lag: bool) -> Any:
        heard.append(body)
        return answer(method, url, body, token, lag)

    hub._server.RequestHandlerClass = Listening
    hub.answer = answering  # type: ignore[method-assign]
