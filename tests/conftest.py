"""Every test runs away from the real home, the network beyond this machine, and the settings of whoever runs it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from sagewheels.config import KEYS, SECRETS

_NOT_OURS = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH", "PYTHONHOME")
_XDG = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache", "XDG_DATA_HOME": ".local/share"}


def _keep_installers_working(home: Path) -> None:
    """Caches and index settings stay where they are, so that installs in tests are quick and find their index."""
    config, cache, data = (Path(os.environ.get(key) or home / below) for key, below in _XDG.items())
    for key, path in (
        ("UV_CACHE_DIR", cache / "uv"),
        ("UV_PYTHON_INSTALL_DIR", data / "uv" / "python"),
        ("PIP_CACHE_DIR", cache / "pip"),
    ):
        os.environ.setdefault(key, str(path))
    for key, paths in (
        ("UV_CONFIG_FILE", [config / "uv" / "uv.toml"]),
        ("PIP_CONFIG_FILE", [config / "pip" / "pip.conf", home / ".pip" / "pip.conf"]),
    ):
        found = next((path for path in paths if path.is_file()), None)
        if found:
            os.environ.setdefault(key, str(found))


def _live_in(home: Path) -> dict[str, str]:
    """The variables that make `home` the home."""
    below = {key: str(home / path) for key, path in _XDG.items()}
    return {"HOME": str(home), "HF_HOME": str(home / ".cache" / "huggingface"), **below}


def _isolate() -> None:
    """Done when this file is imported: huggingface_hub reads its variables once, when a test module imports it."""
    _keep_installers_working(Path.home())
    for key in [*KEYS, *SECRETS, *_NOT_OURS, *os.environ]:
        if key in KEYS or key in SECRETS or key in _NOT_OURS or key.startswith(("SAGEWHEELS_", "HF_", "GIT_")):
            os.environ.pop(key, None)
    home = Path(tempfile.mkdtemp(prefix="sagewheels-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update(
        _live_in(home),
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_AUTHOR_NAME="A Tester",
        GIT_AUTHOR_EMAIL="tester@example.invalid",
        GIT_COMMITTER_NAME="A Tester",
        GIT_COMMITTER_EMAIL="tester@example.invalid",
    )


_isolate()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all`: also what takes minutes."""
    parser.addoption("--all", action="store_true", help="also what takes minutes: every fault, every kill, all inputs")


def pytest_configure(config: pytest.Config) -> None:
    """Of hostile inputs, some in a quick run and as many as benchmarks/reliability.md says in a whole one."""
    for name, examples in (("quick", 50), ("all", 4000)):
        hypothesis.settings.register_profile(name, max_examples=examples, deadline=None)
    hypothesis.settings.load_profile("all" if config.getoption("--all") else "quick")


@pytest.fixture(scope="session")
def everything(request: pytest.FixtureRequest) -> bool:
    """Whether this run was asked to leave nothing out (`--all`): a quick one takes a sample of a long table."""
    return bool(request.config.getoption("--all"))


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for each test, and `tmp_path` to stand in."""
    for key, value in _live_in(tmp_path_factory.mktemp("home")).items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """Ctrl-C reaches the tests and what they start, also where a shell began all this with `&`, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """A connection to anything but this machine fails the test that makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        yield


def _guarded(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(str(address[0])):
            pytest.fail(f"a test tried to reach {address[0]}: only loopback is allowed")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
