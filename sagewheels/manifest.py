"""Wheel manifests: the JSON beside each wheel, also as the first installer wrote it. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from sagewheels import arch
from sagewheels.arch import Arch
from sagewheels.errors import Refused, UsageError

SCHEMA = 1
NEVER = datetime.min.replace(tzinfo=timezone.utc)
_NO_CLOCK = 2100
"""From this year on a date is a mistake, or made to have the last word for ever."""
_WHEEL_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+]*(-[A-Za-z0-9._+!]+){4,5}\.whl")
_LONGEST, _MOST_TAGS, _MOST_BYTES = 1000, 64, 1 << 40
"""Of a text, of the tags in a file name, of a wheel: more is a mistake, or meant to harm."""
LATER = ("signature", "proofs", "unvouched_proofs", "loads", "hf_wheel_url")
"""The keys that may change after a wheel is made, which its signature therefore does not cover."""
SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXTS = (
    "created_at_utc wheel_file wheel_sha256 hf_wheel_url sageattention_version expected_sageattention_version "
    "torch_version torchvision_version torchaudio_version triton_version torch_index_url target_arch cudaarchs "
    "required_min_cuda built_for built_from_repo built_from_ref built_from_commit builder_gpu_name "
    "builder_gpu_compute_capability python_version python_tag platform machine "
    "build_key cuda_version torch_abi glibc name version"
).split()


class ManifestError(Refused):
    """A wheel manifest that cannot be read, or that contradicts itself."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A wheel passed smoke: on which GPU, with which stack, and how well."""

    gpu: str
    arch: str
    at_utc: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class WheelManifest:
    """What is known of one wheel; an empty string or tuple means that the manifest does not say.

    `stable_torch` is the oldest torch that a wheel on libtorch's stable ABI loads with, empty for any other wheel.
    `data` is the JSON object as it was read, unknown keys included: it is what is written back.
    """

    wheel_file: str
    wheel_sha256: str
    size: int | None
    name: str
    version: str
    torch: str
    stable_torch: str
    cuda: str
    archs: tuple[Arch, ...]
    glibc: str
    build_key: str
    created_at_utc: str
    proofs: tuple[Proof, ...]
    data: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def tags(self) -> tuple[str, str, str]:
        """Python, ABI and platform part of the wheel tag, each possibly a compressed set such as `py2.py3`."""
        python, abi, platform = self.wheel_file[: -len(".whl")].rsplit("-", 3)[1:]
        return python, abi, platform

    @property
    def needs_torch(self) -> str:
        """The torch that it loads with, in words: `2.11.0`, or `2.10 or newer`."""
        return f"{self.stable_torch} or newer" if self.stable_torch else self.torch

    def to_json(self) -> str:
        """The text of `<wheel>.whl.json`. Raises ManifestError for one that is nested deeper than can be written."""
        try:
            return json.dumps(self.data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        except RecursionError:
            raise ManifestError(f"the manifest of {self.wheel_file} is nested too deep") from None

    @property
    def signed_part(self) -> dict[str, Any]:
        """What a signature covers: all that was true when the wheel was made."""
        return {key: value for key, value in self.data.items() if key not in LATER}

    def updated(self, **changes: Any) -> WheelManifest:
        """A copy with these JSON keys set."""
        return parse({**self.data, **changes}, self.wheel_file)


def loads(text: str | bytes, where: str) -> WheelManifest:
    """A manifest from JSON text. Raises ManifestError, naming `where`, for anything that is not one."""
    return parse(load_json(text, where), where)


def load_json(text: str | bytes, where: str) -> object:
    """JSON, or a ManifestError that names `where`: also for bad UTF-8, NaN, 1e999 and absurd nesting."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is not JSON ({str(error)[:80]})") from None


def _finite(text: str) -> float:
    """1e999 is infinite to Python, which writes it as `Infinity`: nobody could read the index any more."""
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is no number")
    return number


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def parse(data: object, where: str) -> WheelManifest:
    """A manifest from a JSON object; keys may be null or missing, except `wheel_file`.

    Raises ManifestError, naming `where` and the key, for a wrong type or a value that cannot be.
    """
    if not isinstance(data, dict):
        raise ManifestError(f"{where} is not a JSON object")
    text = {key: _text(data, key, where) for key in _TEXTS}
    file = text["wheel_file"]
    if not file or len(file) > 255 or not _WHEEL_FILE.fullmatch(file):
        raise ManifestError(f"{where}: wheel_file {file[:80]!r} is not the name of a wheel")
    if math.prod(part.count(".") + 1 for part in file[: -len(".whl")].rsplit("-", 3)[1:]) > _MOST_TAGS:
        raise ManifestError(f"{where}: wheel_file {file[:80]!r} has more than {_MOST_TAGS} tags")
    sha256 = text["wheel_sha256"].lower()
    if sha256 and not SHA256.fullmatch(sha256):
        raise ManifestError(f"{where}: wheel_sha256 is not a sha256")
    schema, size = data.get("schema"), data.get("size")
    if schema is not None and (type(schema) is not int or schema > SCHEMA):
        raise ManifestError(f"{where}: schema {schema!r:.40} is newer than this sagewheels", "Update sagewheels")
    if size is not None and (type(size) is not int or not 0 <= size <= _MOST_BYTES):
        raise ManifestError(f"{where}: size is not a number of bytes")
    name, version = file.split("-", 2)[:2]
    return WheelManifest(
        wheel_file=file,
        wheel_sha256=sha256,
        size=size,
        name=name.lower().replace("_", "-"),
        version=version,
        torch=text["torch_version"].partition("+")[0],
        stable_torch=_stable(data, where),
        cuda=_release(text["cuda_version"], "cuda_version", where)
        or _cuda_of(text["torch_version"], text["torch_index_url"], version),
        archs=_archs(data, text, where),
        glibc=text["glibc"],
        build_key=text["build_key"],
        created_at_utc=text["created_at_utc"],
        proofs=_proofs(data, where),
        data=data,
    )


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    value = data.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ManifestError(f"{where}: {key} is not text")
    # These end up in lines on a terminal: no escape sequences, no line breaks, nothing endless.
    if key != "wheel_file" and (len(value) > _LONGEST or not value.isprintable()):
        raise ManifestError(f"{where}: {key} is not plain text of a sane length")
    return value.strip()


def _release(text: str, key: str, where: str) -> str:
    """`12.8`, or nothing."""
    if text and not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,5}){0,3}", text):
        raise ManifestError(f"{where}: {key} {text[:20]!r} is not a version in numbers")
    return text


def _stable(data: Mapping[str, Any], where: str) -> str:
    """The oldest torch of `stable_abi`, empty when the wheel makes no such claim."""
    claim = data.get("stable_abi")
    if claim is None:
        return ""
    oldest = claim.get("torch") if isinstance(claim, dict) else None
    if not isinstance(oldest, str) or not oldest:
        raise ManifestError(f"{where}: stable_abi does not name its oldest torch")
    return _release(oldest, "stable_abi", where)


def _archs(data: Mapping[str, Any], text: Mapping[str, str], where: str) -> tuple[Arch, ...]:
    """The archs of the cubins: what was found in the binaries (`archs`), else what the compiler was asked for.

    `12.0+PTX` asks for both, and is listed as both; PTX alone runs nowhere without the driver's compiler.
    """
    listed = data.get("archs")
    if listed is not None and not (isinstance(listed, list) and all(isinstance(item, str) for item in listed)):
        raise ManifestError(f"{where}: archs is not a list of text")
    words = ";".join(listed) if listed else text["target_arch"] or text["cudaarchs"]
    try:
        found = arch.parse_list(words) if words else ()
    except UsageError as error:
        raise ManifestError(f"{where}: {error.what}") from None
    cubins = [one for one in found if not one.ptx] if listed else [replace(one, ptx=False) for one in found]
    return tuple(dict.fromkeys(cubins))


@lru_cache(maxsize=4096)
def _cuda_of(torch: str, index: str, version: str) -> str:
    """CUDA version from `2.8.0+cu128`, from the index address, or from the wheel's local version; else empty."""
    for text in (torch.partition("+")[2], index.rstrip("/").rpartition("/")[2], version.partition("+")[2]):
        found = re.match(r"cu([0-9][0-9])([0-9])(?!\d)", text)
        if found:
            return f"{found[1]}.{found[2]}"
    return ""


def _proofs(data: Mapping[str, Any], where: str) -> tuple[Proof, ...]:
    listed = data.get("proofs")
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise ManifestError(f"{where}: proofs is not a list of objects")
    return tuple(
        Proof(
            gpu=_text(item, "gpu", where),
            arch=_text(item, "arch", where),
            at_utc=_text(item, "at_utc", where),
            raw=item,
        )
        for item in listed
    )


def when(text: str) -> datetime:
    """A moment, long ago when the text is not one, or is of a clock that runs centuries ahead."""
    try:
        found = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
    except ValueError:
        return NEVER
    if found.year >= _NO_CLOCK:
        return NEVER
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
