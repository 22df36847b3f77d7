"""The wheel manifest of a fresh build: what the wheel is, read from the wheel, and what it was made from."""

from __future__ import annotations

import datetime
import re
from dataclasses import asdict
from typing import Any

import sagewheels
from sagewheels import arch, packing, stack, wheel
from sagewheels.buildplan import Plan
from sagewheels.config import Settings
from sagewheels.manifest import SCHEMA, WheelManifest, parse
from sagewheels.source import Checkout


def describe(settings: Settings, plan: Plan, tree: Checkout, key: str, found: wheel.Wheel) -> WheelManifest:
    """The wheel manifest: what the wheel is, read from the wheel, and what it was made from."""
    torch = plan.target.torch
    assert torch is not None
    versions = plan.target.versions
    python, _, platform = found.path.name[: -len(".whl")].rsplit("-", 3)[1:]
    version, package = found.version.partition("+")[0], plan.recipe.package
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "created_at_utc": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "name": plan.recipe.name,
        "version": version,
        "wheel_file": found.path.name,
        "wheel_sha256": found.sha256,
        "size": found.size,
        "hf_wheel_url": None,
        "sageattention_version": None,
        "expected_sageattention_version": None,
        "torch_version": torch.version,
        "torchvision_version": versions.get("torchvision"),
        "torchaudio_version": versions.get("torchaudio"),
        "triton_version": versions.get("triton"),
        "torch_index_url": _index(torch.version),
        "cuda_version": torch.cuda,
        "stable_abi": {"torch": plan.recipe.stable_torch} if plan.recipe.stable_torch else None,
        "torch_abi": max(item.abi for item in found.extensions.values()) or None,
        "target_arch": arch.join(plan.archs),
        "cudaarchs": ";".join(one.plain.number for one in plan.archs),
        "archs": [str(one) for one in plan.recipe.archs_of(found.held)],
        "extensions": {name: [str(one) for one in archs] for name, archs in sorted(found.held.items())},
        "glibc": found.glibc or None,
        "required_min_cuda": max((rule.min_cuda for rule in plan.rules), key=lambda text: [*map(int, text.split("."))]),
        "built_for": ", ".join(f"sm_{rule.cubin.number}" for rule in plan.rules),
        "built_from_repo": tree.repo,
        "built_from_ref": tree.ref or None,
        "built_from_commit": tree.commit,
        "patches": [{"name": patch.file, "sha256": patch.sha256} for patch in tree.patches],
        "build_key": key,
        "builder_gpu_name": None,
        "builder_gpu_compute_capability": None,
        "python_version": plan.target.version,
        "python_tag": python,
        "platform": platform,
        "machine": plan.target.machine,
        "toolchain": {
            "nvcc": plan.toolkit.build,
            "compiler": plan.toolkit.compiler,
            "tools": plan.tools,
            "packing": packing.made_with(),
            "glibc": plan.glibc,
            "flags": asdict(plan.flags),
            "sagewheels": sagewheels.__version__,
        },
        "proofs": [],
        "signature": None,
    }
    # The first installer's keys name their package: of any other they would say what is not so.
    theirs = {f"{package}_version": version, f"expected_{package}_version": settings.sage_expect_version or None}
    data.update({key: value for key, value in theirs.items() if key in data})
    return parse(data, found.path.name)


def _index(version: str) -> str | None:
    """PyTorch's own index that has this very torch, by its local version; None where it has none."""
    found = re.search(r"(\.dev\d+)?\+(cu\d+)$", version)
    return stack.index_url(found[2], nightly=bool(found[1])) if found else None
