"""The command as people run it: real processes, real exit codes, and the one line on stderr."""

from __future__ import annotations

import fcntl
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sagewheels import __version__, doctor, recipe, wheelhouse
from sagewheels.resources import ROOT
from tests import wheels
from tests.hub import Hub
from tests.wheels import NAME, TAG, VERSION, Machine

TASKS = [
    *"auto bench build clean demo doctor fetch fleet generate init-hf install lint list matrix".split(),
    *"rollback smoke stack test upload verify".split(),
]
GOOD = f"{NAME}-{VERSION}{wheels.LABEL}-{TAG}.whl"
TOKEN = "hf_averysecrettoken"
MANIFESTS = ", ".join(recipe.names())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine that is only read."""
    return wheels.machine(tmp_path_factory.mktemp("machine"))


class Shell:
    """Runs the command in a folder of its own, with a target and an empty directory store."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.folder, self.machine = folder, machine
        given = machine.settings
        self.env = {
            **given.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHON_BIN": str(machine.python),
            "SAGE_MANIFEST": given.sage_manifest,
            "SAGE_STORE": str(folder / "store"),
            "TORCH_CUDA_ARCH_LIST": "12.0",
        }

    def __call__(self, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-m", "sagewheels", *map(str, arguments)], **env)

    def run(self, argv: list[str], **env: str) -> subprocess.CompletedProcess[str]:
        merged = {key: value for key, value in {**self.env, **env}.items() if value != "unset"}
        return subprocess.run(
            argv, cwd=self.folder, env=merged, capture_output=True, text=True, check=False, timeout=60
        )

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sagewheels", *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A job that a script put into the background ignores SIGINT, and its children with it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no threads here
        )


@pytest.fixture
def shell(shared: Machine, tmp_path: Path) -> Shell:
    return Shell(shared, tmp_path)


def only_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a run that ended with this code."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    return line


# What there is


def test_every_task_is_listed_by_both_commands(shell: Shell) -> None:
    for argv in (["-m", "sagewheels"], ["-m", "invoke", "-r", str(ROOT)]):
        done = shell.run([sys.executable, *argv, "--list"], PYTHONPATH="unset" if "invoke" in argv else str(ROOT))
        assert done.stderr == ""
        found = re.findall(r"^  ([a-z-]+)(?: \(([a-z-]+)\))?  ", done.stdout, re.M)
        assert sorted(name for name, _ in found) == TASKS
        assert [alias for _, alias in found if alias] == ["publish"]
        assert "Default task: auto" in done.stdout
    assert list(shell.folder.iterdir()) == []


def test_the_help_of_each_task_has_an_example(shell: Shell) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = dict(zip(TASKS, pool.map(lambda task: shell("--help", task), TASKS), strict=True))
    for task, done in answers.items():
        assert (done.returncode, done.stderr) == (0, ""), task
        example = re.search(r"^  Example: (.+)$", done.stdout, re.M)
        assert example, task
        assert f"sagewheels {task}" in example[1] and "invoke" not in done.stdout
        # Every flag says what it does.
        flags = re.findall(r"^  (?:-\w(?: \w+|=\w+)?, )?--[\w-]+(?:=\w+|\[=\w+\])?(.*)$", done.stdout, re.M)
        assert all(text.strip() for text in flags), (task, done.stdout)


def test_the_help_shows_the_flags_that_are_hard_to_guess(shell: Shell) -> None:
    compiled = "Compiled anew, though its wheel is there: sagewheels build --arch 12.0 --force"
    assert compiled in re.sub(r"\s+", " ", shell("--help", "build").stdout)
    planned = "For GitHub Actions: sagewheels matrix --python 3.10,3.12 --torch 2.11 --arch 8.9,12.0 --json"
    assert planned in re.sub(r"\s+", " ", shell("--help", "matrix").stdout)


def test_the_version(shell: Shell) -> None:
    assert shell("--version").stdout == f"sagewheels {__version__}\n"


def test_every_flag_of_the_examples_is_known(shell: Shell) -> None:
    """Parsed by the very parser, without running anything: a dry run of each task that has one."""
    with ThreadPoolExecutor(4) as pool:
        tasks = ["auto", "stack", "build", "init-hf", "clean"]
        answers = list(pool.map(lambda task: shell(task, "--dry-run"), tasks))
    assert [(done.returncode, done.stderr) for done in answers] == [(0, "")] * len(tasks)
    assert list(shell.folder.iterdir()) == []


