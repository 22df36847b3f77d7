"""A claim that is held: a thread renews it for as long as the compile takes."""

from __future__ import annotations

import threading

from sagewheels import ui
from sagewheels.errors import StoreError
from sagewheels.store import Store, claims
from sagewheels.store.claims import Claim, TakenOver

_LAST_RENEWAL = 30.0
"""Seconds for one that is under way when the compile ends."""


class Lease:
    """Renews a claim from now on. What goes wrong with that is told once, and costs no compile."""

    def __init__(self, store: Store, claim: Claim) -> None:
        self._store, self._claim, self._warned = store, claim, False
        self.is_removed = False
        """Whether `removed` was asked to take the claim away."""
        self._over = threading.Event()
        # A daemon: it must not keep a run alive that ends in a way nobody thought of.
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def rest(self) -> None:
        """Nothing is renewed from now on."""
        self._over.set()
        self._thread.join(_LAST_RENEWAL)

    def removed(self, content: bytes | None) -> bytes | None:
        """claims.json without this claim, None when it is not in there: for a commit that changes other files too."""
        self.is_removed = True
        return claims.without(content, self._claim.nonce)

    def _keep(self) -> None:
        while not self._over.wait(claims.RENEW):
            try:
                self._claim = claims.renew(self._store, self._claim)
            except TakenOver as error:
                ui.say("claim", f"this machine was taken for dead: {error.what}. It goes on here, nearly done")
                return
            except StoreError as error:
                self._warn(error)

    def _warn(self, error: StoreError) -> None:
        if not self._warned:
            ui.warn("claim", f"it was not renewed, so that another machine may build it too: {error}")
        self._warned = True
