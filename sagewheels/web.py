"""Plain addresses, for WHEEL_URL alone: small files and downloads over http(s), and file:// for tests and USB disks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sagewheels.errors import StoreError

if TYPE_CHECKING:
    import requests

_TRIES = 3
_TIMEOUT = (10.0, 30.0)
_SMALL = 4_000_000


def small(url: str, pause: Callable[[float], None] = time.sleep) -> bytes | None:
    """The content of a small file, None when it is not there. Raises StoreError when nobody answers."""
    if urlsplit(url).scheme == "file":
        path = _path(url)
        return path.read_bytes() if path.is_file() else None
    with _answer(url, pause) as answer:
        if answer.status_code in (403, 404, 410):
            return None
        _demand(answer, url)
        return answer.raw.read(_SMALL, decode_content=True)


def download(
    url: str, to: Path, progress: Callable[[int, int], None], pause: Callable[[float], None] = time.sleep
) -> None:
    """Writes the file at `url` to `to`; the caller checks what came. Raises StoreError."""
    if urlsplit(url).scheme == "file":
        try:
            shutil.copyfile(_path(url), to)
        except OSError as error:
            raise StoreError(f"{url} cannot be read ({error.strerror})", "Check WHEEL_URL") from None
        return
    import requests

    with _answer(url, pause) as answer, to.open("wb") as stream:
        _demand(answer, url)
        total = int(answer.headers.get("Content-Length") or 0)
        try:
            for chunk in answer.iter_content(1 << 20):
                stream.write(chunk)
                progress(stream.tell(), total)
        except requests.RequestException:
            raise StoreError(f"the download of {_shown(url)} broke off", "Try again") from None


@contextmanager
def _answer(url: str, pause: Callable[[float], None]) -> Iterator[requests.Response]:
    """The answer to one GET, after bounded tries; no token goes along, and no ~/.netrc is looked at."""
    import requests

    session = requests.Session()
    session.trust_env = True
    problem = ""
    for attempt in range(_TRIES):
        try:
            answer = session.get(url, stream=True, timeout=_TIMEOUT, auth=lambda request: request)
        except requests.RequestException as error:
            problem = type(error).__name__
        else:
            if answer.status_code < 500:
                with answer:
                    yield answer
                return
            problem = str(answer.status_code)
            answer.close()
        if attempt + 1 < _TRIES:
            pause(2.0**attempt)
    raise StoreError(f"{_shown(url)} does not answer ({problem}, {_TRIES} tries)", "Check WHEEL_URL and the network")


def _demand(answer: requests.Response, url: str) -> None:
    if answer.status_code >= 400:
        raise StoreError(f"{_shown(url)} answered {answer.status_code}", "Check WHEEL_URL")


def _shown(url: str) -> str:
    """The address without credentials and query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))
