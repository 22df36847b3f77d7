"""A Hugging Face repository as a store. Reading is plain HTTP; only writing loads huggingface_hub."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import responses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from sagewheels.errors import SageError, StoreError, UsageError
from sagewheels.store import Conflict, Snapshot
from sagewheels.store.directory import arriving, checked

if TYPE_CHECKING:
    import requests
    from httpx2 import Client
    from huggingface_hub import HfApi

TRIES = 3
LONGEST_WAIT = 60.0
"""Seconds: a `Retry-After` beyond this is not waited for in full."""

CARD = "README.md"
"""The one file that lies at the root of the repository, whatever the store's folder: the Hub shows no other."""

_ENDPOINT = "https://huggingface.co"
_TOKENS = "https://huggingface.co/settings/tokens"
_MAY_PASS = frozenset({408, 429, 500, 502, 503, 504})
_ABSENT = frozenset({"RepoNotFound", "RevisionNotFound", "EntryNotFound"})
_T = TypeVar("_T")


class _Passing(Exception):
    """Trouble that may pass: worth another try, after `wait` seconds if the server said so."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


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
        timeout: tuple[float, float] = (10.0, 30.0),
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        # An HTTP library would quote the whole header in its complaint.
        if not re.fullmatch(r"[!-~]*", token):
            raise UsageError("HF_TOKEN holds characters that no token has", f"Copy it again from {_TOKENS}")
        self._repo, self._type, self._branch, self._token = repo_id, repo_type, branch, token
        self._folder = checked(folder.strip("/")) + "/" if folder.strip("/") else ""
        self._endpoint, self._private = (endpoint or _ENDPOINT).rstrip("/"), private
        self._timeout, self._pause = timeout, pause
        self._session: requests.Session | None = None
        self._library: HfApi | None = None
        if urlsplit(self._endpoint).scheme not in {"http", "https"}:
            raise UsageError("HF_ENDPOINT is not an http(s) address", f"Write it like {_ENDPOINT}")

    @property
    def label(self) -> str:
        """`hf://datasets/name/repo@main/folder`."""
        return f"hf://{self._type}s/{self._repo}@{self._branch}/{self._folder}".rstrip("/")

    @property
    def writable(self) -> bool:
        """Whether there is a token."""
        return bool(self._token)

    def read(self, *paths: str) -> Snapshot:
        """The contents of small files at one commit, with one request for each. Raises StoreError."""
        revision, files = "", dict[str, bytes]()
        for path in dict.fromkeys(paths):
            found, content = self._small(path, revision or self._branch)
            if not revision:
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
        folder = quote(self._folder.rstrip("/"))
        url = f"{self._api}/tree/{quote(self._branch, safe='')}/{folder}?recursive=true"
        while url:
            items, url = self._page(url)
            names += [item["path"].removeprefix(self._folder) for item in items if item.get("type") == "file"]
        return sorted(name for name in names if not name.startswith("."))

    def download(self, path: str, to: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Writes one file to `to`, whole. Raises StoreError, also when it is not there; the caller checks the hash."""
        url = self._resolve(path, self._branch)

        def once() -> None:
            # The length on the wire is the length of the file only when nothing compresses it on the way.
            with arriving(to) as target, self._get(url, stream=True, headers={"Accept-Encoding": "identity"}) as answer:
                self._demand(answer, path, missing=f"{path} is not in {self.label}")
                total, done = int(answer.headers.get("Content-Length") or 0), 0
                for chunk in answer.iter_content(1 << 20):
                    done += target.write(chunk)
                    if progress:
                        progress(done, total)
                if total and done != total:
                    raise _Passing(f"{done} of {total} bytes arrived")

        self._insist(f"{path} could not be downloaded from {self.label}", once)

    def commit(self, parent: str, files: Mapping[str, bytes | Path], message: str) -> str:
        """Writes all files in one commit on `parent`, and makes the repository when `parent` is "".

        Raises Conflict, with nothing written, when the branch is no longer at `parent`; StoreError otherwise. An
        answer that was lost is asked for again: had the commit been made, the second try ends in Conflict.
        """
        paths = {self._inside(path): content for path, content in files.items()}
        parent = parent or self._begin(files)

        def once(api: HfApi) -> str:
            from huggingface_hub import CommitOperationAdd

            additions = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=paths[path]) for path in paths]
            return api.create_commit(
                self._repo,
                additions,
                commit_message=message,
                repo_type=self._type,
                revision=self._branch,
                parent_commit=parent,
            ).oid

        return self._write("write", once)

    def address(self, path: str) -> str:
        """The address that `pip install` takes."""
        return self._resolve(path, self._branch)

    def initialise(self) -> None:
        """The repository and the branch exist afterwards. Raises StoreError when they cannot be made."""

        def once(api: HfApi) -> None:
            sdk = "static" if self._type == "space" else None
            api.create_repo(self._repo, repo_type=self._type, private=self._private, exist_ok=True, space_sdk=sdk)
            if self._branch != "main":
                api.create_branch(self._repo, branch=self._branch, repo_type=self._type, exist_ok=True)

        self._write("create the repository or the branch", once)

    def rights(self) -> str:
        """Whose token this is and that it may write here, in one line. Raises StoreError when it may not."""
        if not self._token:
            raise StoreError(f"HF_TOKEN is not set, so {self.label} can only be read", self._remedy)
        who = self._json(f"{self._endpoint}/api/whoami-v2", "the owner of HF_TOKEN")
        name = str(who.get("name", ""))
        token = (who.get("auth") or {}).get("accessToken") or {}
        namespaces = {name} | {str(item.get("name")) for item in who.get("orgs") or []}
        owner = self._repo.partition("/")[0]
        if token.get("role") == "fineGrained":
            allowed = _may_write(token.get("fineGrained") or {}, owner, self._type, self._repo)
        else:
            allowed = token.get("role") != "read" and owner in namespaces
        if not allowed:
            raise StoreError(f"HF_TOKEN belongs to {name} and may not write to {self._repo}", self._remedy)
        return f"HF_TOKEN belongs to {name} and may write to {self._repo}"

    @property
    def _api(self) -> str:
        return f"{self._endpoint}/api/{self._type}s/{self._repo}"

    @property
    def _remedy(self) -> str:
        return f"Set HF_TOKEN to a token with write access to {self._repo}, from {_TOKENS}"

    def _inside(self, path: str) -> str:
        """Where a path of the store lies in the repository."""
        return path if path == CARD else self._folder + checked(path)

    def _resolve(self, path: str, revision: str) -> str:
        kind = "" if self._type == "model" else f"{self._type}s/"
        return f"{self._endpoint}/{kind}{self._repo}/resolve/{quote(revision, safe='')}/{quote(self._inside(path))}"

    def _small(self, path: str, revision: str) -> tuple[str, bytes | None]:
        """The commit that `revision` names, if the answer says so, and the content of one file, if there is one."""

        def once() -> tuple[str, bytes | None]:
            with self._get(self._resolve(path, revision)) as answer:
                commits = [part.headers.get("X-Repo-Commit") for part in (*answer.history, answer)]
                commit = next((item for item in commits if item), "")
                if _absent(answer):
                    return commit, None
                self._demand(answer, path)
                return commit, answer.content

        return self._insist(f"{path} could not be read from {self.label}", once)

    def _head(self) -> str:
        """The newest commit of the branch, "" when the repository or the branch does not exist."""
        found = self._json(f"{self._api}/revision/{quote(self._branch, safe='')}", "the newest revision")
        return str(found.get("sha", ""))

    def _json(self, url: str, what: str) -> dict[str, Any]:
        """The JSON object at `url`, empty when there is none."""

        def once() -> dict[str, Any]:
            with self._get(url) as answer:
                if _absent(answer):
                    return {}
                self._demand(answer, what)
                found = answer.json()
                return found if isinstance(found, dict) else {}

        return self._insist(f"{self.label} could not be read", once)

    def _page(self, url: str) -> tuple[list[dict[str, Any]], str]:
        """One page of a listing and the address of the next one, "" for the last."""

        def once() -> tuple[list[dict[str, Any]], str]:
            with self._get(url) as answer:
                if _absent(answer):
                    return [], ""
                self._demand(answer, "the list of files")
                following = answer.links.get("next", {}).get("url", "")
                # The token goes along, so the next page has to be on the same server.
                return answer.json(), following if following.startswith(f"{self._endpoint}/") else ""

        return self._insist(f"{self.label} could not be listed", once)

    @contextmanager
    def _get(
        self, url: str, *, stream: bool = False, headers: Mapping[str, str] | None = None
    ) -> Iterator[requests.Response]:
        """One answer to one request, raising _Passing for whatever may be gone next time."""
        import requests

        self._session = self._session or requests.Session()
        try:
            with self._session.get(
                url, auth=self._sign, stream=stream, headers=headers, timeout=self._timeout
            ) as answer:
                if answer.status_code in _MAY_PASS:
                    raise _Passing(_status(answer.status_code), _seconds(answer.headers.get("Retry-After")))
                yield answer
        except requests.RequestException as error:
            raise _Passing(_plain(error)) from None

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Adds the token. Being an `auth`, it also keeps requests from looking for one in ~/.netrc."""
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _insist(self, failed: str, once: Callable[[], _T]) -> _T:
        """What `once` returns, tried TRIES times with growing pauses. Raises StoreError, beginning with `failed`."""
        for attempt in range(1, TRIES + 1):
            try:
                return once()
            except _Passing as trouble:
                reason = self._redacted(str(trouble))
                if attempt < TRIES:
                    self._pause(min(trouble.wait, LONGEST_WAIT) or random.uniform(0.5, 1.5) * 2 ** (attempt - 1))
        host = urlsplit(self._endpoint).hostname
        raise StoreError(f"{failed}: {host}: {reason} ({TRIES} tries)", "Check the network, or try again later")

    def _demand(self, answer: requests.Response, what: str, missing: str = "") -> None:
        """Nothing for a good answer; StoreError for any other."""
        if answer.status_code >= 400:
            said = answer.headers.get("X-Error-Message") or ""
            raise self._refusal(answer.status_code, f"read {what}", said, missing)

    def _refusal(self, status: int, what: str, said: str, missing: str = "") -> StoreError:
        """The error that says which right or thing is missing, and the remedy."""
        if status == 401 and self._token:
            return StoreError("the Hub does not accept this HF_TOKEN (401)", self._remedy)
        if status == 401:
            return StoreError(f"{self.label} does not exist, or is private and HF_TOKEN is not set (401)", self._remedy)
        if status == 403:
            return StoreError(f"HF_TOKEN has no right to {what} in {self._repo} (403)", self._remedy)
        if status == 404:
            missing = missing or f"{self.label} does not exist, or HF_TOKEN may not see it"
            return StoreError(f"{missing} (404)", "Check HF_REPO_ID, HF_REPO_BRANCH and REMOTE_DIR")
        said = f": {self._redacted(said)[:160]}" if said else ""
        return StoreError(f"{self.label} answered {_status(status)} to the wish to {what}{said}", "Try again later")

    def _redacted(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text

    def _begin(self, names: Iterable[str]) -> str:
        """The commit to build upon in a repository that did not exist a moment ago.

        Raises Conflict when one of these files is there by now: somebody was quicker, or a Space began with a card.
        """
        self.initialise()
        head = self._head()
        there = set(self.names())
        if self._small(CARD, head)[1] is not None:
            there.add(CARD)
        if there & set(names):
            raise Conflict(f"{self.label} was filled by somebody else", "Try again")
        return head

    def _write(self, what: str, once: Callable[[HfApi], _T]) -> _T:
        """What `once` returns, with every error of the library told in our words."""
        if not self._token:
            raise StoreError(f"HF_TOKEN is not set, so {self.label} can only be read", self._remedy)

        def translated() -> _T:
            try:
                return once(self._open_library())
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                trouble = self._translated(error, what)
            raise trouble

        return self._insist(f"{self.label} could not be written", translated)

    def _translated(self, error: BaseException, what: str) -> Exception:
        """The library's error as Conflict, _Passing or StoreError."""
        if isinstance(error, ValueError) and CARD in str(error):
            said = self._redacted(str(error))[:200]
            return StoreError(f"the Hub refuses the card: {said}", f"Correct the YAML on top of {CARD} in {self._repo}")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, (_Passing, SageError)):
                return cause
            status = getattr(getattr(cause, "response", None), "status_code", 0)
            if status in {409, 412}:
                return Conflict(f"{self.label} was changed by somebody else", "Try again")
            if status:
                return self._refusal(status, what, str(getattr(cause, "server_message", "") or ""))
            error, cause = cause, cause.__cause__
        return StoreError(f"{self.label}: could not {what}: {self._redacted(str(error))[:300]}", "Try again later")

    def _open_library(self) -> HfApi:
        """The library's client, without its own endless waits, retries, progress bars and ambient token."""
        if self._library is None:
            from huggingface_hub import HfApi, set_client_factory
            from huggingface_hub.utils.tqdm import disable_progress_bars

            disable_progress_bars()
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
            set_client_factory(lambda: _bounded_client(*self._timeout))
            self._library = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="sagewheels")
        return self._library


