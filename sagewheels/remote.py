"""A script on another machine over SSH, by Fabric: nothing is asked, no unknown host key is believed."""

from __future__ import annotations

import base64
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from sagewheels import hosts, leash, proc, sshconfig
from sagewheels.errors import Unreachable
from sagewheels.hosts import Host
from sagewheels.sshconfig import Route

if TYPE_CHECKING:
    from fabric import Connection

CONNECT = 15
"""Seconds for a connection, and as many for each answer on the way to a session."""

_LONGEST = 1 << 16
"""Letters after which a line is handed on though it has not ended: a host may send no newline, and never stop."""

_KRL = b"SSHKRL\n\0"
"""How a list of revoked keys begins that is no text: see PROTOCOL.krl of OpenSSH."""

_adding = threading.Lock()
"""Two hosts may be added to known_hosts at once."""


class Held:
    """What Fabric reads in the place of stdin: the script, then nothing for as long as it shall go on, then the end."""

    def __init__(self, script: str, is_over: Callable[[], bool]) -> None:
        self._script, self._is_over = script, is_over

    def read(self, _size: int) -> str | None:
        """All of the script at once: Fabric would send a file sign by sign, with a pause behind each."""
        script, self._script = self._script, ""
        return script or ("" if self._is_over() else None)


class Lines:
    """A stream that hands on whole lines, but for endless ones; the last one too, when it is closed."""

    def __init__(self, each: Callable[[str], None]) -> None:
        self._each, self._rest = each, ""

    def write(self, text: str) -> None:
        """Takes what came, wherever it ends."""
        *whole, self._rest = (self._rest + text.replace("\r", "\n")).split("\n")
        if len(self._rest) > _LONGEST:
            whole, self._rest = [*whole, self._rest], ""
        for line in filter(str.strip, whole):
            self._each(line.rstrip())

    def flush(self) -> None:
        """Nothing: what is no whole line waits."""

    def close(self) -> None:
        """Hands on what no newline ended."""
        self.write("\n")


class Reach:
    """How machines are reached in this run: the ssh configuration, and whether new host keys are taken."""

    def __init__(self, env: Mapping[str, str], *, config: str = "", accept_new: bool = False) -> None:
        self._env, self._config, self._accept_new = env, config, accept_new
        # It would print tracebacks of its own on stderr; what went wrong is raised as well.
        logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)

    def run(self, host: Host, script: str, each: Callable[[str], None], is_over: Callable[[], bool]) -> int:
        """Runs the script there until `is_over`, handing on every line; the exit code.

        Raises UsageError for an ssh configuration that cannot be used, Unreachable where there is no connection or it
        was lost.
        """
        from invoke.exceptions import ThreadException
        from paramiko import SSHException

        lines = Lines(each)
        with self._connected(host) as connection:
            try:
                done = connection.run(
                    leash.COMMAND,
                    in_stream=Held(script, is_over),
                    out_stream=lines,
                    err_stream=lines,
                    encoding="utf-8",
                    env={},
                    warn=True,
                    pty=False,
                    hide=False,
                    echo=False,
                    dry=False,
                )
            except (SSHException, OSError, EOFError, ThreadException) as error:
                raise _lost(host, str(error)) from None
            finally:
                lines.close()
        if done.exited < 0:
            raise _lost(host, "it ended without an exit code")
        return int(done.exited)

    @contextmanager
    def _connected(self, host: Host) -> Iterator[Connection]:
        """A connection that is open. Raises UsageError and Unreachable, the latter in words of this one host."""
        way = sshconfig.route(host, self._config, self._env)
        jumps = [word.removeprefix("ssh://") for word in way.jumps.split(",") if word]
        hops = [jump for word in jumps for jump in hosts.parse(word, f"ProxyJump of {host.name}")]
        ways = [(hop, sshconfig.route(hop, self._config, self._env)) for hop in hops]
        chain: list[Connection] = []
        try:
            for one, by in [*ways, (host, way)]:
                chain.append(self._opened(one, by, chain[-1] if chain else by.proxy or None))
            chain[-1].transport.set_keepalive(15)
            yield chain[-1]
        finally:
            for connection in reversed(chain):
                connection.close()

    def _opened(self, host: Host, way: Route, gateway: Connection | str | None) -> Connection:
        """A connection for which only what ssh said counts: no file of Fabric's, and none of its reading."""
        from fabric import Config, Connection
        from paramiko import SSHException
        from paramiko.config import SSHConfig

        connection = Connection(
            way.address,
            user=way.user,
            port=way.port,
            gateway=gateway,
            config=Config(lazy=True, ssh_config=SSHConfig()),
            connect_timeout=CONNECT,
            connect_kwargs={
                "key_filename": list(way.keys),
                "look_for_keys": False,
                "banner_timeout": CONNECT,
                "auth_timeout": CONNECT,
                "channel_timeout": CONNECT,
                "transport_factory": _checking(lambda key: self._revoked_in(way, key)),
            },
        )
        with NamedTemporaryFile("w", suffix="-known_hosts", encoding="ascii") as file:
            file.writelines(line for path in way.known_hosts for line in _plain(path))
            file.flush()
            connection.client.load_system_host_keys(file.name)
        connection.client.set_missing_host_key_policy(_Policy(self._list_of(way)))
        try:
            connection.open()
        except (SSHException, OSError, EOFError) as error:
            connection.client.close()
            raise _unreachable(host, way, error) from None
        return connection

    def _revoked_in(self, way: Route, key: Any) -> str:
        """The list by which this host key must never be believed; empty where none says so.

        Paramiko passes over such lines, and knows no RevokedHostKeys. Raises OSError for a list that cannot be read.
        """
        for path in way.known_hosts:
            lines = [line.split() for line in Path(path).read_bytes().splitlines()]
            if any(key.get_base64().encode() in line[3:4] for line in lines if line[:1] == [b"@revoked"]):
                return path
        if not way.revoked:
            return ""
        revoked = Path(way.revoked).expanduser()
        try:
            content = revoked.read_bytes()
        except OSError:  # as for ssh: then every key is
            return way.revoked
        if not content.startswith(_KRL):
            return way.revoked if key.get_base64().encode() in content.split() else ""
        with NamedTemporaryFile("w", suffix=".pub", encoding="ascii") as file:
            file.write(f"{key.get_name()} {key.get_base64()}\n")
            file.flush()
            asked = proc.run(["ssh-keygen", "-Q", "-f", revoked, file.name], env=self._env)
        return way.revoked if asked.code else ""

    def _list_of(self, way: Route) -> Path | None:
        """Where a new host key goes; None where it is refused."""
        if not self._accept_new:
            return None
        return Path(way.known_hosts[0]) if way.known_hosts else Path("~/.ssh/known_hosts").expanduser()


