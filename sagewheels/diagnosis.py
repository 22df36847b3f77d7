"""What a log shows: `doctor --log` tells it, and the error line of a step that failed names the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sagewheels import logfile, symptoms, ui
from sagewheels.job import Job
from sagewheels.symptomrows import Where
from sagewheels.symptoms import Diagnosis, Finding


def show(job: Job, name: str) -> None:
    """Says what the log `name` shows (`-`: stdin), and fills the report. Raises UsageError for what cannot be read."""
    if name == "-":
        ui.say("doctor", "reading the log from stdin")
    with logfile.opened(name) as stream:
        found = symptoms.diagnose(logfile.blocks(stream))
    job.report["findings"] = [one.facts() for one in found.findings]
    job.report["lines"] = found.lines
    job.report["errors"] = [{"line": number, "text": text} for number, text in found.errors]
    for line in _told(found):
        ui.say("doctor", line)


def _told(found: Diagnosis) -> Iterator[str]:
    read = f"{ui.count(found.lines, 'line')} read"
    if not found.findings:
        yield from _unknown(found, read)
        return
    yield f"{read}: {ui.count(len(found.findings), 'symptom')} that sagewheels knows, the likely cause first"
    for place, one in enumerate(found.findings, 1):
        yield from _explained(place, one)


def _explained(place: int, one: Finding) -> Iterator[str]:
    yield f"{place}. {one.row.id}, line {one.line}: {one.text}"
    yield f"   why: {one.cause}"
    yield f"   do: {one.remedy()}"
    yield f"   seen: {one.row.source}"


def _unknown(found: Diagnosis, read: str) -> Iterator[str]:
    yield f"{read}: nothing in it is a symptom that sagewheels knows"
    if not found.errors:
        yield "no line of it looks like an error either: is it the log of the run that failed, and whole?"
        return
    yield "these lines look like errors; the first one is most often the cause:"
    yield from (f"   line {number}: {text}" for number, text in found.errors)
    yield "to report it, send the log (without tokens) and what doctor prints, in an issue of this project"


def of_file(log: Path, where: Where) -> str:
    """What to do about what a log of ours shows first, empty where nothing is known. Never fails."""
    try:
        with log.open("rb") as stream:
            found = symptoms.diagnose(logfile.blocks(stream)).findings
    except OSError:
        return ""
    return found[0].remedy(where) if found else ""
