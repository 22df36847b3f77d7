"""What signatures cost in a store of 10,000 wheels: processor seconds, ssh-keygen's own included, the best of three.

Run it where sagewheels is installed and ssh-keygen is there:

    python benchmarks/signing.py
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sagewheels import manifest, signing
from sagewheels.config import Settings
from sagewheels.manifest import WheelManifest
from sagewheels.store import index
from sagewheels.store.directory import DirectoryStore
from sagewheels.store.guarded import GuardedStore
from sagewheels.trust import Trust, canonical

_WHEELS = 10_000
_NAME = "sageattention-2.2.0+cu130torch2.11sm120.k{at}-cp312-cp312-manylinux_2_28_x86_64.whl"


def main() -> None:
    """Prints one line for each thing."""
    with tempfile.TemporaryDirectory(prefix="sagewheels-signing-") as name:
        _measure(Path(name))


def _measure(root: Path) -> None:
    key, trusted = root / "key", root / "trusted"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "maker", "-f", key], check=True)
    public = " ".join(Path(f"{key}.pub").read_text(encoding="utf-8").split()[:2])
    trusted.write_text(signing.allowed_line("maker", public) + "\n", encoding="utf-8")
    plain = Settings(work_dir=root / "work", environ=dict(os.environ))
    signer = Settings(
        work_dir=root / "work", environ=dict(os.environ), signing_key=str(key), trusted_signers=str(trusted)
    )
    one = Trust(signer).entry(None, _manifest(0))
    listed = [{**one.data, "wheel_file": _NAME.format(at=at), "wheel_sha256": f"{at:064x}"} for at in range(_WHEELS)]
    document = Trust(signer).sign_index({"schema": 1, "serial": 1, "wheels": listed})[0]
    (root / "store").mkdir()
    text = json.dumps(document, indent=1, sort_keys=True)
    (root / "store" / "index.json").write_text(text, encoding="utf-8")
    print(f"index.json of {_WHEELS} wheels: {len(text) / 1e6:.1f} MB")

    def load(settings: Settings) -> object:
        # A new Trust each time, since an answer is remembered.
        return index.load(GuardedStore(DirectoryStore(root / "store"), Trust(settings), root / "work" / "serials.json"))

    _time("the index is read, nothing enforced", lambda: load(plain))
    _time("the same, verified", lambda: load(signer))
    _time("its canonical text alone", lambda: canonical(document))
    _time("a wheel is verified", lambda: Trust(signer).of_wheel(one))
    _time("a wheel is signed", lambda: Trust(signer).entry(None, _manifest(0)))


def _manifest(at: int) -> WheelManifest:
    data: dict[str, Any] = {
        "schema": 1,
        "created_at_utc": "2026-01-01T00:00:00Z",
        "wheel_file": _NAME.format(at=at),
        "wheel_sha256": f"{at:064x}",
        "torch_version": "2.11.0+cu130",
        "archs": ["12.0"],
        "patches": [{"name": f"{number:04d}-a-patch-with-a-name.patch", "sha256": "b" * 64} for number in range(14)],
        "toolchain": {"nvcc": "13.0.88", "cxx": "g++ 12.2.0", "flags": "-O3 " * 40},
    }
    return manifest.parse(data, "benchmark")


def _time(what: str, run: Callable[[], object]) -> None:
    best = min(_seconds(run) for _ in range(3))
    print(f"{best:6.2f} s  {what}")


def _seconds(run: Callable[[], object]) -> float:
    before = os.times()
    run()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
