"""Signatures of ssh-keygen: who signed, in words why it counts for nothing, and which keys cannot sign."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagewheels import signing
from sagewheels.errors import UsageError
from sagewheels.signing import INDEX, WHEEL, Answer
from tests import signers
from tests.signers import Key, bare, needs_ssh_keygen

pytestmark = needs_ssh_keygen
ENV = bare()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: signers.key(folder, name) for name in ("maker", "thief")}


def refused(run: object, *arguments: object) -> str:
    assert callable(run)
    with pytest.raises(UsageError) as caught:
        run(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_what_is_signed_is_known_by_the_name_of_its_signer(tmp_path: Path, kind: str, everything: bool) -> None:
    if kind == "rsa" and not everything:
        pytest.skip("such a key takes a second to make: with --all")
    maker = signers.key(tmp_path, "maker", kind=kind)
    signature = signing.sign(str(maker.path), "payload", WHEEL, ENV)
    by = signing.signers(str(signers.trusted(tmp_path / "trusted", maker)), "")
    assert signing.verify("payload", signature, WHEEL, by, ENV) == Answer(signer="maker")
    assert signing.public(signature) == maker.public
    assert signing.verify("payload", signature, WHEEL, signing.own(str(maker.path), ENV), ENV).signer == "SIGNING_KEY"


def test_each_reason_has_its_own_words(tmp_path: Path, keys: dict[str, Key]) -> None:
    maker, thief = keys["maker"], keys["thief"]
    good, named = maker.sign("payload", WHEEL), maker.fingerprint
    plain = signers.trusted(tmp_path / "plain", maker)
    krl = tmp_path / "krl"
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", krl, f"{maker.path}.pub"], check=True)

    def why(signature: object, *, payload: str = "payload", options: str = "", gone: Path | str = "") -> str:
        listed = signers.trusted(tmp_path / "trusted", maker, options=options) if options else plain
        answer = signing.verify(payload, signature, WHEEL, signing.signers(str(listed), str(gone)), ENV)
        assert not answer.signer
        return answer.reason

    of_another = "does not match its signature: it was altered, or the signature is of another"
    assert why(None) == why("") == "is not signed"
    for garbage in ("yes", {"by": "me"}, 7, good[:80], good.replace("U1NIU0lH", "U1NIU0lI"), good + "x"):
        assert why(garbage) == "has a signature that is no SSH signature"
    assert why(thief.sign("payload", WHEEL)) == (
        f"is signed by a key that is not in TRUSTED_SIGNERS ({thief.fingerprint})"
    )
    assert why(good, gone=signers.revoked(tmp_path / "gone", thief, maker)) == (
        f"is signed by a key that was revoked ({named})"
    )
    assert why(good, gone=krl) == f"is signed by a key that was revoked ({named})"
    assert why(good, options='valid-before="20200101"') == f"is signed by a key that has expired ({named})"
    assert why(good, options='valid-after="20990101"') == f"is signed by a key that is not valid yet ({named})"
    assert why(good, options=f'namespaces="{INDEX}"') == (
        f"is signed by a key to which TRUSTED_SIGNERS does not allow that ({named})"
    )
    assert why(good, payload="payloaD") == why(maker.sign("payload", INDEX)) == of_another
    assert why(thief.sign("other", WHEEL)) == of_another
    own = signing.own(str(thief.path), ENV)
    assert (
        signing.verify("payload", good, WHEEL, own, ENV).reason
        == f"is signed by a key that is not SIGNING_KEY ({named})"
    )


def test_a_key_that_is_not_revoked_stays_good(tmp_path: Path, keys: dict[str, Key]) -> None:
    """Also one that several principals have, of whom only the second may sign now."""
    maker = keys["maker"]
    listed = tmp_path / "trusted"
    listed.write_text(
        f'\n# people\nold valid-before="20200101" {maker.public}\nnew,newer namespaces="{WHEEL}" {maker.public}\n'
    )
    by = signing.signers(str(listed), str(signers.revoked(tmp_path / "gone", keys["thief"])))
    assert signing.verify("x", maker.sign("x", WHEEL), WHEEL, by, ENV) == Answer(signer="new")


def test_files_that_hold_no_key_enforce_nothing_and_are_refused(tmp_path: Path, keys: dict[str, Key]) -> None:
    good, empty, there = (tmp_path / name for name in ("good", "empty", "none"))
    signers.trusted(good, keys["maker"])
    empty.write_text("# nobody\n\n")
    public = f"{keys['maker'].path}.pub"
    trusted_remedy = "Write lines as ssh-keygen(1) says: NAME KEY."
    assert refused(signing.signers, str(empty), "") == f"TRUSTED_SIGNERS {empty} names no signer. {trusted_remedy}"
    assert refused(signing.signers, public, "") == f"TRUSTED_SIGNERS {public} names no signer. {trusted_remedy}"
    gone = "cannot be read (No such file or directory). Correct it, or unset it."
    assert refused(signing.signers, str(there), "") == f"TRUSTED_SIGNERS {there} {gone}"
    assert refused(signing.signers, str(good), str(there)) == f"REVOKED_SIGNERS {there} {gone}"
    assert refused(signing.signers, str(tmp_path), "") == (
        f"TRUSTED_SIGNERS {tmp_path} cannot be read (Is a directory). Correct it, or unset it."
    )
    lists = "is no list of keys. Write one public key on each line, or a KRL."
    assert refused(signing.signers, str(good), str(empty)) == f"REVOKED_SIGNERS {empty} {lists}"
    empty.write_text(f"{keys['thief'].public}\nno key\n")
    assert refused(signing.signers, str(good), str(empty)) == f"REVOKED_SIGNERS {empty} {lists}"


def test_keys_that_cannot_sign_are_told_apart(tmp_path: Path, keys: dict[str, Key]) -> None:
    def line(path: Path | str) -> str:
        return refused(signing.sign, str(path), "payload", WHEEL, ENV)

    none, text, damaged, open_ = (tmp_path / name for name in ("none", "text", "damaged", "open"))
    assert line(none) == f"SIGNING_KEY {none} cannot be read (No such file or directory). Correct it, or unset it."
    text.write_text("my key\n")
    assert line(text) == f"SIGNING_KEY {text} holds no SSH key. Make one with init-hf --sign."
    damaged.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n!\n-----END OPENSSH PRIVATE KEY-----\n")
    damaged.chmod(0o600)
    assert line(damaged).startswith(f"SIGNING_KEY {damaged} cannot sign: ")
    shutil.copy(keys["maker"].path, open_)
    open_.chmod(0o644)
    assert line(open_) == f"SIGNING_KEY {open_} can be read by others, so ssh-keygen refuses it. chmod 600 {open_}."
    locked = signers.key(tmp_path, "locked", passphrase="secret words").path
    assert line(locked) == (
        f"SIGNING_KEY {locked} has a passphrase, which is never asked for. "
        f"Load it into an agent (ssh-add {locked}), and set SIGNING_KEY to {locked}.pub."
    )
    assert line(f"{locked}.pub") == (
        f"SIGNING_KEY {locked}.pub is a public key that no agent holds. Load it: ssh-add {locked}."
    )


def test_nobody_is_asked_for_a_passphrase(tmp_path: Path) -> None:
    """Not by a program in a window either, and a pipe is not taken for a person: it ends at once."""
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho 'secret words'\n")
    ask.chmod(0o755)
    locked = signers.key(tmp_path, "locked", passphrase="secret words").path
    env = bare(SSH_ASKPASS=str(ask), SSH_ASKPASS_REQUIRE="force", DISPLAY=":0")
    started = time.monotonic()
    assert "has a passphrase" in refused(signing.sign, str(locked), "secret words\n", WHEEL, env)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "asked").exists()


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment with an agent of our own; sockets have short paths, so it lies right below the base."""
    program = shutil.which("ssh-agent")
    if program is None or shutil.which("ssh-add") is None:
        pytest.skip("needs ssh-agent and ssh-add")
    socket = tmp_path_factory.mktemp("a") / "s"
    with subprocess.Popen([program, "-D", "-a", str(socket)], stdout=subprocess.DEVNULL, start_new_session=True) as ran:
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.02)
        yield bare(SSH_AUTH_SOCK=str(socket))
        ran.terminate()


