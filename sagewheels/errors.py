"""The one family of errors: each has an exit code, and says what is wrong and what to do."""

from __future__ import annotations

from invoke.exceptions import Exit

from sagewheels.redact import redacted


class SageError(Exit):
    """An error whose one line is meant for the user; Invoke prints it on stderr and exits with `exit_code`.

    No text in it shows credentials of an address: git, pip and uv quote the addresses that they were given.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = redacted(what).rstrip(".! ")
        self.remedy = redacted(remedy).rstrip(". ")
        line = f"{self.what}. {self.remedy}." if self.remedy else f"{self.what}."
        super().__init__(message=" ".join(line.split()), code=self.exit_code)

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


class BuildFailed(SageError):
    """The compile did not end with a wheel; what was installed is untouched."""

    exit_code = 5


class SmokeFailed(SageError):
    """The kernels did not run, or computed something else than the reference."""

    exit_code = 6


class StoreError(SageError):
    """The store or the network did not do what was asked."""

    exit_code = 7


class Interrupted(SageError):
    """Ctrl-C, or a signal that asks to stop."""

    exit_code = 130
