"""Files for those who rent through others: a SkyPilot task and a GitHub Actions workflow, from the settings of here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sagewheels import arch, cells, files, travel, ui
from sagewheels.arch import Arch
from sagewheels.errors import UsageError
from sagewheels.job import DEFAULT_ARCH, Job
from sagewheels.redact import redacted

SCRIPT = (
    "https://raw.githubusercontent.com/adbrasi/sageattention220-ultimate-installer/main/"
    "install_sageattention220_wheel.sh"
)
"""The bootstrap script, as the README pipes it."""

ACCELERATORS: Mapping[str, tuple[str, ...]] = {
    "8.0": ("A100-80GB", "A100"),
    "8.6": ("RTX3090", "A10G", "RTXA6000"),
    "8.9": ("RTX4090", "L40S", "L4"),
    "9.0": ("H100", "H200"),
    "10.0": ("B200",),
    "10.3": ("B300",),
    "12.0": ("RTX5090", "RTXPRO6000"),
}
"""What can be rented of an arch, in SkyPilot's names, the first one rather."""

_ACTIONS = {"checkout": "actions/checkout@v6.0.2", "python": "actions/setup-python@v6.2.0"}
_AWAY = "~/.sagewheels-signers"
_WIDTH = 110


def generate(job: Job, kind: str, *, pythons: str, torches: str, out: str) -> None:
    """Prints the file, or writes it to `out`, whole or not at all; nothing in it is a secret.

    Raises UsageError for another kind, and for settings that another machine could not use.
    """
    makers = {"sky": lambda: sky(job), "actions": lambda: actions(job, pythons, torches)}
    if kind not in makers:
        raise UsageError(f"{kind!r} cannot be generated", f"Use one of {', '.join(makers)}")
    text = makers[kind]()
    if not out:
        print(text, end="", file=ui.out(), flush=True)
    elif job.dry_run:
        ui.say("generate", f"would write {out}")
    else:
        with files.arriving(Path(out)) as stream:
            stream.write(text.encode())
        ui.say("generate", f"{out} is written")


def sky(job: Job) -> str:
    """A SkyPilot task: a GPU of the wanted arch, `auto` once, then `smoke` as a first program."""
    variables = _public(job)
    mounts = {f"{_AWAY}/{key}": str(getattr(job.settings, key.lower())) for key in travel.contents(job.settings)}
    task = {
        "name": "sagewheels",
        "resources": {"accelerators": [f"{name}:1" for name in _rentable(job.archs)]},
        "envs": variables | {key: f"{_AWAY}/{key}" for key in travel.contents(job.settings)},
        "secrets": {"HF_TOKEN": None},
        "file_mounts": mounts,
        "setup": _piped("auto"),
        "run": _piped("smoke"),
    }
    words = ["sagewheels", "generate", "sky", *_arch_flag(job)]
    about = [
        "HF_TOKEN comes from your environment: sky launch sky.yaml --secret HF_TOKEN (leave the line out without one).",
        "Any one of the accelerators will do; your own program goes below run.",
    ]
    return _yaml(words, about, task)


