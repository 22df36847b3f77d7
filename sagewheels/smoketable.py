"""The [smoke] table of a build manifest: handed to the probes as it is, after a look at every key. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagewheels.errors import UsageError
from sagewheels.table import Table

CHECKS = (
    "lengths",
    "constant-v",
    "gqa-lse",
    "cross",
    "long",
    "side-stream",
    "graph-replay",
    "compile",
    "second-gpu",
    "refused-launch",
)
"""The long checks that the probe knows."""


def check(table: Table) -> Mapping[str, Any]:
    """The table as it is, after a look at every key that the probes and the verdict rely on.

    Raises UsageError that names the file and the key.
    """
    table.function("call")
    for key in ("min_cosine", "max_relative_l2"):
        table.number(key)
    for key in ("head_dims", "lengths", "dtypes", "layouts", "heads"):
        table.filled(key)
    _rows(table)
    table.filled("timed", empty=True)
    table.table("arguments").values()
    full = table.table("full")
    if full.data:
        _full(full)
    table.nothing_left()
    return table.data


def _rows(table: Table) -> None:
    """The bound for single rows, which a manifest may leave out."""
    if "max_row_relative_l2" in table.data:
        table.number("max_row_relative_l2")


def _full(table: Table) -> None:
    """A look at every key of the long checks."""
    checks = table.texts("checks")
    if not checks:
        raise UsageError(f"{table.where('checks')} is empty: then nothing would be tried")
    unknown = [name for name in checks if name not in CHECKS]
    if unknown:
        raise UsageError(f"{table.where('checks')}: {unknown[0]!r} is none of {', '.join(CHECKS)}")
    for key in ("min_cosine", "max_relative_l2", "max_lse_error"):
        table.number(key)
    _rows(table)
    table.filled("lengths")
    for key in ("every_length_to", "long"):
        table.whole(key)
    table.filled("call")
    for call in table.listed("call"):
        call.function("call")
        call.texts("archs", ())
        call.table("arguments").values()
        call.nothing_left()
    for known in table.listed("known"):
        for key in ("check", "why"):
            known.text(key)
        known.function("call")
        known.number("max_relative_l2")
        if not known.texts("archs"):
            raise UsageError(f"{known.where('archs')} is empty: then it is known nowhere")
        known.table("arguments").values()
        known.nothing_left()
    table.nothing_left()
