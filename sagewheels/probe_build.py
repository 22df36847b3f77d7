"""Runs the build backend of the source in the current directory: argv[1] is where the wheel goes, argv[2] who asked.

Runs in the target's interpreter (CPython >= 3.9), as the leader of a process group of its own.
"""

import os
import signal
import sys
import threading
import time


def watch(parent):
    """Ends the whole group when the one who asked is gone: orphaned compilers would write into the next build."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)


threading.Thread(target=watch, args=(int(sys.argv[2]),), daemon=True).start()

from setuptools import build_meta  # noqa: E402  importing takes a while, and must be watched too

build_meta.build_wheel(sys.argv[1])
