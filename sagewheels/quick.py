"""The answer of a second `auto`: what the run before it noted, as long as all that it rested on is still the same.

Standard library only, and read before Invoke is loaded, which alone takes longer. Nothing here decides anything: a note
that is missing, damaged, of another user or of other circumstances is passed over, and the ordinary way asks everybody.
The environment is compared, never read for a setting.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_FLAGS = frozenset({"--arch", "--python", "--comfyui", "--store", "--manifest"})
_SWITCHES = frozenset({"--no-wait", "--offline"})
"""The flags with which `auto` still says that there is nothing to do; with any other it takes the ordinary way."""

SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"})
"""Never handed to a child process, never printed."""

_LARGEST = 4 << 20
_AGE = 3600.0
"""Seconds for which the kernel's word stands for nvidia-smi's: a GPU that fell off the bus stays in its list."""

DRIVER, BOOT, DEVICES = Path("/proc/driver/nvidia"), Path("/proc/sys/kernel/random/boot_id"), Path("/dev")


def asked(words: Sequence[str]) -> list[str] | None:
    """The task and its flags in one spelling; None for what a note cannot answer."""
    task, *rest = words or ["auto"]
    if task.startswith("-"):
        task, rest = "auto", list(words)
    if task not in ("auto", "install"):
        return None
    found: list[str] = []
    while rest:
        flag, given, value = rest.pop(0).partition("=")
        if flag in _FLAGS and (given or rest) and not any(one.startswith(f"{flag}=") for one in found):
            found.append(f"{flag}={value if given else rest.pop(0)}")
        elif given or flag not in _SWITCHES:
            return None  # also for a flag that is there twice: which of both counts is not for this to say
    return [task, *sorted(found)]


def answer(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """The line that a run with these words would end with at once; empty where the ordinary way has to find out."""
    try:
        wish = asked(words)
        note = _read(place(_work_dir(environ), wish)) if wish else None
        if note is None or note["asked"] != wish or note["here"] != here():
            return ""
        if note["environ"] != of_environ(note["names"], environ) or note["gpus"] != gpus(environ, note):
            return ""
        if note["stats"] != stats(note["stats"]) or note["contents"] != contents(note["contents"]):
            return ""
        line = str(note["line"])
        return line if line.startswith(f"[{note['asked'][0]}] nothing to do: ") and line.isprintable() else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return ""


def here() -> list[str]:
    """Where the user stands, and whose tool this is: another sagewheels may see things differently."""
    return [str(Path.cwd()), str(Path(__file__).parent)]


def place(work_dir: Path, wish: Sequence[str]) -> Path:
    """Where the note for these words is."""
    digest = hashlib.sha256("\0".join([str(Path.cwd()), *wish]).encode()).hexdigest()[:16]
    return work_dir / "state" / f"quick-{digest}.json"


def _work_dir(environ: Mapping[str, str]) -> Path:
    """Where WORK_DIR probably is. To be wrong only means to find no note: a note names all that it rests on."""
    named = environ.get("WORK_DIR", "").strip()
    for path in () if named else (Path.cwd() / ".env", Path(__file__).parent.parent / ".env"):
        if not named and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            values = [line.partition("=")[2].strip(" \"'") for line in lines if line.startswith("WORK_DIR=")]
            named = "".join(values[-1:])
    return Path.cwd() / Path(named or ".build-sageattention").expanduser()


def _read(path: Path) -> dict[str, Any] | None:
    """A note that this user wrote and nobody else can write. Raises OSError and ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        data = json.loads(stream.read(_LARGEST)) if own else None
    return data if isinstance(data, dict) else None


def of_environ(names: Iterable[str], environ: Mapping[str, str]) -> str:
    """A hash of these variables; of a token it says only whether there is one."""
    told = {name: "set" if name in SECRETS else environ[name] for name in names if name in environ}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


def contents(paths: Iterable[str]) -> dict[str, str]:
    """For each path what it holds: the bytes of a file, the names in a folder, `absent`; never a matter of times."""
    return {path: _content(Path(path)) for path in paths}


def _content(path: Path) -> str:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            # Python writes this one when it pleases.
            data = "\0".join(sorted({one.name for one in os.scandir(path)} - {"__pycache__"})).encode(errors="replace")
        elif stat.S_ISREG(found.st_mode):
            data = path.read_bytes()
        else:
            return "other"
    except FileNotFoundError:
        return "absent"
    where = os.path.realpath(path)
    head = f"{where}\0{found.st_mode}\0{found.st_uid}\0"
    return hashlib.sha256(head.encode(errors="replace") + data).hexdigest()


def stats(paths: Iterable[str]) -> dict[str, list[int]]:
    """For each path what changes when the file is written or another takes its place, also with its old mtime.

    Raises OSError for one that is not there.
    """
    found = {path: Path(path).stat() for path in paths}
    return {
        path: [one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns] for path, one in found.items()
    }


def gpus(environ: Mapping[str, str], note: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What GPUs and driver can be told by: the kernel's own list where there is one, else nvidia-smi's answer.

    The list changes with the driver, with each boot and with a GPU that comes or goes; it does not say whether a GPU
    still answers, so a `note` that is older than an hour is not enough, and nvidia-smi has to be asked.
    """
    program = shutil.which("nvidia-smi", path=os.pathsep.join([environ.get("PATH", os.defpath), "/usr/lib/wsl/lib"]))
    if not program:
        return {"program": ""}
    if not (DRIVER / "version").is_file():
        return {"program": program, **_smi(program, environ)}
    age = time.time() - float(note["noted"]) if note else 0.0
    files = sorted((DRIVER / "gpus").glob("*/information"))
    told = {str(path): path.read_text(errors="replace") for path in (DRIVER / "version", *files)}
    nodes = {str(path): path.stat().st_rdev for path in sorted(DEVICES.glob("nvidia*")) if path.is_char_device()}
    fresh = files and 0.0 <= age < _AGE
    return {
        "program": program,
        "is": list(stats([program]).values()),
        "boot": BOOT.read_text(encoding="ascii"),
        "told": told,
        "nodes": nodes,
        "enough": bool(fresh),
    }


def _smi(program: str, environ: Mapping[str, str]) -> dict[str, Any]:
    import subprocess

    if any(environ.get(name) for name in SECRETS):
        from sagewheels import guard

        guard.close(SECRETS)
    env = {key: value for key, value in environ.items() if key not in SECRETS}
    query = "--query-gpu=index,name,compute_cap,memory.total,driver_version"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        )
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from None
    return {"code": done.returncode, "out": done.stdout}
