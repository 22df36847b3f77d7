"""What a binary asks of Python and of libtorch beyond their stable ABIs. Pure: names of symbols in, names out."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TORCH_CXX = re.compile(r"_Z.*(?<!\d)(?:2at|3c10|5torch|6caffe2)[\dA-Z]|THP[A-Z]")
"""Mangled names in the namespaces of libtorch, and what libtorch_python exports; the stable ABI is plain C."""


def beyond_python(undefined: Iterable[str], python: str) -> tuple[str, ...]:
    """The symbols of CPython that are not in the limited API of this version, such as `3.10`."""
    from abi3info import DATAS, FUNCTIONS
    from abi3info.models import PyVersion, Symbol

    since = PyVersion.parse_dotted(python)
    used = [name for name in undefined if name.startswith(("Py", "_Py"))]
    known = ((name, FUNCTIONS.get(Symbol(name)) or DATAS.get(Symbol(name))) for name in used)
    return tuple(sorted(name for name, item in known if item is None or item.added > since))


def beyond_torch(undefined: Iterable[str]) -> tuple[str, ...]:
    """The symbols that only C++ of one libtorch has: whoever needs them loads with the torch it was made for alone."""
    return tuple(sorted(name for name in undefined if _TORCH_CXX.match(name)))


def oldest_python(tags: Iterable[str]) -> str:
    """`3.10` for the tag cp310-abi3-linux_x86_64; empty when no tag claims the stable ABI."""
    claimed = [tag.split("-")[0] for tag in tags if tag.split("-")[1] == "abi3"]
    minors = [int(found[1]) if (found := re.fullmatch(r"cp3(\d+)", one)) else 2 for one in claimed]
    return f"3.{min(minors)}" if minors else ""
