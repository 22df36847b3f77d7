"""A Hugging Face Hub on the loopback interface: the real client writes to it, and it misbehaves on order.

Import it before anything that imports huggingface_hub, which reads its environment once.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_jobs import Jobs

# The loopback Hub speaks LFS, not xet, and no token or cache of this user may play a part.
_home = tempfile.mkdtemp(prefix="hf-home-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HOME=_home)
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)

Answer = tuple[int, dict[str, str], bytes]
FOR_EVER = sys.maxsize
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to this network.</body></html>"
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """Each branch is the list of its commits; a commit is an id and all its files."""

    private: bool = False
    branches: dict[str, list[str]] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    shown_at: dict[str, float] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(os.urandom(16)).hexdigest()
        self.commits[sha] = files
        self.branches.setdefault(branch, []).append(sha)
        return sha


@dataclass
class Trouble:
    """What to do wrong, for how many more requests that match, when so many others that match have passed."""

    pattern: str
    kind: str
    times: int
    after: int = 0


class Hub:
    """`with Hub() as hub:` serves at `hub.endpoint`; `requests` and `commits` say what it was asked."""

    def __init__(self, write: tuple[str, ...] = ("hf_write",), read: tuple[str, ...] = ("hf_read",)) -> None:
        self.write, self.read, self.patience = write, read, 2.0
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.commits = self.lfs_puts = 0
        self.commit_seconds = self.lag_seconds = 0.0
        """How long a commit holds its branch, and for how long after it reads still answer with the state before."""
        self._held: dict[str, float] = {}
        self.tokens_seen: set[str] = set()
        self.jobs: Jobs | None = None
        """Where commands run; None: to nobody's."""
        self._troubles: list[Trouble] = []
        self._lock, self.closing = threading.RLock(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        if self.jobs:
            self.jobs.close()
        self._server.shutdown()
        self._server.server_close()

    def misbehave(self, pattern: str, kind: str, times: int = 1, after: int = 0) -> None:
        """Goes wrong for the next `times` requests whose `METHOD /path` matches, once `after` of them have passed.

        Kinds: truncate, corrupt, short (a Content-Length that is too small), stall, hang (in the middle of the body),
        trickle (a byte now and then), endless, gzip (which is no trouble at all), drop, lose (done, but the answer is
        lost), lag, garbage (no HTTP), loop (a redirect to itself), portal (a web page with 200), empty (nothing with
        200), the address that is redirected to, or a status as text, with a Retry-After as `429 120` or, as a date,
        `429 @120`.
        """
        self._troubles.append(Trouble(pattern, kind, times, after))

    def behave(self) -> None:
        """Is well again."""
        self._troubles.clear()

    def create(self, repo: str, files: dict[str, bytes] | None = None, *, kind: str = "dataset", **more: Any) -> Repo:
        """A repository with one commit."""
        made = self.repos[(kind, repo)] = Repo(**more)
        made.add("main", dict(files or {}))
        return made

    def files(self, repo: str, branch: str = "main", kind: str = "dataset") -> dict[str, bytes]:
        """The files at the head of a branch."""
        found = self.repos[(kind, repo)]
        return found.commits[found.branches[branch][-1]]

    def trouble(self, line: str) -> str:
        with self._lock:
            for trouble in self._troubles:
                if trouble.times > 0 and re.search(trouble.pattern, line):
                    if trouble.after > 0:
                        trouble.after -= 1
                        continue
                    trouble.times -= 1
                    return trouble.kind
        return ""

    def answer(self, method: str, url: str, body: bytes, token: str, lag: bool) -> Answer:
        """What a Hub that is well says."""
        path, query = unquote(urlsplit(url).path), parse_qs(urlsplit(url).query)
        if token and token not in self.write + self.read:
            return _problem(401, "Invalid credentials in Authorization header")
        with self._lock:
            for pattern, name in _ROUTES:
                found = re.fullmatch(pattern, f"{method} {path}")
                if found and name == "_commit":
                    return self._slow_commit(path, found.groupdict(), body, token)
                if found:
                    reply: Answer = getattr(self, name)(found.groupdict(), body, token, lag, query)
                    return reply
        return _problem(404, f"no such route: {method} {path}")

    def _slow_commit(self, path: str, at: dict[str, str], body: bytes, token: str) -> Answer:
        """A commit in its time: it holds the branch for as long, and 409 is what others get meanwhile."""
        now = time.monotonic()
        if self._held.get(path, 0.0) > now:
            return _problem(409, "Another commit is in progress on this branch")
        reply = self._commit(at, body, token, False, {})
        if reply[0] == 200 and self.commit_seconds:
            self._held[path] = now + self.commit_seconds
            repo = self.repos[(at["type"][:-1], at["repo"])]
            repo.shown_at[repo.branches[at["rev"]][-1]] = now + self.commit_seconds + self.lag_seconds
        return reply

    def _whoami(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        role = "write" if token in self.write else "read"
        if not token:
            return _problem(401, "Invalid username or password.")
        who = {"type": "user", "name": "me", "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": role}}}
        return _json(who)

    def _create(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        wish = json.loads(body)
        kind, repo = wish.get("type") or "model", f"{wish['organization']}/{wish['name']}"
        if token not in self.write:
            return _problem(403, "You don't have the rights to create this repository")
        address = {"url": f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo}"}
        if (kind, repo) in self.repos:
            return _json({"error": "You already created this repo", **address}, 409)
        self.create(repo, {".gitattributes": b""}, kind=kind, private=wish.get("visibility") == "private")
        return _json(address)

    def _branch(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        repo = self.repos.get((at["type"][:-1], at["repo"]))
        if repo is None:
            return _problem(404, "Repository not found", "RepoNotFound")
        if at["rev"] in repo.branches:
            return _problem(409, "Reference already exists")
        repo.branches[at["rev"]] = list(repo.branches["main"])
        return _json({})

    def _yaml(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        content = json.loads(body)["content"]
        good = re.match(r"---\n([\w-]+:.*\n|- .*\n|  .*\n)*---\n", content)
        return _json({"errors": [], "warnings": []}) if good else _json({"errors": [{"message": "bad YAML"}]}, 400)

    def _info(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        repo, sha, refusal = self._find(at, token, lag)
        return refusal or _json({"id": at["repo"], "sha": sha, "private": repo.private, "siblings": []})

    def _tree(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        repo, sha, refusal = self._find(at, token, lag)
        if refusal:
            return refusal
        under, start = at["path"].strip("/"), int(query.get("cursor", ["0"])[0])
        names = [name for name in sorted(repo.commits[sha]) if not under or name.startswith(under + "/")]
        if under and not names:
            return _problem(404, "Entry not found", "EntryNotFound")
        page = [{"type": "file", "path": name, "size": len(repo.commits[sha][name])} for name in names[start:][:3]]
        path = f"/api/{at['type']}/{at['repo']}/tree/{at['rev']}/{under}?recursive=true&cursor={start + 3}"
        more = {"Link": f'<{self.endpoint}{path}>; rel="next"'} if len(names) > start + 3 else {}
        status, headers, content = _json(page)
        return status, {**headers, **more}, content

    def _preupload(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        refusal = self._find(at, token, lag)[2] or self._no_writer(token)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".whl") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return refusal or _json({"files": modes})

    def _batch(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        objects = []
        for item in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.endpoint}/lfs/{item['oid']}"}}
            actions["verify"] = {"href": f"{self.endpoint}/lfs/{item['oid']}/verify"}
            objects.append({**item, **({} if item["oid"] in self.blobs else {"actions": actions})})
        return self._no_writer(token) or _json({"objects": objects, "transfer": "basic"})

    def _lfs_put(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        if hashlib.sha256(body).hexdigest() != at["oid"]:
            return _problem(400, "sha256 does not match")
        self.blobs[at["oid"]] = body
        self.lfs_puts += 1
        return 200, {}, b""

    def _verify(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        return _json({}) if at["oid"] in self.blobs else _problem(404, "no such object")

    def _commit(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        repo, _, refusal = self._find(at, token, False)
        refusal = refusal or self._no_writer(token)
        if refusal:
            return refusal
        lines = [json.loads(line) for line in body.splitlines()]
        head = repo.branches[at["rev"]][-1]
        if lines[0]["value"].get("parentCommit", head) != head:
            return _problem(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head])
        for line in lines[1:]:
            value = line["value"]
            files[value["path"]] = (
                base64.b64decode(value["content"]) if "content" in value else self.blobs[value["oid"]]
            )
        self.commits += 1
        sha = repo.add(at["rev"], files)
        return _json({"commitOid": sha, "commitUrl": f"{self.endpoint}/{at['type']}/{at['repo']}/commit/{sha}"})

    def _resolve(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        repo, sha, refusal = self._find({"type": "models", **{k: v for k, v in at.items() if v}}, token, lag)
        if refusal:
            return refusal
        if at["path"] not in repo.commits[sha]:
            status, headers, content = _problem(404, "Entry not found", "EntryNotFound")
            return status, {**headers, "X-Repo-Commit": sha}, content
        content = repo.commits[sha][at["path"]]
        return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha}, content

    def _no_jobs(self, owner: str, token: str) -> Answer | None:
        """Why there is nothing to be seen: a token that may not write runs no jobs, nor does one of somebody else."""
        if token not in self.write or owner not in ("me", "team"):
            return _problem(401 if not token else 403, f"Not allowed to run jobs in the namespace {owner}")
        return None if self.jobs else _problem(404, "no jobs here")

    def _jobs(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        """The jobs of a namespace that have these stages and all of these labels."""
        if refusal := self._no_jobs(at["owner"], token):
            return refusal
        assert self.jobs
        labels = dict(one.split("=", 1) for one in query.get("label", []))
        found = [one for one in self.jobs.all.values() if one.owner == at["owner"]]
        found = [one for one in found if one.stage in query.get("stage", [one.stage])]
        return _json([one.shown() for one in found if labels.items() <= one.spec["labels"].items()])

    def _submit(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        if refusal := self._no_jobs(at["owner"], token):
            return refusal
        assert self.jobs
        spec = json.loads(body)
        fault = self.jobs.fault(spec)
        return _problem(400, fault) if fault else _json(self.jobs.submit(at["owner"], spec).shown())

    def _job(self, at: dict[str, str], body: bytes, token: str, lag: bool, query: dict[str, list[str]]) -> Answer:
        """One job, which `cancel` ends."""
        if refusal := self._no_jobs(at["owner"], token):
            return refusal
        assert self.jobs
        found = self.jobs.all.get(at["id"])
        if found is None or found.owner != at["owner"]:
            return _problem(404, "Job not found")
        if at["cancel"]:
            self.jobs.end(found, "CANCELED")
        return _json(found.shown())

    def log_of(self, method: str, url: str, token: str) -> Iterator[bytes] | None:
        """The events of a job's log, None for any other request, or one that may not see it."""
        found = re.fullmatch(_LOGS, f"{method} {urlsplit(url).path}")
        job = self.jobs.all.get(found["id"]) if self.jobs and found else None
        if not found or not self.jobs or not job or self._no_jobs(found["owner"], token):
            return None
        return self.jobs.events(job, self.closing)

    def _find(self, at: dict[str, str], token: str, lag: bool) -> tuple[Repo, str, Answer | None]:
        """Repository and commit, or why not; strangers do not learn whether a private repository exists."""
        repo = self.repos.get((at["type"][:-1], at["repo"]))
        if repo is None or (repo.private and not token):
            return Repo(), "", _problem(404 if token else 401, "Repository not found", "RepoNotFound")
        rev = at.get("rev") or "main"
        now = time.monotonic()
        commits = [one for one in repo.branches.get(rev, []) if repo.shown_at.get(one, 0.0) <= now]
        sha = rev if rev in repo.commits else commits[-2:][0] if lag and commits else (commits or [""])[-1]
        return repo, sha, None if sha else _problem(404, "Invalid rev id", "RevisionNotFound")

    def _no_writer(self, token: str) -> Answer | None:
        return None if token in self.write else _problem(403, "Your token may not write here")


_TYPE = r"(?P<type>datasets|models|spaces)"
_LOGS = r"GET /api/jobs/(?P<owner>[\w-]+)/(?P<id>\w+)/logs"
_ROUTES = (
    (r"GET /api/whoami-v2", "_whoami"),
    (r"POST /api/repos/create", "_create"),
    (r"POST /api/validate-yaml", "_yaml"),
    (r"GET /api/jobs/(?P<owner>[\w-]+)", "_jobs"),
    (r"POST /api/jobs/(?P<owner>[\w-]+)", "_submit"),
    (r"GET /api/jobs/(?P<owner>[\w-]+)/(?P<id>\w+)(?P<cancel>)", "_job"),
    (r"POST /api/jobs/(?P<owner>[\w-]+)/(?P<id>\w+)(?P<cancel>/cancel)", "_job"),
    (rf"GET /api/{_TYPE}/{_REPO}(/revision/(?P<rev>.+))?", "_info"),
    (rf"GET /api/{_TYPE}/{_REPO}/tree/(?P<rev>[^/]+)(?P<path>.*)", "_tree"),
    (rf"POST /api/{_TYPE}/{_REPO}/branch/(?P<rev>[^/]+)", "_branch"),
    (rf"POST /api/{_TYPE}/{_REPO}/preupload/(?P<rev>[^/]+)", "_preupload"),
    (rf"POST /api/{_TYPE}/{_REPO}/commit/(?P<rev>[^/]+)", "_commit"),
    (rf"POST /({_TYPE}/)?{_REPO}\.git/info/lfs/objects/batch", "_batch"),
    (r"PUT /lfs/(?P<oid>\w+)", "_lfs_put"),
    (r"POST /lfs/(?P<oid>\w+)/verify", "_verify"),
    (rf"(GET|HEAD) /((?P<type>datasets|spaces)/)?{_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "_resolve"),
)


def _json(value: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _problem(status: int, text: str, code: str = "") -> Answer:
    answer = _json({"error": text}, status)
    answer[1].update({"X-Error-Message": text, **({"X-Error-Code": code} if code else {})})
    return answer


def _instead(kind: str, endpoint: str, path: str) -> Answer | None:
    """What somebody in between, or a Hub that is out of order, says without looking; None for a kind that looks."""
    if "://" in kind or kind == "loop":
        return 302, {"Location": (endpoint if kind == "loop" else kind) + path}, b""
    if kind == "portal":
        return 200, {"Content-Type": "text/html; charset=utf-8"}, PAGE
    if kind == "empty":
        return 200, {}, b""
    return _status(kind) if kind[:3].isdigit() else None


def _status(kind: str) -> Answer:
    """A refusal such as `503`, `429 120` or, with the moment as a date, `429 @120`; 429 alone says 7 s."""
    code, _, wait = kind.partition(" ")
    status, headers, content = _problem(int(code), "out of order")
    moment = datetime.now(timezone.utc) + timedelta(seconds=int(wait[1:] or 0) if wait.startswith("@") else 0)
    wait = format_datetime(moment, usegmt=True) if wait.startswith("@") else wait
    wait = wait or ("7" if code == "429" else "")
    return status, {**headers, **({"Retry-After": wait} if wait else {})}, content


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news; everything else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    # Headers and body are two writes: without this each answer waits for the client's delayed ACK.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        hub, line = self.hub, f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        hub.requests.append(line)
        hub.tokens_seen.add(token)
        kind = hub.trouble(line)
        if kind == "stall":
            hub.closing.wait(hub.patience)
        if kind == "garbage":
            self.wfile.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        if kind in {"stall", "drop", "garbage"}:
            self.close_connection = True
        elif instead := _instead(kind, hub.endpoint, self.path):
            self._send(*instead)
        elif log := hub.log_of(self.command, self.path, token):
            self._stream(log)
        else:
            answer = hub.answer(self.command, self.path, body, token, kind == "lag")
            if hub.commit_seconds and answer[0] == 200 and "/commit/" in self.path:
                hub.closing.wait(hub.commit_seconds)
            self._send(*answer, kind)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _send(self, status: int, headers: dict[str, str], content: bytes, kind: str = "") -> None:
        if kind == "lose":
            self.close_connection = True
            return
        if kind == "gzip":
            headers, content = {**headers, "Content-Encoding": "gzip"}, gzip.compress(content)
        length = {"Content-Length": str(len(content) // 2 if kind == "short" else len(content))}
        self.send_response(status)
        for name, value in {**headers, **({"Transfer-Encoding": "chunked"} if kind == "endless" else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection |= kind in {"truncate", "hang", "short", "trickle", "endless"}
        if kind in {"truncate", "hang"}:
            content = content[: len(content) // 2]
        elif kind == "corrupt":
            content = bytes(byte ^ 1 for byte in content)
        if kind == "endless":
            self._slowly(itertools.repeat(b"%x\r\n%s\r\n" % (1 << 18, b"0" * (1 << 18))), 0)
        elif kind == "trickle":
            self._slowly((bytes([byte]) for byte in content), 0.05)
        elif self.command != "HEAD":
            self.wfile.write(content)
        if kind == "hang":
            self.hub.closing.wait(self.hub.patience)

    def _stream(self, parts: Iterator[bytes]) -> None:
        """An answer without a length, that goes on for as long as there are parts."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            for part in parts:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")

    def _slowly(self, parts: Iterable[bytes], pause: float) -> None:
        """Writes these parts until the client has had enough or the Hub closes."""
        with contextlib.suppress(OSError):
            for part in parts:
                self.wfile.write(part)
                if self.hub.closing.wait(pause):
                    return

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
