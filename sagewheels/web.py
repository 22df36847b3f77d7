"""Reading over HTTP, with bounded tries, waits and sizes, and with nobody's credentials but those for that very host.

`Web` is what the Hub store reads with; `small` and `download` are for WHEEL_URL, and take file:// too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import responses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from sagewheels.errors import StoreError
from sagewheels.store.files import arriving, explained

if TYPE_CHECKING:
    import requests

    Sign = Callable[[requests.PreparedRequest], object]

TRIES = 3
LONGEST_WAIT = 60.0
"""Seconds: a `Retry-After` beyond this is not waited for in full."""

TIMEOUT = (10.0, 30.0)
"""Seconds for a connection, and of silence."""

_LARGEST = 64 << 20
_LARGEST_MANIFEST = 4 << 20
_CHUNK = 1 << 20
_PORTS = {"http": 80, "https": 443}
_T = TypeVar("_T")


class Trouble(Exception):
    """Why one try failed; another may do better, after `wait` seconds if the server said so, unless it is `final`."""

    def __init__(self, reason: str, wait: float = 0.0, *, final: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.final = wait, final


class Web:
    """Reads from one host, and from wherever it redirects to; nothing is ever taken from ~/.netrc.

    `sign` adds the Authorization header to requests for `home`'s own scheme, host and port, and to no others.
    `secret` appears in no error. `timeout` is (connect, silence) in seconds; `pause` sleeps between tries.
    """

    def __init__(
        self,
        home: str,
        *,
        sign: Sign | None = None,
        secret: str = "",
        timeout: tuple[float, float] = TIMEOUT,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.timeout = timeout
        self._home, self._sign, self._secret, self._pause = home, sign, secret, pause
        self._session: requests.Session | None = None

    def ask(self, url: str, failed: str, largest: int = _LARGEST) -> tuple[requests.Response, bytes]:
        """The answer, of whatever status, and all of its body. Raises StoreError, beginning with `failed`."""

        def once() -> tuple[requests.Response, bytes]:
            content = bytearray()
            with self._get(url) as answer:
                for chunk in answer.iter_content(_CHUNK):
                    content += chunk
                    if len(content) > largest:
                        raise Trouble(f"its answer is larger than {largest >> 20} MiB", final=True)
            return answer, bytes(content)

        return self.insist(failed, once)

    def download(
        self,
        url: str,
        to: Path,
        failed: str,
        *,
        check: Callable[[requests.Response], None],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Writes a file, whole or not at all; `check` raises for an answer that is none. Raises StoreError."""

        def once() -> None:
            # The length on the wire is the length of the file only when nothing compresses it on the way.
            with arriving(to) as target, self._get(url, {"Accept-Encoding": "identity"}) as answer:
                check(answer)
                total, done = _length(answer), 0
                for chunk in answer.iter_content(_CHUNK):
                    done += target.write(chunk)
                    if progress:
                        progress(done, total)
                if total and done != total:
                    raise Trouble(f"{done} of {total} bytes arrived")

        self.insist(failed, once)

    def insist(self, failed: str, once: Callable[[], _T]) -> _T:
        """What `once` returns, tried TRIES times with growing pauses. Raises StoreError, beginning with `failed`."""
        failed += f": {urlsplit(self._home).hostname}"
        for attempt in range(1, TRIES + 1):
            try:
                return once()
            except Trouble as trouble:
                reason, final = self.redacted(str(trouble)), trouble.final
                pause = min(trouble.wait, LONGEST_WAIT) or random.uniform(0.5, 1.5) * 2 ** (attempt - 1)
            if final:
                raise StoreError(f"{failed}: {reason}", "Check the address and the settings of your network")
            if attempt < TRIES:
                self._pause(pause)
        raise StoreError(f"{failed}: {reason} ({TRIES} tries)", "Check the network, or try again later")

    def redacted(self, text: str) -> str:
        """The text without the secret."""
        return text.replace(self._secret, "***") if self._secret else text

    @contextmanager
    def _get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[requests.Response]:
        """One answer to one request, raising Trouble for whatever may be gone next time."""
        import requests

        self._session = self._session or self._opened()
        try:
            # An `auth` of our own also keeps requests from looking for one in ~/.netrc.
            answer = self._session.get(url, headers=headers, auth=self._signed, stream=True, timeout=self.timeout)
        except (OSError, ValueError) as error:
            raise _told(error) from None
        with answer:
            if trouble := busy(answer.status_code, answer.headers.get("Retry-After")):
                raise trouble
            try:
                yield answer
            except requests.RequestException as error:
                raise _told(error) from None

    def _opened(self) -> requests.Session:
        import requests

        signed = self._signed

        class Session(requests.Session):
            def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
                """Called for each redirect; requests itself would look into ~/.netrc here."""
                prepared_request.headers.pop("Authorization", None)
                signed(prepared_request)

        return Session()

    def _signed(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._sign and _origin(request.url or "") == _origin(self._home):
            self._sign(request)
        return request


def small(
    url: str, pause: Callable[[float], None] = time.sleep, *, timeout: tuple[float, float] = TIMEOUT
) -> bytes | None:
    """The content of a small file, None when it is not there. Raises StoreError when nobody answers."""
    if urlsplit(url).scheme == "file":
        try:
            return _path(url).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explained(error, _path(url)) from None
    web = _web(url, timeout, pause)
    answer, content = web.ask(url, f"WHEEL_URL: {shown(url)} could not be read", _LARGEST_MANIFEST)
    if answer.status_code in (403, 404, 410):
        return None
    _demand(answer, url)
    return content


def download(
    url: str,
    to: Path,
    progress: Callable[[int, int], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
    *,
    timeout: tuple[float, float] = TIMEOUT,
) -> None:
    """Writes the file at `url` to `to`, whole or not at all; the caller checks what came. Raises StoreError."""
    if urlsplit(url).scheme == "file":
        return _copy(_path(url), to, progress)
    failed = f"WHEEL_URL: {shown(url)} could not be downloaded"
    web = _web(url, timeout, pause)
    return web.download(url, to, failed, check=lambda answer: _demand(answer, url), progress=progress)


def shown(url: str) -> str:
    """The address without credentials, query and fragment, which may hold a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def busy(status: int, retry_after: str | None = None) -> Trouble | None:
    """The trouble that an answer of this status means, if it may pass: 408, 429 and what goes wrong at the server."""
    return Trouble(status_text(status), _seconds(retry_after)) if status in {408, 429} or status >= 500 else None


def status_text(code: int) -> str:
    """`429 Too Many Requests`."""
    return f"{code} {responses.get(code, '')}".strip()


def meaning(error: Exception) -> str:
    """What a network error means; the text of the HTTP libraries is three nested reprs."""
    text = f"{type(error).__name__} {error}".lower()
    for mark, told in (
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
            return told
    return "the connection broke off"


def _told(error: Exception) -> Trouble:
    """Trouble with the connection may pass; an address or a certificate file that cannot be used stays as it is."""
    import requests

    if isinstance(error, (ValueError, requests.TooManyRedirects)):
        return Trouble("the address, or one that it redirects to, cannot be used", final=True)
    if isinstance(error, requests.RequestException):
        return Trouble(meaning(error))
    return Trouble(str(error), final=True)


def _web(url: str, timeout: tuple[float, float], pause: Callable[[float], None]) -> Web:
    """Knows no token; credentials that somebody wrote into the address itself are sent to where it points."""
    from requests.auth import HTTPBasicAuth

    name, word = (unquote(part or "") for part in (urlsplit(url).username, urlsplit(url).password))
    return Web(url, sign=HTTPBasicAuth(name, word) if name or word else None, timeout=timeout, pause=pause)


def _demand(answer: requests.Response, url: str) -> None:
    if answer.status_code >= 400:
        raise StoreError(f"WHEEL_URL: {shown(url)} answered {status_text(answer.status_code)}", "Check WHEEL_URL")


def _copy(source: Path, to: Path, progress: Callable[[int, int], None] | None) -> None:
    try:
        with source.open("rb") as stream, arriving(to) as target:
            total, done = source.stat().st_size, 0
            while chunk := stream.read(_CHUNK):
                done += target.write(chunk)
                if progress:
                    progress(done, total)
    except OSError as error:
        raise StoreError(f"WHEEL_URL: {source} cannot be read ({error.strerror})", "Check WHEEL_URL") from None


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    """Scheme, host and port, which together are a host of its own; None for what is no address."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None


def _length(answer: requests.Response) -> int:
    """The bytes that are to come, 0 when nobody said."""
    text = answer.headers.get("Content-Length") or ""
    return int(text) if text.isdigit() and not answer.headers.get("Content-Encoding") else 0


def _seconds(text: str | None) -> float:
    """A Retry-After, which is a number or a date; 0 for none."""
    text = (text or "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
