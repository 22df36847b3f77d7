"""The long checks: what goes wrong on side streams, in graphs, at odd lengths, on a second GPU. Prints one JSON line.

Runs in the target's interpreter (CPython >= 3.9), beside `sagewheels_smoke.py`, from an empty directory.
argv[1]: {"calls": [{"call", "arguments", "archs"}], "head_dims", "full": the [smoke.full] table of the manifest}.
A check is a generator of cases. A case has `case` for its name, and what `compare` says of it, or else `wrong`, what
was seen and must not be, or `error`, what kept it from being seen.
"""

import faulthandler
import functools
import importlib
import inspect
import json
import math
import sys
import time
import traceback

from sagewheels_smoke import compare, draw, poison, reference, short

CLOCKS = 200_000_000
"""About 0.1 s of waiting on the GPU: longer than any call here takes to be launched."""


def poison_shared(torch, device):
    """Leaves NaN in the shared memory of every multiprocessor, by a product of matrices that are NaN."""
    nan = torch.full((4096, 4096), float("nan"), device=device, dtype=torch.float16)
    return nan @ nan


def as_layout(layout, *tensors):
    """[batch, heads, length, head_dim] to NHD and back; HND as it is."""
    return [x.transpose(1, 2).contiguous() if layout == "NHD" else x for x in tensors]


def judged(torch, name, out, want):
    return {"case": name, **compare(torch, out, want)}


def same(torch, name, out, want):
    """Equal bit by bit, NaN included: the same kernels on the same input."""
    equal = torch.equal(out.view(torch.int16), want.view(torch.int16))
    differing = int((out.view(torch.int16) != want.view(torch.int16)).sum())
    return {"case": name} if equal else {"case": name, "wrong": "%d of %d values differ" % (differing, out.numel())}


def lengths(torch, call, device, order):
    """Every short length and some odd ones, right after other kernels left NaN in shared memory."""
    full = order["full"]
    for length in [*range(1, full["every_length_to"] + 1), *full["lengths"]]:
        for dim in order["head_dims"]:
            for causal in (False, True):
                q, k, v = draw(torch, device, torch.float16, [4, 4], length, dim, length)
                want = reference(torch, q, k, v, causal)
                poison(torch, q)
                poison_shared(torch, device)
                out = call(q, k, v, tensor_layout="HND", is_causal=causal)
                yield judged(
                    torch, "length %d head_dim %d %s" % (length, dim, "causal" if causal else "full"), out, want
                )


def constant_v(torch, call, device, order):
    """Channels of V that are zero, or the same for all keys, as dead or biased channels of a model are."""
    for dim in order["head_dims"]:
        q, k, v = draw(torch, device, torch.float16, [4, 4], 503, dim, 7)
        v[..., 0], v[..., 1] = 0.0, 3.0
        out = call(q, k, v, tensor_layout="HND", is_causal=False)
        want = reference(torch, q, k, v, False)
        yield judged(torch, "all channels head_dim %d" % dim, out, want)
        for channel, wanted in ((0, 0.0), (1, 3.0)):
            worst = float((out[..., channel].float() - wanted).abs().max())
            name = "channel of %.0f head_dim %d" % (wanted, dim)
            off = math.isnan(worst) or worst > 3.0 * order["full"]["max_relative_l2"]
            yield {"case": name, "wrong": "off by %.3f" % worst} if off else {"case": name}


def gqa_lse(torch, call, device, order):
    """Fewer heads of keys than of queries, with the logsumexp, in both layouts."""
    for layout in ("HND", "NHD"):
        for heads in ([8, 8], [8, 2], [6, 1]):
            q, k, v = draw(torch, device, torch.float16, heads, 300, 128, 7)
            name = "%s %d/%d heads" % (layout, heads[0], heads[1])
            try:
                out, lse = call(*as_layout(layout, q, k, v), tensor_layout=layout, is_causal=False, return_lse=True)
            except Exception as error:
                yield {"case": name, "error": short(error)}
                continue
            yield judged(torch, name, as_layout(layout, out)[0], reference(torch, q, k, v, False))
            groups = heads[0] // heads[1]
            scores = q.float() @ k.float().repeat_interleave(groups, dim=1).transpose(2, 3) * 128**-0.5
            want = torch.logsumexp(scores, dim=-1)
            if lse.shape != want.shape:
                yield {"case": name + " lse", "wrong": "logsumexp of shape %s" % list(lse.shape)}
                continue
            worst = float((lse.float() - want).abs().max())
            off = math.isnan(worst) or worst > order["full"]["max_lse_error"]
            yield {"case": name + " lse", **({"wrong": "logsumexp off by %.3f" % worst} if off else {})}