def _bounded_client(connect: float, silence: float) -> Client:
    """An HTTP client that hands every trouble that may pass to `_insist`.

    The library waits for ever by default, and sleeps as long as any Retry-After says.
    """
    import httpx2

    class Bounded(httpx2.Client):
        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            try:
                answer = super().send(request, **options)
            except httpx2.TransportError as error:
                raise _Passing(_plain(error)) from None
            if answer.status_code in _MAY_PASS:
                answer.close()
                raise _Passing(_status(answer.status_code), _seconds(answer.headers.get("Retry-After")))
            # create_repo repeats this one without end and without a pause.
            if answer.status_code == 409 and b"another conflicting operation" in answer.content:
                raise _Passing(_status(409))
            return answer

    return Bounded(follow_redirects=True, timeout=httpx2.Timeout(silence, connect=connect))


def _absent(answer: requests.Response) -> bool:
    """Whether the Hub itself says that something does not exist: a bare 404 may come from anything in between."""
    return answer.status_code == 404 and answer.headers.get("X-Error-Code") in _ABSENT


def _may_write(grants: Mapping[str, Any], owner: str, kind: str, repo: str) -> bool:
    """Whether a fine-grained token holds `repo.write` for this repository or its owner."""
    for scope in grants.get("scoped") or []:
        entity, name = scope.get("entity") or {}, (scope.get("entity") or {}).get("name")
        fits = name == repo if entity.get("type") == kind else name == owner and entity.get("type") in {"user", "org"}
        if fits and "repo.write" in (scope.get("permissions") or []):
            return True
    return False


def _status(code: int) -> str:
    return f"{code} {responses.get(code, '')}".strip()


def _seconds(text: str | None) -> float:
    """A Retry-After; 0 for none, and for a date, which the Hub does not send."""
    return float(text) if text and text.strip().isdigit() else 0.0


def _plain(error: Exception) -> str:
    """What a network error means; the text of the HTTP libraries is three nested reprs."""
    text = f"{type(error).__name__} {error}".lower()
    for mark, meaning in (
        ("timed out", "no answer in time"),
        ("timeout", "no answer in time"),
        ("certificate", "its certificate is not accepted"),
        ("failed to resolve", "the name is not known"),
        ("name or service not known", "the name is not known"),
        ("name resolution", "the name is not known"),
        ("refused", "the connection was refused"),
        ("unreachable", "the network is unreachable"),
    ):
        if mark in text:
            return meaning
    return "the connection broke off"
