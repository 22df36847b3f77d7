"""Which settings go along to another machine: none that is a secret, a path of this one, or speaks of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagewheels import travel
from sagewheels.config import KEYS, SECRETS, load
from sagewheels.errors import UsageError

ELSEWHERE_WRONG = {"PYTHON_BIN", "MAX_JOBS", "EXT_PARALLEL", "COMPILER_LAUNCHER", "COMFYUI_PATH", "SAGE_OFFLINE"}
PATHS = {"WORK_DIR", "WHEELHOUSE_DIR", "LOG_DIR", "OBJECT_CACHE_DIR", "SIGNING_KEY", *travel.FILES}
VALUES = {
    "TORCH_CHANNEL": "pypi",
    "CUDA_INDEX_VARIANT": "cu130",
    "HF_REPO_ID": "me/wheels",
    "HF_REPO_TYPE": "model",
    "MIN_CUDA_FOR_SM120": "13.0",
    "MIN_TRITON_FOR_50XX": "3.4",
    "HF_PRIVATE": "true",
    "ALLOW_UNSAFE_WHEEL": "yes",
    "COMPILER_LAUNCHER": "none",
    "MAX_JOBS": "3",
    "SAGE_OFFLINE": "1",
    "EXT_PARALLEL": "2",
    "MIN_INDEX_SERIAL": "12",
    "SAGE_STORE": "hf://me/wheels",
    "SAGE_EXPECT_VERSION": "",
}


def test_all_that_is_set_goes_along_but_for_what_is_of_this_machine(tmp_path: Path) -> None:
    environ = {key: VALUES.get(key, f"a value of {key}") for key in KEYS}
    environ |= {"SAGEWHEELS_REF": "v1", "CUDA_HOME": "/cuda", "SAGEWHEELS_HOME": "/here"}
    found = travel.variables(load(environ, cwd=tmp_path))
    assert set(found) == (set(KEYS) - SECRETS - ELSEWHERE_WRONG - PATHS) | {"SAGEWHEELS_REF"}
    as_given = {key: value for key, value in environ.items() if key in found}
    assert found == as_given | {"HF_PRIVATE": "1", "ALLOW_UNSAFE_WHEEL": "1"}


def test_what_is_not_set_stays_the_other_machines_own(tmp_path: Path) -> None:
    assert travel.variables(load({}, cwd=tmp_path)) == {}
    settings = load({"TORCH_CHANNEL": "pypi", "HF_REPO_ID": "me/x"}, cwd=tmp_path)
    assert travel.variables(settings, own=["TORCH_CHANNEL"]) == {"HF_REPO_ID": "me/x"}


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("SAGE_STORE", "/mnt/usb", "or use a Hub repository (HF_REPO_ID)"),
        ("SAGE_STORE", "file:///mnt/usb", "or use a Hub repository (HF_REPO_ID)"),
        ("SAGE_MANIFEST", "my.toml", "or use one of manifests/"),
        ("SAGE_MANIFEST", "/x/my.toml", "or use one of manifests/"),
    ],
)
def test_a_store_or_manifest_of_this_machine_is_refused(tmp_path: Path, key: str, value: str, remedy: str) -> None:
    """Left out, another machine would take wheels from another store, or build another package."""
    settings = load({key: value}, cwd=tmp_path)
    with pytest.raises(UsageError) as caught:
        travel.variables(settings)
    assert str(caught.value) == (
        f"{key}={value} is a path of this machine, which others may not have. "
        f"Write {key}=... behind each host of --hosts, {remedy}."
    )
    assert travel.variables(settings, own=[key]) == {}


def test_the_signers_go_along_as_text(tmp_path: Path) -> None:
    (tmp_path / "signers").write_text("me ssh-ed25519 AAAA\n")
    (tmp_path / "krl").write_bytes(b"SSHKRL\n\0\0")
    (tmp_path / "latin").write_bytes(b"\xe9")
    good = load({"TRUSTED_SIGNERS": "signers"}, cwd=tmp_path)
    assert travel.contents(good) == {"TRUSTED_SIGNERS": "me ssh-ed25519 AAAA\n"}
    assert travel.contents(good, own=["TRUSTED_SIGNERS"]) == {}
    for name in ("krl", "latin"):
        with pytest.raises(UsageError) as caught:
            travel.contents(load({"TRUSTED_SIGNERS": "signers", "REVOKED_SIGNERS": name}, cwd=tmp_path))
        assert str(caught.value) == (
            f"REVOKED_SIGNERS {tmp_path}/{name} is a binary file, which cannot be sent along. "
            "Use one with a public key on each line."
        )
    with pytest.raises(UsageError, match=r"^TRUSTED_SIGNERS \S+/none cannot be read \(No such file or directory\)\. "):
        travel.contents(load({"TRUSTED_SIGNERS": "none"}, cwd=tmp_path))
