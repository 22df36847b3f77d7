"""What a machine and its store are put through by tests/test_faults.py: the tasks, the ways to go wrong, the verdict.

A task runs as the command runs it, through tasks.py, but in this process, and pauses are noted instead of slept.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

import tasks
from sagewheels import claim, doctor, target, wheelhouse
from sagewheels.store import claims, index, tries
from sagewheels.store.card import BEGIN, END
from sagewheels.store.hub import HubStore
from sagewheels.target import Target
from tests import fleet, wheels
from tests.hub import Hub
from tests.wheels import NAME, RTX, TAG, VERSION

REPO, TOKEN = "me/wheels", "hf_averysecrettoken"
GOOD = f"{NAME}-{VERSION}{wheels.LABEL}-{TAG}.whl"
OTHER = GOOD.replace("torch2.11", "torch2.12")
WRONG = "mark = 'wrong'\ncosine = 0.5\n"

SECONDS = 30.0
"""The longest that a disturbed run may work, besides its pauses: on a machine that others load, too."""
PAUSES = 600.0
"""The longest that its pauses may be together: what a user waits for a server that asks for it again and again."""
REQUESTS = 200
"""The most requests that a disturbed run may make."""

_OF_UV = ("RECORD", "uv_cache.json")
"""What uv writes has the moment in it."""

REFUSALS = ("400", "401", "403", "404", "413")
"""These are asked once."""
PASSING = ("408", "429", "429 @30", "429 3600", "500", "502", "503", "504")
KINDS = (
    *("truncate", "corrupt", "short", "empty", "portal", "endless", "trickle", "hang", "stall", "drop", "lose"),
    *("lag", "garbage", "loop", "409", "412", *REFUSALS, *PASSING),
)
ALTERED = frozenset({"corrupt", "short", "empty", "endless"})
"""What makes other bytes of a wheel: these are refused with exit code 4 when they stay so."""


def applies(kind: str, line: str) -> bool:
    """Whether this can go wrong with this request: only what is done can be lost, only a branch can lag behind."""
    if kind == "lag":
        return line.startswith("GET") and any(mark in line for mark in ("/resolve/main/", "/revision/", "/tree/main"))
    return kind != "lose" or not line.startswith("GET")


@dataclass(frozen=True)
class Ended:
    """One run: its exit code, the one line of its error, what it printed, and what it cost."""

    code: int
    line: str
    out: str
    err: str
    seconds: float
    pauses: tuple[float, ...]
    requests: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """What matters of a machine and of its store; proofs and marks without their moments."""

    site: Mapping[str, str]
    house: Mapping[str, str]
    listed: Mapping[str, str]
    """The wheels of the store's index, each with its sha256."""
    proofs: frozenset[tuple[str, str]]
    marks: frozenset[tuple[str, str]]
    latest: str
    cards: frozenset[str]
    """What people wrote around the tables of wheels."""
    work: frozenset[str]
    """The files of WORK_DIR, by name."""
    wrong: tuple[str, ...]
    """What must never be, wherever it is found."""


@dataclass(frozen=True)
class Task:
    """A task, the state that it begins in, and the exit code that it ends with when nothing goes wrong."""

    name: str
    run: Callable[[], None]
    begin: tuple[str, ...] = ()
    code: int = 0


def _matrix() -> None:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    tasks.matrix(Context(), python=own, torch="2.11", arch="12.0", json=True)


TASKS = (
    Task("fetch", lambda: tasks.fetch(Context()), ("store",)),
    Task("install", lambda: tasks.install(Context()), ("store",)),
    Task("auto, hit", lambda: tasks.auto(Context()), ("store",)),
    Task("auto, miss", lambda: tasks.auto(Context()), ("others",)),
    Task("upload", lambda: tasks.upload(Context()), ("others", "house")),
    Task("upload, first", lambda: tasks.upload(Context()), ("house",)),
    Task("smoke, proof", lambda: tasks.smoke(Context()), ("store", "installed")),
    Task("smoke, mark", lambda: tasks.smoke(Context()), ("bad store", "installed"), 6),
    Task("init-hf", lambda: tasks.init_hf(Context())),
    Task("init-hf, branch", lambda: tasks.init_hf(Context(), store=f"hf://datasets/{REPO}@next/sage")),
    Task("list", lambda: tasks.list_(Context()), ("store",)),
    Task("doctor", lambda: tasks.doctor(Context()), ("store",)),
    Task("matrix", _matrix, ("store",)),
    Task("verify", lambda: tasks.verify(Context()), ("store", "house")),
)


