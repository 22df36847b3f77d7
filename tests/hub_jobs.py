"""Jobs of the loopback Hub: what is submitted is held against a strict form, and then really runs, as a process here.

A stand-in image is a set of variables: the PATH with the image's python3, and what its programs need.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FLAVORS = frozenset({"cpu-basic", "cpu-upgrade", "cpu-xl", "cpu-performance"})
_MUST = {"command", "arguments", "environment", "flavor", "secrets", "timeoutSeconds", "labels", "dockerImage"}


@dataclass
class Job:
    """One job: what was asked for, how it stands, the lines of its log, and the process that it is."""

    id: str
    owner: str
    spec: dict[str, Any]
    stage: str = "SCHEDULING"
    message: str | None = None
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"))

    @property
    def is_over(self) -> bool:
        return self.stage not in ("SCHEDULING", "RUNNING")

    def shown(self) -> dict[str, Any]:
        """As the Hub shows it: the values of secrets are not for anybody."""
        kept = {
            key: self.spec[key] for key in ("dockerImage", "command", "arguments", "environment", "flavor", "labels")
        }
        return {
            **kept,
            "id": self.id,
            "createdAt": self.created,
            "secrets": dict.fromkeys(self.spec["secrets"], ""),
            "owner": {"id": "1", "name": self.owner, "type": "user"},
            "status": {"stage": self.stage, "message": self.message},
        }


class Jobs:
    """The jobs of one Hub. `images` are those that exist; `starts`: whether a machine is free for a job."""

    def __init__(self, folder: Path, images: Mapping[str, Mapping[str, str]], tokens: tuple[str, ...]) -> None:
        self.folder, self.images, self._tokens = folder, images, tokens
        self.all: dict[str, Job] = {}
        self.starts, self.cuts = True, list[int]()
        """`cuts`: after how many events each of the next readings of a log breaks off."""
        self.readings = list[int]()
        """How many events each reading of a log has got."""

    def fault(self, spec: dict[str, Any]) -> str:
        """What is wrong with an order, empty for a good one."""
        words = [
            *spec.get("command", [0]),
            *spec.get("environment", {0: 0}).values(),
            *spec.get("labels", {0: 0}).values(),
        ]
        if set(spec) != _MUST:
            return f"unexpected or missing: {sorted(set(spec) ^ _MUST)}"
        if not all(isinstance(word, str) for word in words):
            return "command, environment and labels are of text"
        if any(token in json.dumps({**spec, "secrets": {}}) for token in self._tokens):
            return "a token is in plain sight"
        if spec["flavor"] not in FLAVORS:
            return f"Invalid flavor {spec['flavor']}"
        if not all(re.fullmatch(r"[\w.-]{1,63}", f"{key}") for pair in spec["labels"].items() for key in pair):
            return "Invalid label"
        if type(spec["timeoutSeconds"]) is not int or not 0 < spec["timeoutSeconds"] <= 604800:
            return "Invalid timeout"
        return ""

    def submit(self, owner: str, spec: dict[str, Any]) -> Job:
        """A job that runs from now on, if a machine is free."""
        made = Job(f"{len(self.all):024x}", owner, spec)
        self.all[made.id] = made
        if spec["dockerImage"] not in self.images:
            made.stage, made.message = "ERROR", f"the image {spec['dockerImage']} does not exist"
        elif self.starts:
            self._start(made)
        return made

    def _start(self, job: Job) -> None:
        home = self.folder / job.id
        home.mkdir(parents=True)
        env = {"HOME": str(home), "TMPDIR": str(home), **self.images[job.spec["dockerImage"]]}
        job.process = subprocess.Popen(
            [*job.spec["command"], *job.spec["arguments"]],
            env={**env, **job.spec["environment"], **job.spec["secrets"]},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        job.stage = "RUNNING"
        threading.Thread(target=self._attend, args=(job, job.process), daemon=True).start()
        late = threading.Timer(job.spec["timeoutSeconds"], self.end, (job, "ERROR", "Job timeout"))
        late.daemon = True
        late.start()

    def _attend(self, job: Job, process: subprocess.Popen[str]) -> None:
        job.lines.append(f"===== Job started at {job.created} =====")
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                job.lines.append(line.rstrip("\n"))
        code = process.wait()
        if not job.is_over:
            job.stage = "ERROR" if code else "COMPLETED"
            job.message = f"Job failed with exit code: {code}" if code else None

    def end(self, job: Job, stage: str, message: str | None = None) -> None:
        """Ends what runs; a job that is over stays as it is."""
        if job.is_over:
            return
        job.stage, job.message = stage, message
        if job.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Nothing of any job is left."""
        for job in self.all.values():
            self.end(job, "CANCELED")
            if job.process:
                job.process.wait()

    def events(self, job: Job, closing: threading.Event) -> Iterator[bytes]:
        """The log as server-sent events from its beginning, until the job is over or this reading is cut.

        With a sign of life each second, of 30 on the Hub: a Ctrl-C that arrives in the moment before Python waits for
        the next byte is heeded when that byte comes (1 of 506 runs).
        """
        cut, number, due = self.cuts.pop(0) if self.cuts else None, 0, 0.0
        while not closing.is_set():
            over = job.is_over and (job.process is None or job.process.poll() is not None)
            for line in job.lines[number:]:
                if number == cut:
                    self.readings.append(number)
                    raise ConnectionError("the log is cut here")
                number += 1
                yield b"data: " + json.dumps({"timestamp": job.created, "data": line}).encode() + b"\n\n"
            if over and number == len(job.lines):
                break
            if time.monotonic() > due:
                yield b": keep-alive\n\n"
                due = time.monotonic() + 1
            time.sleep(0.02)
        self.readings.append(number)
