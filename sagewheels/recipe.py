"""Build manifests: `manifests/<name>.toml`, written by people. Pure, apart from reading the file."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from sagewheels import arch, smoketable
from sagewheels.arch import Arch
from sagewheels.bad import Mark
from sagewheels.errors import UsageError
from sagewheels.manifest import SHA256
from sagewheels.resources import ROOT
from sagewheels.table import Table

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
    """What the source makes for one arch: the cubin, the extensions, and the kernel that must run there.

    `alone`: it cannot be compiled together with another, as 9.0a cannot where one list of archs serves all extensions.
    """

    arch: Arch
    cubin: Arch
    min_cuda: str
    extensions: tuple[str, ...]
    kernel: str
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class UnitRule:
    """What is known of one translation unit: the parts that it is compiled in, and what the heaviest of them takes.

    `seconds` of one core, `memory` in bytes; 0 where nobody measured it.
    """

    parts: int = 1
    seconds: int = 0
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One build manifest, checked; `smoke` is handed to the smoke probe as it is.

    `needs` is what the package imports besides torch and triton; `extensions_at_once` 0 means: as many as there are;
    `stable_torch` is the oldest torch of a source on the stable ABI, empty for one that needs the very torch it was
    compiled with; `also` names other build manifests whose wheels will do as well; `shims` is a folder of headers of
    ours that compilers find before torch's; `unit_rules` are by the unit's file in the source; `next` is what people do
    with the package once it is installed, in words; ComfyUI uses the package when it is started with
    `comfyui_arguments`, and then calls it in `comfyui_function` of its attention module.
    """

    file: Path
    name: str
    version: str
    package: str
    needs: tuple[str, ...]
    source: Source
    stable_torch: str
    also: tuple[str, ...]
    requires: tuple[str, ...]
    cxx_flags: tuple[str, ...]
    nvcc_flags: tuple[str, ...]
    nvcc_flags_since: Mapping[str, tuple[str, ...]]
    link_flags: tuple[str, ...]
    environment: Mapping[str, str]
    memory_per_unit: int
    extensions_at_once: int
    headers: tuple[str, ...]
    min_torch: str
    units: Mapping[str, int]
    unit_rules: Mapping[str, UnitRule]
    shims: Path | None
    archs: Mapping[Arch, ArchRule]
    patches: tuple[Patch, ...]
    smoke: Mapping[str, Any] = field(repr=False)
    known_bad: tuple[Mark, ...] = ()
    next: tuple[str, ...] = ()
    comfyui_arguments: tuple[str, ...] = ()
    comfyui_function: str = ""

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

        Raises UsageError as `rules` does, and for archs that this source cannot build together.
        """
        rules = self.rules(archs)
        alone = [str(rule.arch) for rule in rules if rule.alone]
        if alone and len({rule.cubin for rule in rules}) > 1:
            what = f"{self.name} {self.version} for {alone[0]} cannot be built together with another arch"
            raise UsageError(what, "Name one with --arch")
        ptx = {rule.cubin.plain for rule, one in zip(rules, archs, strict=True) if one.ptx}
        return tuple(sorted({replace(rule.cubin.plain, ptx=rule.cubin.plain in ptx) for rule in rules}))

    def archs_of(self, held: Mapping[str, Sequence[Arch]]) -> tuple[Arch, ...]:
        """The archs that a wheel serves whose modules hold these: each module that the arch needs has its cubin.

        PTX counts where each of those modules has it too.
        """
        found = set()
        for rule in self.archs.values():
            modules = [set(held.get(name, ())) for name in rule.extensions]
            for one in (rule.cubin, replace(rule.cubin, ptx=True)):
                if all(one in module for module in modules):
                    found.add(one)
        return tuple(sorted(found))

    def unit(self, source: str) -> UnitRule:
        """What is known of a translation unit, by its file in the source; one part and no numbers where nothing is."""
        return self.unit_rules.get(source, UnitRule())

    def nvcc(self, cuda: str) -> tuple[str, ...]:
        """The flags for an nvcc of this CUDA version: those for all, and those that it is new enough for."""
        newer = [flags for since, flags in self.nvcc_flags_since.items() if Version(since) <= Version(cuda)]
        return tuple(chain(self.nvcc_flags, *newer))

    def extensions(self, archs: Sequence[Arch]) -> tuple[str, ...]:
        """The extension modules that a wheel for these archs must hold, in the manifest's order."""
        wanted = {name for rule in self.rules(archs) for name in rule.extensions}
        return tuple(name for name in self.units if name in wanted)


_KEYS = 'Correct it there; the README says what each key is, under "Another package"'


def load(name: str) -> Recipe:
    """The build manifest `name`, or the one at that path when it ends in .toml.

    Raises UsageError that names the file and the key of what is wrong.
    """
    path = Path(name) if name.endswith(".toml") else ROOT / "manifests" / f"{name}.toml"
    if not path.is_file():
        known = f"Use one of {', '.join(names())}, or the path of a .toml file"
        raise UsageError(f"there is no build manifest {name!r}", known)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}", "Correct that line") from None
    try:
        return parse(data, path)
    except UsageError as error:
        raise UsageError(error.what, error.remedy or _KEYS) from None


def names() -> list[str]:
    """The build manifests that come along, sorted; symptoms.toml beside them is none."""
    return sorted(item.stem for item in (ROOT / "manifests").glob("*.toml") if item.stem != "symptoms")


