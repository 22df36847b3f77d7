"""What runs on a machine of a fleet: the bootstrap script, with the settings, for as long as somebody holds the line.

All of it goes through stdin of a `bash -s`: no argument list, which other users of that machine see, holds a setting or
a secret. The secret is a variable of the inner bash, which the bootstrap script exports to sagewheels alone.

stdin stays open. When it ends, because of Ctrl-C, a time limit or a lost connection, the run is told to stop (SIGTERM,
which every task takes as Ctrl-C) and 20 seconds later ended.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from sagewheels.resources import ROOT

COMMAND = "bash -s"
"""The whole command line on the other machine."""

GRACE = 20
"""Seconds between being told to stop and being ended."""

# Behind the run stands what still reads when nobody does any more: a task that ends in good order has something to say,
# and must not die of saying it. The run and the leash each have a process group (set -m); the shell that waits for the
# run is in it, and stays. What bash itself would say of them when they are killed is for nobody.
_OUTER = """\
sagewheels_fleet() {{
  local folder run leash code
  exec 3<&0 </dev/null 2>&1
  folder=$(umask 077; mktemp -d "${{TMPDIR:-/tmp}}/sagewheels-fleet.XXXXXX") || exit 2
  trap 'rm -rf -- "$folder"' EXIT
{setup}
  set -m
  (trap : TERM
   printf %s "$inner" | bash -s -- {words} 2>&1 | (trap '' TERM PIPE; cat; cat >/dev/null)
   exit "${{PIPESTATUS[1]}}") 3<&- &
  run=$!
  (cat <&3; kill -TERM -- "-$run"; sleep {grace}; kill -KILL -- "-$run") >/dev/null 2>&1 &
  leash=$!
  exec 3<&- >/dev/null 2>&1
  wait "$run"
  code=$?
  kill -KILL -- "-$leash"
  exit "$code"
}}
sagewheels_fleet
"""


def text(
    words: Sequence[str], variables: Mapping[str, str], files: Mapping[str, str], secrets: Mapping[str, str]
) -> str:
    """What `bash -s` is given to read: `words` are those of sagewheels, `files` the content of the file a key names.

    The files are in a folder that only that user can read, and that is gone at the end.
    """
    setup = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    for key, content in files.items():
        setup += [f'(umask 077; printf %s {shlex.quote(content)} >"$folder/{key}")', f'export {key}="$folder/{key}"']
    hidden = [f"{key}={shlex.quote(value)}" for key, value in secrets.items() if value]
    setup.append(f"inner={shlex.quote(chr(10).join([*hidden, bootstrap()]))}")
    return _OUTER.format(setup="\n".join(setup), words=shlex.join(words), grace=GRACE)


def bootstrap() -> str:
    """The text of the script that sets up a bare machine, as the README pipes it."""
    return (ROOT / "install_sageattention220_wheel.sh").read_text(encoding="utf-8")
