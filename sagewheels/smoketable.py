"""The [smoke] table of a build manifest: handed to the probes as it is, after a look at every key. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagewheels.errors import UsageError
from sagewheels.table import Table


def check(table: Table) -> Mapping[str, Any]:
    """The table as it is, after a look at every key that the probes and the verdict rely on.

    Raises UsageError that names the file and the key.
    """
    table.function("call")
    for key in ("min_cosine", "max_relative_l2"):
        table.number(key)
    for key in ("head_dims", "lengths", "dtypes", "layouts", "heads"):
        table.filled(key)
    table.filled("timed", empty=True)
    table.table("arguments").values()
    full = table.table("full")
    if full.data:
        _full(full)
    table.nothing_left()
    return table.data


def _full(table: Table) -> None:
    """A look at every key of the long checks."""
    if not table.texts("checks"):
        raise UsageError(f"{table.where('checks')} is empty: then nothing would be tried")
    for key in ("min_cosine", "max_relative_l2", "max_lse_error"):
        table.number(key)
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
        known.table("arguments").values()
        known.nothing_left()
    table.nothing_left()