# Exit codes


def test_a_mistyped_task_or_flag(shell: Shell) -> None:
    line = only_line(shell("atuo"), 2)
    assert "No idea what 'atuo' is" in line and "sagewheels --list" in line
    line = only_line(shell("auto", "--acrh", "12.0"), 2)
    assert "'--acrh'" in line and "sagewheels --help" in line


@pytest.mark.parametrize(
    ("arguments", "env", "line"),
    [
        (
            ["list", "--arch", "nonsense"],
            {},
            "'nonsense' is not a compute capability. Write it as 12.0, 120 or sm_120.",
        ),
        (
            ["list", "--python", "/nowhere/python"],
            {},
            "PYTHON_BIN=/nowhere/python cannot be run. Give the path of a python executable.",
        ),
        (
            ["auto", "--manifest", "nothing"],
            {},
            f"there is no build manifest 'nothing'. Use one of {MANIFESTS}, or the path of a .toml file.",
        ),
        (
            ["list"],
            {"SAGE_STORE": "s3://bucket"},
            "SAGE_STORE='s3://bucket' is not a store that can be opened. "
            "Write a folder, file:///folder, or hf://datasets/owner/name@branch/folder.",
        ),
        (
            ["stack"],
            {"TORCH_CHANNEL": "weekly"},
            "TORCH_CHANNEL='weekly' in the environment is not known. Use one of nightly, stable, pypi.",
        ),
        (["smoke"], {}, f"{NAME} is not installed in {{prefix}}. Run install or auto first."),
        (["verify"], {}, "{folder}/wheelhouse holds no wheel for this machine. Run fetch or build first."),
    ],
)
def test_exit_2(shell: Shell, arguments: list[str], env: dict[str, str], line: str) -> None:
    expected = line.format(prefix=shell.machine.python.parent.parent, folder=shell.folder)
    assert only_line(shell(*arguments, **env), 2) == expected


@pytest.mark.parametrize("task", ["fetch", "install"])
def test_exit_3(shell: Shell, task: str) -> None:
    done = shell(task)
    line = f"{shell.folder}/store holds no wheel for this machine. Run auto or build to make one."
    assert only_line(done, 3) == line
    assert f"[fetch] {shell.folder}/store holds no wheels at all: it does not exist yet" in done.stdout.splitlines()


def test_exit_4(shell: Shell) -> None:
    settings = shell.machine.job(wheelhouse_dir=shell.folder / "wheelhouse").settings
    path = wheels.make(shell.folder / "dist")
    kept = wheelhouse.keep(settings, path, wheels.describe(path))
    kept.write_bytes(kept.read_bytes() + b"\0")
    line = only_line(shell("verify"), 4)
    assert line.startswith(f"{GOOD} has ") and line.endswith(". Fetch it again.")


def test_exit_6(shell: Shell, tmp_path: Path) -> None:
    machine = wheels.machine(tmp_path / "broken")
    broken = wheels.content(_fused=wheels.extension(entry="NoInit"))
    wheels.pip(machine.python, "install", wheels.make(tmp_path / "dist", broken))
    done = shell("smoke", PYTHON_BIN=str(machine.python))
    assert only_line(done, 6).startswith(f"smoke failed: import {NAME}._fused failed: ImportError: ")
    assert f"[smoke] import {NAME}: ok" in done.stdout.splitlines()


def test_exit_7(shell: Shell) -> None:
    done = shell("init-hf", SAGE_STORE="unset", HF_REPO_ID="me/wheels", HF_ENDPOINT="http://127.0.0.1:9")
    assert only_line(done, 7) == (
        "hf://datasets/me/wheels@main/sageattention220 cannot be set up: HF_TOKEN is not set. "
        "Set HF_TOKEN to a token that may write."
    )


def test_exit_7_when_nobody_answers(shell: Shell) -> None:
    env = {"SAGE_STORE": "unset", "HF_REPO_ID": "me/wheels", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN}
    done = shell("list", **env)
    assert "127.0.0.1" in only_line(done, 7)
    assert TOKEN not in done.stdout + done.stderr


