"""The hosts file: what is read, and the exact line for what cannot be meant."""

from __future__ import annotations

import pytest

from sagewheels.errors import UsageError
from sagewheels.hosts import Host, parse

FORM = "Write user@host:port, or a name of your ~/.ssh/config, then KEY=value for what counts there only."


def test_what_people_write() -> None:
    text = """
# the fleet
root@203.0.113.7:40022   PYTHON_BIN="/opt/my venv/bin/python" TORCH_CUDA_ARCH_LIST='8.9;12.0'   # rented
gpu-1 # don't stop it
user.name@[2001:db8::1]:22
[::1]
WHEEL.example WHEEL_URL=https://example.invalid/x.whl#sha256=ab
"""
    assert parse(text, "hosts") == [
        Host(
            name="root@203.0.113.7:40022",
            address="203.0.113.7",
            user="root",
            port=40022,
            settings={"PYTHON_BIN": "/opt/my venv/bin/python", "TORCH_CUDA_ARCH_LIST": "8.9;12.0"},
        ),
        Host(name="gpu-1", address="gpu-1"),
        Host(name="user.name@[2001:db8::1]:22", address="2001:db8::1", user="user.name", port=22),
        Host(name="[::1]", address="::1"),
        Host(
            name="WHEEL.example",
            address="WHEEL.example",
            settings={"WHEEL_URL": "https://example.invalid/x.whl#sha256=ab"},
        ),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", f"hosts names no host. {FORM}"),
        ("# only this\n\n", f"hosts names no host. {FORM}"),
        ("a\n\nb\na\n", "hosts line 4: a is there already, in line 1. Name each host once."),
        ("me@a:22\nme@A:22 PYTHON_BIN=x", "hosts line 2: me@A:22 is there already, in line 1. Name each host once."),
        ("-oProxyCommand=x", f"hosts line 1: '-oProxyCommand=x' is no host. {FORM}"),
        ("a;b", f"hosts line 1: 'a;b' is no host. {FORM}"),
        ("a:0", f"hosts line 1: 'a:0' is no host. {FORM}"),
        ("a:65536", f"hosts line 1: 'a:65536' is no host. {FORM}"),
        ("2001:db8::1", f"hosts line 1: '2001:db8::1' is no host. {FORM}"),
        ("PYTHON_BIN=x", f"hosts line 1: 'PYTHON_BIN=x' is no host. {FORM}"),
        ("a PYTHON_BIN", "hosts line 1: 'PYTHON_BIN' is no setting. Write KEY=value, with a key of .env.example."),
        ("a LD_PRELOAD=x", "hosts line 1: 'LD_PRELOAD=x' is no setting. Write KEY=value, with a key of .env.example."),
        ("a MAX_JOBS=1 MAX_JOBS=2", "hosts line 1: MAX_JOBS is set twice. Set it once."),
        ("a MAX_JOBS='1", "hosts line 1: a quotation mark is never closed. Write KEY='a value'."),
        (
            "a HF_TOKEN=hf_x",
            "hosts line 1: HF_TOKEN is a secret, and others may read this file. Put HF_TOKEN into your .env.",
        ),
        ("a MAX_JOBS=many", "MAX_JOBS='many' in hosts line 1 is not a count. Write a whole number from 1 to 9999."),
        (
            "a\nb TORCH_CHANNEL=x",
            "TORCH_CHANNEL='x' in hosts line 2 is not known. Use one of nightly, stable, pypi.",
        ),
        (
            "a PYTHON_BIN='x\x1b'",
            "PYTHON_BIN in hosts line 1 holds control characters. Write it on one line, as plain text.",
        ),
    ],
)
def test_what_cannot_be_meant(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "hosts")
    assert str(caught.value) == line


def test_paths_of_a_host_are_not_looked_at_here() -> None:
    (host,) = parse("a WORK_DIR=~nobody-here/work SIGNING_KEY=~/key", "hosts")
    assert host.settings == {"WORK_DIR": "~nobody-here/work", "SIGNING_KEY": "~/key"}
