"""Figures as functions of plain arrays, in colours that the colour-blind can tell.

A quantity followed over training is an array [seeds, epochs + 1], epoch 0 (before
training) first; it is drawn as its mean with a band of ± one standard error over
the seeds. Each line has its own dash pattern as well as its own colour.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robjax.reporting.tables import mean_stderr
from robjax.runs import files

# Okabe & Ito, "Color Universal Design" (2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
STYLE: Any = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    # Text stays text, and two runs give the same bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "robjax",
}


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write ``<path>.png`` and ``<path>.svg``, each all or nothing."""
    written = []
    for suffix in ("png", "svg"):
        target = Path(f"{path}.{suffix}")
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == "svg" else None
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        with files.atomic_write(target) as file:
            file.write(buffer.getvalue())
        written.append(target)
    return written


class Panel(NamedTuple):
    """One set of axes of `curves`.

    series: name -> values [seeds, epochs + 1].
    ylabel: what is drawn and its unit.
    scale: of the vertical axis; "symlog" is linear within ± ``linear_to`` and shows
        both signs beyond.
    """

    series: Mapping[str, Any]
    title: str
    ylabel: str
    scale: Literal["linear", "log", "symlog", "percent"] = "linear"
    linear_to: float = 0.1


def curves(
    rows: Sequence[Sequence[Panel]],
    *,
    title: str,
    x: Any = None,
    xlabel: str = "epoch",
    xscale: str = "linear",
) -> Figure:
    """Quantities over training (or over `x`), as a grid of panels.

    The panels of a row share their vertical axis and one legend, at its right; a row
    with the names of the row above does without.

    Args:
        rows: rows of panels, all of the same length.
        title: what the figure shows, in words.
        x: [points] what the quantities are followed over; None: epochs from 0 on.
        xlabel: its name and unit.
        xscale: "linear" or "log".
    """
    with matplotlib.rc_context(STYLE):
        columns = len(rows[0])
        figure, grid = _grid(len(rows), columns, title)
        named = None
        for axes_row, panels in zip(grid, rows, strict=True):
            for axes, panel in zip(axes_row, panels, strict=True):
                _draw_panel(axes, panel, x)
                axes.label_outer()
            if list(panels[0].series) != named:
                named = list(panels[0].series)
                _legend_right(axes_row, panels[0].series.values())
        for axes in grid[-1]:
            axes.set(xlabel=xlabel, xscale=xscale)
        figure.align_ylabels(grid[:, 0])
    return figure


def metric_parts(models: Mapping[str, Mapping[str, Any]], *, title: str) -> Figure:
    """The parts of the KL metric over training above the accuracies, model by model.

    Args:
        models: name -> {"fisher", "softmax", "network", "total": nats;
            "accuracy", "robust_accuracy": shares}, each [seeds, epochs + 1].
        title: what the figure shows, in words.
    """
    parts = {
        "total M": "total",
        "Fisher (non-robust)": "fisher",
        "softmax (robust)": "softmax",
        "network (robust)": "network",
    }
    rates = {"clean": "accuracy", "robust": "robust_accuracy"}
    above, below = [], []
    for name, values in models.items():
        series = {label: values[part] for label, part in parts.items()}
        above.append(Panel(series, name, "mean over pairs [nats]", "symlog"))
        series = {label: values[rate] for label, rate in rates.items()}
        below.append(Panel(series, "", "accuracy [%]", "percent"))
    return curves([above, below], title=title)


