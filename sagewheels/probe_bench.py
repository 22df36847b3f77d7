"""Times attention functions against torch's on one GPU and compares what they compute; prints one JSON line.

Runs in the target's interpreter (CPython >= 3.9), from an empty directory, with torch, package and sagewheels_smoke.
argv[1]: {"package", "call", "arguments", "shapes": [[batch, heads, length, head_dim, causal]], "dtype",
"seconds", "rounds", "out"}; each point is appended to the file `out` when it is done, so that none is ever lost.
"""

import contextlib
import faulthandler
import functools
import importlib
import json
import sys
import time
import traceback

import sagewheels_smoke as smoke

BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
MEMORY = "the GPU has not enough memory for it"
FLUSH = 256 << 20  # bytes: more than the L2 cache of any GPU so far


def contenders(torch, order):
    """Name -> function of q, k, v, causal: the package's own, what torch chooses, and each backend of torch alone."""
    module, _, name = order["call"].partition(":")
    own = functools.partial(getattr(importlib.import_module(module), name), **order.get("arguments", {}))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    found = {
        name: lambda q, k, v, causal: own(q, k, v, tensor_layout="HND", is_causal=causal),
        "SDPA": lambda q, k, v, causal: sdpa(q, k, v, is_causal=causal),
    }
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before torch 2.3
        return found

    def alone(backend):
        def run(q, k, v, causal):
            with sdpa_kernel(backend):
                return sdpa(q, k, v, is_causal=causal)

        return run

    for backend in BACKENDS:
        if hasattr(SDPBackend, backend):
            found["SDPA " + backend] = alone(getattr(SDPBackend, backend))
    return found


def checked(torch, run, inputs, causal, want):
    """What one function computed, against the reference; or why it did not."""
    smoke.poison(torch, inputs[0])
    try:
        return smoke.compare(torch, run(*inputs, causal), want)
    except Exception as error:
        return failed(error)


def failed(error):
    """What is said of a function that raised; raises it again where nothing that follows would mean anything.

    Too little memory is no fault of a function.
    """
    if "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError":
        raise error  # the context is lost
    traceback.print_exc()
    if "OutOfMemory" in type(error).__name__:
        return {"skipped": MEMORY}
    return {"error": smoke.short(error)}


def once(torch, run, inputs, causal, flush):
    """Milliseconds of one call by CUDA events, with a cold L2 cache."""
    flush.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run(*inputs, causal)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def repeated(torch, run, inputs, causal, flush, count):
    """Milliseconds of so many calls, and what became of one that raised."""
    times = []
    try:
        for _ in range(count):
            times.append(once(torch, run, inputs, causal, flush))
    except Exception as error:
        return times, failed(error)
    return times, {}


def timed(torch, functions, inputs, causal, order, flush):
    """Name -> milliseconds of many calls, and name -> what became of those that raise only now.

    In turns, so that a clock that drifts drifts for all of them.
    """
    counts, gone = {}, {}
    times = {}  # type: dict[str, list[float]]
    for name, run in functions.items():
        # Warm: modules are loaded, and what is tuned at the first call is tuned.
        warm, gone[name] = repeated(torch, run, inputs, causal, flush, 3)
        spent = warm[-1] if warm else 1.0
        counts[name] = max(1, min(100, int(order["seconds"] * 1000 / order["rounds"] / max(spent, 1e-3))))
        times[name] = []
    names = list(functions)
    for turn in range(order["rounds"] if names else 0):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if not gone[name]:
                more, gone[name] = repeated(torch, functions[name], inputs, causal, flush, counts[name])
                times[name] += more
    return {name: each for name, each in times.items() if not gone[name]}, {n: why for n, why in gone.items() if why}


def needed(shape, dtype_bytes):
    """Bytes that the MATH backend takes for its scores, at least: they are the only thing that grows with length^2."""
    batch, heads, length, _, _ = shape
    return batch * heads * length * length * dtype_bytes * 3


def measure(torch, functions, shape, order, flush):
    """One point: for each function its times, whether it is right, or why there is neither."""
    batch, heads, length, dim, causal = shape
    dtype = getattr(torch, order["dtype"])
    inputs = smoke.draw(torch, "cuda", dtype, [heads, heads], length, dim, 7, batch)
    want = smoke.reference(torch, *inputs, causal)
    point, fit = {"shape": shape, "functions": {}}, {}
    for name, run in functions.items():
        if name.endswith(" MATH") and needed(shape, inputs[0].element_size()) > torch.cuda.mem_get_info()[0] // 2:
            point["functions"][name] = {"skipped": "its scores would take more than half of the free memory"}
            continue
        found = point["functions"][name] = checked(torch, run, inputs, causal, want)
        if "error" not in found and "skipped" not in found:
            fit[name] = run
    del want
    torch.cuda.empty_cache()
    ran, gone = timed(torch, fit, inputs, causal, order, flush)
    point["functions"].update(gone)
    for name, times in ran.items():
        times.sort()
        at = lambda share: times[min(len(times) - 1, int(share * len(times)))]  # noqa: B023, E731
        point["functions"][name].update(ms=at(0.5), p20=at(0.2), p80=at(0.8), runs=len(times))
    return point


def main():
    faulthandler.enable()
    order = json.loads(sys.argv[1])
    started = time.time()
    import torch

    if not torch.cuda.is_available():
        print("\n" + json.dumps({"gpus": [], "torch": torch.__version__}))
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [{"name": torch.cuda.get_device_name(0), "arch": "%d.%d" % torch.cuda.get_device_capability(0)}],
        "points": [],
    }
    functions = contenders(torch, order)
    flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
    with open(order["out"], "a", encoding="utf-8") as out:
        out.write(json.dumps({key: found[key] for key in ("torch", "cuda", "gpus")}) + "\n")
        for place, shape in enumerate(order["shapes"], 1):
            words = "point %d of %d: length %d, head_dim %d%s"
            causal = ", causal" if shape[4] else ""
            sys.stderr.write("at: %s\n" % (words % (place, len(order["shapes"]), shape[2], shape[3], causal)))
            sys.stderr.flush()
            try:
                point = measure(torch, functions, shape, order, flush)
            except torch.cuda.OutOfMemoryError:
                point = {"shape": shape, "skipped": MEMORY}
            with contextlib.suppress(Exception):
                torch.cuda.empty_cache()
            out.write(json.dumps(point) + "\n")
            out.flush()
            found["points"].append(point)
    found["seconds"] = time.time() - started
    print("\n" + json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
