"""SSH signatures, made and checked by `ssh-keygen -Y`: who signed these bytes, or why nobody who counts did."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sagewheels import proc
from sagewheels.errors import UsageError

WHEEL, INDEX = "wheel-manifest@sagewheels", "index@sagewheels"
"""Namespaces: a signature made for the one purpose is none for the other."""

PUBLIC = re.compile(r"(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[\w@.-]+ +(AAAA[\w+/]+={0,3})")
"""A public key as one line of text, here or there in an allowed_signers file."""

_TIMEOUT = 60.0
"""Seconds: an agent may ask somebody to confirm."""

_KRL = b"SSHKRL\n"
_ARMOR = re.compile(r"\s*-----BEGIN SSH SIGNATURE-----\s+([A-Za-z0-9+/=\s]+)-----END SSH SIGNATURE-----\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Signers:
    """Who may sign: the content of an allowed_signers file and of a file of revoked keys, if there is one.

    `named` is the setting that they come from, for messages.
    """

    named: str
    allowed: bytes
    revoked: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The principal of allowed_signers; where it is empty, `reason` completes a sentence: `is not signed`."""

    signer: str = ""
    reason: str = ""


def demand_program(env: Mapping[str, str]) -> None:
    """Raises UsageError when there is no ssh-keygen: images for GPU machines often have none."""
    proc.run(["ssh-keygen", "-?"], env=_quiet(env), timeout=_TIMEOUT)


def signers(allowed: str, revoked: str) -> Signers:
    """The signers of TRUSTED_SIGNERS and REVOKED_SIGNERS (or none).

    Raises UsageError, naming the setting, for a file that cannot be read or holds no key.
    """
    trusted, rejected = _content("TRUSTED_SIGNERS", allowed), _content("REVOKED_SIGNERS", revoked) if revoked else b""
    # The principals come first, so that a file of mere public keys is none.
    if not any(re.match(rf"\S.*[ \t]{PUBLIC.pattern}", line) for line in _lines(trusted)):
        raise UsageError(f"TRUSTED_SIGNERS {allowed} names no signer", "Write lines as ssh-keygen(1) says: NAME KEY")
    listed = [] if rejected.startswith(_KRL) else _lines(rejected)
    if revoked and not rejected.startswith(_KRL) and not (listed and all(map(PUBLIC.match, listed))):
        raise UsageError(f"REVOKED_SIGNERS {revoked} is no list of keys", "Write one public key on each line, or a KRL")
    return Signers(named="TRUSTED_SIGNERS", allowed=trusted, revoked=rejected)


def sign(key: str, payload: str, namespace: str, env: Mapping[str, str]) -> str:
    """The signature, as armored text. Raises UsageError when SIGNING_KEY cannot sign without being asked anything."""
    text = _content("SIGNING_KEY", key).decode("utf-8", "replace")
    if not PUBLIC.match(text) and "PRIVATE KEY-----" not in text:
        raise UsageError(f"SIGNING_KEY {key} holds no SSH key", "Make one with init-hf --sign")
    argv = ["ssh-keygen", "-Y", "sign", "-P", "", "-n", namespace, "-f", key]
    done = proc.run(argv, env=_quiet(env), timeout=_TIMEOUT, input=payload)
    if done.code == 0 and public(done.out):
        return done.out
    if PUBLIC.match(text):
        private = key.removesuffix(".pub")
        raise UsageError(f"SIGNING_KEY {key} is a public key that no agent holds", f"Load it: ssh-add {private}")
    if Path(key).stat().st_mode & 0o077:
        raise UsageError(f"SIGNING_KEY {key} can be read by others, so ssh-keygen refuses it", f"chmod 600 {key}")
    if _is_locked(text):
        remedy = f"Load it into an agent (ssh-add {key}), and set SIGNING_KEY to {key}.pub"
        raise UsageError(f"SIGNING_KEY {key} has a passphrase, which is never asked for", remedy)
    raise UsageError(f"SIGNING_KEY {key} cannot sign: {done.last_line}", "Make another with init-hf --sign")


def own(key: str, env: Mapping[str, str]) -> Signers:
    """The key of SIGNING_KEY as the only signer. Raises UsageError, as `sign` does."""
    line = public(sign(key, "", "key@sagewheels", env))
    return Signers(named="SIGNING_KEY", allowed=f"{allowed_line('SIGNING_KEY', line)}\n".encode())


def allowed_line(principal: str, key: str) -> str:
    """The line of an allowed_signers file for a public key, for what sagewheels signs and nothing else."""
    return f'{principal} namespaces="{WHEEL},{INDEX}" {key}'


