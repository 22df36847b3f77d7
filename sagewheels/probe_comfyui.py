"""Calls ComfyUI's attention as its models do, and prints what that reached, as one JSON line.

Runs in the target's interpreter (CPython >= 3.9), from an empty directory, with sagewheels_smoke beside it. ComfyUI's
server is not started, no custom node is loaded and nothing is written into its folder.
argv[1]: {"folder", "arguments": ComfyUI's flags, "call": module:function of the package, "has_gpu"}.
"""

import faulthandler
import importlib
import inspect
import itertools
import json
import logging
import sys
import traceback
from typing import Any

import sagewheels_smoke as smoke

SHAPES = ((10, 64, 4096, 4096), (24, 128, 4352, 4352), (20, 64, 1024, 77), (16, 128, 33, 33))
"""heads, head_dim, length, keys: an SDXL level, a Flux block of 1024 x 1024, a cross attention, something short."""


CALLS: list[int] = []  # of the stand-in, where there is no GPU


class Said(logging.Handler):
    def __init__(self):
        super().__init__(logging.INFO)
        self.lines = []
        self.faults = []

    def emit(self, record):
        line = " ".join(record.getMessage().split())[:300]
        self.lines.append(line)
        if record.levelno >= logging.WARNING:
            self.faults.append(line)


def cases(on_gpu):
    keys = ("heads", "head_dim", "length", "keys", "dtype", "skip_reshape", "mask")
    shapes = (
        SHAPES if on_gpu else [(heads, dim, min(length, 256), min(keys, 256)) for heads, dim, length, keys in SHAPES]
    )
    for shape, dtype, split in itertools.product(shapes, ("float16", "bfloat16"), (False, True)):
        yield dict(zip(keys, (*shape, dtype, split, False)))
    yield dict(zip(keys, (*shapes[2], "float16", False, True)))


def inputs(torch, device, case, batch):
    generator = torch.Generator(device=device).manual_seed(7)
    lengths = (case["length"], case["keys"], case["keys"])
    shapes = [(batch, n, case["heads"] * case["head_dim"]) for n in lengths]
    found = [
        torch.randn(shape, generator=generator, device=device).to(getattr(torch, case["dtype"])) for shape in shapes
    ]
    if case["skip_reshape"]:
        heads, dim = case["heads"], case["head_dim"]
        found = [x.view(batch, -1, heads, dim).transpose(1, 2).contiguous() for x in found]
    mask = None
    if case["mask"]:
        mask = torch.zeros((batch, case["length"], case["keys"]), device=device, dtype=found[0].dtype)
        mask[:, :, case["keys"] // 2 :] = float("-inf")
    return found, mask


def kernels(torch, run):
    """What `run` returns, and the names of the GPU kernels that it ran, as CUPTI reports them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        out = run()
        torch.cuda.synchronize()
    names = {event.name for event in seen.events() if "CUDA" in str(event.device_type)}
    return out, sorted(name[:200] for name in names if not name.startswith(("Mem", "void at::")))


def called(torch, attention, said, case, on_gpu):
    q_k_v, mask = inputs(torch, "cuda" if on_gpu else "cpu", case, 2 if on_gpu else 1)
    rest = {"mask": mask, "skip_reshape": case["skip_reshape"]}
    before, calls = len(said.faults), len(CALLS)
    run = lambda: attention.optimized_attention(*q_k_v, case["heads"], **rest)  # noqa: E731
    out, case["kernels"] = kernels(torch, run) if on_gpu else (run(), [])
    case["fallback"] = said.faults[before:]
    case["handed_over"] = on_gpu or len(CALLS) > calls
    if not on_gpu:  # what was computed is the stand-in's: its numbers say nothing
        return
    heads = lambda x: x.view(x.shape[0], x.shape[1], case["heads"], case["head_dim"]).transpose(1, 2)  # noqa: E731
    want = lambda **rest: heads(attention.attention_pytorch(*q_k_v, case["heads"], **rest).float())  # noqa: E731
    case.update(smoke.compare(torch, heads(out), want(**rest)))
    if case["mask"]:
        case["without_mask"] = smoke.compare(torch, heads(out), want(skip_reshape=case["skip_reshape"]))


def stand_in(torch, real):
    """Without a GPU: a function that takes what the installed one takes, and computes with torch."""
    signature = inspect.signature(real)

    def attend(*args, **kwargs):
        CALLS.append(1)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        q, k, v = list(bound.arguments.values())[:3]
        layout = bound.arguments.get("tensor_layout")
        if layout == "NHD":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2) if layout == "NHD" else out

    return attend


def main():
    faulthandler.enable()
    order = json.loads(sys.argv[1])
    import torch

    on_gpu = order["has_gpu"] and torch.cuda.is_available()
    found: dict[str, Any] = {"gpus": [], "cases": [], "said": [], "function": "", "where": "the CPU"}
    if on_gpu:
        found["where"] = torch.cuda.get_device_name(0)
        found["gpus"] = [{"name": found["where"], "arch": "%d.%d" % torch.cuda.get_device_capability(0)}]
    said = Said()
    logging.getLogger().addHandler(said)
    logging.getLogger().setLevel(logging.INFO)
    sys.path.insert(0, order["folder"])
    sys.argv = ["main.py", *order["arguments"], *([] if on_gpu else ["--cpu"])]
    try:
        # As main.py does first: without it ComfyUI's modules see no flags.
        importlib.import_module("comfy.options").enable_args_parsing()
        attention = importlib.import_module("comfy.ldm.modules.attention")
        module, _, name = order["call"].partition(":")
        if not on_gpu and hasattr(attention, name):
            setattr(attention, name, stand_in(torch, getattr(importlib.import_module(module), name)))
    except BaseException as error:  # ComfyUI ends the process where a package is missing
        traceback.print_exc()
        last = said.lines[-1] if isinstance(error, SystemExit) and said.lines else smoke.short(error)
        print("\n" + json.dumps({**found, "error": last}))
        return
    found["function"] = getattr(attention.optimized_attention, "__name__", str(attention.optimized_attention))
    found["said"] = [line for line in said.lines if "attention" in line.lower()][:6]
    with torch.inference_mode():
        for case in cases(on_gpu):
            words = "at: %(dtype)s, %(heads)d heads of %(head_dim)d, %(length)d on %(keys)d keys\n"
            sys.stderr.write(words % case)
            sys.stderr.flush()
            case["fallback"] = []
            try:
                called(torch, attention, said, case, on_gpu)
            except Exception as error:
                traceback.print_exc()
                case["error"] = smoke.short(error)
            found["cases"].append(case)
    print("\n" + json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
