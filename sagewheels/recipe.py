"""Build manifests: `manifests/<name>.toml`, written by people. Pure, apart from reading the file."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.version import Version

from sagewheels import arch
from sagewheels.arch import Arch
from sagewheels.errors import UsageError
from sagewheels.resources import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the source is: a git repository with a pinned commit, or a `path` beside the manifests."""

    repo: str
    ref: str
    commit: str
    paths: tuple[str, ...]
    path: str


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One patch of the series; `sha256` is over the bytes of the file."""

    file: str
    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ArchRule:
    """What the source makes for one arch: the cubin, the extensions, and the kernel that must run there."""

    arch: Arch
    cubin: Arch
    min_cuda: str
    extensions: tuple[str, ...]
    kernel: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One build manifest, checked; `smoke` is handed to the smoke probe as it is."""

    file: Path
    name: str
    version: str
    package: str
    source: Source
    requires: tuple[str, ...]
    cxx_flags: tuple[str, ...]
    nvcc_flags: tuple[str, ...]
    nvcc_flags_since: Mapping[str, tuple[str, ...]]
    link_flags: tuple[str, ...]
    environment: Mapping[str, str]
    memory_per_unit: int
    headers: tuple[str, ...]
    min_torch: str
    units: Mapping[str, int]
    archs: Mapping[Arch, ArchRule]
    patches: tuple[Patch, ...]
    smoke: Mapping[str, Any] = field(repr=False)

    def rules(self, archs: Sequence[Arch]) -> list[ArchRule]:
        """The rule of each arch; whether it takes a `90a` or a `90` cubin is for the source to say, not the user.

        Raises UsageError for an arch that this source does not know.
        """
        unknown = [str(one) for one in archs if one.plain not in self.archs]
        if unknown:
            known = ", ".join(map(str, self.archs))
            what = f"{self.name} {self.version} has no kernels for {', '.join(unknown)}"
            raise UsageError(what, f"It knows {known}: name yours with --arch or TORCH_CUDA_ARCH_LIST")
        return [self.archs[one.plain] for one in archs]

    def cubins_for(self, archs: Sequence[Arch]) -> tuple[Arch, ...]:
        """The archs to compile for, each once: 12.0 for a GPU of 12.1 where the source's plain 12.0 cubin serves both.

        Raises UsageError as `rules` does.
        """
        pairs = zip(self.rules(archs), archs, strict=True)
        return tuple(sorted({replace(rule.cubin.plain, ptx=one.ptx) for rule, one in pairs}))

    def nvcc(self, cuda: str) -> tuple[str, ...]:
        """The flags for an nvcc of this CUDA version: those for all, and those that it is new enough for."""
        newer = [flags for since, flags in self.nvcc_flags_since.items() if Version(since) <= Version(cuda)]
        return tuple(chain(self.nvcc_flags, *newer))

    def extensions(self, archs: Sequence[Arch]) -> tuple[str, ...]:
        """The extension modules that a wheel for these archs must hold, in the manifest's order."""
        wanted = {name for rule in self.rules(archs) for name in rule.extensions}
        return tuple(name for name in self.units if name in wanted)


