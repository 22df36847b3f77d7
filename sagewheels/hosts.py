"""The hosts file: a machine on each line, with the settings that count there only. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from sagewheels import config
from sagewheels.errors import UsageError

_ADDRESS = re.compile(
    r"(?:(?P<user>[\w.+-]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_][\w.-]*))(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_COMMENT = re.compile(r"(?:^|\s)#.*")
_FORM = "Write user@host:port, or a name of your ~/.ssh/config, then KEY=value for what counts there only"


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine: as it was written, what that means, and its own settings. Not set: what ~/.ssh/config says."""

    name: str
    address: str
    user: str = ""
    port: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def parse(text: str, origin: str) -> list[Host]:
    """The hosts in their order. Raises UsageError, naming `origin` and the line, for what cannot be meant."""
    found: dict[tuple[str, str, int | None], tuple[Host, int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        here = f"{origin} line {number}"
        words = _words(line, here)
        if not words:
            continue
        host = _host(words[0], words[1:], here)
        key = host.user, host.address.lower(), host.port
        if key in found:
            raise UsageError(f"{here}: {host.name} is there already, in line {found[key][1]}", "Name each host once")
        found[key] = host, number
    if not found:
        raise UsageError(f"{origin} names no host", _FORM)
    return [host for host, _ in found.values()]


def _words(line: str, here: str) -> list[str]:
    try:
        return shlex.split(_COMMENT.sub("", line))
    except ValueError:
        raise UsageError(f"{here}: a quotation mark is never closed", "Write KEY='a value'") from None


def _host(name: str, pairs: list[str], here: str) -> Host:
    match = _ADDRESS.fullmatch(name)
    port = int(match["port"]) if match and match["port"] else None
    if not match or (port is not None and not 0 < port < 65536):
        raise UsageError(f"{here}: {name!r} is no host", _FORM)
    address = match["v6"] or match["name"]
    return Host(name=name, address=address, user=match["user"] or "", port=port, settings=_settings(pairs, here))


def _settings(pairs: list[str], here: str) -> dict[str, str]:
    """What stands behind a host, checked as it would be in `.env`; paths are those of the host, and stay as written."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key in config.SECRETS:
            raise UsageError(f"{here}: {key} is a secret, and others may read this file", f"Put {key} into your .env")
        if not equals or key not in config.KEYS:
            raise UsageError(f"{here}: {pair!r} is no setting", "Write KEY=value, with a key of .env.example")
        if key in found:
            raise UsageError(f"{here}: {key} is set twice", "Set it once")
        found[key] = value
    config.check({key: (value, here) for key, value in found.items()})
    return found
