"""What bench found, as a file: judged, saved, and read again with every fault named. Pure, but for load and save."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sagewheels import smoke
from sagewheels.errors import UsageError
from sagewheels.files import arriving, opened

SCHEMA = 1
_TEXTS = ("at_utc", "gpu", "arch", "torch", "package", "version", "function", "dtype")
BOUNDS = ("min_cosine", "max_relative_l2", "max_row_relative_l2")
"""Keys of [smoke] by which a result is judged; a manifest need not bound single rows."""
_LARGEST = 16 << 20
LENGTHS, HEAD_DIMS = 32, 8
"""The most of them that are measured: a chart of more could not be read."""
_POINTS, _FUNCTIONS = 2 * HEAD_DIMS * LENGTHS, 16
_LONGEST = 400
"""Letters of a text; what goes wrong at a point is told in fewer."""


def judged(point: Mapping[str, Any], bounds: Mapping[str, float]) -> dict[str, Any]:
    """A point whose functions say whether their result is `right`, `wrong`, or there is none (`error`, `skipped`)."""
    if "functions" not in point:
        return dict(point)
    return {**point, "functions": {name: _judged(one, bounds) for name, one in point["functions"].items()}}


def _judged(one: Mapping[str, Any], bounds: Mapping[str, float]) -> dict[str, Any]:
    if "error" in one or "skipped" in one:
        return dict(one)
    right = bool(one.get("finite")) and smoke.within(one, bounds)
    return {**one, "result": "right" if right else "wrong"}


def wrong(found: Mapping[str, Any]) -> Iterator[str]:
    """Where a result is wrong, torch's own too, or where the package's function raised: a backend may not serve all."""
    for point in found["points"]:
        _, _, length, dim, causal = point["shape"]
        for name, one in point.get("functions", {}).items():
            if one.get("result") == "wrong" or (name == found["function"] and "error" in one):
                how = one.get("error") or smoke.how(one)
                yield f"{name} at length {length}, head_dim {dim}{', causal' if causal else ''}: {how}"


def panels(found: Mapping[str, Any]) -> dict[tuple[int, bool], list[Mapping[str, Any]]]:
    """The points by head_dim and mask, each list by length."""
    groups: dict[tuple[int, bool], list[Mapping[str, Any]]] = {}
    for point in sorted(found["points"], key=lambda one: (one["shape"][4], one["shape"][3], one["shape"][2])):
        groups.setdefault((point["shape"][3], point["shape"][4]), []).append(point)
    return groups


def names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The functions that ran at one of the points at least, in the order of measuring."""
    ran = [name for point in points for name, one in point.get("functions", {}).items() if "ms" in one]
    return list(dict.fromkeys(ran))


def tflops(shape: Sequence[int], ms: float) -> float:
    """10^12 operations a second: 4 x batch x heads x length^2 x head_dim for both products, half of it if causal."""
    batch, heads, length, dim, causal = shape
    return 4 * batch * heads * length * length * dim / (2 if causal else 1) / ms / 1e9


def save(path: Path, found: Mapping[str, Any]) -> None:
    """Writes the figures, whole or not at all."""
    with arriving(path) as stream:
        stream.write(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote. Raises UsageError that says what is wrong with the file."""
    try:
        with opened(path) as stream:
            data = stream.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise UsageError(f"{path} is too large to be from bench", "Name a file that bench wrote")
        found = json.loads(data.decode("utf-8"))
        json.dumps(found, allow_nan=False)  # no NaN, and nothing so deep that the report could not say it again
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", "Name a file that bench wrote") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", "Name a file that bench wrote") from None
    if fault := _fault(found):
        raise UsageError(f"{path} is not from bench: {fault}", "Name a file that bench wrote")
    return dict(found)


def _fault(found: object) -> str:
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return f"its schema is not {SCHEMA}"
    missing = [key for key in _TEXTS if not _is_text(found.get(key))]
    if missing:
        return f"{missing[0]} is no text of up to {_LONGEST} letters"
    if not _is_text(found.get("driver", "")):
        return f"driver is no text of up to {_LONGEST} letters"
    points = found.get("points")
    if not isinstance(points, list) or not 0 < len(points) <= _POINTS:
        return f"points is no list of 1 to {_POINTS}"
    faults = ((at, _point_fault(one, found["function"])) for at, one in enumerate(points, 1))
    if fault := next((f"point {at} {fault}" for at, fault in faults if fault), ""):
        return fault
    return "" if len(panels(found)) <= 2 * HEAD_DIMS else f"it has more than {HEAD_DIMS} head_dims"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST


def _point_fault(one: object, function: str) -> str:
    if not isinstance(one, dict) or not isinstance(one.get("shape"), list) or len(one["shape"]) != 5:
        return "has no shape"
    if not all(type(number) is int and 0 < number < 10**7 for number in one["shape"][:4]):
        return "has a shape that no tensor has"
    if type(one["shape"][4]) is not bool:
        return "does not say whether it is causal"
    if "skipped" in one and "functions" not in one:
        return "" if _is_text(one["skipped"]) else "does not say why it was skipped"
    functions = one.get("functions")
    if not isinstance(functions, dict) or not all(isinstance(each, dict) for each in functions.values()):
        return "has functions that are no table"
    if len(functions) > _FUNCTIONS or not all(map(_is_text, functions)):
        return f"has more than {_FUNCTIONS} functions, or one with a name that none has"
    if function not in functions:
        return f"has no {function!r} among its functions"
    return next((f"{fault} of {name!r}" for name, each in functions.items() if (fault := _function_fault(each))), "")


def _function_fault(one: Mapping[str, Any]) -> str:
    why = [one[key] for key in ("error", "skipped") if key in one]
    if why:
        return "" if "ms" not in one and all(map(_is_text, why)) else "does not say why there is no time"
    if one.get("result") not in ("right", "wrong"):
        return "has no result"
    ms: Any = one.get("ms")
    # Neither a whole number that is no float, nor a time whose speed is none.
    return "" if type(ms) in (int, float) and 1e-6 < ms < 1e9 else "has no time"