def scatter(
    series: Mapping[str, tuple[Any, Any]], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """Robust accuracy (shares, in %) against a positive quantity on a log axis.

    Args:
        series: name -> (x, y), each [seeds, epochs + 1]; one dot per seed and epoch,
            the last epoch filled.
        title: what the figure shows, in words.
        xlabel: the quantity and its unit.
        ylabel: the accuracy and how it was measured.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, 1, title)
        axes = grid[0, 0]
        for (name, (x, y)), colour, marker in zip(
            series.items(), COLOURS, MARKERS, strict=False
        ):
            x, y = np.asarray(x, float), 100 * np.asarray(y, float)
            style = {"marker": marker, "linestyle": "none", "color": colour}
            axes.plot(x[:, :-1].ravel(), y[:, :-1].ravel(), fillstyle="none", **style)
            axes.plot(x[:, -1], y[:, -1], markersize=10, label=name, **style)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", ylim=(-3, 103))
        _legend_right(grid[0])
    return figure


def points(
    series: Mapping[str, tuple[Any, Any]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    xscale: str = "log",
) -> Figure:
    """One panel of dots for each name.

    Args:
        series: name -> (x, y), each [samples].
        title: what the figure shows, in words.
        xlabel: name and unit of x.
        ylabel: name and unit of y.
        xscale: "log" (x > 0) or "linear".
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, len(series), title)
        for axes, (name, (x, y)), colour in zip(
            grid[0], series.items(), COLOURS, strict=False
        ):
            axes.plot(x, y, "o", color=colour, markersize=4, alpha=0.5)
            axes.set(title=name, xlabel=xlabel, xscale=xscale)
        grid[0, 0].set_ylabel(ylabel)
    return figure


def plane(
    lines: Mapping[str, tuple[Any, Any]],
    dots: Mapping[str, tuple[Any, Any]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Curves and measured dots in one plane of two shares, in %.

    Args:
        lines: name -> (x, y), each [points].
        dots: name -> (x, y), arrays of one shape.
        title: what the figure shows, in words.
        xlabel: name of the first share.
        ylabel: name of the second one.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, 1, title)
        axes = grid[0, 0]
        for index, (name, (x, y)) in enumerate(lines.items()):
            style = {"color": COLOURS[index], "linestyle": DASHES[index]}
            axes.plot(100 * np.asarray(x), 100 * np.asarray(y), label=name, **style)
        for index, (name, (x, y)) in enumerate(dots.items(), len(lines)):
            style = {"color": COLOURS[index], "marker": MARKERS[index]}
            x, y = 100 * np.ravel(x), 100 * np.ravel(y)
            # hollow: dots may lie on each other
            axes.plot(x, y, linestyle="none", fillstyle="none", label=name, **style)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend_right(grid[0])
    return figure


def pictures(
    rows: Mapping[str, Any],
    *,
    title: str,
    columns: Sequence[str],
    captions: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Images in a grid, a row for each name.

    Args:
        rows: name -> images [columns, H, W, 1 or 3] in [0, 1]; one channel is grey.
        title: what the figure shows, in words.
        columns: what stands above each column.
        captions: name -> what stands below each image of that row.
    """
    with matplotlib.rc_context(STYLE):
        size = (1.5 * len(columns) + 2.6, 1.6 * len(rows) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, fontsize=15, fontweight="bold")
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for axes_row, (name, images) in zip(grid, rows.items(), strict=True):
            below = (captions or {}).get(name, [""] * len(columns))
            for axes, image, words in zip(axes_row, images, below, strict=True):
                shown = image[..., 0] if image.shape[-1] == 1 else image
                axes.imshow(np.asarray(shown), cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.set_xlabel(words, fontsize=11)
                axes.grid(False)
                axes.spines[:].set(visible=True, color="0.8")
            axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, name in zip(grid[0], columns, strict=True):
            axes.set_title(name, fontsize=11)
    return figure


def matrices(
    values: Mapping[str, Any], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """Square tables [C, C] side by side, on one colour scale; NaN is left blank.

    Args:
        values: name -> [C, C], the unit named in the title.
        title: what the figure shows, in words.
        xlabel: of the second index.
        ylabel: of the first index.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, len(values), title)
        tables = [np.asarray(table, float) for table in values.values()]
        off = [t[~np.eye(len(t), dtype=bool)] for t in tables]
        low, high = np.nanmin(off), np.nanmax(off)
        shown: Any = None
        for axes, name, table in zip(grid[0], values, tables, strict=True):
            table = np.where(np.eye(len(table), dtype=bool), np.nan, table)
            shown = axes.imshow(table, vmin=low, vmax=high, cmap="viridis")
            axes.grid(False)
            axes.set(title=name, xlabel=xlabel)
            axes.set_xticks(range(len(table)))
            axes.set_yticks(range(len(table)))
        grid[0, 0].set_ylabel(ylabel)
        figure.colorbar(shown, ax=list(grid[0]), shrink=0.8)
    return figure


def bars(
    panels: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    title: str,
    ylabel: str,
    percent: bool = False,
) -> Figure:
    """Bars with ± one s.e. over seeds.

    Args:
        panels: panel -> series -> label on the horizontal axis -> values [seeds].
        title: what the figure shows, in words.
        ylabel: what is drawn and its unit.
        percent: the values are shares, to be drawn in %.
    """
    scale = 100 if percent else 1
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, len(panels), title)
        for axes, (name, series) in zip(grid[0], panels.items(), strict=True):
            width = 0.8 / len(series)
            for index, (label, values) in enumerate(series.items()):
                mean, stderr = mean_stderr(scale * np.stack(list(values.values()), 1))
                at = np.arange(len(mean)) + (index - (len(series) - 1) / 2) * width
                error = {"yerr": np.nan_to_num(stderr), "capsize": 3}
                axes.bar(at, mean, width, label=label, color=COLOURS[index], **error)
            labels = list(next(iter(series.values())))
            axes.set_xticks(range(len(labels)), labels, rotation=25, ha="right")
            axes.set(title=name)
            axes.grid(False, axis="x")
        if percent:
            grid[0, 0].set_ylim(0, 103)
        grid[0, 0].set_ylabel(ylabel)
        drawn = next(iter(panels.values())).values()
        _legend_right(grid[0], [v for labels in drawn for v in labels.values()])
    return figure


