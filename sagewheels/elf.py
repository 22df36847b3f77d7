"""A shared library as its loader finds it: the machine, the libraries and the symbols that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection, DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import Section, SymbolTableSection

from sagewheels.errors import Refused

_MACHINES = {("EM_X86_64", True): "x86_64", ("EM_AARCH64", True): "aarch64"}
_LOADED = {"DT_SYMTAB": "SHT_DYNSYM", "DT_VERNEED": "SHT_GNU_verneed"}


@dataclass(frozen=True, kw_only=True)
class Library:
    """The facts of one; `versions` are those of the symbols that it needs, such as `GLIBC_2.34`."""

    machine: str
    needed: tuple[str, ...]
    versions: tuple[str, ...]
    is_cxx11: bool
    undefined: tuple[str, ...]


def read(path: Path) -> Library:
    """The facts of the library at `path`. Raises Refused for what is none, or shows others than it loads."""
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            if elf.elfclass != 64:
                raise ValueError("it is for 32 bits")
            sections = list(elf.iter_sections())
            _as_loaded(elf, sections)
            needed = [tag.needed for one in sections if isinstance(one, DynamicSection) for tag in _needed(one)]
            versions = [one for one in sections if isinstance(one, GNUVerNeedSection)]
            names = [aux.name for one in versions for _, each in one.iter_versions() for aux in each]
            tables = [one for one in sections if isinstance(one, SymbolTableSection)]
            symbols = [symbol for one in tables for symbol in one.iter_symbols()]
            return Library(
                machine=_MACHINES.get((elf["e_machine"], elf.little_endian), "another machine"),
                needed=tuple(sorted(needed)),
                versions=tuple(names),
                is_cxx11=any("__cxx11" in symbol.name for symbol in symbols),
                undefined=tuple(sorted({one.name for one in symbols if one["st_shndx"] == "SHN_UNDEF" and one.name})),
            )
    except (ELFError, OSError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise Refused(f"{path.name} is not a readable ELF file ({error})") from None


def _as_loaded(elf: ELFFile, sections: Sequence[Section]) -> None:
    """The sections, which are read here, are of what the loader follows, which never looks at them. Raises ValueError.

    Without this, a binary could show one list of libraries and symbols, and need another.
    """
    dynamic = next((one for one in elf.iter_segments() if isinstance(one, DynamicSegment)), None)
    if elf["e_type"] != "ET_DYN" or dynamic is None:
        raise ValueError("it is no shared library")
    loaded = {tag.entry.d_tag: tag.entry.d_val for tag in dynamic.iter_tags()}
    for tag, kind in _LOADED.items():
        shown = [one for one in sections if one["sh_type"] == kind]
        places = [(one["sh_addr"], one["sh_offset"]) for one in shown]
        if tag in loaded and places != [(loaded[tag], next(elf.address_offsets(loaded[tag]), None))]:
            raise ValueError("its sections are not what is loaded")
    own = [one["sh_offset"] for one in sections if isinstance(one, DynamicSection)]
    if own != [dynamic["p_offset"]] or loaded.get("DT_VERNEEDNUM", 0) != sum(
        one["sh_info"] for one in sections if isinstance(one, GNUVerNeedSection)
    ):
        raise ValueError("its sections are not what is loaded")


def _needed(section: DynamicSection) -> Iterator[Any]:
    yield from section.iter_tags("DT_NEEDED")
