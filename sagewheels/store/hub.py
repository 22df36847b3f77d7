"""A Hugging Face repository as a store. Reading is plain HTTP; only writing loads huggingface_hub."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urljoin

from sagewheels.errors import StoreError
from sagewheels.files import checked
from sagewheels.store import Conflict, Snapshot
from sagewheels.store.hub_client import HubClient
from sagewheels.store.hub_repo import AT_ROOT, ENDPOINT, Repo
from sagewheels.store.tries import Trouble, page_instead
from sagewheels.web import TIMEOUT, Web

if TYPE_CHECKING:
    import requests
    from huggingface_hub import CommitOperationAdd, HfApi

_ABSENT = frozenset({"RepoNotFound", "RevisionNotFound", "EntryNotFound"})
_MOST_PAGES = 1000
_Json = TypeVar("_Json", dict[str, Any], list[dict[str, Any]])


class HubStore:
    """The store protocol on a dataset, model or space repository; knows no token but the one it is given.

    `timeout` is (connect, silence) in seconds; `pause` sleeps between tries.
    """

    def __init__(
        self,
        *,
        repo_id: str,
        repo_type: str = "dataset",
        branch: str = "main",
        folder: str = "",
        token: str = "",
        endpoint: str = "",
        private: bool = False,
        timeout: tuple[float, float] = TIMEOUT,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._repo = Repo(
            name=repo_id,
            kind=repo_type,
            branch=branch,
            folder=checked(folder.strip("/")) + "/" if folder.strip("/") else "",
            endpoint=(endpoint or ENDPOINT).rstrip("/"),
            token=token,
        )
        self._private = private
        self._needs_token: bool | None = None
        self._web = Web(self._repo.endpoint, sign=self._sign, timeout=timeout, pause=pause)
        self._client = HubClient(self._repo, timeout, pause)
        self._uploads: dict[tuple[str, Path, int, int], CommitOperationAdd] = {}

    @property
    def repo(self) -> Repo:
        """Where the store lies, for what is asked of the Hub besides it. Holds the token."""
        return self._repo

    @property
    def label(self) -> str:
        """`hf://datasets/name/repo@main/folder`."""
        return self._repo.label

    @property
    def writable(self) -> bool:
        """Whether there is a token."""
        return bool(self._repo.token)

    def read(self, *paths: str) -> Snapshot:
        """The contents of small files at one commit, with one request for each. Raises StoreError."""
        revision, files, says_commit = "", dict[str, bytes](), False
        for path in dict.fromkeys(paths):
            found, content = self._small(path, revision or self._repo.branch, says_commit=says_commit)
            if not revision:
                says_commit = bool(found)
                revision = found or self._head()
                if not revision:
                    break
                if not found:
                    # Whoever answered did not say for which commit, so that what came may be older or newer.
                    content = self._small(path, revision)[1]
            if content is not None:
                files[path] = content
        return Snapshot(revision=revision if paths else self._head(), files=files)

    def names(self) -> list[str]:
        """The paths of all files in the folder, sorted; none for what does not exist. Raises StoreError."""
        names: list[str] = []
        folder = self._repo.folder
        url = f"{self._repo.api}/tree/{quote(self._repo.branch, safe='')}/{quote(folder.rstrip('/'))}?recursive=true"
        for _ in range(_MOST_PAGES):
            items, url = self._json(url, "the list of files", list)
            names += [item["path"].removeprefix(folder) for item in items if item.get("type") == "file"]
            if not url:
                break
        else:
            raise StoreError(f"the list of files of {self.label} does not end", "Check HF_ENDPOINT and the network")
        return sorted(name for name in names if not name.startswith("."))

    def download(self, path: str, to: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Writes one file to `to`, whole. Raises StoreError, also when it is not there; the caller checks the hash."""
        failed = f"{path} could not be downloaded from {self.label}"
        missing = f"{path} is not in {self.label}"

        def check(answer: requests.Response) -> None:
            _demand_no_page(answer)
            self._demand(answer, path, missing)

        self._web.download(self.address(path), to, failed, check=check, progress=progress)

    def commit(self, parent: str, files: Mapping[str, bytes | Path], message: str) -> str:
        """Writes all files in one commit on `parent`, and makes the repository when `parent` is "".

        Raises Conflict, with nothing written, when the branch is no longer at `parent`; StoreError otherwise. An
        answer that was lost is asked for again: had the commit been made, the second try ends in Conflict. After a
        Conflict, a wheel that was hashed and uploaded is neither again.
        """
        repo, paths = self._repo, {self._repo.inside(path): content for path, content in files.items()}
        parent = parent or self._begin(files)

        def once(api: HfApi) -> str:
            done = api.create_commit(
                repo.name,
                [self._addition(path, content) for path, content in paths.items()],
                commit_message=message,
                repo_type=repo.kind,
                revision=repo.branch,
                parent_commit=parent,
            )
            # The library takes no operation twice.
            self._uploads.clear()
            return done.oid

        return self._client.write("write", once)

    def _addition(self, path: str, content: bytes | Path) -> CommitOperationAdd:
        """What the library is to add: for an unchanged file the same object as before, which knows that it is there."""
        from huggingface_hub import CommitOperationAdd

        if isinstance(content, bytes):
            return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
        stat = content.stat()
        key = (path, content, stat.st_mtime_ns, stat.st_size)
        if key not in self._uploads:
            self._uploads[key] = CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
        return self._uploads[key]

    def address(self, path: str) -> str:
        """The address that `pip install` takes."""
        return self._repo.address(path, self._repo.branch)

    def is_private(self) -> bool:
        """Whether the Hub shows this repository to nobody without a token; one that is to be made, as it will be."""
        if self._needs_token is None:
            found = self._json(self._repo.api, "what the repository is", dict)[0]
            self._needs_token = bool(found.get("private") or found.get("gated")) if found else self._private
        return self._needs_token

    def initialise(self) -> None:
        """The repository and the branch exist afterwards. Raises StoreError when they cannot be made."""
        repo = self._repo

        def once(api: HfApi) -> None:
            sdk = "static" if repo.kind == "space" else None
            # The library wants to be told the address too; whether the repository is there is seen by who asks next.
            with suppress(KeyError):
                api.create_repo(repo.name, repo_type=repo.kind, private=self._private, exist_ok=True, space_sdk=sdk)
            if repo.branch != "main":
                api.create_branch(repo.name, branch=repo.branch, repo_type=repo.kind, exist_ok=True)

        self._client.write("create the repository or the branch", once)

    def rights(self) -> str:
        """Whose token this is and that it may write here, in one line. Raises StoreError when it may not."""
        if not self.writable:
            raise self._repo.unwritable()
        who = self._json(f"{self._repo.endpoint}/api/whoami-v2", "the owner of HF_TOKEN", dict)[0]
        whose = f"HF_TOKEN belongs to {who.get('name', '')}"
        if not self._repo.may_be_written_by(who):
            raise StoreError(f"{whose} and may not write to {self._repo.name}", self._repo.remedy)
        return f"{whose} and may write to {self._repo.name}"

    def _small(self, path: str, revision: str, *, says_commit: bool = False) -> tuple[str, bytes | None]:
        """The commit that `revision` names, if the answer says so, and the content of one file, if there is one.

        Where the Hub is known to say it (`says_commit`), an answer that does not is somebody else's.
        """

        def check(answer: requests.Response, _: bytes) -> None:
            _demand_no_page(answer)
            if says_commit and answer.ok and not _commit_of(answer):
                raise Trouble("that is not what a Hub answers")

        failed = f"{path} could not be read from {self.label}"
        answer, content = self._web.ask(self._repo.address(path, revision), failed, check=check)
        commit = _commit_of(answer)
        if _absent(answer):
            return commit, None
        self._demand(answer, path)
        return commit, content

    def _head(self) -> str:
        """The newest commit of the branch, "" when the repository or the branch does not exist."""
        url = f"{self._repo.api}/revision/{quote(self._repo.branch, safe='')}"
        return str(self._json(url, "the newest revision", dict)[0].get("sha", ""))

    def _json(self, url: str, what: str, kind: type[_Json]) -> tuple[_Json, str]:
        """What the Hub's API says, empty if there is no such thing, and the address of the next page if any."""
        failed = f"{what} could not be read from {self.label}"
        answer, content = self._web.ask(url, failed, check=_demand_json)
        if _absent(answer):
            return kind(), ""
        self._demand(answer, what)
        following = answer.links.get("next", {}).get("url", "")
        found = json.loads(content)
        if not isinstance(found, kind):
            raise StoreError(f"{failed}: that is not what a Hub answers", "Check HF_ENDPOINT and the network")
        return found, urljoin(url, following) if following else ""

    def _demand(self, answer: requests.Response, what: str, missing: str = "") -> None:
        """Nothing for a good answer; StoreError for any other."""
        if answer.status_code >= 400:
            said = answer.headers.get("X-Error-Message") or ""
            raise self._repo.refusal(answer.status_code, f"read {what}", said, missing)

    def _begin(self, names: Iterable[str]) -> str:
        """The commit to build upon in a repository that did not exist a moment ago.

        Raises Conflict when one of these files is there by now: somebody was quicker, or a Space began with its own.
        """
        self.initialise()
        head = self._head()
        if not head:
            raise Conflict(f"{self.label} was made and cannot be seen yet", "Try again")
        there = set(self.names())
        there |= {name for name in AT_ROOT if name in names and self._small(name, head)[1] is not None}
        if there & set(names):
            raise Conflict(f"{self.label} was filled by somebody else", "Try again")
        return head

    def _sign(self, request: requests.PreparedRequest) -> None:
        if self._repo.token:
            request.headers["Authorization"] = f"Bearer {self._repo.token}"


def _commit_of(answer: requests.Response) -> str:
    """The commit that an answer, or what it was led here by, says that it is of."""
    commits = (part.headers.get("X-Repo-Commit") for part in (*answer.history, answer))
    return next((item for item in commits if item), "")


def _demand_no_page(answer: requests.Response) -> None:
    if trouble := page_instead(answer.status_code, answer.headers.get("Content-Type")):
        raise trouble


def _demand_json(answer: requests.Response, content: bytes) -> None:
    """Nothing for JSON, and for an answer that need not be any. Raises Trouble."""
    _demand_no_page(answer)
    try:
        if answer.status_code < 300:
            json.loads(content)
    except (ValueError, RecursionError):
        raise Trouble("that is not what a Hub answers") from None


def _absent(answer: requests.Response) -> bool:
    """Whether the Hub itself says that something does not exist: a bare 404 may come from anything in between."""
    return answer.status_code == 404 and answer.headers.get("X-Error-Code") in _ABSENT
