"""The token: everything that every task writes, says, sends and starts is searched for it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sagewheels import cli, host
from sagewheels.config import SECRETS
from sagewheels.resources import ROOT
from tests import wheels
from tests.hub import Hub
from tests.recorder import Recorder
from tests.session import DEBUGGING, REPO, Session, listening

# Signs that every encoding writes otherwise, and not of the form in which the Hub makes tokens.
_CORES = {
    "HF_TOKEN": "Qd8sLw2vNx5bRk7t",
    "HUGGING_FACE_HUB_TOKEN": "Zp3fHm6yCj9gTe4u",
    "HUGGINGFACE_HUB_TOKEN": "Bn7rXa5kWq2dSo8i",
    "HF_TOKEN of .env": "Gv4hUl9cPz6wMf3j",
    "HUGGING_FACE_HUB_TOKEN of .env": "Ky2mEt8xJb5nVs7q",
}
TOKENS = {name: f'tok/{core}+"%' for name, core in _CORES.items()}
_OTHERS = ("HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")

MODES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "everywhere": (
        ("HF_TOKEN", *_OTHERS),
        {"HF_TOKEN": "HF_TOKEN of .env", "HUGGING_FACE_HUB_TOKEN": "HUGGING_FACE_HUB_TOKEN of .env"},
    ),
    "environment": (("HF_TOKEN",), {}),
    "dotenv": ((), {"HF_TOKEN": "HF_TOKEN of .env"}),
    "other names": (_OTHERS, {"HUGGING_FACE_HUB_TOKEN": "HUGGING_FACE_HUB_TOKEN of .env"}),
    "directory": (("HF_TOKEN", *_OTHERS), {}),
}
"""Where the tokens are: names in the environment, and in .env with which of TOKENS."""

CHILDREN: dict[str, set[str]] = {
    "doctor": {"python", "nvidia-smi", "git", "c++", "nvcc", "cc1plus", "ld"},
    "auto": {"python", "nvidia-smi"},
    "list": {"python", "nvidia-smi"},
    "fetch": {"python", "nvidia-smi"},
    "verify": {"python", "cuobjdump"},
    "smoke": {"python", "nvidia-smi"},
    "build": {"python", "c++", "nvcc"},
    "upload": {"python", "cuobjdump"},
    "stack": {"python", "uv"},
    "install": {"python", "cuobjdump", "uv"},
    "rollback": {"python"},
    "matrix": {"python", "uv"},
    "fleet": {"ssh"},
    "generate": set(),
    "bench": set(),
    "comfyui": set(),
    "demo": {"uv"},
    "lint": {"ruff", "python", "shellcheck"},
    "test": {"ruff", "python", "shellcheck"},
    "init-hf": set(),
    "clean": set(),
}
"""What a task starts at least: a recorder that misses these proves nothing."""

_FIRST_AUTO = {"git", "c++", "nvcc", "cc1plus", "ld", "uv", "cuobjdump", "ninja"}

MAY_HOLD_THE_TOKEN: Mapping[str, str] = {}
"""Programs that need the token, each with the reason: none does."""


def forms(secret: str) -> dict[bytes, str]:
    """What a file that holds the secret may hold instead, each with its name."""
    raw, core = secret.encode(), re.search(r"\w{16}", secret)
    assert core
    # The core is the same in JSON, in a repr, and percent-encoded.
    found = {core[0].encode(): "plain", core[0][::-1].encode(): "reversed", core[0].encode().hex().encode(): "hex"}
    found[core[0].encode().hex().upper().encode()] = "hex"
    for shift in range(3):
        # What is before and after changes the first and the last signs.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found[encode(bytes(shift) + raw)[(0, 2, 3)[shift] : -4]] = "base64"
    return found


NEEDLES = {needle: f"{name}, {form}" for name, secret in TOKENS.items() for needle, form in forms(secret).items()}


def within(data: bytes, place: str) -> Iterator[str]:
    """Where in these bytes a secret is, looking into archives too."""
    yield from (f"{place}: {name}" for needle, name in NEEDLES.items() if needle in data)
    if data.startswith(b"\x1f\x8b"):
        yield from within(gzip.decompress(data), f"{place} unzipped")
    if data.startswith(b"PK") and zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                yield from within(archive.read(member), f"{place}!{member.filename}")
                yield from within(member.comment + member.extra, f"{place}!{member.filename} about it")


def leaks(folder: Path, *besides: Path) -> list[str]:
    """Every file below the folder, and every name, that holds a secret."""
    found: list[str] = []
    for path in folder.rglob("*"):
        found += within(os.fsencode(path), f"the name {path}")
        if path.is_file() and not path.is_symlink() and path not in besides:
            found += within(path.read_bytes(), str(path))
    return found


@dataclass(frozen=True)
class Done:
    """A session that has ended, what the Hub was told, and what was found in files before `clean` removed some."""

    mode: str
    session: Session
    hub: Hub
    heard: list[bytes]
    found: list[str]
    peeked: dict[str, Any]

    @property
    def signed(self) -> bool:
        """Whether the store can be written."""
        return self.mode != "other names"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A quick run has all the tokens in one session, a whole one has others with one by one."""
    if "done" in metafunc.fixturenames:
        modes = list(MODES) if metafunc.config.getoption("--all") else ["everywhere"]
        metafunc.parametrize("done", modes, indirect=True, scope="module")


