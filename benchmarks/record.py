"""Records a real session as an SVG: the command runs in a terminal of tmux, whose screen is drawn by rich.

    python benchmarks/record.py --columns 100 --out docs/session.svg -- sagewheels demo

Run it in a folder with a neutral name, with HOME set to it: paths are shown as they are. Needs tmux.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

_LINES = 1000
_LARGEST = 150_000


def main() -> None:
    """Writes the SVG, and ends with the exit code of the command."""
    parser = argparse.ArgumentParser(description="Records a command as an SVG.")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600, help="the longest that the command may take")
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    screen, code = record(asked.command, asked.columns, asked.seconds)
    text = drawn(f"$ {shlex.join(asked.command)}\n{screen}", asked.columns, title=asked.command[0])
    if len(text.encode()) > _LARGEST:
        raise SystemExit(f"{asked.out} would have {len(text.encode())} bytes, more than {_LARGEST}")
    asked.out.write_text(text, encoding="utf-8")
    raise SystemExit(code)


def record(command: list[str], columns: int, seconds: float) -> tuple[str, int]:
    """What is on the screen, with its colours, when the command has ended; and its exit code."""
    server = ["tmux", "-L", f"record-{os.getpid()}"]
    shown = ["-x", str(columns), "-y", str(_LINES)]
    # The screen stays when the command has ended; how it ended is asked of the pane.
    keep = [";", "set-option", "remain-on-exit", "on"]
    subprocess.run([*server, "-f", os.devnull, "new-session", "-d", *shown, shlex.join(command), *keep], check=True)
    try:
        end = time.monotonic() + seconds
        while _pane(server, "#{pane_dead}") != "1" and time.monotonic() < end:
            time.sleep(0.2)
        code = _pane(server, "#{pane_dead_status}")
        screen = subprocess.run(
            [*server, "capture-pane", "-p", "-e", "-S", "-"], check=True, capture_output=True, text=True
        ).stdout
    finally:
        subprocess.run([*server, "kill-server"], check=False)
    lines = [line.rstrip() for line in screen.splitlines() if "Pane is dead" not in line]
    return "\n".join(lines).rstrip() + "\n", int(code or 124)


def _pane(server: list[str], what: str) -> str:
    argv = [*server, "display-message", "-p", what]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def drawn(screen: str, columns: int, *, title: str) -> str:
    """The SVG of a screen."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=columns, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(screen), overflow="crop", no_wrap=True)
        # rich names fonts of a server, which a picture in a README shall not ask.
        return re.sub(r"@font-face\s*{[^}]*}\s*", "", console.export_svg(title=title))


if __name__ == "__main__":
    main()
