"""Runs in the place of a compiler: asks the build what to do with a command, and does it.

Called as `launcher.py SOCKET COMPILER ARGUMENTS...` by a bare interpreter: nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs more than all the rest
    from typing import Any


def main(address: str, compiler: str, argv: list[str]) -> int:
    """The exit code of the command; the orders come line by line, and the last one ends it.

    What this process started ends with it, and with the build: an orphaned compiler would write into the next one.
    """
    if os.getpgrp() != os.getpid():  # ninja has made it a group of its own
        os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.killpg(0, signal.SIGKILL))
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            code = obey(connection, {"compiler": compiler, "argv": argv, "cwd": os.getcwd()})  # noqa: PTH109  pathlib would double the time that a start takes
    except OSError:  # the build has ended
        code = None
    if code is None:
        end()
    return 1 if code is None else code


def obey(connection: socket.socket, command: dict[str, object]) -> int | None:
    """Does what the build says about the command; None when the build ended before it."""
    stream, lock = connection.makefile("rw", encoding="utf-8"), threading.Lock()
    running: set[str] = set()

    def tell(**words: object) -> None:
        with lock:
            stream.write(json.dumps(words) + "\n")
            stream.flush()

    def compile_(order: dict[str, Any]) -> None:
        result = run(order)
        # First: the answer to it may be the last order.
        running.discard(order["id"])
        try:
            tell(**result)
        except OSError:  # the build has ended
            pass

    tell(**command)
    for line in stream:
        order = json.loads(line)
        if "exit" in order:
            sys.stdout.buffer.write(order["text"].encode("utf-8", "replace"))
            sys.stdout.buffer.flush()
            return None if running else int(order["exit"])  # None: compilers of a build that has failed elsewhere
        if "become" in order:
            os.execvp(order["become"][0], order["become"])
        running.add(order["id"])
        threading.Thread(target=compile_, args=(order,), daemon=True).start()
    return None


def end() -> None:
    """Ends all that was started here, and lives on: of a killed command a shell would write `Killed` into the log."""
    own = os.getpgrp()
    try:
        os.setpgid(0, os.getpgid(os.getppid()))
    except OSError:  # the build is gone, and with it the session
        pass
    try:
        os.killpg(own, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(order: dict[str, Any]) -> dict[str, object]:
    """Runs one compile; how it ended: exit code, output, wall seconds, bytes of the largest process."""
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            order["run"],
            cwd=order["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout
        text = process.stdout.read().decode("utf-8", "replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except OSError as error:
        return {"id": order["id"], "code": 127, "text": f"{order['run'][0]}: {error}\n", "seconds": 0, "memory": 0}
    return {
        "id": order["id"],
        "code": process.returncode,
        "text": text,
        "seconds": time.monotonic() - started,
        "memory": usage.ru_maxrss * 1024,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
