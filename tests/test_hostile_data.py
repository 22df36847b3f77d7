"""Hostile data: whatever stands in a file or an answer that is read, the outcome is a value or one line for the user.

Each property starts from a document as it should be, and changes it: wrong types, keys that are gone or twice, numbers
that no machine has, text that would draw on the terminal, nesting without end, files that end in the middle. Where the
document is right, so must the verdict be: it is held against an oracle that knows nothing of the code.
`pytest --all` tries 4000 inputs for each; `--hypothesis-show-statistics` shows how many of them were accepted.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from sagewheels import (
    arch,
    bad,
    config,
    files,
    host,
    installed,
    manifest,
    match,
    recipe,
    toolkit,
    ui,
    wheel,
    wheelhouse,
)
from sagewheels.config import KEYS, Settings
from sagewheels.errors import NothingCompatible, SageError, StoreError
from sagewheels.manifest import ManifestError, WheelManifest, when
from sagewheels.match import Wanted
from sagewheels.recipe import Recipe
from sagewheels.resources import ROOT
from sagewheels.store import Conflict, Snapshot, index, tries
from sagewheels.store.entries import INDEX, LATEST, document, entries, marks, merge
from sagewheels.store.opening import open_store
from sagewheels.target import Target
from tests import wheels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

# What is hostile

TERMINAL = "\x1b[2J\x1b]0;owned\x07", "a\rb", "\x9b31m", "\u202egnp.exe", "x\0y", "two\nlines", "\x7f\x08", "\u2028"
WORDS = st.sampled_from(
    [
        *TERMINAL,
        *("", " ", "\ud800", "\udcff tail", "\xb2", "\u0661\u0662.\u0660", "\uff11\uff12.\uff10", "12.0\u0660", "NaN"),
        *("nan", "-1", "1e999", "9" * 5000, "x" * 3000, "../../etc/passwd", "a/b", "sm_120", "12.0+PTX", "sm_99999"),
        *("9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "2026-02-30", "2026-01-01T00:00:00", "9999"),
        *("0" * 64, "F" * 64, "a-1-py3-none-any.whl", "A-1-" + ".".join("abcdefghij" * 4) + "-none-any.whl", "12.8"),
        *("2.11.0+cu130", "2.11.0.dev1", "<<<<<<< HEAD", "[console_scripts]", "{}", "%s%n", "$(reboot)", "\\N{DIGIT}"),
    ]
)
NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 120, 2**31, 2**63, -(2**70), 10**30, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), True]
)
LEAVES = st.one_of(WORDS, NUMBERS, st.none(), st.text(max_size=8), st.integers(), st.floats())


def _deep(depth: int) -> Any:
    found: Any = []
    for at in range(depth):
        found = [found] if at % 2 else {"x": found}
    return found


VALUES = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=3),
    st.dictionaries(st.one_of(WORDS, st.text(max_size=4)), LEAVES, max_size=3),
    st.sampled_from([1, 40, 400]).map(_deep),
)


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below this one."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in pairs:
        yield (*above, key)
        yield from _places(below, (*above, key))


@st.composite
def damaged(draw: st.DrawFn, good: Any, values: st.SearchStrategy[Any] = VALUES, most: int = 3) -> Any:
    """The document with up to `most` places changed: another value, none, one twice, one more."""
    found = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(found))
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        holder = found
        for key in above:
            holder = holder[key]
        deed = draw(st.sampled_from(["set", "set", "set", "drop", "wrap", "twice", "add"]))
        if deed == "drop":
            del holder[last]
        elif deed == "wrap":
            holder[last] = [holder[last]]
        elif deed == "twice" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif deed == "add" and isinstance(holder, dict):
            holder[draw(WORDS)] = draw(values)
        else:
            holder[last] = draw(values)
    return found


@st.composite
def torn(draw: st.DrawFn, text: bytes) -> bytes:
    """The bytes as they are, mostly; else cut, with something put in, or in two versions as git leaves them."""
    deed = draw(st.sampled_from(["none"] * 6 + ["cut", "put", "git", "bom"]))
    place = draw(st.integers(0, len(text)))
    if deed == "cut":
        return text[:place]
    if deed == "put":
        return text[:place] + draw(st.sampled_from([b"\0", b"\xff\xfe", b"]", b'"', b",,", b"\x1b[0m"])) + text[place:]
    if deed == "git":
        return b"<<<<<<< HEAD\n" + text + b"=======\n" + text + b">>>>>>> theirs\n"
    return b"\xef\xbb\xbf" + text if deed == "bom" else text


@st.composite
def written(draw: st.DrawFn, good: Any) -> bytes:
    """A damaged document as JSON, as Python writes it and others may."""
    text = json.dumps(draw(damaged(good)), ensure_ascii=draw(st.booleans()))
    return draw(torn(text.encode("utf-8", "surrogatepass")))


# What may come of it


def line_of(error: SageError) -> str:
    """The line for the user: one, of letters that a terminal shows, and of a length that somebody reads."""
    line = str(error)
    assert line.isprintable() and error.what.isprintable(), ascii(line)
    assert 0 < len(line) <= 700, len(line)
    assert 2 <= error.exit_code <= 7
    return line


def outcome(call: Callable[[], T]) -> T | None:
    """What comes of it; None, with an event, when it is refused in words."""
    try:
        found = call()
    except SageError as error:
        line_of(error)
        event("refused")
        return None
    event("accepted")
    return found


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Whatever is printed meanwhile can be shown on a terminal."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield
    assert all(line.isprintable() for line in out.getvalue().split("\n")), ascii(out.getvalue())


GOOD: dict[str, Any] = {
    "schema": 1,
    "created_at_utc": "2026-01-01T00:00:00Z",
    "wheel_file": "sageattention-2.2.0+cu130torch2.11sm120-cp312-cp312-manylinux_2_34_x86_64.whl",
    "wheel_sha256": "ab" * 32,
    "size": 4_000_000,
    "build_key": "cd" * 32,
    "hf_wheel_url": None,
    "torch_version": "2.11.0+cu130",
    "cuda_version": "13.0",
    "target_arch": "12.0",
    "archs": ["12.0"],
    "extensions": {"_fused": ["12.0"], "_qattn": ["12.0", "8.9+PTX"]},
    "glibc": "2.34",
    "patches": [{"name": "0001-x.patch", "sha256": "ef" * 32}],
    "stable_abi": None,
    "toolchain": {"nvcc": "V13.0.88", "flags": {"nvcc": ["-O3"]}},
    "proofs": [{"gpu": "NVIDIA GeForce RTX 5090", "arch": "12.0", "at_utc": "2026-01-02T00:00:00Z", "cosine": 0.999}],
}
WANTED = Wanted(
    name="sageattention",
    version="2.2.0",
    tags=frozenset({"cp312-cp312-manylinux_2_34_x86_64", "cp312-cp312-linux_x86_64"}),
    torch="2.11.0",
    cuda="13.0",
    archs=(arch.parse("12.0"),),
    glibc="2.39",
    modules={arch.parse("12.0"): ("_fused",)},
    patches=frozenset({"0001-x.patch"}),
)
MARK = {
    "wheel_sha256": "ab" * 32,
    "wheel_file": GOOD["wheel_file"],
    "arch": "12.0",
    "gpu": "NVIDIA GeForce RTX 5090",
    "at_utc": "2026-01-03T00:00:00Z",
    "reason": "not finite",
}

_NO_CHECK = [HealthCheck.too_slow, HealthCheck.data_too_large]
relaxed = settings(suppress_health_check=_NO_CHECK, deadline=timedelta(seconds=30))
"""No input takes longer than that: what hangs is a failure too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


