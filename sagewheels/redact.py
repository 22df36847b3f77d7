"""What people and logs are shown: no credentials, which addresses and the words of other programs bring along."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"(?<=://)[^/\s?#]*@")
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}")
"""As the Hub makes them: one may stand in a setting that is not HF_TOKEN."""


def redacted(text: str, *secrets: str) -> str:
    """The text without names and passwords in addresses, without the Hub's tokens, and without these secrets."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return _TOKEN.sub("***", _LOGIN.sub("", text))
