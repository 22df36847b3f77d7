"""Settings: `.env`, then the environment, then flags. The only reader of the environment."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

from dotenv.parser import parse_stream

from sagewheels import quick, ui
from sagewheels.errors import UsageError
from sagewheels.resources import ROOT

SECRETS = quick.SECRETS
"""Never handed to a child process, never printed."""

FLAGS = {
    "arch": "TORCH_CUDA_ARCH_LIST",
    "python": "PYTHON_BIN",
    "store": "SAGE_STORE",
    "manifest": "SAGE_MANIFEST",
    "offline": "SAGE_OFFLINE",
    "comfyui": "COMFYUI_PATH",
}
"""Command line flag -> the setting that it overrides."""

_PATHS = frozenset({"COMFYUI_PATH", "OBJECT_CACHE_DIR", "SIGNING_KEY", "TRUSTED_SIGNERS", "REVOKED_SIGNERS"})
"""Paths that may be left unset."""

_NO_NETWORK = {"UV_OFFLINE": "1", "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "GIT_ALLOW_PROTOCOL": "file"}
"""What keeps the programs that a run starts to what is on this machine: uv to its cache, git to local repositories."""

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}
_CHOICES = {
    "TORCH_CHANNEL": ("nightly", "stable", "pypi"),
    "HF_REPO_TYPE": ("dataset", "model", "space"),
    "COMPILER_LAUNCHER": ("none", "ccache", "sccache"),
}
_PATTERNS = {
    "CUDA_INDEX_VARIANT": (r"cu[0-9]{3}", "cu128"),
    "HF_REPO_ID": (r"[\w.-]+/[\w.-]+", "name/repository"),
    "MIN_CUDA_FOR_SM120": (r"[0-9]{1,4}\.[0-9]{1,4}", "12.8"),
    "MIN_TRITON_FOR_50XX": (r"[0-9]{1,4}(\.[0-9]{1,4})*", "3.3"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, checked; the field is the key in lower case. An empty string means: not set."""

    sage_manifest: str = ""
    sage_version: str = "2.2.0"
    sage_source_repo: str = ""
    sage_source_ref: str = ""
    sage_expect_version: str = "2.2.0"
    sage_store: str = ""
    sage_offline: bool = False
    python_bin: str = ""
    comfyui_path: str = ""
    torch_channel: str = "nightly"
    cuda_index_variant: str = "cu128"
    torch_index_url: str = ""
    torch_version: str = ""
    torchvision_version: str = ""
    torchaudio_version: str = ""
    triton_version: str = ""
    triton_spec: str = "triton>=3.3,<4.0"
    torch_cuda_arch_list: str = ""
    cudaarchs: str = ""
    min_cuda_for_sm120: str = "12.8"
    min_triton_for_50xx: str = "3.3"
    hf_repo_id: str = "adbrasi/sageattention220-wheels"
    hf_repo_type: str = "dataset"
    hf_repo_branch: str = "main"
    hf_private: bool = False
    hf_token: str = field(default="", repr=False)
    hf_endpoint: str = ""
    remote_dir: str = "sageattention220"
    wheel_url: str = ""
    signing_key: str = ""
    trusted_signers: str = ""
    revoked_signers: str = ""
    min_index_serial: int | None = None
    allow_unsafe_wheel: bool = False
    work_dir: Path = Path(".build-sageattention")
    wheelhouse_dir: Path = Path("wheelhouse")
    log_dir: Path = Path("logs")
    object_cache_dir: str = ""
    compiler_launcher: str = ""
    ext_parallel: int | None = None
    max_jobs: int | None = None
    nvcc_append_flags: str = ""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """What a child process may see of the environment: all of it, less the secrets."""

    @property
    def manifest_of_version(self) -> str:
        """The build manifest of SAGE_VERSION, used where SAGE_MANIFEST names none: no other line chooses a package."""
        return f"sageattention-{self.sage_version}"

    @property
    def objects(self) -> Path:
        """The object cache: OBJECT_CACHE_DIR, else a folder of WORK_DIR."""
        return Path(self.object_cache_dir) if self.object_cache_dir else self.work_dir / "objects"

    def variable(self, name: str) -> str:
        """A variable that is not ours (CUDA_HOME, VIRTUAL_ENV, PATH ...), empty when it is not set."""
        return self.environ.get(name, "")


KEYS = {item.name.upper(): item for item in fields(Settings) if item.name != "environ"}


def load(
    environ: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    flags: Mapping[str, str | bool | None] | None = None,
) -> Settings:
    """Settings for this run: a flag beats the environment, which beats `.env` here, then `.env` beside tasks.py.

    Raises UsageError, naming the key and where it was set, for a value that cannot be meant.
    """
    environ = dict(os.environ) if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    known: dict[str, tuple[str, str]] = {}
    for path in _dotenvs(cwd):
        pairs = dict(_read_dotenv(path))
        for fault, remedy in _exposure(path, pairs):
            _warn_once(f"{fault}. {remedy}")
        known.update({key: (value, str(path)) for key, value in pairs.items() if key in KEYS})
        for key in sorted(set(pairs) - set(KEYS)):
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.85)
            if near:
                ui.warn("settings", f"{path}: {key} is no setting; is it {near[0]}?")
    known.update({key: (environ[key], "the environment") for key in KEYS if key in environ})
    for flag, value in (flags or {}).items():
        if value:
            known[FLAGS[flag]] = ("1" if value is True else value, f"--{flag}")
    values = dict(_checked(known, cwd))
    alone = _NO_NETWORK if values.get("sage_offline") else {}
    seen = {key: value for key, value in {**environ, **alone}.items() if key not in SECRETS}
    return Settings(**values, environ=seen)  # type: ignore[arg-type]


