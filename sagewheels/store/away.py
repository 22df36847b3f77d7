"""A Hub repository while no network shall be used: it has its name, and is asked nothing."""

from __future__ import annotations

from typing import NoReturn

from sagewheels.errors import StoreError
from sagewheels.store import Store

REMEDY = "Leave --offline (SAGE_OFFLINE) out, or name a folder with --store"


class AwayStore:
    """The store protocol for a store that is not to be reached: whatever would need it raises StoreError."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def label(self) -> str:
        """That of the store which is not asked."""
        return self._inner.label

    @property
    def writable(self) -> bool:
        """Nothing can be committed."""
        return False

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise StoreError(f"{self.label} was not asked, because this run is offline", REMEDY)

    read = names = download = commit = is_private = initialise = rights = _refuse

    def address(self, path: str) -> str:
        """What to give `pip install` for this file."""
        return self._inner.address(path)