def test_the_same_through_invoke(shell: Shell) -> None:
    """What first users know: one line, the same code, no traceback."""
    argv = [sys.executable, "-m", "invoke", "-r", str(ROOT)]
    line = f"{shell.folder}/store holds no wheel for this machine. Run auto or build to make one."
    assert only_line(shell.run([*argv, "fetch"], PYTHONPATH="unset"), 3) == line
    assert only_line(shell.run([*argv, "list", "--arch", "x"], PYTHONPATH="unset"), 2).startswith("'x' is not a ")
    done = shell.run([*argv, "atuo"], PYTHONPATH="unset")
    assert done.returncode != 0 and done.stderr == "No idea what 'atuo' is!\n"


# Settings


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SAGE_STORE=ok\nthis is no setting=\n", "{env} line 2 cannot be read. Write KEY=value."),
        ("MAX_JOBS=many\n", "MAX_JOBS='many' in {env} is not a count. Write a whole number from 1 to 9999."),
    ],
)
def test_a_broken_env_file(shell: Shell, text: str, line: str) -> None:
    (shell.folder / ".env").write_text(text)
    assert only_line(shell("list"), 2) == line.format(env=shell.folder / ".env")


def test_a_flag_beats_the_environment_which_beats_the_file(shell: Shell) -> None:
    (shell.folder / ".env").write_text(f"SAGE_STORE={shell.folder}/from-file\n")
    said = [
        shell("list", SAGE_STORE="unset").stdout,
        shell("list", SAGE_STORE=f"{shell.folder}/from-environment").stdout,
        shell("list", "--store", f"{shell.folder}/from-flag", SAGE_STORE=f"{shell.folder}/from-environment").stdout,
    ]
    names = ["from-file", "from-environment", "from-flag"]
    assert said == [f"[list] 0 wheels in {shell.folder}/{name}, which does not exist yet\n" for name in names]


def test_a_token_is_never_shown_or_written(shell: Shell, tmp_path: Path) -> None:
    """Not when it is refused, not by doctor, not in a log of a bug; and no child gets it."""
    (shell.folder / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
    spy = tmp_path / "spy"
    python = wheels.script(tmp_path / "bin" / "python", f'#!/bin/sh\nenv >> {spy}\nexec {shell.machine.python} "$@"\n')
    with Hub() as hub:
        hub.create("me/wheels")
        env = {"SAGE_STORE": "unset", "HF_REPO_ID": "me/wheels", "HF_ENDPOINT": hub.endpoint, "PYTHON_BIN": str(python)}
        refused = shell("init-hf", **env)
        listed = shell("list", **env)
        seen = set(hub.tokens_seen)
        bug = shell.run([sys.executable, "-c", _BUG, "list"], **env, HF_TOKEN=TOKEN)
    assert refused.returncode == listed.returncode == 7 and bug.returncode == 1
    assert TOKEN in seen, "the token was not even tried"
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".env"]
    shown = [run.stdout + run.stderr for run in (refused, listed, bug)]
    assert spy.exists()
    assert not [text for text in [*shown, *(data.decode(errors="replace") for data in written)] if TOKEN in text]


_BUG = """
import sys
from sagewheels import cli, listing
def show(job):
    job.target
    raise ZeroDivisionError("of all things")
listing.show = show
sys.argv[0] = "sagewheels"
cli.main()
"""


def test_a_bug_is_one_line_and_a_log(shell: Shell) -> None:
    line = only_line(shell.run([sys.executable, "-c", _BUG, "list"]), 1)
    (log,) = (shell.folder / "logs").iterdir()
    assert re.fullmatch(r"error-\d{8}-\d{6}\.log", log.name)
    assert line == (f"unexpected ZeroDivisionError: of all things. This is a bug in sagewheels. Details are in {log}.")
    assert log.read_text().startswith("Traceback (most recent call last):\n")
    assert log.read_text().endswith("ZeroDivisionError: of all things\n")


def test_a_folder_that_cannot_be_used_is_no_bug(shell: Shell) -> None:
    (shell.folder / "file").touch()
    line = only_line(shell("clean", WORK_DIR=f"{shell.folder}/file"), 2)
    assert line == f"WORK_DIR {shell.folder}/file cannot be used (File exists). Name another folder."


