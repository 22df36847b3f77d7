"""README's table of what others say; `python -m sagewheels.symptomtable README.md` writes it from symptoms.toml."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from sagewheels.symptomrows import Symptom, load
from sagewheels.symptoms import filled

_BETWEEN = re.compile(r"(?<=<!-- symptoms: begin -->\n).*?(?=<!-- symptoms: end -->)", re.DOTALL)


def markdown(rows: Iterable[Symptom]) -> Iterator[str]:
    """The lines of the table."""
    yield "| others say | why | do |"
    yield "|---|---|---|"
    for row in rows:
        cells = (row.symptom, filled(row.cause, row.example), filled(row.remedy, row.example))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def rewritten(text: str) -> str:
    """The text with the table of today between its markers."""
    table = "".join(f"{line}\n" for line in markdown(load()))
    return _BETWEEN.sub(lambda _: table, text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
