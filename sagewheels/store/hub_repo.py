"""A repository of the Hub: its addresses, and the words for what it refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from sagewheels import redact
from sagewheels.errors import StoreError, UsageError
from sagewheels.files import checked
from sagewheels.store.tries import status_text

CARD, PAGE = "README.md", "index.html"
AT_ROOT = (CARD, PAGE)
"""What lies at the root of the repository, whatever the store's folder: the Hub, and a Space, show no other."""

ENDPOINT = "https://huggingface.co"
TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True, kw_only=True)
class Repo:
    """Where the store lies, and with which right. `folder` is empty or ends with a slash.

    Raises UsageError for a token or an endpoint that cannot be one.
    """

    name: str
    kind: str
    branch: str
    folder: str
    endpoint: str
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        # An HTTP library would quote the whole header in its complaint.
        if not re.fullmatch(r"[!-~]*", self.token):
            raise UsageError("HF_TOKEN holds characters that no token has", f"Copy it again from {TOKENS}")
        if not _is_address(self.endpoint):
            raise UsageError("HF_ENDPOINT is not an http(s) address", f"Write it like {ENDPOINT}")
        # It becomes part of each wheel's published address, and would stand in the way of the token.
        if "@" in urlsplit(self.endpoint).netloc:
            raise UsageError("HF_ENDPOINT holds a name or password", "Leave them out: it is HF_TOKEN that signs in")

    @property
    def label(self) -> str:
        """`hf://datasets/name/repo@main/folder`."""
        return f"hf://{self.kind}s/{self.name}@{self.branch}/{self.folder}".rstrip("/")

    @property
    def api(self) -> str:
        """What the addresses of the Hub's API for this repository begin with."""
        return f"{self.endpoint}/api/{self.kind}s/{self.name}"

    @property
    def remedy(self) -> str:
        """What to do when the token does not do."""
        return f"Set HF_TOKEN to a token with write access to {self.name}, from {TOKENS}"

    def inside(self, path: str) -> str:
        """Where a path of the store lies in the repository. Raises StoreError for one that leads out of it."""
        return path if path in AT_ROOT else self.folder + checked(path)

    def address(self, path: str, revision: str) -> str:
        """Where a path of the store can be read at a branch or commit."""
        kind = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{self.endpoint}/{kind}{self.name}/resolve/{quote(revision, safe='')}/{quote(self.inside(path))}"

    def refusal(self, status: int, what: str, said: str = "", missing: str = "") -> StoreError:
        """The error for an answer to the wish to do `what`: which right or thing is missing, and the remedy."""
        if status == 401 and self.token:
            return StoreError("the Hub does not accept this HF_TOKEN (401)", self.remedy)
        if status == 401:
            # To a stranger, the Hub says the same of what is private and of what does not exist.
            what = f"{self.label} does not exist, or is private and HF_TOKEN is not set (401)"
            return StoreError(what, f"Check HF_REPO_ID (or SAGE_STORE). {self.remedy}")
        if status == 403:
            return StoreError(f"HF_TOKEN has no right to {what} in {self.name} (403)", self.remedy)
        if status == 404:
            missing = missing or f"{self.label} does not exist, or HF_TOKEN may not see it"
            return StoreError(f"{missing} (404)", "Check HF_REPO_ID, HF_REPO_BRANCH and REMOTE_DIR")
        said = f": {self.redacted(said)[:160]}" if said else ""
        return StoreError(f"{self.label} answered {status_text(status)} to the wish to {what}{said}", "Try again later")

    def unwritable(self) -> StoreError:
        """The error for writing without a token."""
        return StoreError(f"HF_TOKEN is not set, so {self.label} can only be read", self.remedy)

    def redacted(self, text: str) -> str:
        """The text without the token, and other credentials."""
        return redact.redacted(text, self.token)

    def may_be_written_by(self, who: Mapping[str, Any]) -> bool:
        """Whether the token that the Hub describes so may write here."""
        owner, token = self.name.partition("/")[0], (who.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "fineGrained":
            scopes = (token.get("fineGrained") or {}).get("scoped") or []
            return any(self._fits(scope.get("entity") or {}, owner) and _writes(scope) for scope in scopes)
        namespaces = {who.get("name")} | {item.get("name") for item in who.get("orgs") or []}
        return token.get("role") != "read" and owner in namespaces

    def _fits(self, entity: Mapping[str, Any], owner: str) -> bool:
        """Whether a scope of a fine-grained token is about this repository or its owner."""
        if entity.get("type") == self.kind:
            return entity.get("name") == self.name
        return entity.get("name") == owner and entity.get("type") in {"user", "org"}


def _is_address(text: str) -> bool:
    """Whether this is http(s), with a host, and a port that can be one."""
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _writes(scope: Mapping[str, Any]) -> bool:
    return "repo.write" in (scope.get("permissions") or [])
