"""Reading over HTTP, with bounded tries, waits and sizes, and with nobody's credentials but those for that very host.

`Web` is what the Hub store reads with; `small` and `download` are for WHEEL_URL, and take file:// too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from sagewheels.errors import StoreError
from sagewheels.files import arriving, copy
from sagewheels.store.tries import Pace, Trouble, busy, insist, meaning, status_text

if TYPE_CHECKING:
    import requests

    Sign = Callable[[requests.PreparedRequest], object]

TIMEOUT = (10.0, 30.0)
"""Seconds for a connection, and of silence."""

_LARGEST = 64 << 20
_LARGEST_FILE = 8 << 30
_LARGEST_MANIFEST = 4 << 20
_CHUNK = 1 << 20
_PORTS = {"http": 80, "https": 443}


class Web:
    """Reads from one host, and from wherever it redirects to; takes nothing from ~/.netrc.

    `sign` adds the Authorization header to requests for `home`'s own scheme, host and port, and to no others.
    `timeout` is (connect, silence) in seconds; `pause` sleeps between tries.
    """

    def __init__(
        self,
        home: str,
        *,
        sign: Sign | None = None,
        timeout: tuple[float, float] = TIMEOUT,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._home, self._sign, self._timeout, self._pause = home, sign, timeout, pause
        self._session: requests.Session | None = None

    def ask(
        self,
        url: str,
        failed: str,
        largest: int = _LARGEST,
        *,
        check: Callable[[requests.Response, bytes], None] | None = None,
    ) -> tuple[requests.Response, bytes]:
        """The answer, of whatever status, and all of its body. Raises StoreError, beginning with `failed`.

        `check` raises Trouble for what did not arrive as it was sent, and is then asked for again.
        """

        def once() -> tuple[requests.Response, bytes]:
            content = bytearray()
            with self._get(url) as answer:
                for chunk in _body(answer, largest):
                    content += chunk
            if check:
                check(answer, bytes(content))
            return answer, bytes(content)

        return insist(self._at_host(failed), once, self._pause)

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
                for chunk in _body(answer, _LARGEST_FILE):
                    done += target.write(chunk)
                    if progress:
                        progress(done, total)
                if total and done != total:
                    raise Trouble(f"{done} of {total} bytes arrived")

        insist(self._at_host(failed), once, self._pause)

    def lines(self, url: str, *, check: Callable[[requests.Response], None]) -> Iterator[str]:
        """The lines of an answer as they come, for as long as they come, be that hours.

        Raises Trouble when the answer breaks off, or is silent for longer than `timeout`; there is one try.
        """
        with self._get(url) as answer:
            check(answer)
            rest = b""
            while chunk := answer.raw.read1(_CHUNK, decode_content=True):
                *whole, rest = (rest + chunk).split(b"\n")
                if len(rest) > _CHUNK:
                    raise Trouble("a line of it has no end")
                yield from (line.decode("utf-8", "replace").rstrip("\r") for line in whole)

    def _at_host(self, failed: str) -> str:
        return f"{failed}: {urlsplit(self._home).hostname}"

    @contextmanager
    def _get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[requests.Response]:
        """One answer to one request; raises Trouble for all that goes wrong on the way, and for a busy server."""
        import requests
        from urllib3.exceptions import HTTPError

        self._session = self._session or self._opened()
        try:
            # An `auth` of our own also keeps requests from looking for one in ~/.netrc.
            answer = self._session.get(url, headers=headers, auth=self._signed, stream=True, timeout=self._timeout)
        except (OSError, ValueError) as error:
            raise _told(error) from None
        with answer:
            if trouble := busy(answer.status_code, answer.headers.get("Retry-After")):
                raise trouble
            try:
                yield answer
            except (requests.RequestException, HTTPError) as error:
                raise _told(error) from None

    def _opened(self) -> requests.Session:
        import requests

        signed = self._signed

        class Session(requests.Session):
            def rebuild_auth(self, prepared_request: requests.PreparedRequest, _: requests.Response) -> None:
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
            return _path(url).read_bytes() if _path(url).is_file() else None
        except OSError as error:
            raise _unreadable(error, url) from None
    failed = f"WHEEL_URL: {shown(url)} could not be read"
    answer, content = _web(url, timeout, pause).ask(url, failed, _LARGEST_MANIFEST)
    if answer.status_code in {403, 404, 410}:
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
        try:
            return copy(_path(url), to, progress)
        except OSError as error:
            raise _unreadable(error, url) from None
    failed = f"WHEEL_URL: {shown(url)} could not be downloaded"
    web = _web(url, timeout, pause)
    return web.download(url, to, failed, check=lambda answer: _demand(answer, url), progress=progress)


def shown(url: str) -> str:
    """The address without credentials, query and fragment, which may hold a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _web(url: str, timeout: tuple[float, float], pause: Callable[[float], None]) -> Web:
    """Knows no token; credentials that somebody wrote into the address itself go to where it points."""
    from requests.auth import HTTPBasicAuth

    name, word = (unquote(part or "") for part in (urlsplit(url).username, urlsplit(url).password))
    return Web(url, sign=HTTPBasicAuth(name, word) if name or word else None, timeout=timeout, pause=pause)


def _body(answer: requests.Response, largest: int) -> Iterator[bytes]:
    """The body in pieces, as they come. Raises Trouble for one that is too large, or slower than `Pace` allows."""
    pace, done = Pace(), 0
    # requests' own iteration returns when a piece is full: to a byte now and then it would listen for days.
    while chunk := answer.raw.read1(_CHUNK, decode_content=True):
        pace.arrived(len(chunk))
        done += len(chunk)
        if done > largest:
            raise Trouble(f"the answer is larger than {largest >> 20} MiB", final=True)
        yield chunk


def _demand(answer: requests.Response, url: str) -> None:
    if answer.status_code >= 400:
        raise StoreError(f"WHEEL_URL: {shown(url)} answered {status_text(answer.status_code)}", "Check WHEEL_URL")


def _unreadable(error: OSError, url: str) -> StoreError:
    return StoreError(f"WHEEL_URL: {shown(url)} cannot be read ({error.strerror})", "Check WHEEL_URL")


def _told(error: Exception) -> Trouble:
    """A connection may be better next time; an address or a file of certificates that cannot be used is not."""
    import requests

    if isinstance(error, (ValueError, requests.TooManyRedirects)):
        return Trouble("the address, or one that it redirects to, cannot be used", final=True)
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return Trouble(str(error), final=True)
    return Trouble(meaning(error))


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what differs in any of these is another host. Raises ValueError for no address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _length(answer: requests.Response) -> int:
    """The bytes that are to come, 0 when nobody said."""
    text = answer.headers.get("Content-Length") or ""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) and not answer.headers.get("Content-Encoding") else 0
