"""What a run says last: what is installed, where it came from, the proof on this GPU, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sagewheels import facts, ui
from sagewheels.errors import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sagewheels.job import Job

_WIDEST = 100


@contextmanager
def panel(job: Job) -> Iterator[None]:
    """Says it when the block has ended, also with an error that came after the machine worked."""
    try:
        yield
    finally:
        show(job)


def show(job: Job) -> None:
    """A panel on a terminal, `[done] key: value` elsewhere; of a run that changed nothing only what to do next."""
    report, live = job.report, ui.is_live()
    if report.get("changed") is False:
        for text in report.get("next", ()) if live else ():
            ui.say("next", text)
    elif report.get("changed") and report.get("passed"):
        if live:
            ui.draw(drawn(report, width=ui.width()))
        else:
            for key, value in lines(report):
                ui.say("done", f"{key}: {value}")


def lines(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts for people, in the order in which they ask. Pure."""
    package, wheel, target = report["package"], report["wheel"], report["target"]
    yield "installed", f"{package['name']} {package['version']}"
    size = f", {ui.size(wheel['size'])}" if wheel["size"] else ""
    yield "wheel", f"{wheel['file']}{size}"
    yield "from", _from(report)
    yield "into", f"{target['python']}, torch {target['torch']}, CUDA {target['cuda']}"
    for proof in report["proof"]:
        yield "proof", _proof(proof)
        if speed := _speed(proof):
            yield "speed", speed
    if not report["proof"]:
        yield "proof", report["standing"]
    if "published" in report:
        yield "published", f"in {report['published']}" if report["published"] else "no, it is in the wheelhouse alone"
    for text in report["next"]:
        yield "next", text


def _from(report: Mapping[str, Any]) -> str:
    origin, sha256 = report["origin"], report["wheel"]["sha256"]
    took = [step["seconds"] for step in report["steps"] if step["name"] == "build"]
    words = {
        facts.BUILT: f"built here in {ui.duration(sum(took))}",
        facts.STORE: f"fetched from {origin['where']}",
        facts.WHEELHOUSE: f"the wheelhouse {origin['where']}",
        facts.ADDRESS: "fetched from WHEEL_URL",
    }
    return f"{words[origin['kind']]}, {f'sha256 {sha256[:12]}' if sha256 else 'no sha256 to check'}"


def _proof(proof: Mapping[str, Any]) -> str:
    figures = f"worst cosine {proof['worst_cosine']:.4f}, worst relative L2 {proof['worst_relative_l2']:.4f}"
    return f"{proof['gpu']} (arch {proof['arch']}): {ui.count(proof['cases'], 'case')} right, {figures}"


def _speed(proof: Mapping[str, Any]) -> str:
    """Against SDPA, at the longest sequence that was timed; empty where none was."""
    timed = proof["speedup"]
    if not timed:
        return ""
    longest = max(timed, key=lambda shape: int(shape.split("x")[2]))
    return f"{timed[longest]:.2f}x SDPA at length {longest.split('x')[2]} ({longest})"


def drawn(report: Mapping[str, Any], *, width: int) -> RenderableType:
    """The same in a frame. Pure."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")
    for key, value in lines(report):
        grid.add_row(Text(key, style="dim"), Text(shown(value), style="bold" if key == "next" else ""))
    name, proven = report["package"]["name"], bool(report["proof"])
    title = f"{name} works here, proven" if proven else f"{name} is installed, not proven"
    style = "green" if proven else "yellow"
    frame = Panel(grid, title=Text(shown(title), style=f"bold {style}"), border_style=style, title_align="left")
    frame.width = min(width, _WIDEST)
    return frame
