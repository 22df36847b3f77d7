"""Build manifests: the shipped ones, what is asked of them, and errors that name file and key."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from sagewheels import arch, recipe, smoketable
from sagewheels.errors import UsageError
from sagewheels.recipe import Recipe
from sagewheels.resources import ROOT, probe_source

MANIFESTS = sorted(ROOT / "manifests" / f"{name}.toml" for name in recipe.names())

DATA: dict[str, Any] = {
    "schema": 1,
    "name": "thing",
    "version": "1.2.3",
    "package": "thing",
    "source": {"repo": "https://example.invalid/thing.git", "ref": "v1", "commit": "ab" * 20},
    "build": {
        "requires": ["setuptools"],
        "nvcc_flags": ["-O3"],
        "nvcc_flags_since": {"12.8": ["--compress-mode=size"], "13.0": ["--new"]},
    },
    "extension": {"_b": {"units": 3}, "_a": {"units": 2}},
    "arch": {
        "12.0": {"cubin": "12.0", "min_cuda": "12.8", "extensions": ["_a", "_b"], "kernel": "k"},
        "9.0": {"cubin": "9.0a", "min_cuda": "12.3", "extensions": ["_a"], "kernel": "k"},
    },
    "smoke": {
        "call": "thing:attn",
        "min_cosine": 0.999,
        "max_relative_l2": 0.05,
        "head_dims": [64],
        "lengths": [17],
        "dtypes": ["float16"],
        "layouts": ["HND"],
        "heads": [[8, 2]],
    },
}
BAD = {"sha256": "ab" * 32, "reason": "leaks"}
FULL: dict[str, Any] = {
    "checks": ["lengths"],
    "min_cosine": 0.998,
    "max_relative_l2": 0.0625,
    "max_lse_error": 0.1,
    "lengths": [503],
    "every_length_to": 65,
    "long": 131072,
    "call": [{"call": "thing:attn"}, {"call": "thing:other", "arguments": {"accum": "fp32"}, "archs": ["9.0"]}],
    "known": [{"check": "lengths", "call": "thing:attn", "archs": ["9.0"], "max_relative_l2": 0.1, "why": "22 bits"}],
}
MISSING = object()


def data(key: str = "", value: object = MISSING) -> dict[str, Any]:
    """DATA with the value at a `/`-separated key changed, or taken out."""
    changed = copy.deepcopy(DATA)
    if key:
        *tables, last = key.split("/")
        place = changed
        for name in tables:
            place = place[name]
        if value is MISSING:
            del place[last]
        else:
            place[last] = value
    return changed


def refused(key: str = "", value: object = MISSING) -> str:
    with pytest.raises(UsageError) as caught:
        recipe.parse(data(key, value), Path("thing.toml"))
    return str(caught.value)


def parsed(key: str = "", value: object = MISSING) -> Recipe:
    return recipe.parse(data(key, value), Path("thing.toml"))


MORE_ARCHS = {"sageattention-2.2.0": "8.7 10.0 10.3 12.1", "sageattention-2.2.0-abi3": "8.7 10.0 12.1"}


def test_the_shipped_manifests() -> None:
    names = ["demo", "sageattention-2.2.0-abi3", "sageattention-2.2.0", "spargeattn-0.1.0"]
    assert [path.stem for path in MANIFESTS] == names


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_shipped_manifest_is_whole(path: Path) -> None:
    found = recipe.load(path.stem)
    assert found == recipe.load(str(path))
    assert found.file == path
    supported = arch.parse_list(f"8.0 8.6 8.9 9.0 12.0 {MORE_ARCHS.get(path.stem, '')}")
    assert tuple(found.archs) == supported, "in the order of their numbers"
    used = {name for rule in found.archs.values() for name in rule.extensions}
    assert used == set(found.units), "an extension that no arch needs"
    for rule in found.rules(supported):
        assert rule.cubin.runs_on(rule.arch)
        assert found.nvcc(rule.min_cuda) is not None
        assert rule.extensions and rule.kernel
    call = {"call", "min_cosine", "max_relative_l2", "head_dims", "lengths", "dtypes", "layouts", "heads", "timed"}
    assert set(found.smoke) >= call
    for patch in found.patches:
        assert hashlib.sha256(patch.path.read_bytes()).hexdigest() == patch.sha256
    assert {patch.path for patch in found.patches} == set((ROOT / "patches" / path.stem).glob("*.patch"))


def test_what_the_sageattention_manifest_pins() -> None:
    found = recipe.load("sageattention-2.2.0")
    assert (found.name, found.version, found.package) == ("sageattention", "2.2.0", "sageattention")
    assert found.source.repo == "https://github.com/thu-ml/SageAttention.git"
    assert (found.source.ref, found.source.commit) == ("v2.2.0", "eb615cf6cf4d221338033340ee2de1c37fbdba4a")
    assert found.memory_per_unit == 900_000_000, "with light headers"


@pytest.mark.parametrize(
    ("archs", "extensions"),
    [
        ("8.0", ("_qattn_sm80", "_fused")),
        ("8.6", ("_qattn_sm80", "_fused")),
        ("8.9", ("_qattn_sm80", "_qattn_sm89", "_fused")),
        ("9.0", ("_qattn_sm80", "_qattn_sm89", "_qattn_sm90", "_fused")),
        ("12.0", ("_qattn_sm80", "_qattn_sm89", "_fused")),
        ("12.0+PTX", ("_qattn_sm80", "_qattn_sm89", "_fused")),
        ("8.0;12.0", ("_qattn_sm80", "_qattn_sm89", "_fused")),
        ("8.0;9.0", ("_qattn_sm80", "_qattn_sm89", "_qattn_sm90", "_fused")),
    ],
)
def test_the_extensions_that_archs_need(archs: str, extensions: tuple[str, ...]) -> None:
    assert recipe.load("sageattention-2.2.0").extensions(arch.parse_list(archs)) == extensions


def test_extensions_are_in_the_manifests_order() -> None:
    assert parsed().extensions(arch.parse_list("12.0")) == ("_b", "_a")
    assert parsed().extensions(arch.parse_list("9.0")) == ("_a",)


def test_an_arch_has_its_rule() -> None:
    (rule,) = parsed().rules(arch.parse_list("9.0"))
    assert (str(rule.arch), str(rule.cubin), rule.min_cuda) == ("9.0", "9.0a", "12.3")
    assert [str(rule.cubin) for rule in parsed().rules(arch.parse_list("12.0 9.0"))] == ["9.0a", "12.0"]


@pytest.mark.parametrize(("archs", "named"), [("8.7", "8.7"), ("12.1 10.0", "10.0, 12.1"), ("12.0 7.5", "7.5")])
def test_an_arch_that_the_source_does_not_know_is_refused(archs: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed().rules(arch.parse_list(archs))
    remedy = "It knows 9.0, 12.0: name yours with --arch or TORCH_CUDA_ARCH_LIST."
    assert str(caught.value) == f"thing 1.2.3 has no kernels for {named}. {remedy}"


@pytest.mark.parametrize(
    ("cuda", "flags"),
    [
        ("12.0", ("-O3",)),
        ("12.10", ("-O3", "--compress-mode=size")),
        ("12.8", ("-O3", "--compress-mode=size")),
        ("13.0", ("-O3", "--compress-mode=size", "--new")),
    ],
)
def test_nvcc_gets_the_flags_that_it_is_new_enough_for(cuda: str, flags: tuple[str, ...]) -> None:
    assert parsed().nvcc(cuda) == flags


def test_what_may_be_left_out() -> None:
    found = parsed()
    left_out = (found.cxx_flags, found.link_flags, found.headers, found.patches, found.source.paths)
    assert left_out == ((),) * 5
    assert (found.environment, found.min_torch, found.memory_per_unit) == ({}, "", 2_000_000_000)
    assert parsed("build/nvcc_flags_since").nvcc("13.0") == ("-O3",)
    assert parsed("build/environment", {"A": "1"}).environment == {"A": "1"}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("schema", 2, "thing.toml: schema 2 is not 1. Update sagewheels."),
        ("schema", MISSING, "thing.toml: schema is missing."),
        ("schema", "1", "thing.toml: schema must be int, not str."),
        ("name", MISSING, "thing.toml: name is missing."),
        ("name", "", "thing.toml: name is empty."),
        ("version", 2.2, "thing.toml: version must be str, not float."),
        ("typo", 1, "thing.toml: typo is not a key that build manifests have."),
        ("patches", "0001.patch", "thing.toml: patches must be list, not str."),
        ("patches", [1], "thing.toml: patches must be a list of text."),
        ("source", MISSING, "thing.toml: source.repo: give either repo, ref and commit, or path."),
        ("source", "https://example.invalid", "thing.toml: source must be dict, not str."),
        ("source/path", "demo", "thing.toml: source.repo: give either repo, ref and commit, or path."),
        ("source/commit", MISSING, "thing.toml: source.commit is missing."),
        ("source/commit", "v2.2.0", "thing.toml: source.commit is not a full commit id of 40 hex digits."),
        ("source/commit", "AB" * 20, "thing.toml: source.commit is not a full commit id of 40 hex digits."),
        ("source/ref", MISSING, "thing.toml: source.ref is missing."),
        ("source/branch", "main", "thing.toml: source.branch is not a key that build manifests have."),
        ("build/requires", MISSING, "thing.toml: build.requires is missing."),
        ("build/requires", "setuptools", "thing.toml: build.requires must be list, not str."),
        ("build/nvcc_flag", ["-O3"], "thing.toml: build.nvcc_flag is not a key that build manifests have."),
        ("build/nvcc_flags_since/12.8", "-O3", "thing.toml: build.nvcc_flags_since.12.8 must be list, not str."),
        ("build/environment", {"A": 1}, "thing.toml: build.environment.A must be str, not int."),
        ("build/memory_per_unit_mb", 0, "thing.toml: build.memory_per_unit_mb must be positive."),
        ("build/memory_per_unit_mb", True, "thing.toml: build.memory_per_unit_mb must be int, not bool."),
        ("extension", MISSING, "thing.toml: extension is missing."),
        ("extension/_a/units", MISSING, "thing.toml: extension._a.units is missing."),
        ("extension/_a/units", -1, "thing.toml: extension._a.units must be positive."),
        ("arch", MISSING, "thing.toml: arch is missing."),
        pytest.param(
            *("arch/9.0/cubin", MISSING, "thing.toml: arch.9.0.cubin is missing."),
        ),
        ("arch/9.0/cubin", "hopper", "thing.toml: arch.9.0.cubin: 'hopper' is not a compute capability."),
        ("arch/9.0/kernel", MISSING, "thing.toml: arch.9.0.kernel is missing."),
        ("arch/9.0/min_cuda", 12.3, "thing.toml: arch.9.0.min_cuda must be str, not float."),
        ("arch/9.0/extensions", ["_c", "_a"], "thing.toml: arch.9.0.extensions names _c, which [extension] lacks."),
        ("arch/9.0/kernels", ["k"], "thing.toml: arch.9.0.kernels is not a key that build manifests have."),
        ("known_bad", {}, "thing.toml: known_bad must be list, not dict."),
        ("known_bad", [BAD, 1], "thing.toml: known_bad[2] is not a table."),
        ("known_bad", [{"reason": "x"}], "thing.toml: known_bad[1].sha256: give either sha256 or build_key."),
        (
            "known_bad",
            [{**BAD, "build_key": "cd" * 32}],
            "thing.toml: known_bad[1].sha256: give either sha256 or build_key.",
        ),
        ("known_bad", [{**BAD, "sha256": "ab"}], "thing.toml: known_bad[1].sha256 is not 64 hex digits."),
        ("known_bad", [{"reason": "x", "build_key": "-"}], "thing.toml: known_bad[1].build_key is not 64 hex digits."),
        ("known_bad", [{"sha256": "ab" * 32}], "thing.toml: known_bad[1].reason is missing."),
        ("known_bad", [{**BAD, "reason": ""}], "thing.toml: known_bad[1].reason is empty."),
        (
            "known_bad",
            [{**BAD, "archs": ["hopper"]}],
            "thing.toml: known_bad[1].archs: 'hopper' is not a compute capability.",
        ),
        ("known_bad", [{**BAD, "archs": "9.0"}], "thing.toml: known_bad[1].archs must be list, not str."),
        (
            "known_bad",
            [{**BAD, "arch": "9.0"}],
            "thing.toml: known_bad[1].arch is not a key that build manifests have.",
        ),
    ],
)
def test_an_error_names_file_and_key(key: str, value: object, line: str) -> None:
    assert refused(key, value) == line


def test_an_unknown_key_of_an_extension_is_refused() -> None:
    line = "thing.toml: extension._a.unit is not a key that build manifests have."
    assert refused("extension/_a", {"units": 1, "unit": 2}) == line


def test_an_extension_that_is_no_table_is_refused_by_its_key() -> None:
    assert refused("extension/_a", 2) == "thing.toml: extension._a is not a table."


@pytest.mark.parametrize("key", ["smoke", "smoke/call", "smoke/min_cosine", "smoke/max_relative_l2"])
def test_smoke_keys_that_are_missing_are_refused(key: str) -> None:
    assert refused(key).startswith("thing.toml: smoke")


@pytest.mark.parametrize(
    ("key", "value"), [("arch/9.0/min_cuda", "twelve"), ("build/nvcc_flags_since", {"cuda 13": ["--new"]})]
)
def test_a_cuda_version_that_is_none_is_refused(key: str, value: object) -> None:
    assert refused(key, value).startswith("thing.toml: ")


def test_a_manifest_that_is_not_there_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        recipe.load("sageattention")
    known = "demo, sageattention-2.2.0, sageattention-2.2.0-abi3, spargeattn-0.1.0"
    line = f"there is no build manifest 'sageattention'. Use one of {known}, or the path of a .toml file."
    assert str(caught.value) == line
    with pytest.raises(UsageError, match=r"^there is no build manifest 'gone\.toml'"):
        recipe.load("gone.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("schema = \n", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"^{broken} is not TOML: Invalid value \(at line 1, "):
        recipe.load(str(broken))
    broken.write_bytes(b"name = '\xff'\n")
    with pytest.raises(UsageError, match=rf"^{broken} is not TOML: 'utf-8' codec"):
        recipe.load(str(broken))


def test_a_manifest_of_ones_own_has_its_patches_beside_it(tmp_path: Path) -> None:
    own = tmp_path / "manifests" / "own.toml"
    patch = tmp_path / "patches" / "own" / "0001-why.patch"
    with pytest.raises(UsageError) as caught:
        recipe.parse(data("patches", ["0001-why.patch"]), own)
    want = f"{own}: patches names 0001-why.patch: {patch} cannot be read (No such file or directory)."
    assert str(caught.value) == want
    patch.parent.mkdir(parents=True)
    patch.write_bytes(b"the patch")
    (found,) = recipe.parse(data("patches", ["0001-why.patch"]), own).patches
    assert (found.file, found.path, found.sha256) == (patch.name, patch, hashlib.sha256(b"the patch").hexdigest())
    elsewhere = {**data("patches", ["0001-why.patch"]), "patches_dir": "other"}
    with pytest.raises(UsageError, match=r"/patches/other/0001-why\.patch cannot be read"):
        recipe.parse(elsewhere, own)


def test_a_source_in_a_folder_needs_no_commit() -> None:
    source = parsed("source", {"path": "demo"}).source
    assert (source.path, source.repo, source.ref, source.commit) == ("demo", "", "", "")


def test_known_bad_wheels() -> None:
    """On each arch that is named, else everywhere."""
    entries = [{**BAD, "archs": ["9.0", "sm_120"]}, {"build_key": "CD" * 32, "reason": "not finite", "archs": []}]
    first, second, third = parsed("known_bad", entries).known_bad
    assert (first.wheel_sha256, first.arch, second.arch) == ("ab" * 32, "9.0", "12.0")
    assert first.words == "known to be bad on arch 9.0: leaks"
    assert (third.wheel_sha256, third.build_key, third.words) == ("", "cd" * 32, "known to be bad: not finite")
    assert parsed().known_bad == ()


def test_a_name_is_known_however_it_is_written() -> None:
    """File names of wheels have underscores, indexes have dashes: they mean one distribution."""
    assert parsed("name", "Thing_Of.mine").name == "thing-of-mine"


def test_what_a_package_needs_besides_the_stack() -> None:
    assert parsed().needs == ()
    assert parsed("needs", ["einops>=0.6", "other"]).needs == ("einops>=0.6", "other")
    assert refused("needs", ["einops>"]) == "thing.toml: needs: 'einops>' is no requirement such as einops>=0.7."
    assert refused("needs", "einops") == "thing.toml: needs must be list, not str."


def test_how_many_extensions_a_build_can_compile_at_once() -> None:
    assert parsed().extensions_at_once == 0
    assert parsed("build/extensions_at_once", 1).extensions_at_once == 1
    assert refused("build/extensions_at_once", 0) == "thing.toml: build.extensions_at_once must be positive."


def test_the_arguments_of_smoke_are_plain_values() -> None:
    given = {"topk": 1.0, "steps": 2, "smooth_k": True, "mode": "full"}
    assert parsed("smoke/arguments", given).smoke["arguments"] == given
    line = "thing.toml: smoke.arguments.topk must be text, a number or a boolean."
    assert refused("smoke/arguments", {"topk": [1.0]}) == line
    assert refused("smoke/arguments", 1.0) == "thing.toml: smoke.arguments must be dict, not float."


def full(key: str = "", value: object = MISSING) -> dict[str, Any]:
    """FULL with one key changed, or taken out."""
    changed = {**copy.deepcopy(FULL), key: value}
    return {name: item for name, item in changed.items() if name and item is not MISSING}


def test_the_long_checks_are_handed_on_as_they_are() -> None:
    assert parsed("smoke/full", full()).smoke["full"] == FULL
    assert parsed("smoke/full", full("known")).smoke["full"] == full("known")
    assert "full" not in parsed().smoke


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("checks", MISSING, "checks is missing"),
        ("checks", [], "checks is empty: then nothing would be tried"),
        ("checks", ["lengths", 1], "checks must be a list of text"),
        ("min_cosine", MISSING, "min_cosine must be a number from 0 to 1"),
        ("max_relative_l2", "0.1", "max_relative_l2 must be a number from 0 to 1"),
        ("max_lse_error", 1.5, "max_lse_error must be a number from 0 to 1"),
        ("lengths", [], "lengths is empty: then nothing would be tried"),
        ("every_length_to", 0, "every_length_to must be positive"),
        ("long", 1.5, "long must be int, not float"),
        ("call", MISSING, "call is missing"),
        ("call", [], "call is empty: then nothing would be tried"),
        ("call", [1], "call[1] is not a table"),
        ("call", [{}], "call[1].call is missing"),
        ("call", [FULL["call"][0], {"call": "attn"}], "call[2].call must be module:function"),
        ("call", [{"call": "a:b", "archs": "9.0"}], "call[1].archs must be list, not str"),
        (
            "call",
            [{"call": "a:b", "arguments": {"heads": [1]}}],
            "call[1].arguments.heads must be text, a number or a boolean",
        ),
        ("call", [{"call": "a:b", "layout": "HND"}], "call[1].layout is not a key that build manifests have"),
        ("checks", ["lenghts"], f"checks: 'lenghts' is none of {', '.join(smoketable.CHECKS)}"),
        ("known", [{"check": "long", "call": "a:b"}], "known[1].why is missing"),
        ("known", [{"why": "x", "call": "a:b"}], "known[1].check is missing"),
        ("known", [{"why": "x", "check": "long", "call": ":b"}], "known[1].call must be module:function"),
        (
            "known",
            [{"why": "x", "check": "long", "call": "a:b", "archs": ["9.0"]}],
            "known[1].max_relative_l2 must be a number from 0 to 1",
        ),
        (
            "known",
            [{"why": "x", "check": "long", "call": "a:b", "archs": [], "max_relative_l2": 0.1}],
            "known[1].archs is empty: then it is known nowhere",
        ),
        ("chekcs", ["lengths"], "chekcs is not a key that build manifests have"),
    ],
)
def test_an_error_in_the_long_checks_names_file_and_key(key: str, value: object, line: str) -> None:
    assert refused("smoke/full", full(key, value)) == f"thing.toml: smoke.full.{line}."


def test_an_arch_that_is_built_alone() -> None:
    """9.0a beside another arch, where one list of archs serves all extensions."""
    both = arch.parse_list("9.0;12.0")
    assert parsed().cubins_for(both) == both
    alone = parsed("arch/9.0/alone", value=True)
    assert alone.cubins_for(both[:1]) == both[:1]
    with pytest.raises(UsageError) as caught:
        alone.cubins_for(both)
    assert str(caught.value) == "thing 1.2.3 for 9.0 cannot be built together with another arch. Name one with --arch."
    assert refused("arch/9.0/alone", "yes") == "thing.toml: arch.9.0.alone must be bool, not str."


def test_the_long_checks_are_those_of_the_probe() -> None:
    """The probe stands alone in another interpreter: its table of checks is read, not imported."""
    table = probe_source("full").split("\nCHECKS = {\n", 1)[1].split("\n}", 1)[0]
    assert re.findall(r'^    "([a-z-]+)": \w+,$', table, re.M) == list(smoketable.CHECKS)


def test_archs_of_a_wheel_are_those_that_all_needed_modules_hold() -> None:
    sage = recipe.load("sageattention-2.2.0")
    both = arch.parse_list("8.0;9.0a;12.0")
    held = {"_fused": both, "_qattn_sm80": both, "_qattn_sm89": arch.parse_list("9.0a;12.0"), "_qattn_sm90": both[1:2]}
    assert sage.archs_of(held) == both, "_qattn_sm90 is for 9.0 alone"
    assert sage.archs_of({**held, "_qattn_sm90": ()}) == arch.parse_list("8.0;12.0")
    assert sage.archs_of({}) == ()
    ptx = arch.parse_list("12.0;12.0+PTX")
    assert sage.archs_of(dict.fromkeys(("_fused", "_qattn_sm80", "_qattn_sm89"), ptx)) == ptx
