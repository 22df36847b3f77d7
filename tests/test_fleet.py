"""A fleet, against a real sshd: what is piped there is the real bootstrap script; each host fails in its own way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagewheels import config, extras, fleet, fleetrecord, hosts, installer, leash, proc
from sagewheels.errors import HostsFailed, UsageError
from sagewheels.fleet import Asked
from sagewheels.fleetrecord import Outcome
from sagewheels.job import Job
from sagewheels.remote import Lines, Reach
from sagewheels.resources import ROOT
from tests import sshd, wheels
from tests.recorder import Recorder
from tests.sshd import Server

TOKEN = "hf_averysecrettokenofmine1234"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd.serving(tmp_path_factory.mktemp("fleet") / "sshd") as server:
        yield server


@pytest.fixture
def server(serving: Server) -> Server:
    """The same server, on whose machine nothing has run yet."""
    for path in serving.away.iterdir():
        if path.is_file():
            path.unlink()
    return serving


class Fleet:
    """The command, as cron runs it: no terminal, no stdin, next to nothing in the environment."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "PYTHONPATH": str(ROOT),
            "SAGEWHEELS_REPO": str(server.away / "origin"),
            "HF_TOKEN": TOKEN,
        }

    def argv(self, text: str, *more: str) -> list[str]:
        (self.folder / "hosts").write_text(text)
        own = ["--hosts", "hosts", "--ssh-config", str(self.server.config)]
        return [sys.executable, "-m", "sagewheels", "fleet", *own, *more]

    def __call__(self, text: str, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"cwd": self.folder, "env": {**self.env, **env}, "stdin": subprocess.DEVNULL}
        return subprocess.run(self.argv(text, *more), **given, capture_output=True, text=True, check=False, timeout=60)

    def start(self, text: str, *more: str) -> subprocess.Popen[str]:
        given: dict[str, Any] = {"cwd": self.folder, "env": self.env, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(self.argv(text, *more), **given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    @property
    def last(self) -> Path:
        """The folder of the last run."""
        return max((self.folder / "logs" / "fleet").iterdir())

    @property
    def codes(self) -> dict[str, int | None]:
        """Of the last run, by host."""
        return {one["host"]: one["exit_code"] for one in json.loads((self.last / "result.json").read_text())["hosts"]}


@pytest.fixture
def command(server: Server, tmp_path: Path) -> Fleet:
    return Fleet(server, tmp_path)


def run(server: Server, text: str, *, parallel: int = 8, retries: int = 0, minutes: float = 1.0) -> dict[str, Outcome]:
    """The outcomes of a run in this process, which may have failed, without pauses."""
    job = Job(config.load({"SAGEWHEELS_REPO": str(server.away / "origin"), "PATH": os.environ["PATH"]}))
    asked = Asked(words=("auto",), parallel=parallel, retries=retries, minutes=minutes, pause=0)
    found = hosts.parse(text, "hosts")
    scripts = {host.name: fleet._script(job, asked, host) for host in found}
    try:
        fleet._run(job, asked, found, scripts, Reach(job.settings.environ, config=str(server.config)))
    except HostsFailed:
        pass
    report: Any = job.report["fleet"]
    return {one["host"]: Outcome(**one) for one in report["hosts"]}


def wait_for(path: Path) -> str:
    end = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text().strip()


# What a run is


def test_every_host_for_itself(command: Fleet) -> None:
    text = """
    good TORCH_CHANNEL=pypi PYTHON_BIN=/their/python
    three NVCC_APPEND_FLAGS="exit 3"   # nothing fits
    behind
    six NVCC_APPEND_FLAGS="exit 6"
    loud NVCC_APPEND_FLAGS=loud
    """
    done = command(text, "--task", "smoke --full", TORCH_CHANNEL="stable", PYTHON_BIN="/my/python")
    assert done.returncode == 3
    first, *lines = done.stdout.splitlines()
    assert first == f"[fleet] smoke --full on 5 hosts, 5 at once; logs in {command.last}"
    for line in (
        "[good] [stack] kept: torch of plain, channel pypi, python /their/python",
        "[three] [stack] kept: torch of exit 3, channel stable, python unset",
        "[three] [fetch] it will not do",
        "[behind] [auto] done: plain",
        r"[loud] token *** and \x1b[31mred\x1b[0m \x1b]0;title\x07",
    ):
        assert line in lines
    assert any(re.fullmatch(r"\[fleet\] three: failed \(exit 3\) in \d\.\d s", line) for line in lines)
    assert any(re.fullmatch(r"\[fleet\] good: done in \d\.\d s", line) for line in lines)
    assert any(
        re.fullmatch(r"\| six +\| bad \| 6 +\| \d\.\d s \| 1 +\| \[fetch\] it will not do +\|", x) for x in lines
    )
    assert done.stderr == (
        "2 of 5 hosts failed, the first: three: [fetch] it will not do. "
        f"Its log is {command.last}/three.log; --failed runs what failed again.\n"
    )
    assert (command.server.away / "ran-plain").read_text() == "smoke --full\n" * 2
    assert command.codes == {"good": 0, "three": 3, "behind": 0, "six": 6, "loud": 0}
    for path in command.last.glob("*.log"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert command.last.stat().st_mode & 0o777 == 0o700
    assert list((command.server.away / "tmp").iterdir()) == [], "something of ours is left there"
    everything = done.stdout + done.stderr + "".join(path.read_text() for path in command.last.iterdir())
    assert "\x1b" not in everything and TOKEN not in everything
    assert f"HF_TOKEN={TOKEN}\n" in (command.server.away / "environment").read_text()


def test_failed_runs_what_had_failed_again(command: Fleet) -> None:
    text = 'a\nb NVCC_APPEND_FLAGS="exit 5"\nc NVCC_APPEND_FLAGS="exit 4"\n'
    assert command("a\n", "--failed").stderr == (
        f"no run of fleet is recorded in {command.folder}/logs/fleet. Leave --failed out.\n"
    )
    assert command(text).returncode == 5
    again = command('a NVCC_APPEND_FLAGS="exit 6"\nb\nc NVCC_APPEND_FLAGS="exit 4"\nnew\n', "--failed")
    assert (again.returncode, command.codes) == (4, {"b": 0, "c": 4})
    assert command("a\nc\n", "--failed").returncode == 0
    nothing = command("a\nc\n", "--failed")
    assert nothing.returncode == 0
    assert nothing.stdout == "[fleet] the last run failed on no host of this file: there is nothing to do\n"


def test_a_run_that_was_killed_counts_as_failed(tmp_path: Path) -> None:
    settings = config.load({}, cwd=tmp_path)
    record = fleetrecord.Record(settings, "auto", ["a/b", "a_b", "c"])
    assert [Path(one.log).name for one in record.outcomes.values()] == ["a_b.log", "a_b-1.log", "c.log"]
    record.outcomes["c"].exit_code = 0
    record.write()
    assert fleetrecord.failed_last(settings) == ["a/b", "a_b"]
    (record.folder / "result.json").write_text("[]")
    with pytest.raises(UsageError, match=r"result\.json cannot be read\. Leave --failed out\.$"):
        fleetrecord.failed_last(settings)


def test_json_and_nothing_else(command: Fleet) -> None:
    done = command('good\nbad NVCC_APPEND_FLAGS="exit 4"\n', "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"]) == (4, 4)
    assert told["error"]["what"] == "1 of 2 hosts failed, the first: bad: [fetch] it will not do"
    assert told["fleet"] == json.loads((command.last / "result.json").read_text())
    assert "[good] [auto] done: plain\n" in done.stderr


def test_a_dry_run_connects_to_nothing(command: Fleet) -> None:
    (command.folder / "signers").write_text("me ssh-ed25519 AAAA\n")
    done = command("a MAX_JOBS=2\nb.invalid\n", "--dry-run", TORCH_CHANNEL="pypi", TRUSTED_SIGNERS="signers")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    origin = command.env["SAGEWHEELS_REPO"]
    assert rows[2:] == [
        ["a", "auto", f"TORCH_CHANNEL=pypi SAGEWHEELS_REPO={origin} MAX_JOBS=2 TRUSTED_SIGNERS (the file)"],
        ["b.invalid", "auto", f"TORCH_CHANNEL=pypi SAGEWHEELS_REPO={origin} TRUSTED_SIGNERS (the file)"],
    ]
    assert done.stdout.splitlines()[-1] == (
        "[fleet] 2 hosts, 2 at once; the settings above and HF_TOKEN go through stdin; nothing was connected to"
    )
    assert not (command.folder / "logs").exists()


def test_hosts_from_stdin_and_one_at_a_time(command: Fleet) -> None:
    argv = command.argv("", "--parallel", "1")
    argv[argv.index("hosts")] = "-"
    given: dict[str, Any] = {"cwd": command.folder, "env": command.env, "input": "a\nb\nc\n", "text": True}
    done = subprocess.run(argv, **given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    order = [line for line in done.stdout.splitlines() if re.match(r"\[.\] \[stack\]|\[fleet\] . ?", line)]
    assert [line[:9] for line in order[1:6]] == ["[a] [stac", "[fleet] a", "[b] [stac", "[fleet] b", "[c] [stac"]


def test_on_a_terminal_a_table_changes_in_place(command: Fleet) -> None:
    ours, theirs = os.openpty()
    argv = command.argv("good\nloud NVCC_APPEND_FLAGS=loud\n")
    given: dict[str, Any] = {"cwd": command.folder, "env": {**command.env, "TERM": "xterm", "COLUMNS": "100"}}
    process = subprocess.Popen(argv, **given, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert process.communicate(timeout=20)[1] == b"" and process.returncode == 0
    text = seen.decode()
    assert "host" in text and "[good] [stack]" not in text and "[auto] done: plain" in text
    assert "\x1b]0;" not in text and TOKEN not in text
    assert text.rstrip().endswith("[fleet] done on 2 hosts")


# Hosts that cannot be reached


def test_no_two_hosts_share_a_log() -> None:
    assert fleetrecord._unique(["x_1", "x_1", "x_1-1", "x_1"]) == ["x_1", "x_1-1", "x_1-1-1", "x_1-2"]


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    heard: list[str] = []
    lines = Lines(heard.append)
    for _ in range(100):
        lines.write("x" * 10_000)
    assert len(heard) > 10 and max(map(len, heard)) < 100_000
    lines.close()
    assert sum(map(len, heard)) == 1_000_000


def test_each_way_not_to_be_reached_has_its_line(server: Server) -> None:
    found = run(server, "other-key\nnobody-there\nunknown\nno-such\nbehind-nobody\n", retries=1)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    kind, print_ = _fingerprint(server.folder / "host.pub")
    remedy = f"ssh -p {server.port} {user}"
    assert {name: (one.exit_code, one.tries) for name, one in found.items()} == {
        "other-key": (7, 1),
        "nobody-there": (7, 2),
        "unknown": (7, 1),
        "no-such": (7, 1),
        "behind-nobody": (7, 2),
    }
    assert {name: one.error for name, one in found.items()} == {
        "other-key": f"other-key takes none of your keys for {user}. "
        f"Name the right user, load your key (ssh-add), or try: {remedy}@127.0.0.1.",
        "nobody-there": "127.0.0.1 port 9 cannot be reached: nobody listens there. "
        "Check that it is up, and its address.",
        "unknown": f"the host key of unknown is not known here ({kind} {print_}). "
        f"Compare it with what your provider shows: {remedy}@localhost, or use --accept-new.",
        "no-such": "there is no machine called no-such.invalid. Correct the name.",
        "behind-nobody": "127.0.0.1 port 9 cannot be reached: nobody listens there. "
        "Check that it is up, and its address.",
    }


def _fingerprint(key: Path) -> tuple[str, str]:
    said = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True, check=True).stdout
    return key.read_text().split()[0], said.split()[1]


def test_a_new_host_key_is_taken_when_asked_and_a_changed_one_never(command: Fleet) -> None:
    server = command.server
    known = server.known_hosts.read_bytes()
    try:
        assert command("unknown\n", "--accept-new").returncode == 0
        kind, key, _ = (server.folder / "host.pub").read_text().split()
        assert server.known_hosts.read_text().splitlines()[-1] == f"[localhost]:{server.port} {kind} {key}"
        assert command("unknown\n").returncode == 0
        kind, other, _ = (server.folder / "other.pub").read_text().split()
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {kind} {other}\n")
        changed = command("good\n", "--accept-new")
        assert changed.returncode == 7
        kind, print_ = _fingerprint(server.folder / "host.pub")
        assert changed.stderr.startswith(
            f"1 of 1 host failed, the first: good: the host key of good has changed: it is {kind} {print_}. "
            f"If that is another machine by now: ssh-keygen -R '[127.0.0.1]:{server.port}'; "
            "else somebody is in between."
        )
        assert (server.away / "ran-plain").read_text() == "auto\n" * 2
    finally:
        server.known_hosts.write_bytes(known)


@pytest.mark.parametrize("host", ["good", "unknown", "behind"])
def test_a_revoked_host_key_is_refused_though_it_is_known(command: Fleet, host: str) -> None:
    server = command.server
    known = server.known_hosts.read_bytes()
    kind, key, _ = (server.folder / "host.pub").read_text().split()
    try:
        with server.known_hosts.open("a") as file:
            file.write(f"@revoked\t* {kind} {key} stolen\n")
        done = command(f"{host}\n", "--accept-new", "--retry", "0")
        assert done.returncode == 7
        _, print_ = _fingerprint(server.folder / "host.pub")
        said = f"is revoked ({kind} {print_} in {server.known_hosts}). Somebody else may have this key"
        assert said in done.stderr
        assert not (server.away / "ran-plain").exists()
        assert f"[localhost]:{server.port}" not in server.known_hosts.read_text()
    finally:
        server.known_hosts.write_bytes(known)


@pytest.mark.parametrize(("name", "code"), [("host", 7), ("other", 0), ("missing", 7)])
@pytest.mark.parametrize("kind", ["pub", "krl"])
def test_a_key_of_revoked_host_keys_is_refused(command: Fleet, name: str, kind: str, code: int) -> None:
    server = command.server
    config = server.config.read_text()
    if kind == "krl" and name != "missing":
        argv: list[str | Path] = [
            "ssh-keygen",
            "-q",
            "-k",
            "-f",
            server.folder / f"{name}.krl",
            server.folder / f"{name}.pub",
        ]
        subprocess.run(argv, check=True)
    try:
        server.config.write_text(f"{config}  RevokedHostKeys {server.folder}/{name}.{kind}\n")
        assert command("good\n", "--retry", "0").returncode == code
        assert (server.away / "ran-plain").exists() is (code == 0)
    finally:
        server.config.write_text(config)


def test_lines_of_known_hosts_that_cannot_be_read_are_passed_over(command: Fleet) -> None:
    known = command.server.known_hosts.read_bytes()
    broken = b"host ssh-ed25519 AAAA=B\n@cert-authority\t*\tssh-ed25519\tAAAA\nhost ssh-rsa caf\xe9\n|1|x ssh-rsa\n\n"
    try:
        command.server.known_hosts.write_bytes(broken + known.replace(b" ", b"\t").strip() + b" caf\xe9\n")
        assert command("good\n").returncode == 0
    finally:
        command.server.known_hosts.write_bytes(known)


def test_what_may_pass_is_tried_again(server: Server) -> None:
    found = run(
        server, 'a NVCC_APPEND_FLAGS=flaky\nb NVCC_APPEND_FLAGS="exit 7"\nc NVCC_APPEND_FLAGS="exit 6"\n', retries=1
    )
    assert {name: (one.exit_code, one.tries) for name, one in found.items()} == {"a": (0, 2), "b": (7, 2), "c": (6, 1)}
    log = Path(found["a"].log).read_text()
    assert log.count("[stack] kept: ") == 2 and "the store does not answer\n" in log


# The line that is held


def test_a_host_that_takes_too_long_is_told_to_stop(server: Server) -> None:
    found = run(server, "a NVCC_APPEND_FLAGS=hang\n", retries=1, minutes=0.03)["a"]
    assert (found.exit_code, found.tries) == (7, 1)
    assert found.error == "it did not end within 0.03 min, and was told to stop"
    assert wait_for(server.away / "stopped") == "stopped"


def test_a_task_that_was_killed_there(server: Server) -> None:
    found = run(server, "a NVCC_APPEND_FLAGS=dies\n")["a"]
    assert (found.exit_code, found.error) == (137, "sagewheels was killed by SIGKILL there")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(command: Fleet, kind: signal.Signals) -> None:
    text = "quick\nslow NVCC_APPEND_FLAGS=hang\nlater\n"
    with command.start(text, "--parallel", "1") as process:
        wait_for(command.server.away / "hanging")
        process.send_signal(kind)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == (
        "interrupted: 2 of 3 hosts had not ended, and were told to stop. "
        "Run it again with --failed: it goes on where it can.\n"
    )
    assert wait_for(command.server.away / "stopped") == "stopped"
    assert command.codes == {"quick": 0, "slow": 130, "later": 130}
    assert re.search(r"^\| later +\| bad \| 130 +\| 0\.0 s \| 0 ", out, re.M)
    assert (command.server.away / "ran-plain").read_text() == "auto\n", "a host was begun after Ctrl-C"


def test_killed_here_it_stops_there(command: Fleet) -> None:
    with command.start("slow NVCC_APPEND_FLAGS=hang\n") as process:
        wait_for(command.server.away / "hanging")
        process.kill()
        process.communicate(timeout=20)
    assert wait_for(command.server.away / "stopped") == "stopped"
    assert command.codes == {"slow": None}


def test_a_lost_connection(command: Fleet) -> None:
    """The sshd of the session dies: it stops there, and here it is said."""
    with command.start("slow NVCC_APPEND_FLAGS=hang\n", "--retry", "0") as process:
        there = int(wait_for(command.server.away / "hanging"))
        session = next(one for one in _ancestors(there) if Path(f"/proc/{one}/comm").read_text() == "sshd\n")
        os.kill(session, signal.SIGKILL)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 7
    assert err.startswith("1 of 1 host failed, the first: slow: the connection to slow was lost (")
    assert "was under way there is told to stop, and goes on where it can." in err
    assert wait_for(command.server.away / "stopped") == "stopped"


def _ancestors(process: int) -> Iterator[int]:
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        yield process


def test_one_that_does_not_stop_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script alone: a run that ignores to be asked is killed, with what it started."""
    monkeypatch.setattr(leash, "GRACE", 0.3)
    pids = tmp_path / "pids"
    monkeypatch.setattr(leash, "bootstrap", lambda: f"trap '' TERM; sleep 60 & echo $$ $! >{pids}; wait; sleep 60\n")
    with subprocess.Popen(["bash", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        process.stdin.write(leash.text(["auto"], {}, {}, {}))
        process.stdin.flush()
        known = wait_for(pids).split()
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (128 + signal.SIGKILL, "")
    time.sleep(0.1)
    assert [one for one in known if Path(f"/proc/{one}/cmdline").exists() and _runs(one)] == []


def _runs(process: str) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


# Secrets and files


def test_no_argument_list_and_no_environment_but_of_sagewheels_holds_the_token(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "recorder")
    library = recorder.environ["LD_PRELOAD"]
    with sshd.serving(tmp_path / "sshd", LD_PRELOAD=library) as server:
        command = Fleet(server, tmp_path)
        recorder.starts()
        done = command("good\nbad-key NVCC_APPEND_FLAGS='exit 3'\n", NVCC_APPEND_FLAGS="", **recorder.environ)
    assert done.returncode == 3
    starts = [start for start in recorder.starts() if Path(start.argv[0]).name != "sshd"]
    names = {start.name for start in starts}
    assert {"ssh", "git", "mktemp", "cat"} <= names
    assert [start.argv for start in starts if TOKEN in " ".join(start.argv)] == []
    ours = str(server.away / "home" / ".tool" / "bin" / "python")
    with_token = {start.argv for start in starts if TOKEN.encode() in start.raw}
    local = {argv for argv in with_token if argv[1:4] == ("-m", "sagewheels", "fleet")}
    # The kernel puts the interpreter of a script in front, so that the stand-in begins as bash.
    assert local and {argv[:5] for argv in with_token - local} <= {
        ("/bin/bash", ours, "-I", "-m", "sagewheels"),
        (ours, "-I", "-m", "sagewheels", "auto"),
    }
    assert with_token - local
    assert not [path for path in tmp_path.rglob("*.log") if TOKEN in path.read_text()]


def test_the_list_of_signers_is_there_while_it_runs(command: Fleet) -> None:
    (command.folder / "signers").write_text('it\'s "mine" ssh-ed25519 AAAA $HOME\n')
    done = command("a NVCC_APPEND_FLAGS=signers\n", TRUSTED_SIGNERS="signers")
    assert done.returncode == 0, done.stdout
    assert (command.server.away / "signers").read_bytes() == (command.folder / "signers").read_bytes()
    modes = re.findall(r"^\[a\] (\d+) (\S+)$", done.stdout, re.M)
    assert [mode for mode, _ in modes] == ["600", "700"]
    assert not Path(modes[1][1]).exists()


# What is refused before anything is connected to


NUMBER = "is no whole number from"
LOCAL = (
    "SAGE_STORE=/mnt is a path of this machine, which others may not have. Write SAGE_STORE=... behind each host of "
)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "--hosts is missing. Name a file with a host on each line, or - for stdin."),
        ("--hosts no", "no cannot be read (No such file or directory). Name a file with a host on each line."),
        ("--hosts h --parallel 0", f"--parallel '0' {NUMBER} 1 to 9999. Write it like --parallel 2."),
        ("--hosts h --retry x", f"--retry 'x' {NUMBER} 0 to 9999. Write it like --retry 1."),
        ("--hosts h --timeout 1.5", f"--timeout '1.5' {NUMBER} 1 to 9999. Write it like --timeout 2."),
        ("--hosts h --store /mnt", f"{LOCAL}--hosts, or use a Hub repository (HF_REPO_ID)."),
    ],
)
def test_refused(tmp_path: Path, words: str, line: str) -> None:
    (tmp_path / "h").write_text("a\n")
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "sagewheels", "fleet", *words.split()]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{line}\n")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("task", ["fleet", "atuo", "", "auto '"])
def test_a_task_that_is_none_there(task: str) -> None:
    with pytest.raises(UsageError) as caught:
        Asked.read(task, "", "1", "120", count=3, tasks=["auto", "fleet", "smoke"])
    assert str(caught.value) == f"--task {task!r} is no task for other machines. Use one of auto, smoke."


def test_as_many_at_once_as_there_are_hosts_up_to_eight() -> None:
    def parallel(count: int, asked: str = "") -> int:
        return Asked.read("auto", asked, "1", "120", count=count, tasks=["auto"]).parallel

    assert (parallel(3), parallel(50), parallel(50, "20")) == (3, 8, 20)


# Fabric, which is not there at first


def test_without_fabric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = config.load({}, cwd=tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        extras.demand(settings, "fleet", "no_such_module")
    assert str(caught.value) == (
        "fleet needs no_such_module, which is not installed. "
        f"Run {sys.executable} -m uv pip install --python {sys.executable} no_such_module."
    )
    said = tmp_path / "said"
    uv = wheels.script(tmp_path / "uv", f'#!/bin/sh\necho "$@" >{said}\n')
    monkeypatch.setattr(installer, "uv_program", lambda _: uv)
    (tmp_path / ".sagewheels-tool").touch()
    extras.demand(settings, "fleet", "no_such_module")
    pins = f"-c {ROOT}/constraints.txt"
    assert said.read_text() == f"pip install --quiet --python {sys.executable} {pins} no_such_module\n"
    said.unlink()
    extras.demand(settings, "fleet", "json")
    assert not said.exists()


def test_the_script_is_that_of_the_readme() -> None:
    assert leash.bootstrap() == (ROOT / "install_sageattention220_wheel.sh").read_text()
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed: it comes with the extra `lint`")
    script = leash.text(["auto"], {"A": "it's"}, {"TRUSTED_SIGNERS": "x\n"}, {"HF_TOKEN": "t"})
    # `inner` holds another script, which has a test of its own.
    text = re.sub(r"^inner='.*?'\n(?=  set -m)", "inner=x\n", script, flags=re.M | re.S)
    assert "bootstrap" not in text
    done = proc.run([shellcheck, "--shell=bash", "-"], input=text)
    assert (done.code, done.out) == (0, "")
