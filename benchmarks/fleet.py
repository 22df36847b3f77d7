"""A fleet that boots together, all without a wheel: how often is it compiled, and what do the others wait for it?

    python benchmarks/fleet.py [--machines 20] [--store hub|directory] [--build 6] [--lease 12] [--no-kill]

Each machine is a process that runs `auto` with a target, a work folder and a wheelhouse of its own, on one store: a
folder, or a Hub on the loopback interface whose commits take 0.2 s and whose reads lag as long. What stands in for the
compiler takes --build seconds, and each build gives other bytes. The first one to build never ends, and is killed.
A lease, 6 min in truth, takes --lease seconds here, and all else of a claim is as much shorter.

Ends with 1 unless exactly one more machine built (with --no-kill: exactly one), and all that are left installed the
very wheel that is in the store. Needs the environment of the tests, and a C compiler.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sagewheels import auto, claim, installed, wheel
from sagewheels.store import claims, contention
from sagewheels.store.directory import DirectoryStore
from tests import fleet, wheels
from tests.hub import Hub

_REPO = "me/wheels"
_COMMIT = 0.2


def shorten(lease: float) -> None:
    """All the times of a claim, in proportion."""
    scale = lease / claims.LEASE
    for module, name in ((claims, "LEASE"), (claims, "RENEW"), (claims, "GRACE")):
        setattr(module, name, getattr(module, name) * scale)
    claim.POLL = tuple(seconds * scale for seconds in claim.POLL)  # type: ignore[assignment]
    wait_after = contention.wait_after
    contention.wait_after = lambda conflicts: wait_after(conflicts) * scale


def live(folder: Path, build: float, lease: float) -> None:
    """One machine, in this process: `auto`, with a line of JSON in events.jsonl for what happens."""
    shorten(lease)
    wheel.cubins = wheels.marked_archs

    def during(key: str) -> str:
        note(folder, "begins to build", key=key)
        try:
            (folder.parent / "victim").open("x").close()
            time.sleep(3600)
        except FileExistsError:
            time.sleep(build)
        note(folder, "has built")
        return f"mark = 'built by {folder.name}'\n"

    fleet.with_build(setattr, during)
    store = json.loads((folder.parent / "store.json").read_text(encoding="utf-8"))
    if "hf_repo_id" in store:
        # Where many share a core, the import alone may take longer than such a lease.
        importlib.import_module("huggingface_hub.hf_api")
    machine = wheels.machine(folder, **store)
    note(folder, "runs auto")
    auto.auto(machine.job())
    job = machine.job()
    state = installed.read_state(job.settings, job.target, job.recipe)
    note(folder, "is ready", sha256=state["sha256"], package=(machine.site / "tinyattn" / "__init__.py").read_text())


def note(folder: Path, what: str, **more: Any) -> None:
    """One whole line, however many processes write."""
    line = json.dumps({"at": time.time(), "machine": folder.name, "what": what, **more}) + "\n"
    descriptor = os.open(folder.parent / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def events(root: Path) -> list[dict[str, Any]]:
    """What happened so far."""
    path = root / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def machines(root: Path, arguments: argparse.Namespace) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """All of them, booting now; what is still alive at the end of the block is ended."""
    names = [f"machine{at:02d}" for at in range(arguments.machines)]
    argv = [sys.executable, __file__, "--build", str(arguments.build), "--lease", str(arguments.lease), "--machine"]
    running = dict[str, subprocess.Popen[bytes]]()
    try:
        for name in names:
            (root / name).mkdir()
            with (root / name / "said").open("wb") as said:
                running[name] = subprocess.Popen(
                    [*argv, str(root / name)], stdout=said, stderr=said, stdin=subprocess.DEVNULL, cwd=root / name
                )
        yield running
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
            process.wait()


def follow(root: Path, running: dict[str, subprocess.Popen[bytes]], arguments: argparse.Namespace) -> str:
    """Waits until every machine has ended, and kills the first builder; its name."""
    killed, deadline = "", time.monotonic() + arguments.machines * 10 + 20 * arguments.lease
    while any(process.poll() is None for process in running.values()):
        if time.monotonic() > deadline:
            raise SystemExit("the fleet does not come to an end")
        begun = [one for one in events(root) if one["what"] == "begins to build"]
        if not arguments.no_kill and begun and not killed:
            killed = str(begun[0]["machine"])
            time.sleep(arguments.build / 2)
            # SIGKILL: nothing of it can tell the others.
            running[killed].send_signal(signal.SIGKILL)
            running[killed].wait()
            note(root / killed, "is killed")
        time.sleep(0.05)
    return killed


def faults(root: Path, running: dict[str, subprocess.Popen[bytes]], killed: str, held: Sequence[str]) -> list[str]:
    """What is not as it must be."""
    seen = events(root)
    builds = [one["machine"] for one in seen if one["what"] == "begins to build"]
    ended = [one for one in seen if one["what"] == "has built"]
    ready = {one["machine"]: (one["sha256"], one["package"]) for one in seen if one["what"] == "is ready"}
    alive = {name for name in running if name != killed}
    found = [f"{name} ended with {running[name].returncode}" for name in sorted(alive) if running[name].returncode]
    if len(builds) != 1 + bool(killed) or len(ended) != 1:
        found.append(f"{len(builds)} builds began ({', '.join(builds)}), {len(ended)} ended")
    if set(ready) != alive:
        found.append(f"not ready: {', '.join(sorted(alive - set(ready)))}")
    if len({*ready.values()}) != 1 or {sha256 for sha256, _ in ready.values()} != {*held}:
        found.append("they did not all install the wheel of the store")
    return found


def main(arguments: argparse.Namespace) -> int:
    """The whole show."""
    random.seed()
    with tempfile.TemporaryDirectory(prefix="sagewheels-fleet-") as name, Hub() as hub:
        root = Path(name)
        store: dict[str, Any] = {"sage_store": str(root / "store")}
        if arguments.store == "hub":
            hub.create(_REPO)
            hub.commit_seconds, hub.lag_seconds = _COMMIT, _COMMIT
            store = {"sage_store": "", "hf_repo_id": _REPO, "hf_endpoint": hub.endpoint, "hf_token": "hf_write"}
        (root / "store.json").write_text(json.dumps(store), encoding="utf-8")
        if arguments.no_kill:
            (root / "victim").touch()
        started = time.time()
        with machines(root, arguments) as running:
            killed = follow(root, running, arguments)
        time.sleep(2 * _COMMIT)
        files = dict(hub.files(_REPO)) if arguments.store == "hub" else _files(root / "store")
        held = [hashlib.sha256(content).hexdigest() for name, content in files.items() if name.endswith(".whl")]
        found = faults(root, running, killed, held)
        left = next((json.loads(data)["claims"] for name, data in files.items() if name.endswith(claims.CLAIMS)), None)
        if left:
            found.append(f"claims are left: {left}")
        report(root, started, arguments, hub)
        for fault in found:
            print(f"WRONG: {fault}")
        if found:
            for folder in sorted(running):
                print(f"--- {folder}\n{(root / folder / 'said').read_text(errors='replace')}")
        return 1 if found else 0


def _files(folder: Path) -> dict[str, bytes]:
    store = DirectoryStore(folder)
    return {name: (folder / name).read_bytes() for name in store.names()}


def report(root: Path, started: float, arguments: argparse.Namespace, hub: Hub) -> None:
    """The timeline, what machines that waited said, and what the store was asked."""
    seen = events(root)
    notable = [one for one in seen if one["what"] not in ("is ready", "runs auto")]
    print("| seconds | machine | |\n|---|---|---|")
    for one in notable:
        print(f"| {one['at'] - started:.1f} | {one['machine']} | {one['what']} |")
    ready = sorted(one["at"] - started for one in seen if one["what"] == "is ready")
    if ready:
        print(f"| {ready[0]:.1f} to {ready[-1]:.1f} | {len(ready)} machines | are ready |")
    if arguments.store == "hub":
        reads = sum(line.startswith(("GET", "HEAD")) for line in hub.requests)
        print(f"\n{hub.commits} commits, {len(hub.requests)} requests, {reads} of them reads")
    said = [line for path in sorted(root.glob("machine*/said")) for line in path.read_text().splitlines()]
    for line in sorted({line for line in said if line.startswith("[claim]")})[:6]:
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=20)
    parser.add_argument("--store", choices=("hub", "directory"), default="hub")
    parser.add_argument("--build", type=float, default=6.0, help="seconds that the stand-in for a compile takes")
    parser.add_argument("--lease", type=float, default=12.0, help="seconds of a lease")
    parser.add_argument("--no-kill", action="store_true", help="let the first builder live")
    parser.add_argument("--machine", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not shutil.which("cc"):
        sys.exit("needs a C compiler, cc")
    if given.machine:
        live(given.machine, given.build, given.lease)
    else:
        sys.exit(main(given))