def verify(payload: str, signature: object, namespace: str, by: Signers, env: Mapping[str, str]) -> Answer:
    """Who of these signers signed this payload for this purpose, by now and not revoked, or why that cannot be said.

    Raises UsageError when ssh-keygen is missing.
    """
    if signature in (None, ""):
        return Answer(reason="is not signed")
    key = public(signature)
    if not key or not isinstance(signature, str):
        return Answer(reason="has a signature that is no SSH signature")
    with _files(signature, by) as folder:

        def ask(*words: str | Path) -> proc.Result:
            argv = ["ssh-keygen", "-Y", *words, "-s", folder / "signature"]
            return proc.run(argv, env=_quiet(env), timeout=_TIMEOUT, input=payload)

        def verified(name: str, *more: str | Path) -> bool:
            return ask("verify", "-f", folder / "allowed", "-I", name, "-n", namespace, *more).code == 0

        found = ask("find-principals", "-f", folder / "allowed")
        names = re.findall(r"[^,\n]+", found.out) if found.code == 0 else []
        revoked = ("-r", folder / "revoked") if by.revoked else ()
        for name in names:
            if verified(name, *revoked):
                return Answer(signer=name)
        if revoked and any(verified(name) for name in names):
            return Answer(reason=f"is signed by a key that was revoked ({_fingerprint(key)})")
        if ask("check-novalidate", "-n", namespace).code:
            return Answer(reason="does not match its signature: it was altered, or the signature is of another")
        return Answer(reason=_unknown(key, by, found.err))


def public(signature: object) -> str:
    """The public key that is in an armored signature, as one line without a comment; empty for what is none."""
    found = _ARMOR.fullmatch(signature) if isinstance(signature, str) else None
    try:
        blob = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
        # PROTOCOL.sshsig: the magic, a version, then strings with their lengths before them, the first is the key.
        size = int.from_bytes(blob[10:14], "big")
        key = blob[14 : 14 + size]
        kind = key[4 : 4 + int.from_bytes(key[:4], "big")].decode("ascii")
    except ValueError:
        return ""
    if not blob.startswith(b"SSHSIG\0\0\0\1") or len(key) != size or not re.fullmatch(r"[\w@.-]+", kind):
        return ""
    return f"{kind} {base64.b64encode(key).decode()}"


def fingerprint(signature: object) -> str:
    """`SHA256:...` of the key that is in an armored signature, good or bad; empty for what is none."""
    key = public(signature)
    return _fingerprint(key) if key else ""


def _unknown(key: str, by: Signers, said: str) -> str:
    """Why a good signature counts for nothing: the key is not listed, or not for now."""
    words = f"({_fingerprint(key)})"
    if key.split()[1].encode() not in by.allowed:
        return f"is signed by a key that is not {'' if by.named == 'SIGNING_KEY' else 'in '}{by.named} {words}"
    for mark, why in (("expired", "has expired"), ("not yet valid", "is not valid yet")):
        if mark in said:
            return f"is signed by a key that {why} {words}"
    return f"is signed by a key to which {by.named} does not allow that {words}"


def _fingerprint(key: str) -> str:
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


@contextmanager
def _files(signature: str, by: Signers) -> Iterator[Path]:
    """What ssh-keygen wants as files: as they were read once, so that they do not change between two calls."""
    with tempfile.TemporaryDirectory(prefix="sagewheels-sign-") as name:
        folder = Path(name)
        (folder / "signature").write_text(signature, encoding="ascii")
        (folder / "allowed").write_bytes(by.allowed)
        (folder / "revoked").write_bytes(by.revoked)
        yield folder


def _content(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{setting} {path} cannot be read ({error.strerror})", "Correct it, or unset it") from None


def _lines(content: bytes) -> list[str]:
    lines = (line.strip() for line in content.decode("utf-8", "replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _is_locked(text: str) -> bool:
    """Whether a private key has a passphrase: its head is `openssh-key-v1`, then the name of the cipher."""
    body = re.search(r"-----BEGIN OPENSSH PRIVATE KEY-----\s+(.*?)-----END", text, re.DOTALL)
    if not body:
        return "ENCRYPTED" in text
    try:
        head = base64.b64decode("".join(body[1].split())[:40])
    except ValueError:  # damaged, which is another story
        return False
    return head.startswith(b"openssh-key-v1\0") and head[15:23] != b"\0\0\0\4none"


def _quiet(env: Mapping[str, str]) -> dict[str, str]:
    """Nobody is asked: without these, and without a terminal, ssh-keygen has no way to do so."""
    return {**{k: v for k, v in env.items() if k not in ("SSH_ASKPASS", "DISPLAY")}, "SSH_ASKPASS_REQUIRE": "never"}