class Bench:
    """A machine with a GPU that answers, its Hub, and one task after the other, each from the state it begins in."""

    def __init__(self, folder: Path, hub: Hub, patch: pytest.MonkeyPatch) -> None:
        self.hub, self.folder, self.pauses = hub, folder, list[float]()
        self.machine = wheels.machine(folder, gpu=RTX)
        self._saved = dict[str, tuple[Path, Any, Any]]()
        self._patch(patch)

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        wheels.without_cuobjdump(patch)
        wheels.with_gpu_answers(patch)
        fleet.with_build(patch.setattr, lambda key: "mark = 'built'\n")
        patch.setattr(claim, "time", SimpleNamespace(sleep=self.pauses.append, monotonic=time.monotonic))
        patch.setattr(doctor, "_GROUPS", (doctor._store,))  # the others ask no store, and compile something
        patch.setattr(target, "ask", self._target())
        for function in (HubStore.__init__, index.load, index.publish, index.add_proof, index.add_mark):
            self._set(patch, function, "pause", self.pauses.append)
        for waiting in (index.initialise, claims.release, claims.renew):
            self._set(patch, waiting, "pause", self.pauses.append)
        given = self.machine.settings
        for key, value in {
            "PATH": given.environ["PATH"],
            "PYTHON_BIN": str(self.machine.python),
            "SAGE_MANIFEST": given.sage_manifest,
            "TORCH_CUDA_ARCH_LIST": "12.0",
            "WORK_DIR": str(given.work_dir),
            "WHEELHOUSE_DIR": str(given.wheelhouse_dir),
            "LOG_DIR": str(given.log_dir),
            "HF_REPO_ID": REPO,
            "HF_ENDPOINT": self.hub.endpoint,
            "REMOTE_DIR": "sage",
            "HF_TOKEN": TOKEN,
        }.items():
            patch.setenv(key, value)

    def _target(self) -> Callable[..., Target]:
        """The interpreter is asked anew only when other packages are in it: the sweep asks it ten thousand times."""
        ask, known = target.ask, dict[Any, Target]()

        def remembered(path: Path, why: str, environ: Mapping[str, str], packages: tuple[str, ...] = ()) -> Target:
            key = path, why, packages, frozenset(one.name for one in self.machine.site.iterdir())
            if key not in known:
                known[key] = ask(path, why, environ, packages)
            return known[key]

        return remembered

    @staticmethod
    def _set(patch: pytest.MonkeyPatch, function: object, name: str, value: object) -> None:
        """Another default, for who does not name the parameter."""
        defaults = cast(Any, function).__kwdefaults__
        assert name in defaults
        patch.setitem(defaults, name, value)

    @property
    def _kept(self) -> tuple[Path, ...]:
        return self.machine.settings.wheelhouse_dir, self.machine.settings.work_dir

    def begin(self, task: Task) -> None:
        """The state in which this task begins."""
        if task.name not in self._saved:
            self._clear()
            for part in task.begin:
                getattr(self, f"_begin_{part.replace(' ', '_')}")()
            self._save(task.name)
        place, repos, blobs = self._saved[task.name]
        self._clear()
        self.hub.repos, self.hub.blobs = copy.deepcopy(repos), dict(blobs)
        for path in place.glob("site/*"):
            shutil.copytree(path, self.machine.site / path.name, dirs_exist_ok=True)
        for kept in self._kept:
            if (place / kept.name).exists():
                shutil.copytree(place / kept.name, kept)

    def _save(self, name: str) -> None:
        place = self.folder / "saved" / name
        for path in self.machine.site.glob(f"{NAME}*"):
            shutil.copytree(path, place / "site" / path.name)
        for kept in self._kept:
            if kept.exists():
                shutil.copytree(kept, place / kept.name)
        self._saved[name] = place, copy.deepcopy(self.hub.repos), dict(self.hub.blobs)

    def _clear(self) -> None:
        self.hub.behave()
        self.hub.repos, self.hub.blobs = {}, {}
        for path in (*self._kept, *self.machine.site.glob(f"{NAME}*")):
            shutil.rmtree(path, ignore_errors=True)

    def _begin_others(self) -> None:
        """Two wheels of other stacks, one after the other: whoever lags behind the last commit still sees a store."""
        self._publish("+cu130torch2.12sm120", torch_version="2.12.0+cu130")
        files = self.hub.files(REPO)
        card = files["README.md"] + b"\nWritten by hand.\n"
        self.hub.repos["dataset", REPO].add("main", {**files, "README.md": card})
        self._publish("+cu130torch2.13sm120", torch_version="2.13.0+cu130")

    def _begin_store(self, python: str = "mark = 'ours'\n") -> None:
        self._publish(wheels.LABEL, python=python)
        self._begin_others()

    def _begin_bad_store(self) -> None:
        self._begin_store(WRONG)

    def _publish(self, label: str, *, python: str = "", **changes: Any) -> None:
        path = wheels.make(self.folder / "dist", version=VERSION + label, python=python)
        store = HubStore(repo_id=REPO, folder="sage", token=TOKEN, endpoint=self.hub.endpoint)
        index.publish(store, path, wheels.describe(path, **changes))

    def _begin_house(self) -> None:
        path = wheels.make(self.folder / "dist", python="mark = 'ours'\n")
        wheelhouse.keep(self.machine.settings, path, wheels.describe(path))

    def _begin_installed(self) -> None:
        for step in (tasks.fetch, tasks.verify):
            assert self._ended(functools.partial(step, Context())).code == 0

    def run(self, task: Task) -> Ended:
        """The task as it ends now, whatever that means."""
        return self._ended(task.run)

    def disturbed(self, task: Task, kind: str, times: int, at: int) -> Ended:
        """The task, with the Hub going wrong. Only where that is silence or a trickle, little of it is borne."""
        with pytest.MonkeyPatch.context() as patch:
            self._set(patch, HubStore.__init__, "timeout", (5.0, 0.3 if kind in {"stall", "hang"} else 5.0))
            patch.setattr(tries, "GRACE", 0.2 if kind == "trickle" else 5.0)
            self.hub.misbehave("", kind, times, after=at)
            return self._ended(task.run)

    def mend(self, task: Task) -> list[Ended]:
        """The same task on a Hub that is well again, with what a user does who read the line of the first run.

        `auto` and `install` do nothing on a machine that works: a wheel that could not be published is uploaded, a
        proof that could not is made again. A wheel that failed smoke was removed, and is tried again by its name.
        """
        self.hub.behave()
        first = functools.partial(tasks.verify, Context(), wheel=GOOD)
        last = {"auto, miss": tasks.upload, "auto, hit": tasks.upload, "install": tasks.smoke}.get(task.name)
        before = [first] if task.code == 6 else []
        after = [functools.partial(last, Context())] if last else []
        return [*map(self._ended, before), self.run(task), *map(self._ended, after)]

    def _ended(self, run: Callable[[], None]) -> Ended:
        self.pauses.clear()
        self.hub.requests.clear()
        started, code, line = time.monotonic(), 0, ""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                run()
            except Exit as error:
                code, line = error.code, error.message or ""
        seconds = time.monotonic() - started
        asked = tuple(self.hub.requests)
        return Ended(code, line, out.getvalue(), err.getvalue(), seconds, tuple(self.pauses), asked)

    def state(self) -> State:
        """What is there now."""
        wrong = list[str]()
        site = {
            name: digest
            for name, digest in wheels.tree(self.machine.site).items()
            if name.startswith(NAME) and "__pycache__" not in name and Path(name).name not in _OF_UV
        }
        house = dict[str, str]()
        for path in sorted(self.machine.settings.wheelhouse_dir.glob("**/*")):
            if path.name.startswith(".") or ".part" in path.name:
                wrong.append(f"{path.name} was left behind")
            elif path.suffix == ".whl":
                house[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        for path, manifest in wheelhouse.wheels(self.machine.settings):
            if manifest.wheel_sha256 != house[path.name]:
                wrong.append(f"{path.name} is not what its manifest says")
        work = frozenset(str(path) for path in self.machine.settings.work_dir.rglob("*"))
        return State(site, house, *self._of_store(wrong), work, tuple(wrong))

    def _of_store(self, wrong: list[str]) -> tuple[Any, Any, Any, str, frozenset[str]]:
        """Wheels, proofs, marks, latest and cards of all branches that hold something."""
        cards = set[str]()
        listed, proofs, marks, newest = dict[str, str](), set[tuple[str, str]](), set[tuple[str, str]](), ""
        repo = self.hub.repos.get(("dataset", REPO))
        for branch in repo.branches if repo else ():
            files = self.hub.files(REPO, branch)
            document = json.loads(files.get("sage/index.json", b"{}"))
            for one in document.get("wheels", ()):
                name = one["wheel_file"]
                listed[name] = one["wheel_sha256"]
                proofs |= {(name, proof["gpu"]) for proof in one.get("proofs") or ()}
                if hashlib.sha256(files.get(f"sage/{name}", b"")).hexdigest() != one["wheel_sha256"]:
                    wrong.append(f"the store lists {name} and holds another")
            marks |= {(mark["wheel_file"], mark["arch"]) for mark in document.get("known_bad", ())}
            newest = json.loads(files.get("sage/latest.json", b"{}")).get("wheel_file", "") or newest
            text = files.get("README.md", b"").decode()
            cards |= {text.partition(BEGIN)[0] + text.partition(END)[2]}
        return listed, frozenset(proofs), frozenset(marks), newest, frozenset(cards)
