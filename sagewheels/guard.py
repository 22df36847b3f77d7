"""What this process holds is its own: programs that it starts run as the same user, and /proc shows them a lot."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

_PR_SET_DUMPABLE = 4


def close(names: Iterable[str]) -> None:
    """The values of these variables leave the environment that /proc shows; `os.environ` keeps them.

    After it, other processes of this user can read neither memory nor environment of this one, and it leaves no core
    file. Root still can where no container took its CAP_SYS_PTRACE away; the values are in the memory alone then.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    for name in names:
        if place := libc.getenv(name.encode()):
            ctypes.memset(place, 0, len(ctypes.string_at(place)))
    libc.prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))