def actions(job: Job, pythons: str, torches: str) -> str:
    """A workflow that builds what the store lacks, a job for each wheel; no value of it is pasted into a script."""
    settings = job.settings
    archs = settings.torch_cuda_arch_list or DEFAULT_ARCH
    cells.parse(pythons, torches, archs)
    contents = travel.contents(settings)
    variables = {key: text for key, text in _public(job).items() if key != "TORCH_CUDA_ARCH_LIST"}
    prepare = [{"uses": _ACTIONS["checkout"], "with": {"persist-credentials": False}}]
    prepare += [{"uses": _ACTIONS["python"], "with": {"python-version": "3.12"}}, {"run": "pip install ."}]
    prepare += [_signers(contents)] if contents else []
    token = {"HF_TOKEN": "${{ secrets.HF_TOKEN }}"}
    plan = {
        "id": "plan",
        "env": {**token, "PYTHONS": pythons, "TORCHES": torches, "ARCHS": archs},
        "run": 'found=$(sagewheels matrix --python "$PYTHONS" --torch "$TORCHES" --arch "$ARCHS" --json)\n'
        'echo "matrix=$found" >> "$GITHUB_OUTPUT"\n',
    }
    cell = {key.upper(): f"${{{{ matrix.{key} }}}}" for key in ("python", "torch", "arch")}
    build = {
        "env": {**token, **cell},
        "run": 'sagewheels matrix --python "$PYTHON" --torch "$TORCH" --arch "$ARCH"\n',
    }
    matrix = "fromJSON(needs.plan.outputs.matrix)"
    workflow = {
        "name": "sagewheels",
        "on": {"workflow_dispatch": None},
        "permissions": {"contents": "read"},
        "env": variables,
        "jobs": {
            "plan": {
                "runs-on": "ubuntu-latest",
                "outputs": {"matrix": "${{ steps.plan.outputs.matrix }}"},
                "steps": [*prepare, plan],
            },
            "build": {
                "needs": "plan",
                # GitHub refuses an empty matrix.
                "if": f"{matrix}.include[0] != null",
                "strategy": {"fail-fast": False, "matrix": f"${{{{ {matrix} }}}}"},
                "runs-on": "ubuntu-latest",
                "timeout-minutes": 350,
                "steps": [*prepare, build],
            },
        },
    }
    words = ["sagewheels", "generate", "actions", "--python", pythons, "--torch", torches, *_arch_flag(job)]
    about = [
        "Copy it to .github/workflows/ in a fork of this repository; its secret HF_TOKEN may write to the store.",
        "An older image than ubuntu-latest makes wheels that load on an older glibc.",
    ]
    return _yaml(words, about, workflow)


def _public(job: Job) -> dict[str, str]:
    """The settings that go along. Raises UsageError for one that should not stand in a file that others read."""
    found = travel.variables(job.settings)
    for key, value in found.items():
        if redacted(value) != value:
            raise UsageError(f"{key} holds credentials, which would stand in the file", f"Unset {key} for this")
        if "${{" in value:
            raise UsageError(f"{key} holds an expression of GitHub Actions", f"Correct {key}")
    return found


def _rentable(archs: Sequence[Arch]) -> list[str]:
    """Accelerators for these archs. Raises UsageError where none is known."""
    found = [name for one in archs for name in ACCELERATORS.get(str(one.plain), ())]
    if not found:
        raise UsageError(f"no GPU to rent is known for {arch.join(archs)}", f"Use one of {', '.join(ACCELERATORS)}")
    return found


def _arch_flag(job: Job) -> list[str]:
    asked = job.settings.torch_cuda_arch_list
    return ["--arch", asked] if asked else []


def _piped(task: str) -> str:
    return f"curl -fsSL {SCRIPT} | bash -s -- {task}\n"


def _signers(contents: Mapping[str, str]) -> dict[str, Any]:
    """A step after which the lists of signers are files, and the settings name them.

    Raises UsageError for a list that GitHub would not take as it stands.
    """
    lines = []
    for key, text in contents.items():
        if "${{" in text:
            raise UsageError(f"the file of {key} holds an expression of GitHub Actions", "Take it out of the list")
        lines += [
            f'printf %s "${key}_TEXT" > "$RUNNER_TEMP/{key}"',
            f'echo "{key}=$RUNNER_TEMP/{key}" >> "$GITHUB_ENV"',
        ]
    return {"env": {f"{key}_TEXT": text for key, text in contents.items()}, "run": "\n".join(lines) + "\n"}


def _yaml(words: Sequence[str], about: Sequence[str], data: Mapping[str, Any]) -> str:
    """The document, quoted by PyYAML where it must be, with scripts as blocks; empty parts are left out."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Scripts are written line by line, and what is there twice is written twice."""

        def ignore_aliases(self, _data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if value.endswith("\n") else None)

    Dumper.add_representer(str, text)
    Dumper.add_representer(type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", ""))
    kept = {key: value for key, value in data.items() if value != {}}
    body = yaml.dump(kept, Dumper=Dumper, sort_keys=False, width=_WIDTH, allow_unicode=False)
    head = [f"Generated, together with the settings of then, by: {shlex.join(words)}", *about]
    # A line break of a flag would end the comment.
    return "".join(f"# {' '.join(line.split())}\n" for line in head) + "\n" + body