# Wheel manifests


@relaxed
@given(written(GOOD))
@example(json.dumps({**GOOD, "toolchain": _deep(900)}).encode())
@example(json.dumps({**GOOD, "odd": "\ud800"}).encode())
@example(json.dumps({**GOOD, "odd": 1}).replace('"odd": 1', '"odd": 1e999').encode())
@example(json.dumps({**GOOD, "stable_abi": {"torch": "\u0662.\u0661"}}).encode())
def test_a_wheel_manifest(folder: Path, text: bytes) -> None:
    """It is refused, or can be judged, shown, written down and read again as it was."""
    found = outcome(lambda: manifest.loads(text, "x.whl.json"))
    if found is None:
        return
    assert isinstance(found, WheelManifest) and isinstance(when(found.created_at_utc), datetime)
    (verdict,) = match.rank([found], WANTED)
    assert verdict.fits == (verdict.reasons == ())
    with shown():
        ui.say("fetch", "; ".join(verdict.reasons))
        ui.table("x", ["x"], [[found.wheel_file], [found.created_at_utc], [found.torch]])
    here = Settings(wheelhouse_dir=folder / "house")
    (folder / "house").mkdir(exist_ok=True)
    place = folder / "house" / found.wheel_file
    try:
        wheelhouse.write_manifest(here, found)
        place.touch()
        ((path, again),) = wheelhouse.wheels(here)
        assert (path, again) == (place, found)
        assert _same(again.data, found.data)
    except ManifestError as error:
        assert "nested too deep" in line_of(error)
    finally:
        place.unlink(missing_ok=True)
        (folder / "house" / f"{found.wheel_file}.json").unlink(missing_ok=True)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@st.composite