def cross(torch, call, device, order):
    """More or fewer keys than queries."""
    for queries, keys in ((300, 77), (77, 300), (1000, 1001), (1, 503), (128, 4096)):
        for dim in order["head_dims"]:
            q = draw(torch, device, torch.bfloat16, [8, 2], queries, dim, 7)[0]
            k, v = draw(torch, device, torch.bfloat16, [8, 2], keys, dim, 8)[1:]
            poison_shared(torch, device)
            out = call(q, k, v, tensor_layout="HND", is_causal=False)
            yield judged(
                torch, "%d queries %d keys head_dim %d" % (queries, keys, dim), out, reference(torch, q, k, v, False)
            )


def long(torch, call, device, order):
    """One very long sequence; the reference is computed for some rows of it, the first and the last among them."""
    length = order["full"]["long"]
    for causal in (False, True):
        q, k, v = draw(torch, device, torch.bfloat16, [2, 1], length, 128, 7, batch=1)
        poison(torch, q)
        out = call(q, k, v, tensor_layout="HND", is_causal=causal)
        rows = torch.linspace(0, length - 1, 64, device=device).long()
        keys, values = (x.float().repeat_interleave(2, dim=1) for x in (k, v))
        scores = q[:, :, rows].float() @ keys.transpose(2, 3) * 128**-0.5
        if causal:
            scores.masked_fill_(torch.arange(length, device=device)[None, :] > rows[:, None], float("-inf"))
        finite = bool(torch.isfinite(out).all())
        name = "length %d %s" % (length, "causal" if causal else "full")
        yield judged(torch, name, out[:, :, rows], torch.softmax(scores, dim=-1) @ values)
        yield {"case": name + " everywhere", **({} if finite else {"wrong": "not finite"})}


def side_stream(torch, call, device, order):
    """Inputs that arrive late on a side stream: kernels on another stream would read what was there before."""
    for dim in order["head_dims"]:
        q, k, v = draw(torch, device, torch.float16, [8, 8], 512, dim, 7)
        want = call(q, k, v, tensor_layout="HND", is_causal=False)
        yield judged(torch, "head_dim %d on the default stream" % dim, want, reference(torch, q, k, v, False))
        late = [torch.zeros_like(x) for x in (q, k, v)]
        torch.cuda.synchronize(device)
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(CLOCKS)
            for place, value in zip(late, (q, k, v)):
                place.copy_(value)
            out = call(*late, tensor_layout="HND", is_causal=False)
        stream.synchronize()
        yield same(torch, "head_dim %d" % dim, out, want)
        torch.cuda.synchronize(device)


def graph_replay(torch, call, device, order):
    """A captured graph computes with what is in its inputs when it is replayed."""
    for dim in order["head_dims"]:
        first, second = (draw(torch, device, torch.float16, [8, 8], 512, dim, seed) for seed in (7, 8))
        want = call(*second, tensor_layout="HND", is_causal=False)
        yield judged(torch, "head_dim %d without a graph" % dim, want, reference(torch, *second, False))
        inputs = [x.clone() for x in first]
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            for _ in range(2):
                call(*inputs, tensor_layout="HND", is_causal=False)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = call(*inputs, tensor_layout="HND", is_causal=False)
        for place, value in zip(inputs, second):
            place.copy_(value)
        graph.replay()
        torch.cuda.synchronize(device)
        yield same(torch, "head_dim %d" % dim, out, want)


def compiled(torch, call, device, order):
    """torch.compile without a break in the graph, at two shapes and a padded head_dim: the very values of eager."""
    torch._dynamo.reset()
    traced = torch.compile(lambda q, k, v: call(q, k, v, tensor_layout="NHD", is_causal=False), fullgraph=True)
    for length, dim in ((512, 128), (300, 128), (300, 80)):
        q, k, v = as_layout("NHD", *draw(torch, device, torch.float16, [8, 2], length, dim, 7))
        want = call(q, k, v, tensor_layout="NHD", is_causal=False)
        yield same(torch, "length %d head_dim %d" % (length, dim), traced(q, k, v), want.contiguous())


