"""An installed distribution as a wheel again: the way back to what somebody else had installed."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sagewheels import record
from sagewheels.errors import Refused
from sagewheels.files import arriving

_NOT_PART_OF_A_WHEEL = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json"}
_SCRIPT = re.compile(r"^\s*([^\s=\[\]#]+)\s*=", re.MULTILINE)


def repack(dist_info: Path, into: Path, prefix: Path | None = None) -> Path:
    """An installed distribution as a wheel file in `into`, from its RECORD; scripts of entry points are left to those.

    What lies outside of site-packages but below `prefix` (other scripts, data, headers) comes back to where it was.
    Raises Refused when a file that RECORD lists is gone or lies elsewhere: then there is no way back, and nothing is
    touched.
    """
    files = dict(_installed_files(dist_info, prefix))
    own = f"{dist_info.name}/RECORD"
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    with arriving(into / _name(dist_info)) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            content = path.read_bytes()
            lines.writerow([name, record.digest(content), len(content)])
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        lines.writerow([own, "", ""])
        archive.writestr(zipfile.ZipInfo(own), text.getvalue(), zipfile.ZIP_DEFLATED)
    return into / _name(dist_info)


def _name(dist_info: Path) -> str:
    """The name of the wheel, with all tags of WHEEL as compressed sets.

    The first of `py2.py3-none-any` alone would not be installed again.
    """
    try:
        lines = (dist_info / "WHEEL").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    tags = [line[5:].strip().split("-") for line in lines if line.startswith("Tag: ")] or [["py3", "none", "any"]]
    parts = [sorted(set(part)) for part in zip(*tags, strict=True)]
    return f"{dist_info.name.removesuffix('.dist-info')}-{'-'.join('.'.join(part) for part in parts)}.whl"


def _installed_files(dist_info: Path, prefix: Path | None) -> Iterator[tuple[str, Path]]:
    """Name in the wheel and place of each file."""
    try:
        rows = record.rows(dist_info)
    except (OSError, ValueError) as error:
        what = "no RECORD" if isinstance(error, OSError) else "a RECORD that cannot be read"
        raise Refused(f"{dist_info} has {what}, so what is there could not be put back", "Uninstall it first") from None
    made = scripts(_entry_points(dist_info))
    for row in rows:
        listed = row[0] if row else ""
        path = dist_info.parent / listed
        left_out = path.parent == dist_info and path.name in _NOT_PART_OF_A_WHEEL
        if not listed or listed.endswith(".pyc") or left_out:
            continue
        outside = listed.startswith(("..", "/"))
        if outside and path.name in made:
            continue
        name = _outside(dist_info, path, prefix) if outside else listed
        if not outside and not path.parent.resolve().is_relative_to(dist_info.parent.resolve()):
            # An installer empties such a folder, which may be somebody's checkout.
            what = f"{path} lies behind a link that leads out of site-packages, and could not be put back"
            raise Refused(what, f"Uninstall {dist_info.name} first")
        if not path.is_file():
            raise Refused(f"{path} is gone though RECORD lists it", f"Reinstall {dist_info.name} or uninstall it first")
        yield name, path


def scripts(entry_points: str) -> set[str]:
    """The scripts that an installer makes from the text of entry_points.txt."""
    parts = re.split(r"^\s*\[\s*([^]]+?)\s*\]\s*$", entry_points, flags=re.MULTILINE)
    sections = zip(parts[1::2], parts[2::2], strict=True)
    made = [body for kind, body in sections if kind in ("console_scripts", "gui_scripts")]
    return {name for body in made for name in _SCRIPT.findall(body)}


def _entry_points(dist_info: Path) -> str:
    try:
        return (dist_info / "entry_points.txt").read_text(encoding="utf-8")
    except OSError:
        return ""


def _outside(dist_info: Path, path: Path, prefix: Path | None) -> str:
    """Where a wheel has a file that is installed outside of site-packages. Raises Refused where none can have it."""
    real = path.parent.resolve() / path.name
    if prefix is None or not real.is_relative_to(prefix.resolve()):
        what = f"{real}, which RECORD lists, lies outside of the environment and could not be put back"
        raise Refused(what, f"Uninstall {dist_info.name} first")
    below = real.relative_to(prefix.resolve())
    folder = f"{dist_info.name.removesuffix('.dist-info')}.data"
    # Installers make what is in scripts executable, and nothing else.
    return (
        f"{folder}/scripts/{below.name}"
        if below.parts[0] == "bin" and len(below.parts) == 2
        else f"{folder}/data/{below}"
    )
