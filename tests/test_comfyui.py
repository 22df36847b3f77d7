"""ComfyUI: whose Python is taken and whose refused, and what is said of its attention call.

The ComfyUI here is of our own writing, with the flags, functions, arguments and log lines that the real one has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagewheels import comfyui, demo, recipe, target
from sagewheels.config import Settings
from sagewheels.errors import SageError, SmokeFailed, UsageError
from sagewheels.recipe import Recipe
from tests import wheels
from tests.wheels import Machine

KERNEL = "void qk_int_sv_f8_attn_kernel<128, 64>(signed char*)"
SAGEATTN = "def sageattn(q, k, v, tensor_layout='HND', is_causal=False, sm_scale=None, return_lse=False, **kwargs):"
_ATTENTION = """
import logging, sys
from comfy import options

try:
    from sageattention import sageattn
except ImportError as error:
    if options.use_sage:
        logging.error("\\n\\nTo use it, the `sageattention` package must be installed first.")
        sys.exit(-1)

def attention_pytorch(q, k, v, heads, mask=None, skip_reshape=False, **kwargs):
    return q.joined() if skip_reshape else q

def attention_sage(q, k, v, heads, mask=None, skip_reshape=False, **kwargs):
    layout = "HND" if skip_reshape else "NHD"
    if not skip_reshape:
        q, k, v = (x.view(x.shape[0], -1, heads, x.shape[2] // heads) for x in (q, k, v))
    try:
        out = sageattn(q, k, v, attn_mask=mask, is_causal=False, tensor_layout=layout)
    except Exception as error:
        logging.error("Error running sage attention: {}, using pytorch attention instead.".format(error))
        return attention_pytorch(q, k, v, heads, mask=mask, skip_reshape=True)
    return out.joined() if layout == "HND" else out

optimized_attention = attention_pytorch
if options.use_sage:
    logging.info("Using sage attention")
    optimized_attention = attention_sage
"""
_OPTIONS = """
import sys
use_sage = False
def enable_args_parsing():
    global use_sage
    use_sage = "--use-sage-attention" in sys.argv
"""
_TORCH = """
import contextlib

inference_mode = contextlib.nullcontext
float16, bfloat16, float32 = "float16", "bfloat16", "float32"

class cuda:
    is_available = staticmethod(lambda: False)

class Generator:
    def __init__(self, device):
        assert device == "cpu"
    def manual_seed(self, seed):
        return self

class Tensor:
    def __init__(self, shape, dtype="float32"):
        self.shape, self.dtype = tuple(shape), dtype
    def to(self, dtype):
        return Tensor(self.shape, dtype)
    def contiguous(self):
        return self
    def __setitem__(self, place, value):
        assert len(place) == len(self.shape)
    def view(self, *shape):
        known, size = 1, 1
        for n in self.shape:
            size *= n
        for n in shape:
            known *= n if n > 0 else 1
        assert size % known == 0
        return Tensor([n if n > 0 else size // known for n in shape], self.dtype)
    def transpose(self, one, other):
        shape = list(self.shape)
        shape[one], shape[other] = shape[other], shape[one]
        return Tensor(shape, self.dtype)
    def joined(self):
        batch, heads, length, dim = self.shape
        return Tensor((batch, length, heads * dim), self.dtype)

def randn(shape, generator, device):
    return Tensor(shape)

def zeros(shape, device, dtype):
    return Tensor(shape, dtype)

class nn:
    class functional:
        @staticmethod
        def scaled_dot_product_attention(q, k, v):
            assert q.shape[:2] == k.shape[:2] == v.shape[:2] and q.shape[3] == k.shape[3] and q.dtype == k.dtype
            return Tensor(q.shape, q.dtype)
"""


@pytest.fixture(scope="module")
def sage() -> Recipe:
    return recipe.load("sageattention-2.2.0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ComfyUI without a Python of its own."""
    return checkout(tmp_path / "apps" / "ComfyUI")


@pytest.fixture
def there(tmp_path: Path, folder: Path) -> Machine:
    """A machine whose ComfyUI has a venv of its own, with a torch that sees no GPU and a sageattention."""
    python = wheels.venv(folder / "venv")
    made = wheels.machine(tmp_path, sage_manifest="sageattention-2.2.0", comfyui_path=str(folder))
    found = replace(made, python=python, settings=replace(made.settings, python_bin=""))
    wheels.put_torch(python)
    (found.site / "torch" / "__init__.py").write_text("from torch.version import __version__\n" + _TORCH)
    put_package(found)
    return found


def checkout(folder: Path) -> Path:
    """The part of ComfyUI that its attention needs."""
    modules = folder / "comfy" / "ldm" / "modules"
    modules.mkdir(parents=True)
    (folder / "main.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    (folder / "comfyui_version.py").write_text('__version__ = "0.3.64"\n')
    (folder / "comfy" / "options.py").write_text(_OPTIONS)
    (modules / "attention.py").write_text(_ATTENTION)
    return folder


def put_package(there: Machine, head: str = SAGEATTN) -> None:
    """An installed sageattention whose kernels cannot run here."""
    (there.site / "sageattention").mkdir()
    (there.site / "sageattention" / "__init__.py").write_text(f"{head}\n    raise RuntimeError('no GPU')\n")
    wheels.put_distribution(there.python, "sageattention", "2.2.0")


def an_environment(folder: Path) -> Path:
    """What looks like an environment's Python, for who only looks."""
    return wheels.script(folder / "bin" / "python", "#!/bin/sh\n")


def refused(call: Callable[[], object], kind: type[SageError] = UsageError) -> str:
    """The line for the user."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# Which folder


def test_the_folder_its_main_py_and_the_portable_build_above_it_are_one_comfyui(folder: Path) -> None:
    assert [comfyui.folder_of(named) for named in (folder, folder / "main.py", folder.parent)] == [folder] * 3


def test_what_is_no_comfyui_is_refused(tmp_path: Path) -> None:
    line = refused(lambda: comfyui.folder_of(tmp_path))
    assert line == f"{tmp_path} holds no ComfyUI (main.py beside comfy/). Name its folder with --comfyui."


def test_without_a_name_it_is_the_one_where_the_user_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert comfyui.find(Settings()) == folder


def test_those_in_usual_places_are_suggested_and_not_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comfyui, "_USUAL", ("~/ComfyUI",))
    monkeypatch.setenv("HOME", str(folder.parent))
    line = "there is no ComfyUI here. Name its folder: --comfyui {}."
    assert refused(lambda: comfyui.find(Settings())) == line.format(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert refused(lambda: comfyui.find(Settings())) == line.format("/path/to/ComfyUI")


# Which Python


@pytest.mark.parametrize("name", ["venv", ".venv", "python_embeded", "python_embedded"])
@pytest.mark.parametrize("above", [False, True])
def test_the_python_beside_it_is_its_own(folder: Path, name: str, above: bool) -> None:
    place = (folder.parent if above else folder) / name
    python = an_environment(place)
    if above and name in ("venv", ".venv"):
        assert comfyui.chosen(Settings(comfyui_path=str(folder))) is None, "a home may hold one for other things"
        (place / "lib/python3.12/site-packages/comfyui_frontend_package-1.0.dist-info").mkdir(parents=True)
    found = comfyui.chosen(Settings(comfyui_path=str(folder)))
    assert found == comfyui.Python(path=python, why=f"the {name} of {folder}")


def test_a_link_to_its_environment_is_no_second_one(folder: Path) -> None:
    python = an_environment(folder / ".venv")
    (folder / "venv").symlink_to(".venv")
    found = comfyui.chosen(Settings(comfyui_path=str(folder)))
    assert found is not None and found.path.resolve() == python


def test_what_runs_now_and_what_lies_there_need_a_choice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, used = an_environment(folder / "venv"), an_environment(folder.parent / "other")
    monkeypatch.setattr(comfyui, "running", lambda _: [comfyui.Python(path=used, why="")])
    line = refused(lambda: comfyui.chosen(Settings(comfyui_path=str(folder))))
    assert line.startswith(f"the ComfyUI in {folder} has two Pythons, {left} and {used}. ")


def test_one_that_runs_on_the_systems_python_leaves_the_default(folder: Path) -> None:
    assert comfyui.chosen(Settings(comfyui_path=str(folder))) is None
    assert comfyui.chosen(Settings()) is None


def test_a_portable_build_for_windows_is_said(folder: Path) -> None:
    (folder.parent / "python_embeded").mkdir()
    exe = folder.parent / "python_embeded" / "python.exe"
    exe.touch()
    line = refused(lambda: comfyui.chosen(Settings(comfyui_path=str(folder))))
    assert line == f"{exe} is a Python for Windows. sagewheels is for Linux, WSL included."


def test_two_environments_need_a_choice(folder: Path) -> None:
    one, other = an_environment(folder / "venv"), an_environment(folder / ".venv")
    line = refused(lambda: comfyui.chosen(Settings(comfyui_path=str(folder))))
    assert line == (
        f"the ComfyUI in {folder} has two Pythons, {one} and {other}. Name the one that it is started with: --python."
    )
    assert comfyui.chosen(Settings(comfyui_path=str(folder), python_bin=str(other))) is None


def test_python_and_comfyui_that_disagree_are_refused(folder: Path, tmp_path: Path) -> None:
    own, other = an_environment(folder / "venv"), an_environment(tmp_path / "other")
    line = refused(lambda: comfyui.chosen(Settings(comfyui_path=str(folder), python_bin=str(other))))
    assert line == (
        f"PYTHON_BIN={other} is not the Python of the ComfyUI in {folder}, which is {own}. "
        "Leave --comfyui (COMFYUI_PATH) or --python (PYTHON_BIN) out."
    )


def test_a_python_named_as_on_path_is_compared_as_what_it_is(folder: Path) -> None:
    own = an_environment(folder / "venv")
    given = Settings(comfyui_path=str(folder), python_bin="python", environ={"PATH": str(own.parent)})
    assert comfyui.chosen(given) is None


@pytest.fixture
def running(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The Python of a ComfyUI that runs, from an environment elsewhere."""
    python = wheels.venv(tmp_path / "elsewhere")
    with subprocess.Popen([python, "main.py", "--listen"], cwd=folder, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"up\n"
            yield python
        finally:
            process.kill()


def test_the_python_of_one_that_runs_is_its_own(folder: Path, tmp_path: Path, running: Path) -> None:
    why = f"the Python that runs {folder} now"
    assert comfyui.chosen(Settings(comfyui_path=str(folder))) == comfyui.Python(path=running, why=why)
    assert comfyui.running(checkout(tmp_path / "another")) == []


def test_who_stands_in_a_comfyui_does_not_install_into_another_python(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    active = an_environment(tmp_path / "active")
    given = Settings(environ={"VIRTUAL_ENV": str(tmp_path / "active"), "PATH": os.environ["PATH"]})
    assert target.locate(given) == (active, "the active environment (VIRTUAL_ENV)"), "it has no Python of its own"
    own = an_environment(folder / "venv")
    assert refused(lambda: target.locate(given)) == (
        f"the ComfyUI in {folder} runs with {own}, and {active} (the active environment (VIRTUAL_ENV)) would be "
        f"installed into. Add --comfyui {folder}, or --python {active} if you mean that one."
    )
    assert target.locate(replace(given, python_bin=str(active))) == (active, "PYTHON_BIN")
    assert target.locate(replace(given, comfyui_path=str(folder))) == (own, f"the venv of {folder}")
    assert target.locate(replace(given, environ={"VIRTUAL_ENV": str(folder / "venv")}))[0] == own


# What it says


def said(there: Machine, capsys: pytest.CaptureFixture[str], *, check: bool = True, **changes: Any) -> list[str]:
    """The lines, without the table."""
    comfyui.show(there.job(**changes), check=check)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("[comfyui]")]


def test_what_it_runs_with_is_shown_also_where_another_python_is_active(
    there: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    lines = [
        f"[comfyui] ComfyUI 0.3.64 in {folder}, with {there.python}",
        "[comfyui] sageattention 2.2.0",
        f"[comfyui] start it with: {there.python} {folder / 'main.py'} --use-sage-attention",
    ]
    assert said(there, capsys, check=False) == lines
    active = {**there.settings.environ, "VIRTUAL_ENV": str(there.folder / "env")}
    assert said(there, capsys, check=False, comfyui_path="", environ=active) == lines


def test_without_a_gpu_the_calls_are_checked_and_nothing_is_proven(
    there: Machine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = wheels.tree(folder)
    job = there.job()
    comfyui.show(job, check=True)
    assert wheels.tree(folder) == before, "something was written into its folder"
    found = job.report["comfyui"]
    assert found["function"] == "attention_sage"
    assert len(found["cases"]) == 17
    assert {case["verdict"] for case in found["cases"]} == {"accepted"}
    # What was computed is not the package's doing: no number is shown.
    assert not any("cosine" in case for case in found["cases"])
    lines = capsys.readouterr().out.splitlines()
    assert "[comfyui] ComfyUI says: Using sage attention" in lines
    assert lines[-1] == (
        "[comfyui] without a GPU no kernel ran: the installed package accepts ComfyUI's calls, nothing is proven"
    )


def test_a_package_that_does_not_take_its_arguments_is_seen(there: Machine) -> None:
    module = there.site / "sageattention" / "__init__.py"
    module.write_text("def sageattn(q, k, v, tensor_layout='HND', is_causal=False): ...\n")
    line = refused(lambda: comfyui.show(there.job(), check=True), SmokeFailed)
    assert line.startswith(
        "ComfyUI's call does not reach the kernels: float16, 10 heads of 64, 256 on 256 keys: falls back: Error "
        "running sage attention: got an unexpected keyword argument 'attn_mask', using pytorch attention instead. "
        "Run smoke, which says whether the kernels are right. The whole output is "
    )


def test_a_line_that_only_informs_is_no_fallback(there: Machine, folder: Path) -> None:
    module = folder / "comfy" / "ldm" / "modules" / "attention.py"
    text = module.read_text()
    module.write_text(text.replace("    layout = ", "    logging.info('hello')\n    layout = "))
    job = there.job()
    comfyui.show(job, check=True)
    assert {case["verdict"] for case in job.report["comfyui"]["cases"]} == {"accepted"}


def test_a_comfyui_that_calls_another_function_fails(there: Machine, folder: Path) -> None:
    (folder / "comfy" / "options.py").write_text("use_sage = False\ndef enable_args_parsing():\n    pass\n")
    line = refused(lambda: comfyui.show(there.job(), check=True), SmokeFailed)
    assert line == "ComfyUI calls attention_pytorch, not attention_sage. Start it with --use-sage-attention."


def test_a_module_that_cannot_be_loaded_is_said_in_its_own_words(there: Machine, folder: Path) -> None:
    (folder / "comfy" / "options.py").write_text("import einops\n")
    line = refused(lambda: comfyui.show(there.job(), check=True))
    assert line.startswith(
        "ComfyUI's attention module cannot be loaded: ModuleNotFoundError: No module named 'einops'. Start ComfyUI "
        "once, which says what it lacks. The whole output is "
    )


def test_where_it_ends_the_process_its_last_line_is_the_reason(there: Machine) -> None:
    (there.site / "sageattention" / "__init__.py").write_text("import gone\n")
    line = refused(lambda: comfyui.show(there.job(), check=True))
    assert line.startswith(
        "ComfyUI's attention module cannot be loaded: To use it, the `sageattention` package must be installed first. "
    )


def test_a_torch_that_sees_no_gpu_where_there_is_one_fails(there: Machine, folder: Path) -> None:
    wheels.script(there.folder / "bin" / "nvidia-smi", f"#!/bin/sh\necho '{wheels.RTX}'\n")
    line = refused(lambda: comfyui.show(there.job(), check=True), SmokeFailed)
    assert line.startswith(
        f"torch in {folder / 'venv'} sees no GPU, nvidia-smi lists 1. Run doctor, which says why. The whole output is "
    )


def test_without_the_package_there_is_nothing_to_check(there: Machine, folder: Path) -> None:
    shutil.rmtree(there.site / "sageattention-2.2.0.dist-info")
    line = refused(lambda: comfyui.show(there.job(), check=True))
    assert line == f"sageattention is not installed in {folder / 'venv'}. Run install or auto first."


GOOD = {"finite": True, "cosine": 0.9992, "relative_l2": 0.04, "row_relative_l2": 0.9}
NOISE = {"finite": True, "cosine": 0.6139, "relative_l2": 0.8, "row_relative_l2": 1.0}
NAN = {"finite": False, "cosine": None, "relative_l2": None, "row_relative_l2": None}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        (GOOD, "reached"),
        (NOISE, "reached, and wrong: cosine 0.6139, relative L2 0.800"),
        (NAN, "reached, and wrong: not finite"),
        ({**GOOD, "mask": True, "without_mask": NOISE}, "reached"),
        ({**NOISE, "mask": True, "without_mask": GOOD}, "mask ignored"),
        ({**NOISE, "mask": True, "without_mask": NOISE}, "reached, and wrong: cosine 0.6139, relative L2 0.800"),
        ({**NAN, "mask": True, "without_mask": NAN}, "reached, and wrong: not finite"),
        ({"kernels": ["fmha_cutlassF_f16"]}, "another kernel ran: fmha_cutlassF_f16"),
        ({"kernels": []}, "another kernel ran: none was seen"),
        (
            {"fallback": ["Error running sage attention: x"], "kernels": []},
            "falls back: Error running sage attention: x",
        ),
        ({"error": "RuntimeError: x", "kernels": []}, "RuntimeError: x"),
    ],
)
def test_what_became_of_a_call_on_a_gpu(sage: Recipe, changed: dict[str, Any], verdict: str) -> None:
    case = {"mask": False, "fallback": [], "kernels": ["Memcpy HtoD", KERNEL], **GOOD, **changed}
    assert comfyui.verdict(case, sage, {"gpus": [{"name": "RTX 5090", "arch": "12.0"}]}) == verdict


def test_the_kernel_of_another_arch_does_not_count(sage: Recipe) -> None:
    case = {"mask": False, "fallback": [], "kernels": [KERNEL], **GOOD}
    found = comfyui.verdict(case, sage, {"gpus": [{"name": "H100", "arch": "9.0"}]})
    assert found == f"another kernel ran: {KERNEL}"


def test_the_demo_has_machines_of_its_own(folder: Path, tmp_path: Path) -> None:
    """What COMFYUI_PATH names is never their target."""
    an_environment(folder / "venv")
    given = Settings(comfyui_path=str(folder), environ=dict(os.environ))
    own = demo._machine(given, tmp_path, "one")
    assert target.locate(own) == (tmp_path / "one/env/bin/python", "PYTHON_BIN")