def candidates(draw: st.DrawFn) -> dict[str, Any]:
    """A manifest that is right in form; each fact is that of the machine more often than not."""

    def mostly(usual: T, *others: T) -> T:
        return draw(st.sampled_from([usual] * (4 * len(others)) + list(others)))

    name, version = mostly("sageattention", "spargeattn"), mostly("2.2.0", "2.1.1", "2.2.0.post1")
    tag = mostly("cp312-cp312", "cp311-cp311", "cp312-abi3", "cp310.cp312-cp312")
    place = mostly("manylinux_2_34_x86_64", "linux_x86_64", "linux_aarch64", "manylinux_2_17_x86_64")
    torch = mostly("2.11.0", "2.11.1", "2.8.0", "2.11.0.dev1", "2.11")
    held = draw(
        st.lists(st.sampled_from(["12.0", "12.1", "8.0", "8.9", "9.0a", "12.0f", "12.0+PTX", "12.0a"]), max_size=3)
    )
    return {
        "wheel_file": f"{name}-{version}+local-{tag}-{place}.whl",
        "wheel_sha256": mostly("ab" * 32, None),
        "torch_version": mostly(torch, None) and f"{torch}{mostly('+cu130', '')}",
        "cuda_version": mostly("13.0", "12.8", "13.2"),
        "archs": mostly(["12.0"], held),
        "glibc": mostly("2.34", "2.39", "2.40", "2.100", None),
        "extensions": mostly(None, {"_fused": ["12.0"]}, {"_fused": ["8.0"]}, {}),
    }


def _runs(cubin: str, major: int, minor: int) -> bool:
    """The rule of the CUDA C++ Programming Guide, from its text."""
    if cubin.endswith("+PTX"):
        return False
    number, suffix = cubin.rstrip("af"), cubin[-1] if cubin[-1] in "af" else ""
    its = tuple(map(int, number.split(".")))
    return its == (major, minor) if suffix == "a" else its[0] == major and its[1] <= minor


def _fits(one: Mapping[str, Any]) -> bool:
    """Whether the wheel of `candidates` fits WANTED, from its facts one by one."""
    file = one["wheel_file"].removesuffix(".whl")
    name, version, pythons, abi, place = file.split("-")
    modules = one["extensions"]
    return (
        name == "sageattention"
        and version == "2.2.0+local"
        and "cp312" in pythons.split(".")
        and abi == "cp312"
        and place in ("manylinux_2_34_x86_64", "linux_x86_64")
        and one["wheel_sha256"] is not None
        and (one["torch_version"] or "").partition("+")[0] in ("2.11.0", "2.11")
        and one["cuda_version"].startswith("13.")
        and any(_runs(held, 12, 0) for held in one["archs"])
        and one["glibc"] in (None, "2.34", "2.39")
        and (modules is None or any(_runs(held, 12, 0) for held in modules.get("_fused", [])))
    )


