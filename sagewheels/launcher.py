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
    from collections.abc import Callable
    from typing import Any


def main(address: str, compiler: str, argv: list[str]) -> int:
    """The exit code of the command; the orders come line by line, and the last one ends it.

    What this process started ends with it, and with the build: an orphaned compiler would write into the next one.
    """
    if os.getpgrp() != os.getpid():  # ninja has made it a group of its own
        os.setpgid(0, 0)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        stream, lock = connection.makefile("rw", encoding="utf-8"), threading.Lock()
        running: set[object] = set()

        def tell(**words: object) -> None:
            with lock:
                running.discard(words.get("id"))  # before the answer, which may be the last order, can come
                stream.write(json.dumps(words) + "\n")
                stream.flush()

        tell(compiler=compiler, argv=argv, cwd=os.getcwd())  # noqa: PTH109  pathlib would double the time that a start takes
        for line in stream:
            order = json.loads(line)
            if "exit" in order:
                sys.stdout.write(order["text"])
                sys.stdout.flush()
                if not running:
                    return int(order["exit"])
                break  # compilers of a build that has failed elsewhere
            if "become" in order:
                os.execvp(order["become"][0], order["become"])
            with lock:
                running.add(order["id"])
            threading.Thread(target=run, args=(order, tell), daemon=True).start()
    os.killpg(0, signal.SIGKILL)
    return 1


def run(order: dict[str, Any], tell: Callable[..., None]) -> None:
    """Runs one compile and tells how it ended: exit code, output, wall seconds, bytes of the largest process."""
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
        tell(id=order["id"], code=127, text=f"{order['run'][0]}: {error}\n", seconds=0, memory=0)
        return
    tell(
        id=order["id"],
        code=process.returncode,
        text=text,
        seconds=time.monotonic() - started,
        memory=usage.ru_maxrss * 1024,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
