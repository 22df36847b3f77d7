"""What `--json` says is how it ended: never 0 for what did not end well, and one line where it cannot be said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.context import Context

from sagewheels import run
from sagewheels.errors import Interrupted
from sagewheels.resources import ROOT


def test_a_second_interrupt_while_the_first_is_dealt_with_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "Interrupted", _OnlyThen())
    with pytest.raises(Interrupted), run.job(Context(), locked=False, as_json=True):
        raise KeyboardInterrupt
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 130
    assert told["error"]["what"] == "interrupted: run the same command again, it goes on where it can"


class _OnlyThen:
    """The first time it is Ctrl-C that comes, as it may in any line."""

    def __init__(self) -> None:
        self._times = 0

    def __call__(self, what: str) -> Interrupted:
        self._times += 1
        if self._times == 1:
            raise KeyboardInterrupt
        return Interrupted(what)


def test_an_end_that_nobody_foresaw_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), run.job(Context(), locked=False, as_json=True):
        raise SystemExit
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], told["error"]["what"]) == (1, "unexpected SystemExit")


@pytest.mark.parametrize("setting", ["TORCH_CHANNEL=pypi", "HF_REPO_TYPE=none"])
def test_json_that_cannot_be_written_is_one_line(tmp_path: Path, setting: str) -> None:
    (tmp_path / "a.log").write_text("fine\n")
    key, _, value = setting.partition("=")
    argv = [sys.executable, "-m", "sagewheels", "doctor", "--log", "a.log", "--json"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), key: value}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, cwd=tmp_path, env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    if key == "HF_REPO_TYPE":
        assert (done.returncode, last.partition(" in ")[0]) == (2, "HF_REPO_TYPE='none'")
    else:
        what = "the JSON could not be written: No space left on device. It is done, but nobody could read how."
        assert (done.returncode, last) == (1, what)
    assert "Traceback" not in done.stderr
