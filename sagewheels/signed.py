"""`init-hf --sign`: a key, a list of signers, and an index that is signed with it. What is there is kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sagewheels import bad, proc, signing, ui
from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.job import Job
from sagewheels.store import Snapshot, index
from sagewheels.store.entries import INDEX, document

_PRINCIPAL = "sagewheels"


def begin(job: Job) -> Job:
    """A Job that signs and trusts: with SIGNING_KEY and TRUSTED_SIGNERS, made where they are missing, each step said.

    In a dry run nothing is made. Raises UsageError for a key that cannot sign.
    """
    settings = job.settings
    key = Path(settings.signing_key) if settings.signing_key else _folder(settings) / "signing_key"
    trusted = Path(settings.trusted_signers) if settings.trusted_signers else key.with_name("trusted_signers")
    _make_key(job, key)
    _list_signer(job, key, trusted)
    if not job.dry_run and (not settings.signing_key or not settings.trusted_signers):
        ui.say("init-hf", "put these lines into .env; machines that only fetch need the second one, and that file:")
        print(f"SIGNING_KEY={key}\nTRUSTED_SIGNERS={trusted}")
    if job.dry_run:
        ui.say("init-hf", f"would sign the index of {job.store.label}")
        return job
    return Job(replace(settings, signing_key=str(key), trusted_signers=str(trusted)))


def adopt(job: Job) -> bool:
    """The index is signed; False when it was. Says what nobody vouched for. Raises StoreError, UsageError."""
    unlocked = job.store.adopting()
    objections = list[str]()

    def objection(snapshot: Snapshot) -> str:
        objections[:] = filter(None, [unlocked.objection(snapshot)])
        return "".join(objections)

    made = index.adopt(unlocked, objection)
    for what in objections if made else ():
        ui.say("init-hf", f"adopted all the same, its wheels only: {what}")
    found = job.published
    moved = sum(1 for one in found if one.data.get("unvouched_proofs") and not one.proofs)
    if made and moved:
        ui.say("init-hf", f"{ui.count(moved, 'wheel')} with proofs that nobody vouched for: smoke proves them anew")
    for mark in _set_aside(job) if made else ():
        ui.say(
            "init-hf",
            f"{mark.wheel_file or mark.build_key[:8]} is {mark.words}: nobody vouched for that, smoke decides",
        )
    for one in found:
        if why := job.trust.of_wheel(one).reason:
            remedy = f"upload --wheel {one.wheel_file} signs it, from a machine that has it in its wheelhouse"
            ui.say(
                "init-hf", f"{one.wheel_file} {why}: {remedy if not one.data.get('signature') else 'build it again'}"
            )
    return made


def _set_aside(job: Job) -> list[bad.Mark]:
    """The marks that nobody vouched for."""
    return bad.readable(document(job.store.read(INDEX)).get(index.UNVOUCHED_MARKS))


def _make_key(job: Job, key: Path) -> None:
    """The key is there: one without a passphrase, so that nobody has to be asked."""
    if key.exists():
        ui.say("init-hf", f"the key {key} is kept")
        return
    if key.suffix == ".pub":
        raise UsageError(f"SIGNING_KEY {key} does not exist", "Name the .pub of a key that is in your agent")
    ui.say("init-hf", f"{'would make' if job.dry_run else 'making'} the key {key}; keep it, and let nobody read it")
    if job.dry_run:
        return
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    argv: list[str | Path] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", _PRINCIPAL, "-f", key]
    proc.run(argv, env=job.settings.environ, error=UsageError)


def _list_signer(job: Job, key: Path, trusted: Path) -> None:
    """The key is in the list of signers; who else is in it stays."""
    try:
        listed = trusted.read_text(encoding="utf-8") if trusted.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"TRUSTED_SIGNERS {trusted} cannot be read ({error})", "Correct it, or unset it") from None
    if job.dry_run:
        ui.say("init-hf", f"would list the key in {trusted}, unless it is there")
        return
    public = signing.public(signing.sign(str(key), "", "key@sagewheels", job.settings.environ))
    if public.split()[1] in listed:
        ui.say("init-hf", f"the key is in {trusted} already")
        return
    trusted.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with trusted.open("a", encoding="utf-8") as stream:
        gap = "\n" if listed and not listed.endswith("\n") else ""
        stream.write(f"{gap}{signing.allowed_line(_principal(key), public)}\n")
    ui.say("init-hf", f"the key is in {trusted} now, as {_principal(key)}")


def _principal(key: Path) -> str:
    """The comment of the public key where that is a name, else a neutral one."""
    beside = key if key.suffix == ".pub" else key.with_name(f"{key.name}.pub")
    words = beside.read_text(encoding="utf-8", errors="replace").split() if beside.is_file() else []
    return words[2] if len(words) == 3 and re.fullmatch(r"[\w.@+-]+", words[2]) else _PRINCIPAL


def _folder(settings: Settings) -> Path:
    base = settings.variable("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "sagewheels"