def load(name: str) -> Recipe:
    """The build manifest `name`, or the one at that path when it ends in .toml.

    Raises UsageError that names the file and the key of what is wrong.
    """
    path = Path(name) if name.endswith(".toml") else ROOT / "manifests" / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(item.stem for item in (ROOT / "manifests").glob("*.toml")))
        raise UsageError(f"there is no build manifest {name!r}", f"Use one of {known}, or the path of a .toml file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    return parse(data, path)


def parse(data: Mapping[str, Any], path: Path) -> Recipe:
    """A Recipe from TOML data. Raises UsageError as `load` does."""
    top = _Table(data, path, "")
    if top.whole("schema") != SCHEMA:
        raise UsageError(f"{path}: schema {data['schema']} is not {SCHEMA}", "Update sagewheels")
    source, build, smoke = top.table("source"), top.table("build"), top.table("smoke")
    since = build.table("nvcc_flags_since")
    units = {name: _units(item) for name, item in top.table("extension").tables()}
    recipe = Recipe(
        file=path,
        name=top.text("name"),
        version=top.text("version"),
        package=top.text("package"),
        source=_source(source),
        requires=build.texts("requires"),
        cxx_flags=build.texts("cxx_flags", ()),
        nvcc_flags=build.texts("nvcc_flags", ()),
        nvcc_flags_since={since.version_key(cuda): since.texts(cuda) for cuda in since.data},
        link_flags=build.texts("link_flags", ()),
        environment={key: build.table("environment").text(key) for key in build.table("environment").data},
        memory_per_unit=build.whole("memory_per_unit_mb", 2000) * 1_000_000,
        headers=build.texts("headers", ()),
        min_torch=build.release("min_torch", ""),
        units=units,
        archs=dict(sorted(_rule(name, item, units) for name, item in top.table("arch").tables())),
        patches=tuple(_patch(file, path, top.text("patches_dir", path.stem)) for file in top.texts("patches", ())),
        smoke=_smoke(smoke),
    )
    for table in (top, source, build):
        table.nothing_left()
    return recipe


def _units(table: _Table) -> int:
    count = table.whole("units")
    table.nothing_left()
    return count


def _smoke(table: _Table) -> Mapping[str, Any]:
    """The table as it is, after a look at every key that the probe and the verdict rely on."""
    table.function("call")
    for key in ("min_cosine", "max_relative_l2"):
        table.number(key)
    for key in ("head_dims", "lengths", "dtypes", "layouts", "heads"):
        table.filled(key)
    table.filled("timed", empty=True)
    _arguments(table)
    full = table.table("full")
    if full.data:
        _full(full)
    table.nothing_left()
    return table.data


def _full(table: _Table) -> None:
    """A look at every key of the long checks."""
    if not table.texts("checks"):
        raise UsageError(f"{table.where('checks')} is empty: then nothing would be tried")
    for key in ("min_cosine", "max_relative_l2", "max_lse_error"):
        table.number(key)
    table.filled("lengths")
    for key in ("every_length_to", "long"):
        table.whole(key)
    for call in table.list_of_tables("call"):
        call.function("call")
        call.texts("archs", ())
        _arguments(call)
        call.nothing_left()
    for known in table.list_of_tables("known") if "known" in table.data else []:
        for key in ("check", "why"):
            known.text(key)
        known.function("call")
        _arguments(known)
        known.nothing_left()
    table.nothing_left()


def _arguments(table: _Table) -> None:
    """Extra keyword arguments of a function: text, numbers or booleans."""
    arguments = table.table("arguments")
    for key, value in arguments.data.items():
        if not isinstance(value, (str, int, float)):
            raise UsageError(f"{arguments.where(key)} must be text, a number or a boolean")


def _source(table: _Table) -> Source:
    repo, path = table.text("repo", ""), table.text("path", "")
    if bool(repo) == bool(path):
        raise UsageError(f"{table.where('repo')}: give either repo, ref and commit, or path")
    commit = table.text("commit", "") if path else table.text("commit")
    if repo and (len(commit) != 40 or set(commit) - set("0123456789abcdef")):
        raise UsageError(f"{table.where('commit')} is not a full commit id of 40 hex digits")
    ref = table.text("ref", "") if path else table.text("ref")
    return Source(repo=repo, ref=ref, commit=commit, paths=table.texts("paths", ()), path=path)


def _rule(name: str, table: _Table, units: Mapping[str, int]) -> tuple[Arch, ArchRule]:
    cubin_text = table.text("cubin")
    try:
        where = table.where("")
        own = arch.parse(name)
        where = table.where("cubin")
        cubin = arch.parse(cubin_text)
    except UsageError as error:
        raise UsageError(f"{where.rstrip('.')}: {error.what}") from None
    extensions = table.texts("extensions")
    unknown = set(extensions) - set(units)
    if unknown:
        raise UsageError(f"{table.where('extensions')} names {', '.join(sorted(unknown))}, which [extension] lacks")
    rule = ArchRule(
        arch=own,
        cubin=cubin,
        min_cuda=table.release("min_cuda"),
        extensions=extensions,
        kernel=table.text("kernel"),
    )
    table.nothing_left()
    return own, rule


def _patch(file: str, manifest: Path, folder: str) -> Patch:
    path = manifest.parent.parent / "patches" / folder / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{manifest}: patches names {file}: {path} cannot be read ({error.strerror})") from None
    return Patch(file=file, path=path, sha256=hashlib.sha256(content).hexdigest())


class _Table:
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
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value: int = self._get(key, int, default)
        if value < 1:
            raise UsageError(f"{self.where(key)} must be positive")
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

    def _release(self, key: str, value: str) -> str:
        if value and not re.fullmatch(r"\d+(\.\d+)*", value):
            raise UsageError(f"{self.where(key)}: {value!r} is not a version such as 12.8")
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
        return tuple(value)

    def table(self, key: str) -> _Table:
        """A table below this one, empty when it is missing."""
        return _Table(self._get(key, dict, {}) or {}, self._path, f"{self._key}{key}.")

    def list_of_tables(self, key: str) -> list[_Table]:
        """The tables of an array of tables; there must be at least one."""
        self.filled(key)
        return [_Table(item, self._path, f"{self._key}{key}[{place}].") for place, item in enumerate(self.data[key])]

    def tables(self) -> list[tuple[str, _Table]]:
        """Every table below this one; there must be at least one."""
        if not self.data:
            raise UsageError(f"{self.where('')[:-1]} is missing")
        return [(name, _Table(item, self._path, f"{self._key}{name}.")) for name, item in self.data.items()]

    def nothing_left(self) -> None:
        """A key that nobody asked for is a typing error, and must not pass in silence."""
        left = sorted(set(self.data) - self._seen)
        if left:
            raise UsageError(f"{self.where(left[0])} is not a key that build manifests have")