@pytest.fixture(scope="module")
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    mode: str = request.param
    names, dotenv = MODES[mode]
    folder = tmp_path_factory.mktemp("session") / "all"
    folder.mkdir()
    with Hub(write=(TOKENS["HF_TOKEN"], TOKENS["HF_TOKEN of .env"])) as hub:
        hub.create(REPO)
        store = {"SAGE_STORE": str(folder / "store")} if mode == "directory" else {"HF_ENDPOINT": hub.endpoint}
        given = {**store, **{name: TOKENS[name] for name in names}}
        session = Session(folder, given, {key: TOKENS[name] for key, name in dotenv.items()})
        if mode == "everywhere":
            session.dotenv.chmod(0o644)
        heard: list[bytes] = []
        listening(hub, heard)
        session.whole()
        (peeked,) = folder.rglob("peeked.json")
        saw = json.loads(peeked.read_text())
        found = leaks(folder, session.dotenv)
        session("clean", "--all")
        yield Done(mode, session, hub, heard, [*found, *leaks(folder, session.dotenv)], saw)


def test_every_task_there_is_was_run(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sagewheels"])
    tasks = set(cli._tasks().namespace.task_names)
    assert {ran.words[0] for ran in done.session.ran} == tasks == set(CHILDREN)


def test_the_tasks_did_what_they_are_for(done: Done) -> None:
    """A session in which everything stops at once would prove little."""
    unsigned, offline = 7 * (not done.signed), 7
    room = host.free_disk(done.session.folder) > 14_000_000_000
    expected = [
        ("doctor", 0), ("init-hf", unsigned), ("auto", 0), ("auto", 0), ("list", 0), ("fetch", 0 if done.signed else 3),
        ("verify", 0), ("smoke", 0), ("build", 0), ("upload", unsigned), ("stack", offline),
        ("install", 0 if done.signed else 3), ("smoke", 6), ("rollback", 0), ("matrix", offline),
        ("fleet", offline), ("bench", 2), ("comfyui", 2), ("generate", 0),
        ("demo", offline if room else 2), ("lint", 0), ("test", 0), ("clean", 0),
    ]  # fmt: skip
    assert [(ran.words[0], ran.code) for ran in done.session.ran] == expected
    signs = done.mode not in {"other names", "directory"}
    used = {TOKENS["HF_TOKEN of .env" if done.mode == "dotenv" else "HF_TOKEN"]} if signs else set()
    assert done.hub.tokens_seen - {""} == used, "the Hub must have seen the token that counts, and no other"
    assert bool(done.heard) == (done.mode != "directory")


def test_nothing_that_is_said_written_or_published_holds_a_token(done: Done) -> None:
    assert done.found == []
    for ran in done.session.ran:
        assert [*within(ran.out.encode(), "stdout"), *within(ran.err.encode(), "stderr")] == [], ran.words
    stored = [data for repo in done.hub.repos.values() for files in repo.commits.values() for data in files.values()]
    published = {name for repo in done.hub.repos.values() for files in repo.commits.values() for name in files}
    assert any(name.endswith(".whl") for name in published) == (done.mode in {"everywhere", "environment", "dotenv"})
    for data in (*stored, *done.hub.blobs.values(), *done.heard, *(line.encode() for line in done.hub.requests)):
        assert list(within(data, "the Hub")) == []


def test_no_program_that_a_task_starts_gets_a_token(done: Done) -> None:
    first = next(ran for ran in done.session.ran if ran.words == ("auto",))
    for ran in done.session.ran:
        names = {start.name for start in ran.below}
        known = CHILDREN[ran.words[0]] | (_FIRST_AUTO if ran is first else set())
        if ran.code not in {2, 3} and (done.signed or ran.words != ("upload",)):
            assert known <= names, (ran.words, known - names)
        held = [(start.argv, name) for start in ran.below for name in within(start.raw, "")]
        assert [one for one in held if Path(one[0][0]).name not in MAY_HOLD_THE_TOKEN] == [], ran.words


def test_what_is_compiled_finds_no_token_even_where_it_looks(done: Done) -> None:
    """Its environment, its parent's, and its parent's memory, where the token is."""
    first = next(ran for ran in done.session.ran if ran.words == ("auto",))
    assert done.peeked["parent"] == first.process
    assert list(within(json.dumps(done.peeked).encode(), "what it saw")) == []
    places = {name: done.peeked[f"/proc/{first.process}/{name}"] for name in ("environ", "mem")}
    assert places == dict.fromkeys(places, "PermissionError")
    assert "-c" in done.peeked[f"/proc/{first.process}/cmdline"], "it could not have read anything of its parent"


def test_a_dotenv_that_others_can_read_is_told_once_in_each_run(done: Done) -> None:
    dotenv = done.session.dotenv
    line = f"[settings] warning: {dotenv} holds HF_TOKEN, and others can read it. Run chmod 600 {dotenv}"
    times = 1 if done.mode == "everywhere" else 0
    assert [ran.err.count(line) for ran in done.session.ran] == [times] * len(done.session.ran)
    (doctor,) = (ran for ran in done.session.ran if ran.words == ("doctor",))
    row = re.search(rf"^\| note +\| \.env +\| {dotenv} holds HF_TOKEN, and others can read it +\|", doctor.out, re.M)
    assert bool(row) == bool(times)


def test_debugging_was_on(done: Done) -> None:
    """init-hf ran with all of it, and is searched with the others."""
    (ran,) = (ran for ran in done.session.ran if ran.words == ("init-hf",))
    assert "invoke.executor.execute: " in ran.err
    asked = "httpx2._client._send_single_request: HTTP Request: POST" in ran.err
    assert asked == (done.mode in {"everywhere", "environment", "dotenv"})
    assert ran.starts[0].environ.items() >= DEBUGGING.items()


# What is left where the one who looks may look into every process

_CLOSED = """
import os, sys
from pathlib import Path
from sagewheels import guard
guard.close(sys.argv[1:])
print(os.environ["HF_TOKEN"])
os.environ["PYTHONPATH"] = "changed"
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody but root may look")
def test_the_environment_that_proc_shows_is_wiped() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": TOKENS["HF_TOKEN"], "MAX_JOBS": "3"}
    with subprocess.Popen(
        [sys.executable, "-c", _CLOSED, *SECRETS], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == f"{TOKENS['HF_TOKEN']}\n", "the task itself still has it"
        shown = Path(f"/proc/{process.pid}/environ").read_bytes()
        process.stdin.close()
    assert b"HF_TOKEN=\0" in shown and b"MAX_JOBS=3\0" in shown
    assert list(within(shown, "environ")) == []


# What goes wrong

_BUG = """
import sys
from sagewheels import cli, listing
def show(job):
    try:
        raise KeyError(job.settings.hf_token, "https://me:pass-word@example.invalid/x")
    except KeyError as error:
        raise {kind}(f"{{job.settings.hf_token}} at https://me:pass-word@example.invalid/y") from error
listing.show = show
sys.argv[0] = "sagewheels"
cli.main()
"""


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("ZeroDivisionError", "unexpected ZeroDivisionError: {}. This is a bug in sagewheels. Details are in {}."),
        ("OSError", "{}. Mend that and run it again. Details are in {}."),
    ],
)
def test_a_bug_that_holds_the_token_is_told_and_kept_without(tmp_path: Path, kind: str, line: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": TOKENS["HF_TOKEN"]}
    argv = [sys.executable, "-c", _BUG.format(kind=kind), "list"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    (log,) = (tmp_path / "logs").iterdir()
    assert done.stderr == line.format("*** at https://example.invalid/y", log) + "\n"
    kept = log.read_text()
    assert "KeyError: ('***', 'https://example.invalid/x')" in kept, "the cause is there, and is searched too"
    assert "pass-word" not in kept and [*leaks(tmp_path)] == []


# The bootstrap

_FAKE_PYTHON = """#!/bin/sh
case "$*" in
*ensurepip*print*) echo "{path}" ;;
*"-m venv "*) for last; do :; done; mkdir -p "$last/bin"; cp "{path}" "$last/bin/python" ;;
*"-m sagewheels"*) echo "$HF_TOKEN $HUGGING_FACE_HUB_TOKEN${{HUGGINGFACE_HUB_TOKEN+set}}" ;;
esac
"""


def test_the_bootstrap_hands_the_token_to_the_task_alone(tmp_path: Path) -> None:
    """Not to git, whose repository may have any address, nor to pip, which runs build backends."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "install_sageattention220_wheel.sh"):
        (repository / name).write_bytes((ROOT / name).read_bytes())
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "All"]):
        subprocess.run(["git", "-C", repository, *words], check=True)
    fake = tmp_path / "bin" / "python"
    wheels.script(fake, _FAKE_PYTHON.format(path=fake))
    recorder = Recorder(tmp_path / "recorder")
    env = {
        **os.environ,
        **recorder.environ,
        "SAGEWHEELS_REPO": str(repository),
        "SAGEWHEELS_HOME": str(tmp_path / "home"),
        "SAGEWHEELS_PYTHON": str(fake),
        "HF_TOKEN": TOKENS["HF_TOKEN"],
        "HUGGING_FACE_HUB_TOKEN": TOKENS["HUGGING_FACE_HUB_TOKEN"],
    }
    script = (ROOT / "install_sageattention220_wheel.sh").open()
    with script, subprocess.Popen(["bash", "-s", "--", "list"], stdin=script, stdout=subprocess.PIPE, env=env) as run:
        assert run.stdout
        said = run.stdout.read().decode()
    assert (run.returncode, said) == (0, f"{TOKENS['HF_TOKEN']} {TOKENS['HUGGING_FACE_HUB_TOKEN']}\n")
    below = [start for start in recorder.starts() if start.process != run.pid]
    words = [" ".join(start.argv) for start in below]
    for one in ("git .* fetch ", "git .* reset ", "-m venv ", "-m pip install ", "flock ", "readlink "):
        assert any(re.search(one, line) for line in words), (one, words)
    assert [(start.argv, name) for start in below for name in within(start.raw, "")] == []


def test_the_bootstrap_shows_no_credentials_of_the_repository(tmp_path: Path) -> None:
    git = "#!/bin/sh\ncase \"$*\" in *' fetch '*) echo \"fatal: no password for '$*'\" >&2; exit 128 ;; esac\nexit 0\n"
    wheels.script(tmp_path / "bin" / "git", git)
    env = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SAGEWHEELS_REPO": "https://me:pass-word@127.0.0.1:9/x.git",
        "SAGEWHEELS_HOME": str(tmp_path / "home"),
        "SAGEWHEELS_PYTHON": str(tmp_path / "no-python"),
    }
    script = (ROOT / "install_sageattention220_wheel.sh").read_text()
    done = subprocess.run(["bash", "-s"], input=script, env=env, capture_output=True, text=True, check=False)
    assert (
        "[setup] cannot update (fatal: no password for " in done.stderr and "https://127.0.0.1:9/x.git" in done.stderr
    )
    assert "pass-word" not in done.stdout + done.stderr
