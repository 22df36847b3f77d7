"""Credentials are in no line that people see."""

from __future__ import annotations

import pytest

from sagewheels import ui
from sagewheels.errors import UsageError
from sagewheels.redact import redacted

SHOWN = [
    ("https://me:secret@host.invalid/a@b/c.git", "https://host.invalid/a@b/c.git"),
    ("https://secret@host.invalid", "https://host.invalid"),
    ("https://me:sec@ret@host.invalid/x", "https://host.invalid/x"),
    ("redis://:secret@127.0.0.1:6379|timeout=1", "redis://127.0.0.1:6379|timeout=1"),
    ("git+ssh://me:secret@host.invalid/x", "git+ssh://host.invalid/x"),
    ("'https://me:secret@a.invalid/x' and https://me:secret@b.invalid", "'https://a.invalid/x' and https://b.invalid"),
    ("Fetched http://me:secret%40@127.0.0.1:9/simple/torch/", "Fetched http://127.0.0.1:9/simple/torch/"),
    ("HF_REPO_ID='hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345' in .env", "HF_REPO_ID='***' in .env"),
    # None of these holds any.
    ("hf://datasets/me/wheels@main/sage", "hf://datasets/me/wheels@main/sage"),
    ("git@host.invalid:me/x.git", "git@host.invalid:me/x.git"),
    ("https://host.invalid/x?mail=me@host.invalid", "https://host.invalid/x?mail=me@host.invalid"),
    ("see https://host.invalid, or write to me@host.invalid", "see https://host.invalid, or write to me@host.invalid"),
    ("file:///home/me@work/x", "file:///home/me@work/x"),
    ("hf_hub_download and hf_transfer", "hf_hub_download and hf_transfer"),
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_what_is_shown(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert redacted(text) == redacted(shown) == shown
    assert str(UsageError(text, text)) == f"{shown}. {shown}."
    ui.say("test", text)
    ui.warn("test", text)
    ui.table("test", ["what"], [[text]])
    out, err = capsys.readouterr()
    assert (out.splitlines()[0], err) == (f"[test] {shown}", f"[test] warning: {shown}\n")
    assert f"| {shown} |" in out


def test_secrets_that_are_known_are_hidden_whatever_their_form() -> None:
    assert redacted("its token is a+b, again a+b", "a+b", "") == "its token is ***, again ***"
