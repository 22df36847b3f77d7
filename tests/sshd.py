"""A real sshd on loopback, and behind it a machine whose sagewheels does what the host's settings say.

What fleet pipes there is the real bootstrap script, which finds a checkout and a tool's environment that is complete,
and starts its python: a stand-in, which is told by NVCC_APPEND_FLAGS what to do.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import wheels

PRIVSEP = Path("/run/sshd")
"""An empty folder that sshd wants when it is started by root; it is compiled in."""

_TOOL = r"""#!/bin/bash
# Started as: python -I -m sagewheels TASK ...
here=${0%/home/.tool/*}
words=("${@:4}")
name=${NVCC_APPEND_FLAGS:-plain}
echo "${words[*]}" >>"$here/ran-${name%% *}"
echo "[stack] kept: torch of $name, channel ${TORCH_CHANNEL:-unset}, python ${PYTHON_BIN:-unset}"
case $name in
  "exit "*) echo "[fetch] it will not do" >&2; exit "${name#exit }" ;;
  flaky) [ -e "$here/flaky" ] || { touch "$here/flaky"; echo "the store does not answer" >&2; exit 7; } ;;
  hang)
    # As every task does: SIGTERM ends it like Ctrl-C.
    trap 'echo stopped >"$here/stopped"; exit 130' TERM
    echo $$ >"$here/hanging"
    while :; do sleep 0.05; done ;;
  dies) kill -KILL "$PPID" ;;
  loud) printf 'token %s and \033[31mred\033[0m \033]0;title\007\n' "$HF_TOKEN"; env >"$here/environment" ;;
  signers) cp "$TRUSTED_SIGNERS" "$here/signers"; stat -c '%a %n' "$TRUSTED_SIGNERS" "$(dirname "$TRUSTED_SIGNERS")" ;;
esac
echo "[auto] done: $name"
"""


@dataclass(frozen=True)
class Server:
    """Where it listens, and an ssh configuration whose host `here` leads there with a key that it takes."""

    folder: Path
    port: int

    @property
    def config(self) -> Path:
        """In the place of ~/.ssh/config."""
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        """Holds the server's key for 127.0.0.1, and not for localhost."""
        return self.folder / "known_hosts"

    @property
    def away(self) -> Path:
        """Where the machine leaves what the tests look at."""
        return self.folder / "away"


def program() -> str:
    """sshd, by its whole path as it wants it. Skips where it is not installed."""
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not found or not shutil.which("ssh"):
        pytest.skip("sshd is not installed (apt-get install openssh-server)")
    return found


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[Server]:
    """An sshd that takes the key of `folder`, for the user who runs the tests; `variables` are those of a session."""
    sshd, port = program(), _free_port()
    folder.mkdir()
    server = Server(folder, port)
    for name in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    (folder / "authorized_keys").write_bytes((folder / "user.pub").read_bytes())
    kind, key, _ = (folder / "host.pub").read_text().split()
    server.known_hosts.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    _prepare(server.away)
    places = {"SAGEWHEELS_HOME": server.away / "home", "TMPDIR": server.away / "tmp", "HOME": server.away}
    config = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        f"PidFile {folder}/pid",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        f"SetEnv {' '.join(f'{key}={value}' for key, value in {**places, **variables}.items())}",
    ]
    (folder / "sshd_config").write_text("\n".join(config) + "\n")
    server.config.write_text(_client(server))
    made = os.geteuid() == 0 and not PRIVSEP.exists()
    if made:
        PRIVSEP.mkdir(mode=0o755)
    try:
        with (folder / "sshd.log").open("wb") as log:
            argv = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait(port, process, folder / "sshd.log")
            yield server
        finally:
            process.terminate()
            process.wait(timeout=10)
    finally:
        if made:
            PRIVSEP.rmdir()


def _client(server: Server) -> str:
    """The hosts that tests name; what stands under `*` counts for all of them."""
    return f"""
Host other-key
  IdentityFile {server.folder}/other
Host nobody-there
  Port 9
Host unknown
  HostName localhost
Host no-such
  HostName no-such.invalid
Host behind
  ProxyJump here
Host behind-nobody
  ProxyJump nobody-there
Host * !other-key
  IdentityFile {server.folder}/user
Host *
  HostName 127.0.0.1
  Port {server.port}
  UserKnownHostsFile {server.known_hosts}
  GlobalKnownHostsFile /dev/null
"""


def _prepare(away: Path) -> None:
    """What the bootstrap script finds: a repository to update from, and a tool's environment that is complete."""
    home, origin = away / "home", away / "origin"
    for folder in (home, origin / "sagewheels", away / "tmp"):
        folder.mkdir(parents=True)
    for name in ("sagewheels/__init__.py", "pyproject.toml", "constraints.txt"):
        (origin / name).touch()
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "All"]):
        subprocess.run(["git", "-C", origin, *words], check=True)
    wheels.script(home / ".tool" / "bin" / "python", _TOOL)
    (home / ".tool" / "complete").write_text(f"{home}\n\n\n\n")
    (home / ".sagewheels-home").touch()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.02)
