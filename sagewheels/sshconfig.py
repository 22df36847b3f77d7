"""How OpenSSH would reach a machine: what `ssh -G` says, which has read all of ~/.ssh/config (Include, Match, ...)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagewheels import proc
from sagewheels.errors import UsageError
from sagewheels.hosts import Host


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where to connect, as whom, with which keys, against which lists of host keys, and through what."""

    address: str
    user: str
    port: int
    keys: tuple[str, ...]
    known_hosts: tuple[str, ...]
    revoked: str = ""
    jumps: str = ""
    proxy: str = ""

    @property
    def known_as(self) -> str:
        """The name of the machine in known_hosts."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"


def route(host: Host, config: str, env: Mapping[str, str]) -> Route:
    """The way to a host, with `config` in the place of ~/.ssh/config if given; nothing is connected to.

    Raises UsageError where ssh is missing, and for a configuration that it cannot read.
    """
    user = [f"-l{host.user}"] if host.user else []
    port = [f"-p{host.port}"] if host.port else []
    file = ["-F", config] if config else []
    # Behind `--`, no name of a host is an option.
    said = proc.run(["ssh", "-G", *file, *user, *port, "--", host.address], env=env)
    if said.code:
        raise UsageError(f"ssh cannot say how to reach {host.name}: {said.last_line}", "Correct your ~/.ssh/config")
    found: dict[str, list[str]] = {}
    for line in said.out.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)

    def one(key: str) -> str:
        value = found.get(key, [""])[0]
        return "" if value == "none" else value

    return Route(
        address=one("hostname"),
        user=one("user"),
        port=int(one("port")),
        keys=tuple(_existing(found.get("identityfile", []))),
        known_hosts=tuple(_existing(f"{one('userknownhostsfile')} {one('globalknownhostsfile')}".split())),
        revoked=one("revokedhostkeys"),
        jumps=one("proxyjump"),
        proxy=one("proxycommand"),
    )


def _existing(names: list[str]) -> list[str]:
    paths = [Path(name).expanduser() for name in names]
    return [str(path) for path in paths if path.is_file()]