def second_gpu(torch, call, device, order):
    """Tensors on another GPU than the current one, which stays the current one.

    They travel through the host: where GPUs cannot really read each other's memory, that is no fault of the kernels.
    """
    here = torch.cuda.current_device()
    others = [index for index in range(torch.cuda.device_count()) if index != here]
    others = [index for index in others if serves(torch, order["one"], index)]
    if not others:
        yield {"case": "", "skipped": "there is no second GPU for it here"}
        return
    for index in others:
        other = torch.device("cuda", index)
        q, k, v = draw(torch, device, torch.float16, [8, 8], 512, 128, 7)
        want = reference(torch, q, k, v, False)
        out = call(*(x.cpu().to(other) for x in (q, k, v)), tensor_layout="HND", is_causal=False)
        left = torch.cuda.current_device()
        torch.cuda.set_device(here)
        torch.cuda.synchronize(other)
        name = "cuda:%d while cuda:%d is current" % (index, here)
        yield judged(torch, name, out.cpu().to(device), want)
        moved = {"wrong": "cuda:%d is current after the call" % left} if left != here else {}
        yield {"case": name + ", current device", **moved}


def refused_launch(torch, call, device, order):
    """More batches than a grid holds (65535): the launch is refused, and that must be said, not returned."""
    q, k, v = draw(torch, device, torch.float16, [1, 1], 1, 64, 7, batch=70_000)
    yield judged(torch, "9 batches", call(q[:9], k[:9], v[:9], tensor_layout="HND", is_causal=False), v[:9].float())
    try:
        call(q, k, v, tensor_layout="HND", is_causal=False)
    except Exception as error:
        short_of = {"error": short(error)} if "OutOfMemory" in type(error).__name__ else {}
        yield {"case": "70000 batches", **short_of}
    else:
        yield {"case": "70000 batches", "wrong": "no error was raised for a launch that cannot be made"}
    finally:
        try:  # an error that nobody asked for would turn up in the next check
            torch.cuda.synchronize(device)
            torch.zeros(1, device=device)
        except Exception:
            traceback.print_exc()


CHECKS = {
    "lengths": lengths,
    "constant-v": constant_v,
    "gqa-lse": gqa_lse,
    "cross": cross,
    "long": long,
    "side-stream": side_stream,
    "graph-replay": graph_replay,
    "compile": compiled,
    "second-gpu": second_gpu,
    "refused-launch": refused_launch,
}


def serves(torch, one, index):
    """Whether a function has a kernel for this GPU, by the manifest."""
    return not one.get("archs") or "%d.%d" % torch.cuda.get_device_capability(index) in one["archs"]


def done(torch, check, one, device, order):
    """Every case of one check of one function; an exception is its last case."""
    found = []
    try:
        call, parameters = function(one["call"], one.get("arguments", {}))
        if check == "gqa-lse" and "return_lse" not in parameters:
            return [{"case": "", "skipped": "it returns no logsumexp"}]
        for case in CHECKS[check](torch, call, device, {**order, "one": one}):
            found.append(case)
    except Exception as error:
        traceback.print_exc()
        found.append({"case": "", "error": short(error)})
    return found


def lost(torch, device):
    """Whether the GPU answers no more: nothing that follows would mean anything."""
    try:
        torch.cuda.synchronize(device)
        return ""
    except Exception as error:
        return short(error)


def function(name, arguments):
    """The function `module:name` with its extra arguments, and the parameters that it can be asked for."""
    module, _, attribute = name.partition(":")
    bare = getattr(importlib.import_module(module), attribute)
    return functools.partial(bare, **arguments), inspect.signature(bare).parameters


def on_gpu(torch, index, order):
    device = torch.device("cuda", index)
    capability = "%d.%d" % torch.cuda.get_device_capability(index)
    found = {"index": index, "name": torch.cuda.get_device_name(index), "arch": capability, "checks": []}
    calls = [one for one in order["calls"] if serves(torch, one, index)]
    torch.cuda.set_device(device)
    gone = ""
    for check in order["full"]["checks"]:
        for number, one in enumerate(calls):
            row = {"check": check, "call": number, "cases": []}
            started = time.time()
            if gone:
                row["cases"] = [{"case": "", "error": "not run: the GPU answers no more"}]
            elif check not in CHECKS:
                row["cases"] = [{"case": "", "error": "this sagewheels does not know the check"}]
            else:
                sys.stderr.write("at: %s of %s %s\n" % (check, one["call"], one.get("arguments", "")))
                sys.stderr.flush()
                row["cases"] = done(torch, check, one, device, order)
                torch.cuda.set_device(device)
                gone = lost(torch, device)
                if gone and not any(case.get("error") for case in row["cases"]):
                    row["cases"].append({"case": "afterwards", "error": gone})
            found["checks"].append({**row, "seconds": time.time() - started})
    return {**found, "calls": [{**one, "arguments": one.get("arguments", {})} for one in calls]}


def main():
    faulthandler.enable()
    order = json.loads(sys.argv[1])
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    gpus = [on_gpu(torch, index, order) for index in range(torch.cuda.device_count())]
    print("\n" + json.dumps({"gpus": gpus}, allow_nan=False))


if __name__ == "__main__":
    main()
