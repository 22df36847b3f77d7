"""sky.yaml and the workflow: what is generated is what lies in examples/, is safe to run, and holds no secret."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sagewheels import config, generate
from sagewheels.errors import UsageError
from sagewheels.job import Job
from sagewheels.resources import ROOT

TOKEN = "hf_averysecrettokenofmine1234"


def job(folder: Path, **environ: str) -> Job:
    return Job(config.load({"HF_TOKEN": TOKEN, "PYTHON_BIN": "/mine", **environ}, cwd=folder))


def test_the_examples_are_what_is_generated(tmp_path: Path) -> None:
    made = {
        "sky.yaml": generate.sky(job(tmp_path, TORCH_CUDA_ARCH_LIST="12.0")),
        "github-actions.yml": generate.actions(
            job(tmp_path, TORCH_CHANNEL="pypi", HF_REPO_ID="me/wheels", TORCH_CUDA_ARCH_LIST="8.9,12.0"),
            "3.10,3.12",
            "2.11",
        ),
    }
    folder = ROOT / "examples"
    assert {path.name: path.read_text() for path in folder.iterdir() if path.name in made} == made
    for text in made.values():
        assert text.startswith("# Generated, ") and TOKEN not in text and "/mine" not in text


def test_a_task_of_skypilot(tmp_path: Path) -> None:
    (tmp_path / "signers").write_text("me ssh-ed25519 AAAA\n")
    hard = "a: b #c \"d\" 'e' ${f}"
    given = {"TORCH_CUDA_ARCH_LIST": "8.9;9.0", "NVCC_APPEND_FLAGS": hard, "TRUSTED_SIGNERS": "signers"}
    found = yaml.safe_load(generate.sky(job(tmp_path, **given)))
    assert found["resources"] == {"accelerators": ["RTX4090:1", "L40S:1", "L4:1", "H100:1", "H200:1"]}
    there = "~/.sagewheels-signers/TRUSTED_SIGNERS"
    assert found["envs"] == given | {"TRUSTED_SIGNERS": there}
    assert found["file_mounts"] == {there: f"{tmp_path}/signers"}
    assert found["secrets"] == {"HF_TOKEN": None}
    for script, task in (("setup", "auto"), ("run", "smoke")):
        assert found[script] == f"curl -fsSL {generate.SCRIPT} | bash -s -- {task}\n"
    assert f"{generate.SCRIPT} | bash" in (ROOT / "README.md").read_text()


def test_a_workflow(tmp_path: Path) -> None:
    (tmp_path / "signers").write_text("me ssh-ed25519 AAAA\n")
    text = generate.actions(
        job(tmp_path, TORCH_CHANNEL="pypi", TRUSTED_SIGNERS="signers", TORCH_CUDA_ARCH_LIST="8.9;12.0"), "3.12", "2.11"
    )
    found = yaml.safe_load(text)
    assert (found["on"], found["permissions"]) == ({"workflow_dispatch": None}, {"contents": "read"})
    assert found["env"] == {"TORCH_CHANNEL": "pypi"}
    steps: list[Any] = [step for one in found["jobs"].values() for step in one["steps"]]
    # What is pasted into a script is run: values only come as variables. The token is there for our own steps alone.
    assert [step["run"] for step in steps if "${{" in step.get("run", "")] == []
    assert {step["run"].split()[0] for step in steps if "HF_TOKEN" in step.get("env", {})} == {
        "sagewheels",
        "found=$(sagewheels",
    }
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", step["uses"]) for step in steps if "uses" in step)
    plan = found["jobs"]["plan"]["steps"][-1]
    assert (plan["env"]["PYTHONS"], plan["env"]["TORCHES"], plan["env"]["ARCHS"]) == ("3.12", "2.11", "8.9;12.0")


def test_the_signers_are_a_file_in_the_workflow(tmp_path: Path) -> None:
    (tmp_path / "signers").write_text("it's $HOME ssh-ed25519 AAAA\n")
    found = yaml.safe_load(generate.actions(job(tmp_path, TRUSTED_SIGNERS="signers"), "3.12", "2.11"))
    step = next(one for one in found["jobs"]["build"]["steps"] if "TRUSTED_SIGNERS_TEXT" in one.get("env", {}))
    env = {**step["env"], "RUNNER_TEMP": str(tmp_path / "t"), "GITHUB_ENV": str(tmp_path / "env")}
    (tmp_path / "t").mkdir()
    subprocess.run(["bash", "-ec", step["run"]], env=env, check=True)
    assert (tmp_path / "t" / "TRUSTED_SIGNERS").read_bytes() == (tmp_path / "signers").read_bytes()
    assert (tmp_path / "env").read_text() == f"TRUSTED_SIGNERS={tmp_path}/t/TRUSTED_SIGNERS\n"


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"TORCH_CUDA_ARCH_LIST": "8.7"},
            "no GPU to rent is known for 8.7. Use one of 8.0, 8.6, 8.9, 9.0, 10.0, 10.3, 12.0.",
        ),
        (
            {"TORCH_INDEX_URL": "https://me:secret@example.invalid/"},
            "TORCH_INDEX_URL holds credentials, which would stand in the file. Unset TORCH_INDEX_URL for this.",
        ),
        (
            {"NVCC_APPEND_FLAGS": "${{ secrets.HF_TOKEN }}"},
            "NVCC_APPEND_FLAGS holds an expression of GitHub Actions. Correct NVCC_APPEND_FLAGS.",
        ),
    ],
)
def test_refused(tmp_path: Path, environ: dict[str, str], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        generate.sky(job(tmp_path, **environ))
    assert str(caught.value) == line


def test_signers_with_an_expression_are_refused(tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    signers.write_text("# ${{ secrets.HF_TOKEN }}\n")
    with pytest.raises(UsageError, match="the file of TRUSTED_SIGNERS holds an expression of GitHub Actions"):
        generate.actions(job(tmp_path, TRUSTED_SIGNERS=str(signers)), "3.12", "2.11")


def test_a_line_break_in_a_flag_stays_in_the_comment(tmp_path: Path) -> None:
    text = generate.actions(job(tmp_path), "3.12,\n3.11", "2.11,\u20282.12")
    assert yaml.safe_load(text)["name"] == "sagewheels"
    assert "--python '3.12, 3.11' --torch '2.11, 2.12'" in text.splitlines()[0]


def test_the_command(tmp_path: Path) -> None:
    def run(words: str) -> tuple[int, str, str]:
        argv = [sys.executable, "-m", "sagewheels", "generate", *shlex.split(words)]
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert run("sky --arch 12.0") == (0, (ROOT / "examples" / "sky.yaml").read_text(), "")
    assert run("sky --arch 12.0 --out x.yaml --dry-run") == (0, "[generate] would write x.yaml\n", "")
    assert not (tmp_path / "x.yaml").exists()
    assert run("sky --arch 12.0 --out x.yaml") == (0, "[generate] x.yaml is written\n", "")
    assert (tmp_path / "x.yaml").read_bytes() == (ROOT / "examples" / "sky.yaml").read_bytes()
    assert run("helm") == (2, "", "'helm' cannot be generated. Use one of sky, actions.\n")