@relaxed
@given(candidates())
def test_a_verdict(data: dict[str, Any]) -> None:
    """A wheel fits exactly when each of its facts does."""
    found = manifest.parse({**data, "proofs": GOOD["proofs"]}, "x")
    fits = match.judge(found, WANTED).fits
    event(f"fits: {fits}")
    assert fits == _fits(data), data


PROOFS = st.lists(
    st.fixed_dictionaries(
        {
            "gpu": st.sampled_from(["NVIDIA H200", "NVIDIA GeForce RTX 5090", ""]),
            "arch": st.sampled_from(["9.0", "12.0", "odd"]),
            "at_utc": st.sampled_from(["2026-01-02T00:00:00Z", "9999-12-31T23:59:59-14:00", "never", ""]),
        },
        optional={"full": st.booleans(), "cosine": st.floats(0, 1), "<<<<<<< HEAD": VALUES},
    ),
    max_size=4,
)


@relaxed
@given(damaged(GOOD, most=2), damaged(GOOD, most=2), PROOFS, PROOFS)
def test_two_manifests_of_one_wheel(old: dict[str, Any], new: dict[str, Any], here: Any, there: Any) -> None:
    """Merged, no key and no proof of either is lost, and a merge with the same again changes nothing."""

    def merged() -> tuple[WheelManifest, WheelManifest, WheelManifest]:
        one = manifest.parse({**old, "wheel_file": GOOD["wheel_file"], "proofs": here}, "old")
        two = manifest.parse({**new, "wheel_file": GOOD["wheel_file"], "proofs": there}, "new")
        return one, two, merge(one, two)

    found = outcome(merged)
    if found is None:
        return
    one, two, both = found
    assert {*one.data} | {key for key, value in two.data.items() if value is not None} <= {*both.data}
    assert {(proof.gpu, proof.at_utc) for proof in (*one.proofs, *two.proofs)} == {
        (proof.gpu, proof.at_utc) for proof in both.proofs
    }
    for key, value in two.data.items():
        assert key == "proofs" or value is None or _same(both.data[key], value)
    assert _same(merge(both, two).data, both.data)


# The index of a store


class Memory:
    """A store in memory, which somebody else may have written by hand."""

    label, writable = "memory", True

    def __init__(self, files: Mapping[str, bytes | Path]) -> None:
        self.files, self.revision = dict(files), 1

    def read(self, *paths: str) -> Snapshot:
        found = {path: content for path in paths if isinstance(content := self.files.get(path), bytes)}
        return Snapshot(revision=str(self.revision), files=found)

    def names(self) -> list[str]:
        return sorted(self.files)

    def download(self, path: str, to: Path, progress: Callable[[int, int], None] | None = None) -> None:
        raise StoreError(f"{path} is not to be downloaded here")

    def commit(self, parent: str, files: Mapping[str, bytes | Path], message: str) -> str:
        if parent != str(self.revision):
            raise Conflict("somebody was quicker")
        self.files.update(files)
        self.revision += 1
        return str(self.revision)

    def address(self, path: str) -> str:
        return f"https://example.invalid/{path}"

    def is_private(self) -> bool:
        return False

    def initialise(self) -> None: ...

    def rights(self) -> str:
        return "all"


OTHER = {**GOOD, "wheel_file": GOOD["wheel_file"].replace("torch2.11", "torch2.12"), "wheel_sha256": "12" * 32}
DOCUMENT = {"schema": 1, "wheels": [GOOD, OTHER], "known_bad": [MARK, {**MARK, "arch": "9.0"}], "their": {"own": 1}}