def robustness_curves(
    series: Mapping[str, tuple[Any, Any, Any]], *, title: str, xlabel: str
) -> Figure:
    """Robust accuracy as a function of the radius, with a band of ± one s.e.

    Args:
        series: name -> (radii [E], accuracies [E], standard errors [E]), the latter
            two as shares; of a `robjax.curves.Curve`, its `epsilons`, `accuracy` and
            `stderr`.
        title: what the figure shows, in words.
        xlabel: the norm of the radius and its unit.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, 1, title)
        axes = grid[0, 0]
        for (name, values), colour, dashes, marker in zip(
            series.items(), COLOURS, DASHES, MARKERS, strict=False
        ):
            radii, mean, stderr = (np.asarray(value, float) for value in values)
            mean, stderr = 100 * mean, 100 * np.nan_to_num(stderr)
            style = {"color": colour, "linestyle": dashes, "marker": marker}
            axes.plot(radii, mean, markersize=5, label=name, **style)
            low, high = np.clip([mean - stderr, mean + stderr], 0, 100)
            axes.fill_between(radii, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel=xlabel, ylabel="robust accuracy [%]", ylim=(-3, 103))
        _legend_right(grid[0])
    return figure


def _grid(rows: int, columns: int, title: str) -> tuple[Figure, np.ndarray]:
    width = 4.2 * columns + (3.6 if columns > 1 else 5.5)
    figure = Figure(figsize=(width, 3.7 * rows + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=16, fontweight="bold")
    return figure, figure.subplots(
        rows, columns, squeeze=False, sharex=True, sharey="row"
    )


def _draw_panel(axes: Axes, panel: Panel, x: Any) -> None:
    for (name, values), colour, dashes in zip(
        panel.series.items(), COLOURS, DASHES, strict=False
    ):
        values = np.asarray(values, float) * (100 if panel.scale == "percent" else 1)
        mean, stderr = mean_stderr(values)
        epochs = np.arange(len(mean)) if x is None else np.asarray(x)
        axes.plot(epochs, mean, color=colour, linestyle=dashes, label=name)
        band = np.nan_to_num(stderr)
        axes.fill_between(
            epochs, mean - band, mean + band, color=colour, alpha=0.2, linewidth=0
        )
    axes.set(title=panel.title, ylabel=panel.ylabel)
    if x is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.scale == "percent":
        axes.set_ylim(-3, 103)
    elif panel.scale == "symlog":
        axes.set_yscale("symlog", linthresh=panel.linear_to)
    else:
        axes.set_yscale(panel.scale)


def _legend_right(axes_row: Sequence[Axes], repeated: Iterable[Any] = ()) -> None:
    """Says what bands are, where values [seeds, ...] are of more than one seed."""
    title = "mean ± s.e." if any(len(values) > 1 for values in repeated) else None
    place: Any = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    axes_row[-1].legend(title=title, **place)
