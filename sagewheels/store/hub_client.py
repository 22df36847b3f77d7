"""huggingface_hub, bounded: its waits, retries and errors become ours. Loaded only when something is written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sagewheels.errors import SageError, StoreError
from sagewheels.store import Conflict
from sagewheels.store.hub_repo import CARD, Repo
from sagewheels.store.tries import Pace, Trouble, busy, insist, meaning, page_instead, status_text

if TYPE_CHECKING:
    from httpx2 import Client
    from huggingface_hub import HfApi

_T = TypeVar("_T")
_LARGEST = 64 << 20


class HubClient:
    """Writes to one repository through the library. `timeout` is (connect, silence), as for reading."""

    def __init__(self, repo: Repo, timeout: tuple[float, float], pause: Callable[[float], None]) -> None:
        self._repo, self._timeout, self._pause = repo, timeout, pause
        self._api: HfApi | None = None

    def write(self, what: str, once: Callable[[HfApi], _T], failed: str = "") -> _T:
        """What `once` returns after bounded tries. Raises Conflict, and StoreError for every other error.

        The latter begins with `failed` when nothing came of any try; default: the store could not be written.
        """
        if not self._repo.token:
            raise self._repo.unwritable()

        def translated() -> _T:
            try:
                return once(self._opened())
            # To what somebody in between answers, the library says KeyError, TypeError and whatever else there is.
            except Exception as error:
                trouble = self._translated(error, what)
            raise trouble

        host = urlsplit(self._repo.endpoint).hostname
        return insist(f"{failed or f'{self._repo.label} could not be written'}: {host}", translated, self._pause)

    def _opened(self) -> HfApi:
        """The library's client, without its own endless waits, retries, progress bars and ambient token."""
        if self._api is None:
            from huggingface_hub import HfApi, set_client_factory
            from huggingface_hub.utils.tqdm import disable_progress_bars

            disable_progress_bars()
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
            set_client_factory(lambda: _bounded(*self._timeout))
            self._api = HfApi(endpoint=self._repo.endpoint, token=self._repo.token, library_name="sagewheels")
        return self._api

    def _translated(self, error: BaseException, what: str) -> Exception:
        """The library's error as Conflict, Trouble or StoreError."""
        repo, redacted = self._repo, self._repo.redacted
        if isinstance(error, ValueError) and CARD in str(error):
            remedy = f"Correct the YAML on top of {CARD} in {repo.name}"
            return StoreError(f"the Hub refuses the card: {redacted(str(error))[:200]}", remedy)
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, (Trouble, SageError)):
                return cause
            status = getattr(getattr(cause, "response", None), "status_code", 0)
            if status in {409, 412}:
                return Conflict(f"{repo.label} was changed by somebody else", "Try again")
            if status:
                return repo.refusal(status, what, str(getattr(cause, "server_message", "") or ""))
            error, cause = cause, cause.__cause__
        if isinstance(error, json.JSONDecodeError):
            return Trouble("that is not what a Hub answers")
        said = " ".join(f"{type(error).__name__} {redacted(str(error))}".split())[:200]
        return StoreError(f"{repo.label}: could not {what}: {said}", "Check the network, or try again later")


def _bounded(connect: float, silence: float) -> Client:
    """An HTTP client that raises Trouble for all that may pass.

    The library waits for ever by default, and sleeps as long as any Retry-After says.
    """
    import httpx2

    class Paced(httpx2.SyncByteStream):
        def __init__(self, stream: httpx2.SyncByteStream) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            pace, done = Pace(), 0
            for part in self._stream:
                pace.arrived(len(part))
                done += len(part)
                if done > _LARGEST:
                    raise Trouble(f"the answer is larger than {_LARGEST >> 20} MiB", final=True)
                yield part

        def close(self) -> None:
            self._stream.close()

    class Bounded(httpx2.Client):
        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            try:
                answer = super().send(request, **{**options, "stream": True})
                assert isinstance(answer.stream, httpx2.SyncByteStream)
                answer.stream = Paced(answer.stream)
                answer.read()
            except httpx2.TooManyRedirects:
                raise Trouble("it redirects without end", final=True) from None
            except httpx2.RequestError as error:
                raise Trouble(meaning(error)) from None
            if trouble := busy(answer.status_code, answer.headers.get("Retry-After")):
                raise trouble
            if answer.content and (trouble := page_instead(answer.status_code, answer.headers.get("Content-Type"))):
                raise trouble
            # create_repo repeats this one without end and without a pause.
            if answer.status_code == 409 and b"another conflicting operation" in answer.content:
                raise Trouble(status_text(409))
            return answer

    return Bounded(follow_redirects=True, timeout=httpx2.Timeout(silence, connect=connect))