@relaxed
@given(written(DOCUMENT), st.one_of(st.none(), written(GOOD)))
@example(json.dumps({"wheels": [{**GOOD, "odd": _deep(900)}]}).encode(), None)
@example(json.dumps({"wheels": [{**GOOD, "odd": float("inf")}]}).encode(), b"{}")
@example(json.dumps({"wheels": [{**GOOD, "schema": 2, "newer": "key"}]}).encode(), json.dumps(GOOD).encode())
def test_an_index(folder: Path, content: bytes, pointer: bytes | None) -> None:
    """What can be read is read, the rest is said; publishing keeps every entry, readable or not, or says why not."""
    small = {INDEX: content, **({LATEST: pointer} if pointer is not None else {})}
    found, problems = entries(Snapshot(revision="1", files=small))
    known, unread = marks(Snapshot(revision="1", files=small))
    with shown():
        for line in (*problems, *unread, *(mark.words for mark in known)):
            ui.warn("store", line)
    assert all(isinstance(one, WheelManifest) for one in found)
    new = folder / OTHER["wheel_file"].replace("torch2.12", "torch2.13")
    new.write_bytes(b"wheel")
    digest = wheel.file_hash(new)[0]
    added = manifest.parse({**GOOD, "wheel_file": new.name, "wheel_sha256": digest}, "new")
    store = Memory(small)
    if outcome(lambda: index.publish(store, new, added, pause=lambda _: None)) is None:
        assert store.files == small, "what cannot be read is left as it was"
        return
    before, after = document(Snapshot(revision="1", files=small)), json.loads(store.read(INDEX).files[INDEX])
    readable = {one.wheel_file for one in found}
    # What latest.json alone names, as the first installer left it, is listed from now on.
    adopted = readable - {_named(one) for one in before["wheels"]}
    assert len(after["wheels"]) == len(before["wheels"]) + len(adopted) + 1
    for old in before["wheels"]:
        if _named(old) in readable:
            said = {key for key, value in old.items() if value is not None}
            assert said <= set(next(one for one in after["wheels"] if _named(one) == old["wheel_file"]))
        else:
            assert any(_same(old, one) for one in after["wheels"])
    assert {key: after[key] for key in before if key not in ("wheels", bad.KEY)} == {
        key: value for key, value in before.items() if key not in ("wheels", bad.KEY)
    } or "nan" in str(before)
    assert {one.wheel_file for one in entries(store.read(INDEX, LATEST))[0]} == readable | {new.name}


def _named(one: Any) -> str:
    """The wheel of an entry that can be read."""
    try:
        return manifest.parse(one, "x").wheel_file
    except ManifestError:
        return ""


# Known-bad marks


@relaxed
@given(written({"known_bad": [MARK, {**MARK, "arch": "", "at_utc": ""}]}))
def test_known_bad_marks(folder: Path, text: bytes) -> None:
    """Damaged ones spare nobody a try, and are no reason to stop; a new one can always be added to the others."""
    here = Settings(wheelhouse_dir=folder / "marks")
    (folder / "marks").mkdir(exist_ok=True)
    (folder / "marks" / wheelhouse.MARKS).write_bytes(text)
    raw, found = wheelhouse.raw_marks(here), wheelhouse.marks(here)
    event(f"marks: {len(found)}")
    with shown():
        for mark in found:
            ui.say("fetch", mark.words)
    candidate = manifest.parse(GOOD, "x")
    for reason in match.judge(candidate, WANTED).reasons + tuple(
        bad.against(candidate, WANTED.archs, bad.by_name(found))
    ):
        assert reason.isprintable()
    fresh = bad.read({**MARK, "wheel_sha256": "77" * 32})
    assert fresh
    wheelhouse.write_marks(here, bad.added(raw, fresh))
    assert fresh in wheelhouse.marks(here) and len(wheelhouse.raw_marks(here)) == len(raw) + 1


# Build manifests


