"""Installing into the target: with uv where it is there, else with the target's own pip."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sagewheels import proc, ui
from sagewheels.config import Settings
from sagewheels.errors import SageError, UsageError
from sagewheels.target import Target

_BENDING = frozenset(
    "PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_PYTHON PIP_DRY_RUN PIP_NO_DEPS PIP_REQUIREMENT PIP_REQUIRE_VIRTUALENV "
    "PIP_REQUIRE_HASHES PIP_CONSTRAINT UV_REQUIRE_HASHES UV_CONSTRAINT UV_OVERRIDE UV_EXCLUDE UV_TARGET UV_PREFIX "
    "UV_PYTHON UV_SYSTEM_PYTHON UV_BREAK_SYSTEM_PACKAGES UV_MANAGED_PYTHON UV_NO_MANAGED_PYTHON "
    "PYTHONHOME PYTHONPATH PYTHONUSERBASE PYTHONSTARTUP".split()
)
"""Variables that send an install elsewhere than into the target that was chosen. Index settings stay in force."""


def uv_program(settings: Settings) -> Path | None:
    """The uv that came with the tool, else the one on PATH."""
    try:
        from uv import find_uv_bin

        return Path(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv", path=settings.variable("PATH") or None)
        return Path(found) if found else None


def pip(
    settings: Settings, target: Target, verb: str, arguments: Sequence[str | Path], *, error: type[SageError]
) -> proc.Result:
    """`pip install` or `pip uninstall` in the target, and in no other interpreter. pip itself is never upgraded.

    Raises `error` with the last line of the output, and UsageError when the target cannot be written to.
    """
    demand_writable(target)
    allowed = ["--break-system-packages"] if target.externally_managed else []
    if allowed:
        ui.say(verb, f"{target.python} is externally managed: using --break-system-packages")
    uv = uv_program(settings)
    if uv:
        argv: list[str | Path] = [uv, "pip", verb, "--python", target.python, *allowed, *arguments]
    else:
        yes = ["--yes"] if verb == "uninstall" else ["--quiet", "--disable-pip-version-check"]
        argv = [target.python, "-m", "pip", verb, *yes, *allowed, *arguments]
    return _run(settings, argv, verb, target.site, error)


def _run(
    settings: Settings, argv: Sequence[str | Path], topic: str, folder: Path, error: type[SageError]
) -> proc.Result:
    """Runs an installer to its end and shows what comes, as far as it says that: uv does, a quiet pip does not."""
    from sagewheels.arrivals import Arrivals

    arrivals = Arrivals()
    with ui.progress(topic) as shown:
        return proc.run(
            argv,
            env=environment(settings),
            error=error,
            writes=folder,
            heard=lambda line: shown.update(arrivals.hear(line)),
        )


def install_wheel(settings: Settings, target: Target, wheel: Path, *, name: str) -> None:
    """Puts exactly this wheel file into the target, without its dependencies, replacing any installed version."""
    uv = uv_program(settings)
    # uv links files to its cache, which an edit of the installed file would change too: only the wheel's bytes count.
    fresh = ["--no-cache", "--link-mode", "copy", "--reinstall-package", name]
    replace: list[str | Path] = [*fresh] if uv else ["--no-cache-dir", "--force-reinstall"]
    arguments = [*_no_config(uv), "--no-deps", "--no-index", *replace, wheel.resolve()]
    pip(settings, target, "install", arguments, error=UsageError)


def demand_writable(target: Target) -> None:
    """Raises UsageError when the target cannot be written to."""
    if not target.writable:
        raise UsageError(f"{target.site} cannot be written to", "Set PYTHON_BIN to an environment of your own")


def _no_config(uv: Path | None) -> list[str | Path]:
    """A uv.toml where the user stands may name another place to install to; a local file needs no settings."""
    return ["--no-config"] if uv else []


def into_folder(
    settings: Settings, target: Target, folder: Path, requirements: Sequence[str], timeout: float | None = None
) -> None:
    """Installs `requirements`, built for the target's Python, into `folder` and nowhere else.

    Raises SageError when the package index does not give them, or not within `timeout` seconds.
    """
    uv = uv_program(settings)
    if uv:
        argv: list[str | Path] = [uv, "pip", "install", "--python", target.python, "--target", folder]
    else:
        argv = [target.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder]
    argv = [*argv, *requirements]
    if timeout is None:
        _run(settings, argv, "install", folder, SageError)
    else:  # small things, which are not worth a word
        proc.run(argv, env=environment(settings), timeout=timeout, error=SageError, writes=folder)


def environment(settings: Settings) -> Mapping[str, str]:
    """The user's environment, less what would bend an install; a dead index is given up in good time."""
    kept = {key: value for key, value in settings.environ.items() if key not in _BENDING}
    return {"UV_HTTP_CONNECT_TIMEOUT": "10", "UV_HTTP_RETRIES": "1", "PIP_RETRIES": "1", **kept}
