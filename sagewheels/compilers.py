"""Answers the compilers of one build: each command is found in the object cache, or runs when its turn comes.

The source's own build calls a launcher in the place of nvcc and of the host compiler. The launcher runs what it is
told here, so that every compile belongs to the session of the build, and ends with it.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagewheels import launcher, proc, ui, units
from sagewheels.errors import BuildFailed
from sagewheels.estimate import Compiles
from sagewheels.objects import Objects
from sagewheels.schedule import Appetite, Closed, Pool
from sagewheels.switchboard import Inbox, Server
from sagewheels.units import Unit

_NO_MEMORY = ("Killed", "signal 9", "out of memory", "Cannot allocate memory", "bad_alloc")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What really compiles, by compiler (`nvcc`, `cxx`): the words of its command, who it is, and our headers' folder.

    `roots` are the folders that differ from machine to machine, by name; `shims` is the content hash of our headers;
    `environment` is what compilers read by themselves; `threads` are nvcc's own, for several archs in one command;
    `launchers` is what goes before the command of a unit.
    """

    programs: Mapping[str, tuple[str, ...]]
    identities: Mapping[str, str]
    roots: Mapping[str, Path]
    shims: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    launchers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How far a build is: parts that are done and known, those taken from the cache, and what compiles now."""

    done: int
    known: int
    reused: int
    running: tuple[str, ...]


class Compilers:
    """One build's compilers. `appetite` and `parts` answer for a source as its repository names it."""

    def __init__(
        self,
        tools: Tools,
        folder: Path,
        pool: Pool,
        cache: Path,
        *,
        appetite: Callable[[str], Appetite],
        parts: Callable[[str], int],
    ) -> None:
        self._tools, self._folder, self._pool = tools, folder, pool
        self._appetite, self._parts = appetite, parts
        self._objects = Objects(cache, lambda name: units.absolute(name, tools.roots))
        self._links, self._made = folder / "links", folder / "links" / "made"
        self._lock = threading.Lock()
        self._done = self._known = self._reused = 0
        self._weight = self._seconds = 0.0
        self._is_failed = threading.Event()
        self.problem: BaseException | None = None
        """What went wrong here, and not in a compiler."""

    @contextmanager
    def serving(self) -> Iterator[dict[str, str]]:
        """Answers while the block runs; gives the variables that make PyTorch's build call us."""
        self._made.mkdir(parents=True)
        for name, place in self._tools.roots.items():
            (self._links / name).symlink_to(place)
        # A socket's address holds about 100 characters, and WORK_DIR may be deep.
        with tempfile.TemporaryDirectory(prefix="sagewheels-") as short:
            address = Path(short) / "socket"
            if len(os.fsencode(address)) > 100:
                raise BuildFailed(f"TMPDIR {Path(short).parent} is too long a name", "Set TMPDIR to a short one")
            with Server(str(address), self._answer) as server:
                thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
                thread.start()
                try:
                    yield {
                        "PYTORCH_NVCC": str(self._stand_in("nvcc", "nvcc", address)),
                        # torch's build asks by its name what kind of compiler it is.
                        "CXX": str(self._stand_in("cxx", Path(self._tools.programs["cxx"][-1]).name, address)),
                    }
                finally:
                    self._pool.close()
                    self._is_failed.set()
                    server.shutdown()

    def counted(self) -> Counted:
        """How far the build is."""
        return Counted(done=self._done, known=self._known, reused=self._reused, running=tuple(self._pool.running()))

    def compiles(self, expected: int) -> Compiles:
        """What has been compiled here, what runs and what waits, `expected` units in all; the cache's count as done."""
        running, waiting = self._pool.load()
        with self._lock:
            asked, weight, seconds = self._known, self._weight, self._seconds
        seen = [*(weight for weight, _ in running), *waiting]
        usual = sum(seen) / len(seen) if seen else 0.0
        # Those for which the source's own build has not asked yet are as heavy as the others.
        waiting += [usual] * max(0, expected - asked)
        return Compiles(weight=weight, seconds=seconds, running=running, waiting=waiting)

    def _stand_in(self, compiler: str, name: str, address: Path) -> Path:
        """A program that runs the launcher: the shell is the one interpreter whose path fits into a first line."""
        # torch's build splits what CXX and PYTORCH_NVCC say at blanks.
        folder = address.parent if " " in str(self._folder) else self._folder
        path = folder / "bin" / compiler / name
        path.parent.mkdir(parents=True)
        words = shlex.join([sys.executable, "-I", "-S", launcher.__file__, str(address), compiler])
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        path.chmod(0o700)
        return path

    def _answer(self, request: Mapping[str, Any], tell: Callable[..., None], results: Iterator[dict[str, Any]]) -> None:
        """Answers one launcher to its end."""
        compiler, argv = str(request["compiler"]), [str(word) for word in request["argv"]]
        unit = units.read(compiler, argv, Path(request["cwd"]), self._tools.roots)
        if unit is None:
            tell(become=[*self._program(compiler), *argv])
            return
        try:
            code, text = self._make(unit, tell, results)
        except Exception as error:  # a full disk, a bug: the compiler that waits must hear of it, and so must we
            self.problem = self.problem or error
            code, text = 1, f"{type(error).__name__}: {error}\n"
        if code:
            self._fail()
        tell(exit=min(abs(code), 255), text=text)

    def _program(self, compiler: str) -> list[str]:
        """The words that start a compiler from anywhere: a path among them may be that of a link."""
        first, *more = self._tools.programs[compiler]
        return [str(self._links / first) if "/" in first else first, *more]

    def _fail(self) -> None:
        """Nothing more is started, and what runs is not waited for: the build ends with its session."""
        self._is_failed.set()
        self._pool.close()

    def _make(self, unit: Unit, tell: Callable[..., None], results: Iterator[dict[str, Any]]) -> tuple[int, str]:
        """The object of a unit is where the build wants it; exit code and output of the compiler."""
        pieces = units.parts(unit, self._parts(unit.source.partition("/")[2]))
        places = [self._place() for _ in pieces]
        inbox = Inbox(results, self._is_failed)
        begun = [
            _begun(functools.partial(self._compile, piece, place, tell, inbox))
            for piece, place in zip(pieces, places, strict=True)
        ]
        done = [future.result() for future in begun]
        failed = sorted((result for result in done if result[0]), key=lambda result: not result[1])
        if failed:  # the one that says why, before those that were ended for it
            return failed[0]
        unit.output.parent.mkdir(parents=True, exist_ok=True)
        if len(places) == 1:
            places[0].replace(unit.output)
        else:
            _join(unit, places)
        if unit.dependencies:  # each build begins with a fresh checkout, so that ninja has no use for more
            unit.dependencies.write_bytes(b"")
        return 0, "".join(text for _, text in done)

    def _place(self) -> Path:
        with self._lock:
            self._known += 1
            return self._made / f"{self._known}.o"

    def _compile(self, unit: Unit, place: Path, tell: Callable[..., None], inbox: Inbox) -> tuple[int, str]:
        """One part: from the cache, else compiled. One that fails ends the build, also while its other parts run."""
        tools = self._tools
        key = units.key(unit, tools.identities[unit.compiler], tools.shims, tools.environment)
        if self._objects.find(key, place):
            self._count(reused=True)
            return 0, ""
        try:
            result = self._try(unit, place, tell, inbox)
            if result["code"] and tools.shims and not _lacked_memory(result):
                ui.say("build", f"{unit.name} does not compile with our light headers: once more, with torch's own")
                result = self._try(unit, place, tell, inbox, light=False)
        except Closed:
            return 1, ""
        if result["code"]:
            self._fail()
        else:
            listed = place.with_name(f"{place.name}.d").read_text(encoding="utf-8", errors="surrogateescape")
            seconds, memory = float(result["seconds"]), int(result["memory"])
            self._objects.keep(key, unit.name, place, units.dependencies(listed), seconds=seconds, memory=memory)
            self._count()
            with self._lock:
                self._weight += self._appetite(unit.source.partition("/")[2]).seconds
                self._seconds += seconds
        return int(result["code"]), str(result["text"])

    def _try(
        self, unit: Unit, place: Path, tell: Callable[..., None], inbox: Inbox, *, light: bool = True
    ) -> dict[str, Any]:
        """How a compile ended; where memory was short, how it ended once more, alone."""
        result = self._run(unit, place, tell, inbox, light=light)
        if result["code"] and _lacked_memory(result):
            ui.say("build", f"{unit.name} was killed for want of memory: once more, alone")
            result = self._run(unit, place, tell, inbox, alone=True, light=light)
        return result

    def _run(
        self,
        unit: Unit,
        place: Path,
        tell: Callable[..., None],
        inbox: Inbox,
        *,
        light: bool,
        alone: bool = False,
    ) -> dict[str, Any]:
        """How a compile ended, which the launcher ran when its turn came; `light`: with our headers before torch's."""
        shims = f"shims/{unit.compiler}" if self._tools.shims and light else ""
        program = (*self._tools.launchers.get(unit.compiler, ()), *self._tools.programs[unit.compiler])
        argv = units.command(unit, program, f"made/{place.name}", shims=shims, threads=self._tools.threads)
        appetite = self._appetite(unit.source.partition("/")[2])
        with self._pool.turn(unit.name, appetite, alone=alone):
            tell(id=place.name, run=argv, cwd=str(self._links))
            return inbox.wait(place.name)

    def _count(self, *, reused: bool = False) -> None:
        with self._lock:
            self._done += 1
            self._reused += reused


def _join(unit: Unit, places: Sequence[Path]) -> None:
    """Joins the objects of a unit's parts. Raises BuildFailed: most likely each part holds all of the source."""
    done = proc.run(["ld", "-r", "-o", unit.output, *places])
    if done.code:
        name = unit.source.partition("/")[2]
        twice = re.search(r"multiple definition of [^;\n]*", done.err)
        why = twice.group() if twice else done.last_line
        raise BuildFailed(
            f"{name} in {len(places)} parts does not join: {why}",
            f'Does the source heed SAGE_PART? Else take parts out of [unit."{name}"]',
        )


def _begun(work: Callable[[], tuple[int, str]]) -> Future[tuple[int, str]]:
    """Begins it in a thread that, unlike an executor's, nobody waits for when the build is interrupted."""
    future: Future[tuple[int, str]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # for who asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _lacked_memory(result: Mapping[str, Any]) -> bool:
    """Whether the kernel's or the compiler's word is that memory was short."""
    return result["code"] in (-9, 137) or any(word in result["text"] for word in _NO_MEMORY)