def _toml(value: Any) -> str:
    """A value as TOML, tables in line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return "''" if value is None else json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")


BUILDS = [
    tomllib.loads((ROOT / "manifests" / f"{name}.toml").read_text(encoding="utf-8"))
    for name in ("sageattention-2.2.0", "sageattention-2.2.0-abi3", "demo")
]
KNOWN_BAD = [{"sha256": "ab" * 32, "reason": "x", "archs": ["12.0"]}]


@st.composite
def builds(draw: st.DrawFn) -> bytes:
    good = {**draw(st.sampled_from(BUILDS)), "known_bad": KNOWN_BAD, "patches": []}
    data = draw(damaged(good, most=2))
    return draw(torn(_document(data)))


def _document(data: Mapping[str, Any]) -> bytes:
    return "\n".join(f"{json.dumps(key)} = {_toml(value)}" for key, value in data.items()).encode()


@relaxed
@given(builds())
@example(_document({**BUILDS[2], "patches": ["x\0y"]}))
def test_a_build_manifest(folder: Path, text: bytes) -> None:
    """It is refused, naming the file, or is a Recipe whose facts can be worked with."""
    path = folder / "manifests" / "x.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text)
    found = outcome(lambda: recipe.load(str(path)))
    if found is None:
        return
    assert isinstance(found, Recipe)
    with shown():
        ui.say("build", f"{found.name} {found.version} {found.source.repo} {found.package} {found.source.path}")
    assert isinstance(found.nvcc("13.0"), tuple) and found.memory_per_unit > 0
    for one in found.archs:
        outcome(lambda one=one: found.cubins_for([one]))  # type: ignore[misc]
        assert isinstance(found.extensions([one]), tuple)


# .env

SETTING = st.sampled_from([*KEYS, "HF_TOKENS", "TORCH_CHANEL", "EDITOR"])
SOUND = {
    "TORCH_CHANNEL": "stable",
    "MAX_JOBS": "7",
    "HF_PRIVATE": "yes",
    "HF_REPO_ID": "me/wheels",
    "MIN_CUDA_FOR_SM120": "12.9",
    "CUDA_INDEX_VARIANT": "cu129",
    "WORK_DIR": "w",
    "REMOTE_DIR": "d",
}


@st.composite
def dotenvs(draw: st.DrawFn) -> bytes:
    lines = []
    for _ in range(draw(st.integers(0, 4))):
        form = draw(st.sampled_from(["{}={}", "export {}='{}'", '{}="{}"', "{} = {} # why", "{}={}", "{}", "{}=\\{}"]))
        word = draw(st.one_of(WORDS, st.sampled_from(sorted(SOUND.values())), st.text(max_size=6), NUMBERS.map(str)))
        lines.append(form.format(draw(SETTING), word))
    text = draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(lines)
    return draw(torn(text.encode("utf-8", "surrogatepass")))


@relaxed
@given(dotenvs(), st.dictionaries(st.sampled_from(sorted(SOUND)), st.none(), max_size=3))
@example('MIN_CUDA_FOR_SM120="\u0661\u0662.8"'.encode(), {})
def test_an_env_file(folder: Path, text: bytes, sound: dict[str, None]) -> None:
    """It is refused, or gives settings of the right types; what the environment says wins, whatever the file holds."""
    (folder / ".env").write_bytes(text)
    environ = {key: SOUND[key] for key in sound}
    with shown():
        found = outcome(lambda: config.load(environ, cwd=folder))
    if found is None:
        return
    for key, value in asdict(found).items():
        if key != "environ":
            default = KEYS[key.upper()].default
            assert isinstance(value, int if default is None and value is not None else type(default)), key
            assert not isinstance(value, str) or value.isprintable()
    sure = {"TORCH_CHANNEL": "stable", "MAX_JOBS": 7, "HF_PRIVATE": True, "WORK_DIR": folder / "w"}
    for key in set(sure) & set(environ):
        assert getattr(found, key.lower()) == sure[key]
    try:
        open_store(found)
    except SageError as error:
        line_of(error)


# Programs that NVIDIA wrote

SMI = st.sampled_from(["0, NVIDIA GeForce RTX 5090, 12.0, 32607, 580.65.06", "1, NVIDIA H200, 9.0, 143771, 575.57"])
FIELDS = st.one_of(WORDS, NUMBERS.map(str), st.sampled_from(["[N/A]", "[Not Supported]", "12.0", "0", "A, B"]))


@st.composite
def listings(draw: st.DrawFn) -> tuple[str, int]:
    """What nvidia-smi may say, and how many of its lines are as they should be."""
    lines, right = [], 0
    for _ in range(draw(st.integers(0, 4))):
        line = draw(SMI)
        if draw(st.booleans()):
            fields = line.split(", ")
            fields[draw(st.integers(0, 4))] = draw(FIELDS)
            line = draw(st.sampled_from([", ".join(fields), line[:7], draw(st.text(max_size=20)), "Unable to"]))
        right += line in ("0, NVIDIA GeForce RTX 5090, 12.0, 32607, 580.65.06", "1, NVIDIA H200, 9.0, 143771, 575.57")
        lines.append(line)
    return "\n".join(lines), right


@relaxed
@given(listings())
@example(("0, NVIDIA H200, 9.0, 1, " + "9" * 5000, 0))
def test_what_nvidia_smi_says(said: tuple[str, int]) -> None:
    """Every line that is right gives its GPU; of the others the problem speaks, or they give a GPU too."""
    text, right = said
    gpus, driver, problem = host.parse_smi(text)
    event(f"GPUs: {len(gpus)}, problem: {bool(problem)}")
    assert len(gpus) >= right and (gpus or problem)
    assert sum(gpu.memory in (32607, 143771) for gpu in gpus) >= right
    assert isinstance(host.cuda_of_driver(driver), str)
    with shown():
        ui.say("doctor", f"{problem} {driver} {[gpu.name for gpu in gpus]} {[str(gpu.arch) for gpu in gpus]}")
        ui.table("GPUs", ["name", "driver"], [[gpu.name, driver] for gpu in gpus])


NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {}, {}\nBuild cuda_13.0.r13.0/compiler\n"


@relaxed
@given(
    st.sampled_from(["13.0", "12.8", "13.10"]) | st.sampled_from(["12.9", "11.8"]) | WORDS,
    st.sampled_from(["V13.0.88", "V12.8.93"]) | st.sampled_from(["V12.9.1", "V11.8.89"]) | WORDS,
    st.one_of(st.just(""), WORDS),
)
@example("\u0661\u0662.\u0668", "V13.0.88", "")
def test_what_nvcc_says(release: str, build: str, more: str) -> None:
    """A version that can be compared, or none."""
    found = toolkit.release(more + NVCC.format(release, build))
    event("accepted" if found else "refused")
    sound = release in ("13.0", "12.8", "13.10", "12.9", "11.8") and build.startswith("V1")
    assert found == (release, build) if sound else found is None or found[0].isascii()
    if found:
        kit = toolkit.Toolkit(home=Path("/none"), version=found[0], build=found[1], origin="PATH", compiler="c++")
        rule = recipe.ArchRule(
            arch=arch.parse("12.0"), cubin=arch.parse("12.0"), min_cuda="12.8", extensions=(), kernel=""
        )
        torch = wheels_torch("13.0")
        assert toolkit.unsuited(kit, torch, [rule]), "there is no such folder"


def wheels_torch(cuda: str) -> Any:
    """A torch of this CUDA, of which nothing else is asked."""

    class Torch:
        pass

    torch = Torch()
    torch.cuda = cuda  # type: ignore[attr-defined]
    return torch


CUBIN = "ELF file    {}: _fused.abi3.{}.sm_{}.cubin\n"


@relaxed
@given(
    st.lists(st.sampled_from(["120", "90a", "89", "100f"]), max_size=4),
    st.one_of(st.just(""), WORDS, st.sampled_from(["sm_1234 ", "sm_\u0661\u0662\u0660 ", "cuobjdump fatal: x"])),
    st.sampled_from(["", "+PTX"]),
)
def test_what_cuobjdump_says(numbers: list[str], more: str, suffix: str) -> None:
    """The archs that it lists, all of them; one that nobody knows is refused."""
    text = more + "\n" + "".join(CUBIN.format(at, at, number) for at, number in enumerate(numbers, 1))
    found = outcome(lambda: wheel.listed_archs(text, suffix, "_fused.abi3.so"))
    if found is not None and more != "sm_120":
        assert found == {arch.parse(number + suffix) for number in numbers}


# What is remembered, and what servers and stores say


@relaxed
@given(
    written(
        {"pending": "tinyattn-1.0-py3-none-any.whl", "previous": "/x/tinyattn-0.9-py3-none-any.whl", "prefix": "/p"}
    )
)
@example(b'{"pending": "x", "prefix": "/p"}')
@example(b'{"pending": "x", "previous": "\\u0000", "prefix": "/p"}')
def test_the_state(folder: Path, text: bytes) -> None:
    """Damaged, it is forgotten; else every answer that hangs on it can be given."""
    made = folder / "recipe"
    tiny = wheels.load_recipe(made) if not made.exists() else recipe.load(str(next(made.rglob("*.toml"))))
    found = Target(
        python=Path("/p/bin/python"),
        prefix=Path("/p"),
        version="3.12.1",
        soabi="",
        machine="x86_64",
        site=folder,
        include=folder,
        has_python_h=False,
        externally_managed=False,
        writable=False,
        torch=None,
        versions={"tinyattn": "5.0"},
        dist_info={},
        tags=(),
    )
    here = Settings(work_dir=folder / "work")
    place = installed.state_path(here, found, tiny)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text)
    state = installed.read_state(here, found, tiny)
    event("remembered" if state else "forgotten")
    assert not installed.is_in_place(found, tiny, state, "ab" * 32)
    with shown():
        ui.say("install", installed.restore(here, found, tiny))


@relaxed
@given(
    st.one_of(
        WORDS,
        st.text(max_size=30),
        st.integers(-5, 10**6).map(str),
        st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1)).map(
            lambda moment: format_datetime(moment.replace(tzinfo=timezone.utc), usegmt=True)
        ),
        st.tuples(
            st.sampled_from(["Mon", "X"]), st.integers(-(10**12), 10**12), st.sampled_from(["+9999", "GMT", "-0000"])
        ).map(lambda parts: f"{parts[0]}, 01 Jan {parts[1]} 00:00:00 {parts[2]}"),
    )
)
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
def test_a_retry_after(text: str) -> None:
    """Seconds or a date; whatever else it is means that nothing was said. It is never waited for without end."""
    trouble = tries.busy(429, text)
    assert trouble is not None and trouble.wait >= 0
    event("understood" if trouble.wait else "nothing said")
    pauses: list[float] = []

    def once() -> None:
        raise trouble

    with pytest.raises(StoreError) as caught:
        tries.insist("the store was not asked", once, pauses.append)
    line_of(caught.value)
    assert all(0 <= pause <= tries.LONGEST_WAIT for pause in pauses)
    if text.isascii() and text.isdigit() and float(text):
        assert pauses == [min(float(text), tries.LONGEST_WAIT)] * 2


@relaxed
@given(st.lists(st.one_of(WORDS, st.text(max_size=5), st.sampled_from(["a.whl", "..", ".", "", "~", "b"])), max_size=4))
def test_the_name_of_a_file_in_a_store(folder: Path, parts: list[str]) -> None:
    """It lies in the store, or is refused."""
    name = "/".join(parts)
    found = outcome(lambda: files.checked(name))
    if found is not None:
        place = (folder / found).resolve()
        assert place.is_relative_to(folder.resolve()) and place != folder.resolve()


@relaxed
@given(
    st.one_of(WORDS, st.text(max_size=12)),
    st.sampled_from(["", "hf://", "hf://datasets/", "file://", "s3://", "hf://a/b@"]),
)
@example("[x]/a", "file://")
@example("/a%00b", "file://")
def test_the_address_of_a_store(text: str, scheme: str) -> None:
    """It opens, or is refused; nothing is asked of it."""
    found = outcome(lambda: open_store(Settings(sage_store=scheme + text)))
    assert found is None or isinstance(found.label, str)


@relaxed
@given(st.lists(st.one_of(WORDS, st.text(max_size=30)), min_size=1, max_size=4))
def test_what_people_see(words: list[str]) -> None:
    """No escape sequence, and no line break that is not ours, whatever is said."""
    text = " ".join(words)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        ui.say("x", text)
        ui.warn("x", text)
        line = line_of(NothingCompatible(f"x{text}", "Look at it"))
    said = out.getvalue().split("\n")
    assert len(said) == 3 and all(one.isprintable() for one in said)
    event("escaped" if not text.isprintable() else "plain")
    assert line.startswith("x") and line.endswith(". Look at it.")
    with shown():
        ui.table(text, [text], [[word] for word in words])
