"""Signers with real keys, and stores that a thief of the token writes to behind their back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import ours, signing, steps, trust, wheelhouse
from sagewheels.config import Settings
from sagewheels.host import Host
from sagewheels.job import Job
from sagewheels.target import Target
from sagewheels.wheelhouse import Made
from tests import wheels
from tests.hub import Hub
from tests.wheels import VERSION, Machine

REPO, FOLDER = "me/wheels", "sage"

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


@dataclass(frozen=True)
class Key:
    """A key in a file, with its public half beside it."""

    path: Path

    @property
    def public(self) -> str:
        """`ssh-ed25519 AAAA...`."""
        return " ".join(self.path.with_name(f"{self.path.name}.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen prints it."""
        argv = ["ssh-keygen", "-l", "-f", f"{self.path}.pub"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[1]

    def sign(self, payload: str, namespace: str) -> str:
        """By ssh-keygen itself, not by what is tested."""
        argv = ["ssh-keygen", "-Y", "sign", "-n", namespace, "-f", str(self.path)]
        return subprocess.run(argv, input=payload, capture_output=True, text=True, check=True).stdout


def key(folder: Path, name: str, *, kind: str = "ed25519", passphrase: str = "") -> Key:
    """A new key."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", name, "-f", str(folder / name)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return Key(folder / name)


def trusted(path: Path, *signers: Key, options: str = "") -> Path:
    """An allowed_signers file; each is called like its file."""
    path.write_text("".join(f"{one.path.name} {options} {one.public}\n" for one in signers))
    return path


def revoked(path: Path, *keys: Key) -> Path:
    """A file for REVOKED_SIGNERS."""
    path.write_text("# gone\n" + "".join(f"{one.public}\n" for one in keys))
    return path


@dataclass
class Shop:
    """A store as whoever stole the token sees it: files that can be read and written, nothing more."""

    folder: Path = Path("nowhere")
    hub: Hub | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What leads a machine here."""
        if self.hub is None:
            return {"sage_store": str(self.folder)}
        return {
            "sage_store": "",
            "hf_repo_id": REPO,
            "hf_endpoint": self.hub.endpoint,
            "remote_dir": FOLDER,
            "hf_token": "hf_write",
        }

    @property
    def label(self) -> str:
        """How messages name it."""
        return str(self.folder) if self.hub is None else f"hf://datasets/{REPO}@main/{FOLDER}"

    def files(self) -> dict[str, bytes]:
        """All files of the store."""
        if self.hub is not None:
            found = self.hub.files(REPO)
            return {name[len(FOLDER) + 1 :]: found[name] for name in found if name.startswith(f"{FOLDER}/")}
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if not path.name.startswith(".")}

    def put(self, files: dict[str, bytes], gone: Iterable[str] = ()) -> None:
        """Writes and removes files."""
        if self.hub is not None:
            repo = self.hub.repos[("dataset", REPO)]
            after = {**self.hub.files(REPO), **{f"{FOLDER}/{name}": content for name, content in files.items()}}
            repo.add("main", {name: after[name] for name in after if name not in {f"{FOLDER}/{one}" for one in gone}})
            return
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        for name in gone:
            (self.folder / name).unlink()

    @property
    def index(self) -> dict[str, Any]:
        """index.json."""
        found: dict[str, Any] = json.loads(self.files()["index.json"])
        return found

    def write_index(self, document: dict[str, Any], by: Key | None = None) -> None:
        """index.json as it is given, or signed by a key."""
        if by:
            bare = {name: value for name, value in document.items() if name != "signature"}
            document = {**bare, "signature": by.sign(trust.canonical(bare), signing.INDEX)}
        self.put({"index.json": json.dumps(document).encode()})

    def entry(self, name: str) -> dict[str, Any]:
        """The entry of a wheel."""
        found: dict[str, Any] = next(one for one in self.index["wheels"] if one["wheel_file"] == name)
        return found


@dataclass(frozen=True)
class Place:
    """A machine's own folders, and what it trusts: the interpreter is shared, since it is only read."""

    machine: Machine
    folder: Path
    changes: dict[str, Any]
    same: bool = True
    """Whether the machine stays as it is, so that it need not be looked at anew for each run."""

    def with_(self, **changes: Any) -> Place:
        """The same folders with other settings."""
        return replace(self, changes={**self.changes, **changes})

    @property
    def settings(self) -> Settings:
        """What a run here has."""
        return self.job().settings

    def job(self, *, dry_run: bool = False) -> Job:
        """One run; every fact is found anew."""
        here = {
            "work_dir": self.folder / "work",
            "wheelhouse_dir": self.folder / "wheelhouse",
            "log_dir": self.folder / "logs",
        }
        job = self.machine.job(dry_run=dry_run, **{**here, **self.changes})
        if self.same:
            job.host, job.target = _facts(self.machine)
        return job

    def build(self, label: str = wheels.LABEL, *, python: str = "", **changes: Any) -> Made:
        """A wheel in the wheelhouse, as a build leaves it."""
        path = wheels.make(self.folder / "dist", version=VERSION + label, python=python)
        manifest = wheels.describe(path, **changes)
        ours.note(self.settings, manifest.wheel_sha256)
        return wheelhouse.keep(self.settings, path, manifest), manifest

    def publish(self, label: str = wheels.LABEL, *, python: str = "", **changes: Any) -> str:
        """Builds and uploads; the wheel's name."""
        made = self.build(label, python=python, **changes)
        steps.do_upload(self.job(), made)
        return made[0].name


_known: dict[Path, tuple[Host, Target]] = {}


def _facts(machine: Machine) -> tuple[Host, Target]:
    if machine.folder not in _known:
        job = machine.job()
        _known[machine.folder] = job.host, job.target
    return _known[machine.folder]


def bare(**changes: str) -> dict[str, str]:
    """The environment without an agent."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("SSH_")}, **changes}
