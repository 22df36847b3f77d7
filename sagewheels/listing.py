"""The store as a table: each wheel, and whether it fits this machine or why not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagewheels import facts, ui
from sagewheels.errors import shown
from sagewheels.job import Job
from sagewheels.match import Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

_NARROW = 60
"""Columns below which there is no room for a table."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One wheel in words; `reasons` is empty where it fits, `signer` where nobody asks who signed it."""

    wheel: str
    version: str
    python: str
    torch: str
    cuda: str
    archs: str
    proven: str
    signer: str
    reasons: tuple[str, ...]


def show(job: Job) -> None:
    """Prints the table. Raises StoreError when the store does not answer."""
    verdicts = job.verdicts()
    facts.judged(job, verdicts)
    missing = ", which does not exist yet" if job.is_store_missing else ""
    ui.say("list", f"{ui.count(len(verdicts), 'wheel')} in {job.store.label}{missing}")
    if job.store.standing:
        ui.say("list", job.store.standing)
    rows = [_row(job, verdict) for verdict in verdicts]
    if rows and ui.out().isatty():
        ui.draw(drawn(rows, f"{job.recipe.name} for {job.target.python}", width=ui.width()))
    elif rows:
        signed = ("signed by",) if job.trust.enforced else ()
        columns = ("wheel", "torch", "CUDA", "archs", "proven on", *signed, f"for {job.target.python}")
        ui.table(job.store.label, columns, [_cells(row, bool(signed)) for row in rows])


def _row(job: Job, verdict: Verdict) -> Row:
    one = verdict.candidate
    of_another = "" if one.name == job.recipe.name else f"{one.name} "
    return Row(
        wheel=one.wheel_file,
        version=f"{of_another}{one.wheel_file.split('-')[1]}",
        python=one.tags[0] if one.tags[1] in ("none", one.tags[0]) else f"{one.tags[0]}-{one.tags[1]}",
        torch=one.needs_torch or "?",
        cuda=one.cuda or "?",
        archs=", ".join(map(str, one.archs)) or "?",
        proven=", ".join(sorted({proof.gpu for proof in one.proofs})) or "not proven",
        signer=_signer(job, verdict) if job.trust.enforced else "",
        reasons=verdict.reasons,
    )


def _cells(row: Row, signed: bool) -> tuple[str, ...]:
    """A row of the Markdown table, in which nothing is cut."""
    signer = (row.signer,) if signed else ()
    fits = "; ".join(row.reasons) or "fits"
    return row.wheel, row.torch, row.cuda, row.archs, row.proven, *signer, fits


def drawn(rows: Sequence[Row], title: str, *, width: int) -> RenderableType:
    """The table for a terminal: what tells one wheel from another in columns, and below it why it does not fit. Pure.

    The name is the version with its stack: the package is in the title, and the platform is this one.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = [Text(shown(title), style="bold")]
    heads = ("", "wheel", "Python", "torch", "CUDA", "archs", "proven on")
    table = [tuple(map(shown, _columns(row))) for row in rows]
    if width >= _NARROW:
        widths = _widths([heads, *table], width)
        parts.append(_line(heads, widths, "dim"))
        parts += _interleaved(rows, [_line(cells, widths, "") for cells in table])
        return Group(*parts)
    for row, (verdict, name, *others) in zip(rows, table, strict=True):
        parts.append(Text.assemble((f"{verdict:4} ", _style(row)), (name, "bold")))
        told = (f"{head} {cell}" for head, cell in zip(heads[2:], others, strict=True))
        parts += [Padding(Text(text), (0, 0, 0, 5)) for text in (", ".join(told), *_below(row))]
    return Group(*parts)


def _columns(row: Row) -> tuple[str, ...]:
    proven = re.sub(r"\b(?:NVIDIA|GeForce) ", "", row.proven)
    return ("no" if row.reasons else "fits", row.version, row.python, row.torch, row.cuda, row.archs, proven)


def _style(row: Row) -> str:
    return "yellow" if row.reasons else "green"


def _below(row: Row) -> Iterator[str]:
    """What stands below a wheel, in plain words."""
    if row.reasons:
        yield shown("; ".join(row.reasons))
    if row.signer and not row.reasons:
        yield shown(f"signed by {row.signer}")


def _interleaved(rows: Sequence[Row], drawn: Sequence[RenderableType]) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    for row, line in zip(rows, drawn, strict=True):
        yield line
        for text in _below(row):
            yield Padding(Text(text, style=_style(row)), (0, 0, 0, 6))


def _widths(table: Sequence[Sequence[str]], width: int) -> list[int]:
    """Of each column the widest cell; where that is too much, the widest columns give way and are folded. Pure."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    room = width - 2 * len(widths)
    while sum(widths) > room and max(widths) > 6:
        widths[widths.index(max(widths))] -= 1
    return widths


def _line(cells: Sequence[str], widths: Sequence[int], style: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for cell_width in widths:
        grid.add_column(width=cell_width, overflow="fold")
    verdict = {"fits": "green", "no": "yellow"}.get(cells[0], "")
    grid.add_row(Text(cells[0], style=verdict or style), *(Text(cell, style=style) for cell in cells[1:]))
    return grid


def _signer(job: Job, verdict: Verdict) -> str:
    """Who signed a wheel that fits; of the others nobody is asked, each would take two runs of ssh-keygen."""
    return job.trust.of_wheel(verdict.candidate).signer or "nobody" if verdict.fits else "not asked"
