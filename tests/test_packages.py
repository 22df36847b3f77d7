"""The library builds what a manifest says: no package is known by name, and the settings of one mean no other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sagewheels import recipe, steps
from sagewheels.config import Settings
from sagewheels.job import Job
from sagewheels.resources import ROOT
from tests import wheels
from tests.test_steps import lines

MANIFESTS = sorted(ROOT / "manifests" / f"{name}.toml" for name in recipe.names())
CORE = sorted([*(ROOT / "sagewheels").rglob("*.py"), ROOT / "tasks.py"])
CONTRACT = (
    # Defaults, and a file, that users rely on.
    "adbrasi/sageattention220-wheels",
    '"sageattention220"',
    "REMOTE_DIR like sageattention220",
    ".build-sageattention",
    "install_sageattention220_wheel.sh",
    "adbrasi/sageattention220-ultimate-installer",
    # Keys that the first installer wrote.
    "expected_sageattention_version",
    "sageattention_version",
    # What is built where no manifest is named.
    'f"sageattention-{self.sage_version}"',
)
"""Where the names of a package may stand in the library; each is there for those who used the first installer."""
THEIRS = "https://github.com/thu-ml/SageAttention.git"


def names_of_packages() -> set[str]:
    """Every name by which the shipped manifests' packages, modules and kernels could be known."""
    found = {"sageattn", "sage_attn", "qattn", "sparge", "thu-ml"}
    for one in map(recipe.load, (path.stem for path in MANIFESTS)):
        kernels = {rule.kernel for rule in one.archs.values()}
        found |= {one.name, one.package, one.source.repo.rpartition("/")[2].removesuffix(".git").lower(), *kernels}
        found |= {str(one.smoke["call"]).partition(":")[2]}
    # Shorter ones are parts of plain words.
    return {name.lower() for name in found if len(name) > 4}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_library_knows_no_package_by_name(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for allowed in CONTRACT:
        text = text.replace(allowed, "")
    named = sorted(name for name in names_of_packages() if re.search(re.escape(name), text, re.IGNORECASE))
    assert named == []


def test_what_is_allowed_is_there() -> None:
    """An allow-list that nobody needs any more allows too much."""
    whole = "".join(path.read_text(encoding="utf-8") for path in CORE)
    assert [allowed for allowed in CONTRACT if allowed not in whole] == []


def job(tmp_path: Path, **settings: Any) -> Job:
    """A run with another manifest than that of SAGE_VERSION; nothing is probed."""
    source = f'repo = "https://example.invalid/tiny.git"\nref = "v1"\ncommit = "{"ab" * 20}"'
    return Job(Settings(**{"sage_manifest": str(wheels.write_recipe(tmp_path, source)), **settings}))


@pytest.mark.parametrize("ref", ["v2.2.0", "eb615cf6cf4d221338033340ee2de1c37fbdba4a"])
@pytest.mark.parametrize("repo", [THEIRS, THEIRS.removesuffix(".git")])
def test_the_usual_source_is_not_that_of_another_package(tmp_path: Path, repo: str, ref: str) -> None:
    """The first users' .env says SAGE_SOURCE_REPO and SAGE_SOURCE_REF, with the values that were the defaults."""
    one = job(tmp_path, sage_source_repo=repo, sage_source_ref=ref)
    assert (one.settings.sage_source_repo, one.settings.sage_source_ref) == ("", "")
    assert one.source == "ab" * 20


def test_a_source_that_was_named_on_purpose_stays(tmp_path: Path) -> None:
    one = job(tmp_path, sage_source_repo="/mnt/tiny.git", sage_source_ref="main")
    assert (one.settings.sage_source_repo, one.source) == ("/mnt/tiny.git", "main")
    usual = Job(Settings(sage_source_repo=THEIRS, sage_source_ref="v2.2.0"))
    assert (usual.settings.sage_source_repo, usual.settings.sage_source_ref) == (THEIRS, "v2.2.0")
    unknown = job(tmp_path, sage_version="9.9", sage_source_ref="v2.2.0")
    assert unknown.settings.sage_source_ref == "v2.2.0", "no manifest says it already"


@pytest.mark.parametrize(
    ("settings", "version"),
    [
        ({}, wheels.VERSION),
        ({"sage_expect_version": "2.2.0"}, wheels.VERSION),
        ({"sage_expect_version": ""}, wheels.VERSION),
        ({"sage_version": wheels.VERSION, "sage_expect_version": "7"}, wheels.VERSION),
    ],
)
def test_the_expected_version_is_that_of_its_own_package(
    tmp_path: Path, settings: dict[str, Any], version: str
) -> None:
    """Also where the other package happens to have the same version."""
    here = wheels.machine(tmp_path)
    assert here.job(**settings).wanted().version == version


def test_what_a_package_needs_is_part_of_its_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = wheels.machine(tmp_path)
    manifest = Path(here.settings.sage_manifest)
    manifest.write_text(manifest.read_text().replace("[source]", 'needs = ["tinyneed>=2"]\n[source]', 1))
    steps.do_stack(here.job(dry_run=True))
    assert lines(capsys)[1:] == ["[stack] would install tinyneed>=2 for tinyattn"]
    wheels.put_distribution(here.python, "tinyneed", "1.0")
    steps.do_stack(here.job(dry_run=True))
    assert lines(capsys)[1:] == ["[stack] would install tinyneed>=2 for tinyattn"]
    shutil.rmtree(here.site / "tinyneed-1.0.dist-info")
    wheels.put_distribution(here.python, "tinyneed", "2.1")
    steps.do_stack(here.job())
    assert len(lines(capsys)) == 1