def is_path(key: str) -> bool:
    """Whether the setting names a file or a folder, which other machines may not have."""
    return key in _PATHS or isinstance(KEYS[key].default, Path)


def check(known: Mapping[str, tuple[str, str]]) -> None:
    """Nothing for values that can be meant, each with where it was set, of another machine: its paths are not read.

    Raises UsageError, as `load` does.
    """
    for key, (value, where) in known.items():
        _text(key, value, where)
    dict(_checked({key: pair for key, pair in known.items() if not is_path(key)}, Path()))


def exports_secrets() -> bool:
    """Whether a secret is in the environment, whatever `.env` says."""
    return any(os.environ.get(key) for key in SECRETS)


def is_plain_terminal() -> bool:
    """Whether the terminal cannot draw a line again, or what is written goes into the log of a CI service."""
    return os.environ.get("TERM", "") in ("dumb", "unknown") or bool(os.environ.get("CI"))


def exposed(cwd: Path | None = None) -> list[tuple[str, str]]:
    """What is wrong with a `.env` whose secret others can read, and the remedy. Raises UsageError as `load` does."""
    paths = _dotenvs(Path.cwd() if cwd is None else cwd)
    return [found for path in paths for found in _exposure(path, dict(_read_dotenv(path)))]


def _dotenvs(cwd: Path) -> Iterable[Path]:
    """The `.env` files, the stronger one last; one file where both are the same."""
    return dict.fromkeys((ROOT / ".env", cwd / ".env"))


def _exposure(path: Path, pairs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Who besides this user can read a secret of the file; behind a link, the file that it leads to counts."""
    held = sorted(key for key in SECRETS if pairs.get(key))
    if not held:
        return
    found = path.stat()
    if found.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield f"{path} holds {held[0]}, and others can read it", f"Run chmod 600 {path}"
    elif found.st_uid not in (os.geteuid(), 0):
        yield f"{path} holds {held[0]}, and belongs to another user", "Write a file of your own"


@cache
def _warn_once(text: str) -> None:
    """A run may be of several tasks, each of which loads the settings."""
    ui.warn("settings", text)


def _read_dotenv(path: Path) -> Iterator[tuple[str, str]]:
    """The pairs of a `.env` file, nothing for a missing one. Raises UsageError with the line of a broken one."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8") as stream:
            for binding in parse_stream(stream):
                if binding.error:
                    text = binding.original.string
                    line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
                    raise UsageError(f"{path} line {line} cannot be read", "Write KEY=value")
                if binding.key is not None:
                    yield binding.key, binding.value or ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "Save it as UTF-8 text") from None


def _checked(known: Mapping[str, tuple[str, str]], cwd: Path) -> Iterator[tuple[str, object]]:
    """Field name and typed value of each known key."""
    for key, (raw, where) in known.items():
        text = raw.strip()
        default = KEYS[key].default
        if not text and key != "SAGE_EXPECT_VERSION":
            continue
        if isinstance(default, bool):
            yield key.lower(), _boolean(key, text, where)
        elif key in _PATHS:
            yield key.lower(), str(cwd / _folder(key, text, where))
        elif isinstance(default, Path):
            yield key.lower(), cwd / _folder(key, text, where)
        elif key == "MIN_INDEX_SERIAL":
            yield key.lower(), _serial(key, text, where)
        elif default is None:
            yield key.lower(), _count(key, text, where)
        else:
            yield key.lower(), _text(key, text, where)
    for key, item in KEYS.items():
        # Relative folders are relative to where the user stands, fixed once so that a later chdir cannot move them.
        if isinstance(item.default, Path) and not known.get(key, ("", ""))[0].strip():
            yield key.lower(), cwd / item.default


def _folder(key: str, text: str, where: str) -> Path:
    try:
        return Path(_text(key, text, where)).expanduser()
    except RuntimeError:
        raise UsageError(f"{key}={text!r} in {where} names a home that is not there", "Write the whole path") from None


def _boolean(key: str, text: str, where: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise UsageError(f"{key}={text!r} in {where} is neither true nor false", "Write 1 or 0")
    return text.lower() in _TRUE


def _count(key: str, text: str, where: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise UsageError(f"{key}={text!r} in {where} is not a count", "Write a whole number from 1 to 9999")
    return int(text)


def _serial(key: str, text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise UsageError(f"{key}={text!r} in {where} is not a serial", "Write a whole number, as init-hf prints it")
    return int(text)


def _text(key: str, text: str, where: str) -> str:
    if not text.isprintable():
        raise UsageError(f"{key} in {where} holds control characters", "Write it on one line, as plain text")
    if key in _CHOICES and text not in _CHOICES[key]:
        raise UsageError(f"{key}={text!r} in {where} is not known", f"Use one of {', '.join(_CHOICES[key])}")
    pattern, example = _PATTERNS.get(key, ("", ""))
    if pattern and not re.fullmatch(pattern, text):
        raise UsageError(f"{key}={text!r} in {where} is not of the right form", f"Write it like {example}")
    return text