def _plain(path: str) -> Iterator[str]:
    """The lines of a list that name a key to believe, without their comments; ssh passes over the others too.

    Paramiko ends at a line that it cannot read, and takes no tab between two words.
    """
    from paramiko import SSHException
    from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()[:3]
        text = " ".join(words)
        if len(words) < 3 or words[0][0] in "#@" or not text.isascii():
            continue
        try:
            if HostKeyEntry.from_line(text):
                yield f"{text}\n"
        except (InvalidHostKey, SSHException, ValueError):
            continue


class _UnknownKey(OSError):
    """The host key is in no list."""


class _RevokedKey(OSError):
    """The host key is one that a list forbids."""


def _checking(revoked_in: Callable[[Any], str]) -> Callable[..., Any]:
    """How Paramiko makes its transport: one that shows a revoked host key no key of ours, and whom it is known to."""
    from paramiko import Transport

    class Checking(Transport):  # type: ignore[misc]  # paramiko has no types
        def start_client(self, *args: Any, **kwargs: Any) -> None:
            super().start_client(*args, **kwargs)
            key = self.get_remote_server_key()
            if where := revoked_in(key):
                raise _RevokedKey(f"{_fingerprint(key)} in {where}")

    return Checking


class _Policy:
    """What is done about an unknown host key: refused, or appended to a list as OpenSSH's accept-new does."""

    def __init__(self, accepted: Path | None) -> None:
        self._accepted = accepted

    def missing_host_key(self, _client: object, name: str, key: Any) -> None:
        """Raises _UnknownKey where none is accepted, OSError for a list that cannot be written."""
        if not self._accepted:
            raise _UnknownKey(_fingerprint(key))
        with _adding:
            self._accepted.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(self._accepted, "a", encoding="utf-8", opener=_private) as file:
                file.write(f"{name} {key.get_name()} {key.get_base64()}\n")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _fingerprint(key: Any) -> str:
    """As ssh prints it: `SHA256:...`."""
    import hashlib

    digest = hashlib.sha256(key.asbytes()).digest()
    return f"{key.get_name()} SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _lost(host: Host, why: str) -> Unreachable:
    return Unreachable(
        f"the connection to {host.name} was lost ({' '.join(why.split())[:200]})",
        "Run it again: what was under way there is told to stop, and goes on where it can",
    )


def _unreachable(host: Host, way: Route, error: Exception) -> Unreachable:
    """Why there is no connection, and what to do: a second try only helps against what may pass."""
    from paramiko import AuthenticationException, BadHostKeyException
    from paramiko.ssh_exception import NoValidConnectionsError

    port = "" if way.port == 22 else f"-p {way.port} "
    if isinstance(error, _UnknownKey):
        what = f"the host key of {host.name} is not known here ({error})"
        remedy = f"Compare it with what your provider shows: ssh {port}{way.user}@{way.address}, or use --accept-new"
        return Unreachable(what, remedy, passing=False)
    if isinstance(error, _RevokedKey):
        what = f"the host key of {host.name} is revoked ({error})"
        remedy = "Somebody else may have this key: give the machine a new one"
        return Unreachable(what, remedy, passing=False)
    if isinstance(error, BadHostKeyException):
        what = f"the host key of {host.name} has changed: it is {_fingerprint(error.key)}"
        remedy = f"If that is another machine by now: ssh-keygen -R '{way.known_as}'; else somebody is in between"
        return Unreachable(what, remedy, passing=False)
    if isinstance(error, AuthenticationException):
        what = f"{host.name} takes none of your keys for {way.user}"
        remedy = f"Name the right user, load your key (ssh-add), or try: ssh {port}{way.user}@{way.address}"
        return Unreachable(what, remedy, passing=False)
    if isinstance(error, socket.gaierror):
        return Unreachable(f"there is no machine called {way.address}", "Correct the name", passing=False)
    if isinstance(error, NoValidConnectionsError):
        why = "nobody listens there"
    elif isinstance(error, TimeoutError):
        why = f"no answer within {CONNECT} s"
    else:
        why = " ".join(str(error).split()) or type(error).__name__
    return Unreachable(
        f"{way.address} port {way.port} cannot be reached: {why}", "Check that it is up, and its address"
    )
