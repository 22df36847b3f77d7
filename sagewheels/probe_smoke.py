"""Runs the kernels of an installed package and prints what they computed, as one JSON line.

Runs in the target's interpreter (CPython >= 3.9), from an empty directory, with torch and the package alone.
argv[1]: {"package", "extensions", "call", "smoke": the [smoke] table of the manifest}.
"""

import faulthandler
import functools
import importlib
import itertools
import json
import sys
import time
import traceback


def short(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "%s: %s" % (type(error).__name__, lines[0][:300] if lines else "")


def imports(package, extensions):
    """Each extension module by name: packages hide a broken one behind a bare except."""
    found = {}
    for name in ["", *extensions]:
        module = package + ("." + name if name else "")
        try:
            importlib.import_module(module)
            found[module] = ""
        except BaseException as error:
            found[module] = short(error)
    return found


def reference(torch, q, k, v, causal):
    """float32 attention for [batch, heads, length, head_dim]; rows in blocks, so that long ones fit."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(groups, dim=1) for x in (k, v))
    rows = []
    step = max(1, (1 << 28) // (q.shape[0] * q.shape[1] * k.shape[2] * 4))
    for start in range(0, q.shape[2], step):
        block = q[:, :, start : start + step].float()
        scores = block @ k.transpose(2, 3) * q.shape[3] ** -0.5
        if causal:
            place = torch.arange(start, start + block.shape[2], device=q.device)[:, None]
            scores.masked_fill_(torch.arange(k.shape[2], device=q.device)[None, :] > place, float("-inf"))
        rows.append(torch.softmax(scores, dim=-1) @ v)
    return torch.cat(rows, dim=2)


def draw(torch, device, dtype, heads, length, dim, seed, batch=2):
    """q, k, v of [batch, heads, length, head_dim], normal, with the offsets in K that real models have."""
    generator = torch.Generator(device=device).manual_seed(seed)
    shapes = [(batch, n, length, dim) for n in (heads[0], heads[1], heads[1])]
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=torch.float32) for shape in shapes)
    k = k + torch.randn((1, heads[1], 1, dim), generator=generator, device=device, dtype=torch.float32)
    return [x.to(dtype) for x in (q, k, v)]


def poison(torch, like):
    """Leaves NaN in the memory that the next torch.empty of this size gets: an output nobody writes must show."""
    blocks = [torch.full_like(like, float("nan")) for _ in range(4)]
    del blocks


def compare(torch, out, want):
    """Worst cosine and worst relative L2 over batch and heads, and of any one row; and whether all is finite.

    In causal attention the first rows are so much larger than the others that a head may be right where rows are not.
    """
    rows = (out.float() - want).norm(dim=-1) / want.norm(dim=-1).clamp_min(1e-30)
    out, want = out.float().flatten(2).flatten(0, 1), want.flatten(2).flatten(0, 1)
    finite = bool(torch.isfinite(out).all())
    norm = want.norm(dim=1)
    cosine = (out * want).sum(1) / (out.norm(dim=1) * norm).clamp_min(1e-30)
    l2 = (out - want).norm(dim=1) / norm.clamp_min(1e-30)
    # Finite noise can be so large that its square is not; NaN and infinity are not JSON.
    finite = finite and all(bool(torch.isfinite(x).all()) for x in (cosine, l2, rows))
    number = lambda x: float(x) if finite else None  # noqa: E731
    worst = {"cosine": number(cosine.min()), "relative_l2": number(l2.max()), "row_relative_l2": number(rows.max())}
    return {"finite": finite, **worst}


def run_case(torch, call, device, case):
    q, k, v = draw(torch, device, getattr(torch, case["dtype"]), case["heads"], case["length"], case["head_dim"], 7)
    want = reference(torch, q, k, v, case["causal"])
    if case["layout"] == "NHD":
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    poison(torch, q)
    out = call(q, k, v, tensor_layout=case["layout"], is_causal=case["causal"])
    torch.cuda.synchronize(device)
    return compare(torch, out.transpose(1, 2) if case["layout"] == "NHD" else out, want)


def cases(smoke):
    keys = ("head_dim", "dtype", "causal", "length", "layout", "heads")
    lists = (smoke["head_dims"], smoke["dtypes"], [False, True], smoke["lengths"], smoke["layouts"], smoke["heads"])
    return [dict(zip(keys, values)) for values in itertools.product(*lists)]


def kernels(torch, call, device):
    """Names of the GPU kernels that one call runs, as CUPTI reports them."""
    from torch.profiler import ProfilerActivity, profile

    q, k, v = draw(torch, device, torch.float16, [8, 8], 512, 128, 7)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call(q, k, v, tensor_layout="HND", is_causal=False)
        torch.cuda.synchronize(device)
    return sorted({event.name for event in seen.events() if "CUDA" in str(event.device_type)})


def median_ms(torch, device, run):
    """Median of 7 runs, in milliseconds, by CUDA events, after 2 that are not counted."""
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        times.append(start.elapsed_time(end))
    return sorted(times[2:])[3]


def timed(torch, call, device, shape):
    batch, heads, length, dim = shape
    sdpa = torch.nn.functional.scaled_dot_product_attention
    q, k, v = draw(torch, device, torch.bfloat16, [heads, heads], length, dim, 7, batch)
    ours = median_ms(torch, device, lambda: call(q, k, v, tensor_layout="HND", is_causal=False))
    theirs = median_ms(torch, device, lambda: sdpa(q, k, v))
    poison(torch, q)
    right = compare(torch, call(q, k, v, tensor_layout="HND", is_causal=False), sdpa(q, k, v).float())
    return {"shape": shape, "ms": ours, "sdpa_ms": theirs, **right}


def on_gpu(torch, call, index, order):
    device = torch.device("cuda", index)
    capability = "%d.%d" % torch.cuda.get_device_capability(index)
    found = {"index": index, "name": torch.cuda.get_device_name(index), "arch": capability, "cases": [], "timed": []}
    with torch.cuda.device(device):
        for case in cases(order["smoke"]):
            sys.stderr.write("at: %s\n" % json.dumps(case))
            sys.stderr.flush()
            try:
                case.update(run_case(torch, call, device, case))
            except Exception as error:
                case["error"] = short(error)
                traceback.print_exc()
            found["cases"].append(case)
            if "CUDA error" in case.get("error", "") or "AcceleratorError" in case.get("error", ""):
                return found  # the context is lost: nothing that follows would mean anything
        try:
            found["kernels"] = kernels(torch, call, device)
            found["timed"] = [timed(torch, call, device, shape) for shape in order["smoke"].get("timed", [])]
        except Exception as error:
            found["error"] = short(error)
            traceback.print_exc()
    return found


def main():
    faulthandler.enable()
    order = json.loads(sys.argv[1])
    started = time.time()
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    found = {"torch": torch.__version__, "imports": imports(order["package"], order["extensions"]), "gpus": []}
    module, _, name = order["call"].partition(":")
    call = getattr(sys.modules.get(module), name, None)
    if call is not None and torch.cuda.is_available():
        call = functools.partial(call, **order["smoke"].get("arguments", {}))
        found["gpus"] = [on_gpu(torch, call, index, order) for index in range(torch.cuda.device_count())]
    origin = getattr(sys.modules.get(order["package"]), "__file__", "")
    found.update(origin=origin, gpu_count=torch.cuda.device_count(), seconds=time.time() - started)
    print("\n" + json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
