"""The chart of bench: speed over sequence length, a panel for each mask and head_dim. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewheels import benchfile
from sagewheels.errors import shown
from sagewheels.files import arriving

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OWN, _WRONG = "#0072B2", "#D00000"
_COLOURS = ("#111111", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999")
"""Okabe and Ito's palette, which people tell apart who do not see all colours."""
_NAMES = {
    "SDPA": "SDPA (torch's choice)",
    "SDPA FLASH_ATTENTION": "SDPA FlashAttention",
    "SDPA CUDNN_ATTENTION": "SDPA cuDNN",
    "SDPA EFFICIENT_ATTENTION": "SDPA mem. efficient",
    "SDPA MATH": "SDPA math",
}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG of 1600 pixels in width. Raises ImportError without matplotlib."""
    import matplotlib

    # A dollar in a name is a dollar, and begins no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        _draw(found, path)


def _draw(found: Mapping[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = benchfile.panels(found)
    dims, masks = sorted({dim for dim, _ in panels}), sorted({causal for _, causal in panels})
    figure = Figure(figsize=(10, 1.2 + 3.1 * len(masks)), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(masks), len(dims), squeeze=False, sharex=True, sharey="row")
    # All panels share one axis, also those of a run that ended early: the lengths are those of all points.
    lengths = sorted({point["shape"][2] for points in panels.values() for point in points})
    names = benchfile.names([point for points in panels.values() for point in points])
    colours = {name: _colour(name, place, found["function"]) for place, name in enumerate(_others(names, found))}
    for axes in grid.flat:
        axes.set_visible(False)
    for (dim, causal), points in panels.items():
        axes = grid[masks.index(causal)][dims.index(dim)]
        axes.set_visible(True)
        _panel(axes, found, points, lengths, {found["function"]: _OWN, **colours})
        axes.set_title(f"head_dim {dim}, {'causal' if causal else 'full'}", fontsize=10, loc="left")
    for row in grid:
        # Of a row that shares its axis, only when all of it is drawn: before, what is there already sets the limit.
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel("TFLOPS, more is better", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("sequence length", fontsize=9)
        axes.set_xticks(range(len(lengths)), [_tick(length) for length in lengths])
    # Of all panels: what cannot do one head_dim is drawn in the others alone.
    drawn = [axes.get_legend_handles_labels() for row in grid for axes in row]
    legend = {label: handle for handles, labels in drawn for handle, label in zip(handles, labels, strict=True)}
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(title(found), fontsize=10.5, x=0.01, ha="left")
    with arriving(path) as stream:
        figure.savefig(stream, format="png")


def title(found: Mapping[str, Any]) -> str:
    """Two lines: what was measured, and on what."""
    batch, heads = found["points"][0]["shape"][:2]
    what = f"{found['package']} {found['version']}: {found['function']} against torch's attention, {found['dtype']}"
    where = f"{found['gpu']}, driver {found.get('driver') or '?'}, torch {found['torch']}"
    return _plain(what) + "\n" + _plain(f"{where}; batch {batch}, {heads} heads; crosses: wrong results")


def _plain(text: str) -> str:
    """A text of others as it is drawn: between dollar signs matplotlib would read formulas, and fail at bad ones."""
    return shown(text).replace("$", r"\$")


def _tick(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def _others(names: list[str], found: Mapping[str, Any]) -> list[str]:
    return [name for name in names if name != found["function"]]


def _colour(name: str, place: int, own: str) -> str:
    return _OWN if name == own else _COLOURS[place % len(_COLOURS)]


def _panel(
    axes: Axes,
    found: Mapping[str, Any],
    points: list[Mapping[str, Any]],
    lengths: list[int],
    colours: Mapping[str, str],
) -> None:
    for name, colour in colours.items():
        ran = [(point["shape"], point["functions"][name]) for point in points if _ran(point, name)]
        if not ran:
            continue
        own = name == found["function"]
        x = [lengths.index(shape[2]) for shape, _ in ran]
        y = [benchfile.tflops(shape, one["ms"]) for shape, one in ran]
        style: dict[str, Any] = {"linewidth": 2.4, "marker": "o"} if own else {"linewidth": 1.3, "marker": "."}
        label = f"{_plain(name)} (this wheel)" if own else _NAMES.get(name, _plain(name))
        axes.plot(x, y, color=colour, label=label, markersize=5, zorder=3 if own else 2, **style)
        bad = [(a, b) for a, b, (_, one) in zip(x, y, ran, strict=True) if one["result"] == "wrong"]
        if bad:
            axes.scatter(
                [a for a, _ in bad], [b for _, b in bad], marker="x", s=90, linewidths=2.4, color=_WRONG, zorder=4
            )
        if own:
            _speedups(axes, points, name, x, y)
    axes.tick_params(labelsize=8.5)
    axes.margins(y=0.16)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _ran(point: Mapping[str, Any], name: str) -> bool:
    return "ms" in point.get("functions", {}).get(name, {})


def _speedups(axes: Axes, points: list[Mapping[str, Any]], name: str, x: list[int], y: list[float]) -> None:
    """How many times faster than what torch chooses, above each point."""
    both = [point["functions"] for point in points if _ran(point, name)]
    for a, b, one in zip(x, y, both, strict=True):
        if "ms" in one.get("SDPA", {}):
            text = f"{one['SDPA']['ms'] / one[name]['ms']:.2f}x"
            axes.annotate(
                text, (a, b), (-3, 7), textcoords="offset points", ha="right" if a else "center", fontsize=8, color=_OWN
            )