def also(main: Recipe) -> tuple[Recipe, ...]:
    """The build manifests that `main` names in `also`, from its own folder or else from ours.

    Raises UsageError as `load` does, and for one of another package, or of the same commit: by that their wheels
    are told apart.
    """
    places = [(name, main.file.with_name(f"{name}.toml")) for name in main.also]
    found = tuple(load(str(beside) if beside.is_file() else name) for name, beside in places)
    for one in found:
        if one.name != main.name:
            raise UsageError(f"{main.file}: also names {one.file.stem}, which is of {one.name}")
        if one.source.commit == main.source.commit:
            raise UsageError(f"{main.file}: also names {one.file.stem}, which is of the same commit")
    return found


def parse(data: Mapping[str, Any], path: Path) -> Recipe:
    """A Recipe from TOML data. Raises UsageError as `load` does."""
    top = Table(data, path, "")
    if top.whole("schema") != SCHEMA:
        raise UsageError(f"{path}: schema {data['schema']} is not {SCHEMA}", "Update sagewheels")
    source, build, smoke = top.table("source"), top.table("build"), top.table("smoke")
    stable, comfyui = top.table("stable_abi"), top.table("comfyui")
    since = build.table("nvcc_flags_since")
    units = {name: _units(item) for name, item in top.table("extension").tables()}
    recipe = Recipe(
        file=path,
        name=canonicalize_name(top.text("name")),
        version=top.text("version"),
        package=top.text("package"),
        needs=top.requirements("needs"),
        source=_source(source),
        stable_torch=stable.release("torch") if "stable_abi" in data else "",
        also=top.texts("also", ()),
        requires=build.texts("requires"),
        cxx_flags=build.texts("cxx_flags", ()),
        nvcc_flags=build.texts("nvcc_flags", ()),
        nvcc_flags_since={since.version_key(cuda): since.texts(cuda) for cuda in since.data},
        link_flags=build.texts("link_flags", ()),
        environment={key: build.table("environment").text(key) for key in build.table("environment").data},
        memory_per_unit=build.whole("memory_per_unit_mb", 2000) * 1_000_000,
        extensions_at_once=build.whole("extensions_at_once") if "extensions_at_once" in build.data else 0,
        headers=build.texts("headers", ()),
        min_torch=build.release("min_torch", ""),
        units=units,
        unit_rules=_unit_rules(top.table("unit")),
        shims=_shims(build, path),
        archs=dict(sorted(_rule(name, item, units) for name, item in top.table("arch").tables())),
        patches=tuple(_patch(file, path, top.text("patches_dir", path.stem)) for file in top.texts("patches", ())),
        smoke=smoketable.check(smoke),
        known_bad=tuple(mark for item in top.listed("known_bad") for mark in _known_bad(item)),
        next=top.texts("next", ()),
        comfyui_arguments=comfyui.texts("arguments", ()),
        comfyui_function=comfyui.text("function", ""),
    )
    for table in (top, source, build, stable, comfyui):
        table.nothing_left()
    return recipe


def _units(table: Table) -> int:
    count = table.whole("units")
    table.nothing_left()
    return count


def _unit_rules(table: Table) -> dict[str, UnitRule]:
    return {name: _unit_rule(item) for name, item in table.tables()} if table.data else {}


def _unit_rule(table: Table) -> UnitRule:
    rule = UnitRule(
        parts=table.whole("parts", 1),
        seconds=table.whole("seconds") if "seconds" in table.data else 0,
        memory=table.whole("memory_mb") * 1_000_000 if "memory_mb" in table.data else 0,
    )
    table.nothing_left()
    return rule


def _shims(table: Table, manifest: Path) -> Path | None:
    """Beside the manifest's own folder, or else ours: a manifest may be copied elsewhere."""
    name = table.text("shims", "")
    if not name:
        return None
    places = [manifest.parent.parent / "shims" / name, ROOT / "shims" / name]
    found = next((folder for folder in places if folder.is_dir()), None)
    if found is None:
        raise UsageError(f"{table.where('shims')} names {name}, but there is no folder {places[0]}")
    return found


def _source(table: Table) -> Source:
    repo, path = table.text("repo", ""), table.text("path", "")
    if bool(repo) == bool(path):
        raise UsageError(f"{table.where('repo')}: give either repo, ref and commit, or path")
    commit = table.text("commit", "") if path else table.text("commit")
    if repo and (len(commit) != 40 or set(commit) - set("0123456789abcdef")):
        raise UsageError(f"{table.where('commit')} is not a full commit id of 40 hex digits")
    ref = table.text("ref", "") if path else table.text("ref")
    return Source(repo=repo, ref=ref, commit=commit, paths=table.texts("paths", ()), path=path)


def _rule(name: str, table: Table, units: Mapping[str, int]) -> tuple[Arch, ArchRule]:
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
        alone=table.flag("alone"),
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


def _known_bad(table: Table) -> list[Mark]:
    """One mark for each arch that is named, else one for all."""
    names = {key: table.text(key, "").lower() for key in ("sha256", "build_key")}
    if bool(names["sha256"]) == bool(names["build_key"]):
        raise UsageError(f"{table.where('sha256')}: give either sha256 or build_key")
    for key, name in names.items():
        if name and not SHA256.fullmatch(name):
            raise UsageError(f"{table.where(key)} is not 64 hex digits")
    reason, listed = table.text("reason"), table.texts("archs", ())
    try:
        archs = [str(arch.parse(text).plain) for text in listed]
    except UsageError as error:
        raise UsageError(f"{table.where('archs')}: {error.what}") from None
    table.nothing_left()
    sha256, key = names["sha256"], names["build_key"]
    return [Mark(reason=reason, wheel_sha256=sha256, build_key=key, arch=one) for one in archs or [""]]
