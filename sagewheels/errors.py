"""The one family of errors: each has an exit code, and says what is wrong and what to do."""

from __future__ import annotations

from invoke.exceptions import Exit

from sagewheels.redact import redacted

_LONGEST = 500
"""Letters of what is wrong: more is read by nobody, and comes from a file that somebody made long on purpose."""


def shown(text: str) -> str:
    """The text as people may see it: without credentials of an address, each unprintable letter spelt.

    git, pip and uv quote the addresses that they were given, and files of others hold escape sequences.
    """
    return _plain(redacted(text))


def _plain(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def _short(text: str) -> str:
    """The text, or what it begins and ends with: the end of a long list of reasons says as much as its beginning."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 105]} ... {text[-100:]}"


class SageError(Exit):
    """An error whose one line is meant for the user; Invoke prints it on stderr and exits with `exit_code`.

    The line can be shown on a terminal, whatever file its words come from, and holds no credentials of an address.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = _short(shown(" ".join(what.split())).rstrip(".! "))
        self.remedy = redacted(remedy).rstrip(". ")
        line = f"{self.what}. {self.remedy}." if self.remedy else f"{self.what}."
        super().__init__(message=_plain(" ".join(line.split())), code=self.exit_code)

    def __str__(self) -> str:
        return self.message or ""


class UsageError(SageError):
    """A flag, a setting, a build manifest or the machine's set-up is not as it must be."""

    exit_code = 2


class NothingCompatible(SageError):
    """The store answered, and holds no wheel for this machine."""

    exit_code = 3


class Refused(SageError):
    """A wheel is not what it claims to be, or was not made for this machine."""

    exit_code = 4


class Untrusted(Refused):
    """What a store says is not signed by anybody who is trusted, or is older than what was seen of it before."""


class BuildFailed(SageError):
    """The compile did not end with a wheel; what was installed is untouched."""

    exit_code = 5


class SmokeFailed(SageError):
    """The kernels did not run, or computed something else than the reference."""

    exit_code = 6


class StoreError(SageError):
    """The store or the network did not do what was asked."""

    exit_code = 7


class Unreachable(StoreError):
    """A machine of a fleet cannot be reached, or the connection was lost; `passing`: another try may help."""

    def __init__(self, what: str, remedy: str = "", *, passing: bool = True) -> None:
        super().__init__(what, remedy)
        self.passing = passing


class HostsFailed(SageError):
    """Some machines of a fleet failed; the exit code is that of the first of them."""

    def __init__(self, what: str, remedy: str, *, code: int = 1) -> None:
        self.exit_code = code
        super().__init__(what, remedy)


class Interrupted(SageError):
    """Ctrl-C, or a signal that asks to stop."""

    exit_code = 130
