"""A TOML table whose every complaint names the file and the key. Pure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from sagewheels.errors import UsageError


class Table:
    """A TOML table that says file and key when something is missing, of another type, or not known."""

    def __init__(self, data: object, path: Path, key: str) -> None:
        self._path, self._key, self._seen = path, key, set[str]()
        if not isinstance(data, dict):
            raise UsageError(f"{path}: {key.rstrip('.') or 'the file'} is not a table")
        self.data: dict[str, Any] = data

    def where(self, key: str) -> str:
        """`file: table.key`, for messages."""
        return f"{self._path}: {self._key}{key}"

    def _get(self, key: str, kind: type, default: object) -> Any:
        self._seen.add(key)
        value = self.data.get(key, default)
        if value is None:
            raise UsageError(f"{self.where(key)} is missing")
        if type(value) is not kind and value is not default:
            raise UsageError(f"{self.where(key)} must be {kind.__name__}, not {type(value).__name__}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text, never empty unless that is the default."""
        value: str = self._get(key, str, default)
        if not value and value != default:
            raise UsageError(f"{self.where(key)} is empty")
        return self._plain(key, value)

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value: int = self._get(key, int, default)
        if value < 1:
            raise UsageError(f"{self.where(key)} must be positive")
        return value

    def flag(self, key: str) -> bool:
        """True or false, which it is when it is missing."""
        value: bool = self._get(key, bool, False)
        return value

    def function(self, key: str) -> str:
        """The name of a function, `module:function`."""
        module, _, name = self.text(key).partition(":")
        if not module or not name:
            raise UsageError(f"{self.where(key)} must be module:function")
        return f"{module}:{name}"

    def release(self, key: str, default: str | None = None) -> str:
        """A version in numbers: 12.8."""
        return self._release(key, self.text(key, default))

    def version_key(self, key: str) -> str:
        """A key of this table that is itself a version in numbers."""
        return self._release(key, key)

    def _plain(self, key: str, value: str) -> str:
        """The text, which goes into paths, arguments and lines on a terminal."""
        if not value.isprintable():
            raise UsageError(f"{self.where(key)} holds control characters", "Write it on one line, as plain text")
        return value

    def _release(self, key: str, value: str) -> str:
        if value and not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,5}){0,5}", value):
            raise UsageError(f"{self.where(key)}: {value[:40]!r} is not a version such as 12.8")
        return value

    def number(self, key: str) -> float:
        """A number between 0 and 1."""
        self._seen.add(key)
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UsageError(f"{self.where(key)} must be a number from 0 to 1")
        return value

    def filled(self, key: str, *, empty: bool = False) -> None:
        """A list, which may lack or be empty only if `empty`."""
        if not self._get(key, list, [] if empty else None) and not empty:
            raise UsageError(f"{self.where(key)} is empty: then nothing would be tried")

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts."""
        value = self._get(key, list, default)
        if not all(isinstance(item, str) for item in value):
            raise UsageError(f"{self.where(key)} must be a list of text")
        return tuple(self._plain(key, item) for item in value)

    def listed(self, key: str) -> list[Table]:
        """The tables of a `[[key]]`, by their number from 1; none when it is missing."""
        items = enumerate(self._get(key, list, []), 1)
        return [Table(item, self._path, f"{self._key}{key}[{at}].") for at, item in items]

    def requirements(self, key: str) -> tuple[str, ...]:
        """A list of requirements such as einops>=0.7, empty when it is missing."""
        found = self.texts(key, ())
        for text in found:
            try:
                Requirement(text)
            except InvalidRequirement:
                raise UsageError(f"{self.where(key)}: {text!r} is no requirement such as einops>=0.7") from None
        return found

    def values(self) -> None:
        """Checks that this table holds text, numbers and booleans only."""
        for key, value in self.data.items():
            if not isinstance(value, (str, int, float, bool)):
                raise UsageError(f"{self.where(key)} must be text, a number or a boolean")

    def table(self, key: str) -> Table:
        """A table below this one, empty when it is missing."""
        return Table(self._get(key, dict, {}) or {}, self._path, f"{self._key}{key}.")

    def tables(self) -> list[tuple[str, Table]]:
        """Every table below this one; there must be at least one."""
        if not self.data:
            raise UsageError(f"{self.where('')[:-1]} is missing")
        return [(name, Table(item, self._path, f"{self._key}{name}.")) for name, item in self.data.items()]

    def nothing_left(self, of: str = "build manifests") -> None:
        """A key that nobody asked for is a typing error, and must not pass in silence."""
        left = sorted(set(self.data) - self._seen)
        if left:
            raise UsageError(f"{self.where(left[0])} is not a key that {of} have")
