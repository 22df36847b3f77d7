"""Writes the note by which the next `auto` can answer at once: see quick.py, which reads it."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

from sagewheels import config, exchange, installed, quick, record, stack, target
from sagewheels.errors import SageError, shown
from sagewheels.files import arriving
from sagewheels.job import Job
from sagewheels.resources import ROOT

_SETTLED = 2.0
"""Seconds after which a change of a file cannot share its times with the one that was seen."""

_OTHERS = (
    "PATH HOME VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH LD_PRELOAD CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES "
    "CUDA_DEVICE_ORDER"
)
"""Variables besides the settings that lead to another target, other programs or other GPUs."""


def note(job: Job, topic: str, is_in_place: Callable[[Job], str]) -> None:
    """Notes that there is nothing to do, if that is so; to fail costs nothing but the next run's time.

    All that the answer rests on is marked first, and only then everybody is asked anew: what changes before its mark
    changes the answer, and what changes after it no longer matches its mark.
    """
    wish = quick.asked(sys.argv[1:])
    if wish is None or wish[0] != topic or job.dry_run:
        return
    environ = dict(os.environ)
    path = quick.place(job.settings.work_dir, wish)
    try:
        if quick.answer(sys.argv[1:], environ) or not _is_quiet(job):
            return
        gpus = quick.gpus(environ)
        resting = _rests_on(job)
        if resting is None or gpus.get("enough") is False:
            return
        now = time.time()
        contents, stats = quick.contents(resting["contents"]), quick.stats(resting["stats"])
        if any(now - one[-1] / 1e9 < _SETTLED for one in stats.values()):
            return
        again = Job(job.settings)
        line = is_in_place(again)
        if not line or _rests_on(again) != resting:
            return
        names = sorted({*config.KEYS, *config.SECRETS, *_OTHERS.split()})
        whole = {
            "asked": wish,
            "here": quick.here(),
            "noted": now,
            "names": names,
            "environ": quick.of_environ(names, environ),
            "gpus": gpus,
            "contents": contents,
            "stats": stats,
            "line": f"[{topic}] {shown(line)}",
        }
        with arriving(path) as stream:
            stream.write(json.dumps(whole, indent=1, sort_keys=True).encode("utf-8"))
            os.fchmod(stream.fileno(), 0o600)
    except (SageError, OSError, ValueError):
        pass


def _is_quiet(job: Job) -> bool:
    """Whether the settings are read without a warning, and are those of this job: the next run would not repeat it."""
    said = io.StringIO()
    with redirect_stderr(said):
        pairs = (word.partition("=") for word in quick.asked(sys.argv[1:]) or ())
        found = config.load(flags={flag[2:]: value for flag, given, value in pairs if given})
    return not said.getvalue() and not config.exposed() and Job(found).settings == job.settings


def _rests_on(job: Job) -> dict[str, list[str]] | None:
    """Every file and folder that decides whether something is to do; None where the target's imports are not plain."""
    found, one, settings = job.target, job.recipe, job.settings
    asked = target.relies_on(settings, found, job.packages)
    if asked is None:
        return None
    info = found.dist_info.get(one.name)
    if info is None:
        return None
    ours = [info.parent / row[0] for row in record.rows(info)]
    trusted = [Path(path) for path in (settings.trusted_signers, settings.revoked_signers) if path]
    state = installed.state_path(settings, found, one)
    aside, pending = exchange.folder(found, one.name), stack.pending_path(settings, found)
    manifests = [one.file, one.file.parent, *(patch.path for patch in one.patches)]
    dotenvs = [ROOT / ".env", Path.cwd() / ".env"]
    tool = [*Path(__file__).parent.rglob("*.py"), ROOT / "tasks.py"]
    kept = [*ours, *trusted, state, aside, pending, *manifests, *dotenvs]
    contents = {*asked["contents"], *(str(path) for path in kept if "__pycache__" not in path.parts)}
    return {
        "contents": sorted(contents),
        "stats": sorted({*asked["stats"], *(str(path) for path in tool if path.is_file())}),
    }
