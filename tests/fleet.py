"""A build step that needs no CUDA, behind all that comes before it: the plan, its build key, the claim, the wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sagewheels import build as compiling
from sagewheels import buildplan, preflight, wheelhouse
from sagewheels.arch import Arch
from sagewheels.bad import Marks
from sagewheels.buildplan import Plan
from sagewheels.config import Settings
from sagewheels.toolkit import Toolkit
from sagewheels.wheelhouse import Made
from tests import wheels

KIT = Toolkit(home=Path("/nowhere"), version="13.0", build="cuda_13.0", origin="a test", compiler="cc 13")


def with_build(put: Callable[[Any, str, Any], object], during: Callable[[str], str]) -> None:
    """The build step takes as long as `during`, given the build key, and packs what that returns as the package.

    `put` is `setattr`, or the one of pytest's monkeypatch.
    """

    def check(*_: object) -> Toolkit:
        return KIT

    def tools(*_: object) -> str:
        return "setuptools-80"

    def run(
        settings: Settings,
        plan: Plan,
        *,
        force: bool = False,
        known_bad: Marks | None = None,
        archs: Sequence[Arch] = (),
    ) -> Made:
        key = compiling.known_key(settings, plan)
        python = during(key)
        version = f"{wheels.VERSION}{wheels.LABEL}.k{key[:8]}"
        path = wheels.make(settings.work_dir / "out", version=version, python=python)
        manifest = wheels.describe(path, created_at_utc="2026-05-05T00:00:00Z", build_key=key)
        return wheelhouse.keep(settings, path, manifest), manifest

    put(preflight, "check", check)
    put(buildplan, "tools", tools)
    put(compiling, "run", run)
