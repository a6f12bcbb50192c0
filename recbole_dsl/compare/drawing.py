"""Draws figures: for the page by plotly, as PNG and SVG by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .figures import Figure

_COLOURS: Final = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8B5A2B"),
    *("#7F3C8D", "#A5AA00", "#3969AC", "#E73F74", "#80BA5A", "#666666", "#F97B72"),
)
"""The first eight can be told apart by people with any colour vision (Okabe and Ito)."""

_MARKERS: Final = (
    ("circle", "o"),
    ("square", "s"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("x", "X"),
    ("star", "*"),
)
_STROKES: Final = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))
"""Both as plotly and as matplotlib call them."""


class Styles:
    """The same colour and marker for a method in every figure."""

    def __init__(self, methods: Sequence[str]) -> None:
        self._places = {method: place for place, method in enumerate(methods)}

    def colour(self, method: str) -> str:
        """Of its lines."""
        return _COLOURS[self._places[method] % len(_COLOURS)]

    def marker(self, method: str) -> tuple[str, str]:
        """Of its points, for plotly and for matplotlib."""
        return _MARKERS[self._places[method] % len(_MARKERS)]

    def stroke(self, number: int) -> tuple[str, str]:
        """Of the lines with that number."""
        return _STROKES[number % len(_STROKES)]


def as_plotly(figure: Figure, styles: Styles) -> dict[str, Any]:
    """The figure as plotly's JSON: ``data`` and ``layout``."""
    import plotly.graph_objects as go

    drawn = go.Figure()
    for series in figure.series:
        drawn.add_scatter(
            x=series.x,
            y=series.y,
            name=series.name,
            mode="lines+markers" if len(series.x) <= 40 else "lines",
            line={"color": styles.colour(series.method), "dash": styles.stroke(series.stroke)[0]},
            marker={"symbol": styles.marker(series.method)[0], "size": 8},
            error_y=None if series.error is None else {"array": series.error, "thickness": 1},
        )
    for name, level in figure.levels.items():
        drawn.add_hline(y=level, line={"color": styles.colour(name), "dash": "dot", "width": 1})
    if figure.log_x:
        scale: dict[str, Any] = {"type": "log", "dtick": "D2", "tickformat": "~s"}
    elif figure.x_names is not None:
        scale = {"tickvals": list(range(10)), "ticktext": figure.x_names}
    else:
        scale = {"rangemode": "tozero"}
    drawn.update_layout(
        template="plotly_white",
        height=460,
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        xaxis={"title": {"text": figure.x_label}, **scale},
        yaxis={"title": {"text": figure.y_label}, "rangemode": "tozero"},
        showlegend=True,
        hovermode="closest",
    )
    told: dict[str, Any] = drawn.to_plotly_json()
    return {"data": told["data"], "layout": told["layout"]}


def save_images(figure: Figure, styles: Styles, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg``; the same figure gives the same files."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for series in figure.series:
        axes.errorbar(
            series.x,
            series.y,
            yerr=series.error,
            label=series.name if not series.name.startswith("_") else f"\N{ZERO WIDTH SPACE}{series.name}",
            color=styles.colour(series.method),
            linestyle=styles.stroke(series.stroke)[1],
            marker=styles.marker(series.method)[1] if len(series.x) <= 40 else None,
            markersize=5,
            linewidth=1.4,
            capsize=2,
        )
    for level_name, level in figure.levels.items():
        axes.axhline(level, color=styles.colour(level_name), linestyle=":", linewidth=1)
    if figure.log_x:
        axes.set_xscale("log")
    if figure.x_names is not None:
        axes.set_xticks(range(10), figure.x_names, rotation=30, ha="right", fontsize=8)
    axes.set_ylim(0, 1.03 * axes.get_ylim()[1])  # from zero on, with room for the marker at the top
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.set_title(figure.title, fontsize=10)
    axes.grid(alpha=0.25)
    canvas.legend(loc="outside right upper", fontsize=8, frameon=False)
    canvas.savefig(folder / f"{name}.png", metadata={"Software": None})
    with rc_context({"svg.hashsalt": name}):  # else every file has other names inside
        canvas.savefig(folder / f"{name}.svg", metadata={"Date": None})
