"""Where wheels live. One small protocol; a Hub repository and a directory both speak it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sagewheels.errors import SageError


class Conflict(SageError):
    """Somebody else changed the store between our read and our commit: read again, merge, try again."""

    exit_code = 7


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The small files of a store as they stood at one revision; a missing file is not a key of `files`."""

    revision: str
    files: Mapping[str, bytes]


class Store(Protocol):
    """What the rest of sagewheels may ask of a store. Paths are relative to the store's own folder.

    Every method raises StoreError (exit 7), with what was asked and what to do, when the store does not answer
    as it should after bounded retries. 4xx answers are never retried, except 409, 412 and 429.
    """

    @property
    def label(self) -> str:
        """How messages name it: `hf://datasets/name/repo@main/folder`, or the directory. Never holds a token."""

    @property
    def writable(self) -> bool:
        """Whether `commit` can be tried at all (a directory: yes; a Hub repository: when there is a token)."""

    def read(self, *paths: str) -> Snapshot:
        """The contents of these small files at the newest revision, all at that one revision.

        A store or folder that does not exist yet reads as empty, with revision "".
        """

    def names(self) -> list[str]:
        """The paths of all files in the store's folder at the newest revision, sorted."""

    def download(self, path: str, to: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Writes one file to `to` (created by rename, so it is never partial); the caller checks the hash.

        `progress(done, total)` is called now and then with bytes. Raises StoreError also when it is not there.
        """

    def commit(self, parent: str, files: Mapping[str, bytes | Path], message: str) -> str:
        """Writes all files in one commit on top of revision `parent` and returns the new revision.

        Readers see all of them or none. Raises Conflict, with nothing written, when the store is no longer at
        `parent`; creates the store when `parent` is "".
        """

    def address(self, path: str) -> str:
        """What to give `pip install` for this file: an address on the Hub, a path in a directory."""

    def is_private(self) -> bool:
        """Whether reading needs a token, which neither pip nor uv has. Raises StoreError."""

    def initialise(self) -> None:
        """Creates the repository or folder when it is not there."""

    def rights(self) -> str:
        """In words, who may do what here. Raises StoreError, with the remedy, when writing is not allowed."""