def test_an_agent_signs_with_a_key_that_has_a_passphrase(tmp_path: Path, agent: dict[str, str]) -> None:
    ask = tmp_path / "ask"
    ask.write_text("#!/bin/sh\necho 'secret words'\n")
    ask.chmod(0o755)
    locked = signers.key(tmp_path, "locked", passphrase="secret words")
    env = {**agent, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
    subprocess.run(
        ["ssh-add", "-q", locked.path], env=env, check=True, stdin=subprocess.DEVNULL, start_new_session=True
    )
    by = signing.signers(str(signers.trusted(tmp_path / "trusted", locked)), "")
    for named in (f"{locked.path}.pub", str(locked.path)):
        signature = signing.sign(named, "payload", WHEEL, agent)
        assert signing.verify("payload", signature, WHEEL, by, agent) == Answer(signer="locked")
    locked.path.unlink()
    assert signing.sign(f"{locked.path}.pub", "payload", WHEEL, agent)


def test_without_ssh_keygen_the_remedy_is_named(tmp_path: Path, keys: dict[str, Key]) -> None:
    env = {**ENV, "PATH": str(tmp_path)}
    line = "ssh-keygen cannot be run (No such file or directory). Install it (apt-get install openssh-client)."
    assert refused(signing.sign, str(keys["maker"].path), "payload", WHEEL, env) == line
    by = signing.signers(str(signers.trusted(tmp_path / "trusted", keys["maker"])), "")
    assert refused(signing.verify, "payload", keys["maker"].sign("payload", WHEEL), WHEEL, by, env) == line
