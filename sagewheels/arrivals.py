"""What uv says while it installs, as one line: which of the large packages have come, and which are on their way."""

from __future__ import annotations

import re

_COMING = re.compile(r"\s*(?:Downloading|Building) (\S{1,100})(?: \(([^)]{1,20})\))?")
_CAME = re.compile(r"\s*(?:Downloaded|Built) (\S{1,100})")
_LATER = re.compile(r"(Resolved|Prepared|Installed) (\d{1,6}) packages?\b")
_NAMED = 2


class Arrivals:
    """Reads uv's lines, one after the other; uv says no more than that of what it downloads, so no time left either."""

    def __init__(self) -> None:
        self._coming: dict[str, str] = {}
        self._came = 0
        self._stage = "resolving"

    def hear(self, line: str) -> str:
        """What is known after this line."""
        if found := _COMING.match(line):
            self._coming[found[1]] = f" ({found[2]})" if found[2] else ""
        elif found := _CAME.match(line):
            self._came += self._coming.pop(found[1], None) is not None
        elif found := _LATER.match(line):
            stage = {"Resolved": "getting", "Prepared": "installing", "Installed": "installed"}[found[1]]
            self._stage = f"{stage} {found[2]} packages"
        return self.words

    @property
    def words(self) -> str:
        """`getting 25 packages, 3 of 5 large ones are here, coming: torch (782.4MiB)`."""
        if not self._coming:
            return self._stage
        named = ", ".join(f"{name}{size}" for name, size in list(self._coming.items())[:_NAMED])
        more = f" and {len(self._coming) - _NAMED} more" if len(self._coming) > _NAMED else ""
        here = f", {self._came} of {self._came + len(self._coming)} large ones are here" if self._came else ""
        return f"{self._stage}{here}, coming: {named}{more}"
