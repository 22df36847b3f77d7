"""From settings to a store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sagewheels.config import Settings
from sagewheels.errors import UsageError
from sagewheels.store import Store
from sagewheels.store.away import AwayStore
from sagewheels.store.directory import DirectoryStore
from sagewheels.store.hub import HubStore

_FORMS = "Write a folder, file:///folder, or hf://datasets/owner/name@branch/folder"
_HUB = re.compile(
    r"(?:(?P<type>dataset|model|space)s/)?(?P<repo>(?!(?:dataset|model|space)s/)[\w.-]+/[\w.-]+)"
    r"(?:@(?P<branch>[^/@]+))?(?:/(?P<folder>.*))?"
)


def open_store(settings: Settings) -> Store:
    """The store that SAGE_STORE names, else the Hub repository of HF_REPO_ID; asks nothing of it yet.

    With SAGE_OFFLINE a Hub repository refuses whatever it is asked; a folder is no network.

    Raises UsageError for an address that is neither a folder nor a Hub repository.
    """
    store = _open(settings)
    return AwayStore(store) if settings.sage_offline and isinstance(store, HubStore) else store


def _open(settings: Settings) -> Store:
    where = settings.sage_store
    if not where:
        return _hub(settings, settings.hf_repo_type, settings.hf_repo_id, "", "")
    scheme = where.partition("://")[0].lower() if "://" in where else ""
    if scheme == "hf":
        found = _HUB.fullmatch(where[len("hf://") :])
        if not found:
            raise UsageError(f"SAGE_STORE={where!r} does not name a Hub repository", _FORMS)
        # What the address leaves out is what the HF_ settings say.
        kind = found["type"] or settings.hf_repo_type
        return _hub(settings, kind, found["repo"], unquote(found["branch"] or ""), found["folder"] or "")
    if scheme not in {"", "file"}:
        raise UsageError(f"SAGE_STORE={where!r} is not a store that can be opened", _FORMS)
    try:
        return DirectoryStore(_folder(where) if scheme else Path(where).expanduser())
    except (ValueError, RuntimeError):  # brackets that hold no address, a NUL behind %00, a home that is not there
        raise UsageError(f"SAGE_STORE={where!r} is not a store that can be opened", _FORMS) from None


def _hub(settings: Settings, repo_type: str, repo_id: str, branch: str, folder: str) -> HubStore:
    return HubStore(
        repo_id=repo_id,
        repo_type=repo_type,
        branch=branch or settings.hf_repo_branch,
        folder=_plain(folder or settings.remote_dir),
        token=settings.hf_token,
        endpoint=settings.hf_endpoint,
        private=settings.hf_private,
    )


def _plain(folder: str) -> str:
    """The folder without outer slashes. Raises UsageError when it leads out of the repository."""
    parts = [part for part in folder.split("/") if part]
    if any(part.startswith(".") or "\\" in part for part in parts):
        raise UsageError(f"{folder!r} is not a folder of a repository", "Write REMOTE_DIR like sageattention220")
    return "/".join(parts)


def _folder(url: str) -> Path:
    """The path of a file:// address. Raises UsageError for one of another machine."""
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path.strip("/"):
        raise UsageError(f"SAGE_STORE={url!r} does not name a folder of this machine", _FORMS)
    return Path(unquote(parts.path))