@pytest.mark.parametrize("runner", ["sagewheels", "invoke"])
@pytest.mark.parametrize("words", ["stack fetch --dry-run", "clean -d stack"])
def test_a_flag_among_several_tasks_is_refused(shell: Shell, runner: str, words: str) -> None:
    """Invoke gives it to one of them alone: the others would change what was only to be planned."""
    before = wheels.tree(shell.folder)
    start = ["-m", "sagewheels"] if runner == "sagewheels" else ["-m", "invoke", "-r", str(ROOT)]
    done = shell.run([sys.executable, *start, *words.split()])
    tasks = " ".join(word for word in words.split() if not word.startswith("-"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tasks}: a flag counts for one task only. Run them one at a time.\n"
    assert wheels.tree(shell.folder) == before


def test_a_value_that_is_called_like_a_task_is_no_task(shell: Shell) -> None:
    """`smoke --manifest demo` means the manifest."""
    line = only_line(shell("smoke", "--manifest", "demo"), 2)
    assert line.startswith("sagedemo is not installed in ")


def test_the_dry_run_of_invoke_is_a_dry_run(shell: Shell) -> None:
    folder = shell.folder / ".build-sageattention" / "source"
    folder.mkdir(parents=True)
    (folder / "setup.py").write_text("pass")
    assert shell("--dry", "clean").returncode == 0
    assert (folder / "setup.py").exists()
    assert only_line(shell("--dry", "lint"), 2) == "this task has no dry run. Leave --dry out."


# Interrupted


@pytest.fixture
def slow(shell: Shell) -> Iterator[tuple[Path, Path]]:
    """An interpreter that does not answer for a minute, and the file that says that it was asked."""
    asked = shell.folder / "asked"
    python = wheels.script(shell.folder / "bin" / "python", f"#!/bin/sh\necho $$ > {asked}\nexec sleep 60\n")
    yield python, asked
    if asked.exists():
        try:
            os.kill(int(asked.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def wait_for(path: Path) -> str:
    end = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text().strip()


def alive(process: int) -> bool:
    """Whether it still runs; one that has ended and that nobody has asked after does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(shell: Shell, slow: tuple[Path, Path], kind: signal.Signals) -> None:
    python, asked = slow
    with shell.start("list", PYTHON_BIN=str(python)) as process:
        child = int(wait_for(asked))
        process.send_signal(kind)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted: run the same command again, it goes on where it can.\n"
    assert not alive(child)


def test_two_runs_in_one_place_take_turns(shell: Shell) -> None:
    work = shell.folder / ".build-sagewheels"
    work.mkdir()
    with (work / "lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with shell.start("clean", WORK_DIR=str(work)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"[lock] waiting for process 4711, which works in {work}\n"
            assert process.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "[clean] there is nothing to remove\n", "")


# The small tasks


def test_list(shell: Shell) -> None:
    settings = shell.machine.job(sage_store=str(shell.folder / "store")).settings
    path = wheels.make(shell.folder / "dist")
    proof = {"gpu": "NVIDIA H200", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z"}
    fits = wheels.describe(path, proofs=[proof])
    other = fits.updated(wheel_file=GOOD.replace("2.11", "2.12"), torch_version="2.12.0+cu130", proofs=[])
    Path(settings.sage_store).mkdir()
    index = f'{{"wheels": [{other.to_json()}, {fits.to_json()}]}}'
    (Path(settings.sage_store) / "index.json").write_text(index)
    done = shell("list")
    assert (done.returncode, done.stderr) == (0, "")
    first, *table = done.stdout.splitlines()
    assert first == f"[list] 2 wheels in {settings.sage_store}"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if GOOD[:20] in line]
    assert rows == [
        [GOOD, "2.11.0", "13.0", "12.0", "NVIDIA H200", "fits"],
        [
            other.wheel_file,
            "2.12.0",
            "13.0",
            "12.0",
            "not proven",
            "it was built for torch 2.12.0, the target has 2.11.0",
        ],
    ]


def test_doctor(shell: Shell, tmp_path: Path) -> None:
    bare = wheels.venv(tmp_path / "bare")
    done = shell("doctor", PYTHON_BIN=str(bare))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^\[doctor\] \d+ checks, none is bad$", done.stdout, re.M)
    assert re.search(r"\| note +\| GPU +\| nvidia-smi failed: NVIDIA-SMI has failed +\|", done.stdout)
    assert re.search(rf"\| ok +\| target +\| {bare}, CPython [\d.]+, by PYTHON_BIN +\|", done.stdout)
    assert re.search(r"\| note +\| stack +\| there is no torch +\| the task stack installs one that fits", done.stdout)
    assert re.search(r"\| note +\| signatures +\| whatever the store holds is taken +\| init-hf --sign ", done.stdout)
    # What needs no torch is looked at all the same.
    names = re.findall(r"^\| (?:ok|note|bad) +\| ([\w ]+?) +\|", done.stdout, re.M)
    assert {"source", "host compiler", "build tools"} <= set(names) and "cannot be tried without" in done.stdout
    assert not (shell.folder / ".build-sageattention").exists()


def test_doctor_leaves_out_none_of_its_checks() -> None:
    assert {one for one in vars(doctor).values() if inspect.isgeneratorfunction(one)} == set(doctor._GROUPS)


def test_doctor_finds_what_would_stop_auto(shell: Shell) -> None:
    done = shell("doctor", PYTHON_BIN="/nowhere/python")
    line = only_line(done, 2)
    assert re.fullmatch(r"\d of \d+ checks are bad: .*interpreter.*\. See the remedies above\.", line)
    assert "| Give the path of a python executable" in done.stdout


def test_doctor_finds_signing_that_would_stop_auto(shell: Shell) -> None:
    done = shell("doctor", SIGNING_KEY="/nowhere/key")
    assert "signatures" in only_line(done, 2)
    cannot = r"SIGNING_KEY /nowhere/key cannot be read \(No such file or directory\)"
    assert re.search(rf"\| bad +\| signatures +\| {cannot} +\| Correct it, or unset it +\|", done.stdout)


def test_clean_removes_what_can_be_made_again(shell: Shell) -> None:
    work, house, logs = shell.folder / ".build-sageattention", shell.folder / "wheelhouse", shell.folder / "logs"
    for name in ("source/tiny", "toolkit", "objects/ab", "state", "previous"):
        (work / name).mkdir(parents=True)
        (work / name / "file").write_bytes(bytes(1000))
    for path in (house / GOOD, house / f"{GOOD}.json", house / "mine.whl", logs / "build-1.log", logs / "mine.log"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (house / "known-bad.json").touch()
    before = wheels.tree(shell.folder)
    dry = shell("clean", "--all", "--dry-run")
    assert wheels.tree(shell.folder) == before
    assert dry.stdout.splitlines() == [
        f"[clean] would remove {work}/source (1.0 kB)",
        f"[clean] would remove {work}/toolkit (1.0 kB)",
        f"[clean] would remove {work}/objects (1.0 kB)",
        f"[clean] would remove {house / GOOD} (0.0 kB)",
        f"[clean] would remove {house / GOOD}.json (0.0 kB)",
        f"[clean] would remove {house}/known-bad.json (0.0 kB)",
        f"[clean] would remove {logs}/build-1.log (0.0 kB)",
        "[clean] 3.0 kB would be freed",
    ]
    assert shell("clean").stdout.splitlines()[-1] == "[clean] 2.0 kB freed"
    assert sorted(path.name for path in work.iterdir()) == ["lock", "objects", "previous", "state"]
    assert (house / GOOD).exists()
    shell("clean", "--all")
    assert sorted(path.name for path in work.iterdir()) == ["lock", "previous", "state"]
    assert sorted(path.name for path in (*house.iterdir(), *logs.iterdir())) == ["mine.log", "mine.whl"]
    assert shell("clean", "--all").stdout == "[clean] there is nothing to remove\n"


def test_clean_keeps_the_object_cache_that_is_named(shell: Shell) -> None:
    """Others may use it, also where its name is the usual one."""
    work = shell.folder / ".build-sageattention"
    own, shared = work / "objects" / "ab", shell.folder / "shared" / "ab"
    for folder in (own, shared):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(1000))
    for named in (".build-sageattention/objects", f"{work}/state/../objects"):
        done = shell("clean", "--all", OBJECT_CACHE_DIR=named)
        assert done.stdout == "[clean] there is nothing to remove\n"
    done = shell("clean", "--all", OBJECT_CACHE_DIR="shared")
    assert done.stdout == f"[clean] removing {work}/objects (1.0 kB)\n[clean] 1.0 kB freed\n"
    assert (shared / "file").exists()


def test_a_work_dir_that_is_the_users_own_folder_is_refused(shell: Shell) -> None:
    (shell.folder / "source").mkdir()
    (shell.folder / "source" / "thesis.tex").write_text("years of work")
    line = only_line(shell("clean", WORK_DIR="."), 2)
    assert line.startswith(f"WORK_DIR {shell.folder} is a folder of yours, in which sagewheels would remove things. ")
    assert (shell.folder / "source" / "thesis.tex").exists()
