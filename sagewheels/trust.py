"""Whose wheels and whose index count on this machine, and in whose name it signs what it publishes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sagewheels import ours, signing
from sagewheels.config import Settings
from sagewheels.errors import Refused, UsageError
from sagewheels.manifest import WheelManifest, parse
from sagewheels.signing import Answer, Signers
from sagewheels.store.entries import merge


class Trust:
    """TRUSTED_SIGNERS, REVOKED_SIGNERS and SIGNING_KEY. Where none is set, nothing is asked and all is taken.

    Raises UsageError for settings that would enforce nothing though they look as if; the files are read when needed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._answers: dict[tuple[str, str, str], Answer] = {}
        for key in ("REVOKED_SIGNERS", "MIN_INDEX_SERIAL"):
            if getattr(settings, key.lower()) not in ("", None) and not self.enforced:
                raise UsageError(f"{key} is set and TRUSTED_SIGNERS is not, so nothing would be refused", "Set both")

    @property
    def enforced(self) -> bool:
        """Whether only what is signed is taken."""
        return bool(self._settings.trusted_signers)

    @property
    def signs(self) -> bool:
        """Whether what is published here is signed."""
        return bool(self._settings.signing_key)

    @cached_property
    def signers(self) -> Signers:
        """Who is trusted: TRUSTED_SIGNERS, else whoever has SIGNING_KEY. Raises UsageError."""
        chosen = self._settings
        if self.enforced:
            return signing.signers(chosen.trusted_signers, chosen.revoked_signers)
        return signing.own(chosen.signing_key, chosen.environ)

    def demand_usable(self) -> None:
        """Nothing when what the settings name can be used: no compile shall end with what could be seen before it.

        Raises UsageError for a list that cannot be read, a key that cannot sign or is not on it, and no ssh-keygen.
        """
        if self.enforced:
            _ = self.signers
            signing.demand_program(self._settings.environ)
        if self.signs:
            self._signed("{}", signing.WHEEL)

    def digest(self) -> str:
        """What a change of TRUSTED_SIGNERS or REVOKED_SIGNERS changes; empty when nothing is enforced."""
        if not self.enforced:
            return ""
        parts = (self.signers.allowed, self.signers.revoked)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def against(self, manifest: WheelManifest) -> str:
        """Why this wheel is not taken, in words that follow its name; empty for one that is.

        That is one signed by a trusted signer, or built on this machine; any, where nothing is enforced.
        """
        if not self.enforced or ours.has(self._settings, manifest.wheel_sha256):
            return ""
        return self.of_wheel(manifest).reason

    def of_wheel(self, manifest: WheelManifest) -> Answer:
        """Who made this wheel, by the signature in its manifest."""
        if not manifest.wheel_sha256:
            return Answer(reason="has no sha256 that a signature could vouch for")
        return self._answer(canonical(manifest.signed_part), manifest.data.get("signature"), signing.WHEEL)

    def of_index(self, document: Mapping[str, Any]) -> Answer:
        """Who vouches for this index."""
        return self._answer(_index(document), document.get("signature"), signing.INDEX)

    def sign_index(self, document: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """The index with our signature, and our name in TRUSTED_SIGNERS. Raises UsageError, as `_signed` does."""
        payload = _index(document)
        signature = self._signed(payload, signing.INDEX)
        return {**document, "signature": signature}, self._answer(payload, signature, signing.INDEX).signer

    def demand_signable(self, manifest: WheelManifest, *, named: bool) -> None:
        """Nothing when the wheel may be published under our name: made here, signed by a trusted signer, or `named`.

        Raises Refused for any other: nobody's wheel becomes ours by accident, and a bad signature no good one.
        """
        if not self.signs or ours.has(self._settings, manifest.wheel_sha256):
            return
        reason = self.of_wheel(manifest).reason
        if reason and manifest.data.get("signature"):
            raise Refused(f"{manifest.wheel_file} {reason}", "Build it again to publish it")
        if reason and not named:
            what = f"{manifest.wheel_file} {reason} and was not built here"
            raise Refused(what, f"If you know where it is from: upload --wheel {manifest.wheel_file}")

    def entry(self, there: WheelManifest | None, manifest: WheelManifest) -> WheelManifest:
        """The entry to be published for a wheel: the valid signature that it has stays, else it gets ours."""
        if there and self.of_wheel(there).signer:
            return merge(manifest, there)
        if self.of_wheel(manifest).signer:
            return merge(there, manifest) if there else manifest
        plain = merge(_unsigned(there), _unsigned(manifest)) if there else _unsigned(manifest)
        return plain.updated(signature=self._signed(canonical(plain.signed_part), signing.WHEEL))

    def own_proofs(self, manifest: WheelManifest) -> WheelManifest:
        """The manifest with the proofs that were found here alone, where we sign: for others we cannot vouch."""
        if not self.signs:
            return manifest
        return manifest.updated(
            proofs=[proof.raw for proof in manifest.proofs if ours.has(self._settings, ours.of_proof(proof.raw))]
        )

    def _signed(self, payload: str, namespace: str) -> str:
        """Our signature. Raises UsageError when we cannot sign, or are not among those whom we trust."""
        if not payload:
            raise Refused("what is to be signed holds numbers or depths that JSON has not", "Build it again")
        signature = signing.sign(self._settings.signing_key, payload, namespace, self._settings.environ)
        reason = self._answer(payload, signature, namespace).reason
        if reason:
            what = f"what SIGNING_KEY {self._settings.signing_key} signs would not be trusted here: it {reason}"
            raise UsageError(what, "Add its public key to TRUSTED_SIGNERS (init-hf --sign does), or use another key")
        return signature

    def _answer(self, payload: str, signature: object, namespace: str) -> Answer:
        """Asked once for each signature and what it is of."""
        if not isinstance(signature, str) or not signature:
            return signing.verify("", signature, namespace, self.signers, self._settings.environ)
        key = hashlib.sha256(payload.encode()).hexdigest(), signature, namespace
        if key not in self._answers:
            self._answers[key] = signing.verify(payload, signature, namespace, self.signers, self._settings.environ)
        return self._answers[key]


def canonical(data: Mapping[str, Any]) -> str:
    """The one text of a JSON object that is signed, in ASCII; empty for one that has none, which nobody signs.

    That is one with an infinite number (1e999), or nested beyond measure.
    """
    try:
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (ValueError, RecursionError):
        return ""


def _index(document: Mapping[str, Any]) -> str:
    return canonical({key: value for key, value in document.items() if key != "signature"})


def _unsigned(manifest: WheelManifest) -> WheelManifest:
    return parse({key: value for key, value in manifest.data.items() if key != "signature"}, manifest.wheel_file)
