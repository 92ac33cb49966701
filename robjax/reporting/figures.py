"""Figures as functions of plain arrays, in colours that the colour-blind can tell.

A quantity followed over training is an array [seeds, epochs + 1]; epoch 0, before
training, stands first. Its mean over the seeds is drawn, with a band of ± one standard
error. Each line has its own dash pattern as well as its own colour. There are seven of
both, so at most seven names fit into one panel.

Every function but `save` returns a matplotlib `Figure` and opens no window.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from robjax.reporting.tables import mean_stderr
from robjax.runs import files

# Okabe & Ito, "Color Universal Design" (2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
# Any: the type of its keys has a name in newer versions of matplotlib only.
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


def save(figure: Figure, path: files.PathLike) -> list[Path]:
    """Writes a figure as ``<path>.png`` and ``<path>.svg``, each all or nothing.

    >>> import tempfile
    >>> figure = points({"a": ([1, 10], [2, 3])}, title="t", xlabel="x", ylabel="y")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print([file.name for file in save(figure, f"{folder}/dots")])
    ['dots.png', 'dots.svg']

    Returns:
      The two files.
    """
    written = []
    for suffix in ("png", "svg"):
        target = Path(f"{os.fspath(path)}.{suffix}")
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == "svg" else None
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
        with files.atomic_write(target) as file:
            file.write(buffer.getvalue())
        written.append(target)
    return written


class Panel(NamedTuple):
    """What `curves` draws on one set of axes.

    Attributes:
      series: name -> values [seeds, epochs + 1].
      title: stands above the axes; empty: none.
      ylabel: what is drawn and its unit.
      scale: of the vertical axis. "percent" is linear and turns shares into per cent;
        "symlog" is linear within ± `linear_to` and shows both signs beyond.
      linear_to: see `scale`.
    """

    series: Mapping[str, ArrayLike]
    title: str
    ylabel: str
    scale: Literal["linear", "log", "symlog", "percent"] = "linear"
    linear_to: float = 0.1


def curves(
    rows: Sequence[Sequence[Panel]],
    *,
    title: str,
    x: ArrayLike | None = None,
    xlabel: str = "epoch",
    xscale: str = "linear",
) -> Figure:
    """Draws quantities over training (or over `x`) as a grid of panels.

    The panels of a row share their vertical axis and one legend at the right. A row
    with the same names as the row above has no legend.

    >>> series = {"a": np.ones((3, 5)), "b": np.zeros((3, 5))}
    >>> panel = Panel(series, title="network", ylabel="M [nats]")
    >>> axes = curves([[panel]], title="M over training").axes[0]
    >>> len(axes.lines), axes.get_xlabel(), axes.get_ylabel()
    (2, 'epoch', 'M [nats]')

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


def metric_parts(
    models: Mapping[str, Mapping[str, ArrayLike]], *, title: str
) -> Figure:
    """Draws the parts of the KL metric above the accuracies, over training.

    Each model has a column.

    >>> names = ["total", "fisher", "softmax", "network", "accuracy", "robust_accuracy"]
    >>> values = dict.fromkeys(names, np.ones((3, 5)))
    >>> figure = metric_parts({"one": values, "two": values}, title="parts")
    >>> [len(axes.lines) for axes in figure.axes]
    [4, 4, 2, 2]

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
    above = [
        Panel(
            series={label: values[part] for label, part in parts.items()},
            title=name,
            ylabel="mean over pairs [nats]",
            scale="symlog",
        )
        for name, values in models.items()
    ]
    below = [
        Panel(
            series={label: values[rate] for label, rate in rates.items()},
            title="",
            ylabel="accuracy [%]",
            scale="percent",
        )
        for values in models.values()
    ]
    return curves([above, below], title=title)


def scatter(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Draws robust accuracy in % against a positive quantity on a log axis.

    There is one dot for each seed and epoch. Those of the last epoch are filled.

    >>> series = {"a": (np.full((3, 5), 10.0), np.full((3, 5), 0.25))}
    >>> axes = scatter(series, title="t", xlabel="‖F‖", ylabel="PGD-20 [%]").axes[0]
    >>> axes.lines[1].get_ydata().tolist(), axes.get_xscale()
    ([25.0, 25.0, 25.0], 'log')

    Args:
      series: name -> (quantity, accuracy), each [seeds, epochs + 1]; the accuracies
        are shares.
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
            x = np.asarray(x, float)
            y = 100 * np.asarray(y, float)
            style = {"marker": marker, "linestyle": "none", "color": colour}
            axes.plot(x[:, :-1].ravel(), y[:, :-1].ravel(), fillstyle="none", **style)
            axes.plot(x[:, -1], y[:, -1], markersize=10, label=name, **style)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", ylim=(-3, 103))
        _legend_right(grid[0])
    return figure


def points(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    xscale: str = "log",
) -> Figure:
    """Draws one panel of dots for each name.

    >>> series = {"a": ([1, 10], [2, 3]), "b": ([1], [2])}
    >>> figure = points(series, title="t", xlabel="x", ylabel="y")
    >>> [axes.get_title() for axes in figure.axes]
    ['a', 'b']

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
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    dots: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Draws curves and measured dots in one plane of two shares, in %.

    >>> bound = {"bound": ([0.9, 1.0], [0.5, 0.0])}
    >>> network = {"network": ([0.9], [0.2])}
    >>> figure = plane(bound, network, title="t", xlabel="x", ylabel="y")
    >>> [line.get_ydata().round().tolist() for line in figure.axes[0].lines]
    [[50.0, 0.0], [20.0]]

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
            # hollow: dots may lie on each other
            style |= {"linestyle": "none", "fillstyle": "none"}
            axes.plot(100 * np.ravel(x), 100 * np.ravel(y), label=name, **style)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend_right(grid[0])
    return figure


def pictures(
    rows: Mapping[str, ArrayLike],
    *,
    title: str,
    columns: Sequence[str],
    captions: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Shows images in a grid, a row for each name.

    >>> rows = {"image": np.zeros((2, 8, 8, 1)), "noise": np.ones((2, 8, 8, 1))}
    >>> figure = pictures(rows, title="t", columns=["3", "5"])
    >>> len(figure.axes), figure.axes[2].get_ylabel()
    (4, 'noise')

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
            for axes, image, words in zip(
                axes_row, np.asarray(images), below, strict=True
            ):
                shown = image[..., 0] if image.shape[-1] == 1 else image
                axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.set_xlabel(words, fontsize=11)
                axes.grid(False)
                axes.spines[:].set(visible=True, color="0.8")
            axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, name in zip(grid[0], columns, strict=True):
            axes.set_title(name, fontsize=11)
    return figure


def matrices(
    values: Mapping[str, ArrayLike], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """Shows square tables [C, C] side by side, on one colour scale.

    The diagonal and NaN are left blank.

    >>> table = np.arange(9.0).reshape(3, 3)
    >>> figure = matrices({"a": table}, title="t", xlabel="x", ylabel="y")
    >>> [float(end) for end in figure.axes[0].images[0].get_clim()]
    [1.0, 7.0]

    Args:
      values: name -> [C, C], the unit named in the title.
      title: what the figure shows, in words.
      xlabel: of the second index.
      ylabel: of the first index.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(1, len(values), title)
        squares = [np.asarray(square, float) for square in values.values()]
        off = [square[~np.eye(len(square), dtype=bool)] for square in squares]
        scale = {"vmin": np.nanmin(off), "vmax": np.nanmax(off), "cmap": "viridis"}
        shown: Any = None
        for axes, name, square in zip(grid[0], values, squares, strict=True):
            table = np.where(np.eye(len(square), dtype=bool), np.nan, square)
            shown = axes.imshow(table, **scale)
            axes.grid(False)
            axes.set(title=name, xlabel=xlabel)
            axes.set_xticks(range(len(table)))
            axes.set_yticks(range(len(table)))
        grid[0, 0].set_ylabel(ylabel)
        figure.colorbar(shown, ax=list(grid[0]), shrink=0.8)
    return figure


def bars(
    panels: Mapping[str, Mapping[str, Mapping[str, ArrayLike]]],
    *,
    title: str,
    ylabel: str,
    percent: bool = False,
) -> Figure:
    """Draws bars, means over seeds, with their errors of ± one standard error.

    >>> accuracy = {"clean": [0.9, 0.9], "robust": [0.4, 0.6]}
    >>> figure = bars({"": {"net": accuracy}}, title="t", ylabel="%", percent=True)
    >>> [float(round(bar.get_height())) for bar in figure.axes[0].patches]
    [90.0, 50.0]

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
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
) -> Figure:
    """Draws robust accuracy over the radius, with a band of ± one standard error.

    >>> series = {"PGD": ([0, 0.1], [0.9, 0.5], [0.01, 0.02])}
    >>> figure = robustness_curves(series, title="t", xlabel="ε (L∞)")
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [90.0, 50.0]

    Args:
      series: name -> (radii [E], accuracies [E], standard errors [E]). Accuracies and
        their errors are shares. Of a `robjax.evaluation.Curve` these are `epsilons`,
        `accuracy` and `stderr`.
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
            mean = 100 * mean
            band = 100 * np.nan_to_num(stderr)
            style = {"color": colour, "linestyle": dashes, "marker": marker}
            axes.plot(radii, mean, markersize=5, label=name, **style)
            low, high = np.clip([mean - band, mean + band], 0, 100)
            axes.fill_between(radii, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel=xlabel, ylabel="robust accuracy [%]", ylim=(-3, 103))
        _legend_right(grid[0])
    return figure


def _grid(rows: int, columns: int, title: str) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns], which share x and, by rows, y."""
    width = 4.2 * columns + (3.6 if columns > 1 else 5.5)
    figure = Figure(figsize=(width, 3.7 * rows + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=16, fontweight="bold")
    return figure, figure.subplots(
        rows, columns, squeeze=False, sharex=True, sharey="row"
    )


def _draw_panel(axes: Axes, panel: Panel, x: ArrayLike | None) -> None:
    """Lines and bands of a panel, over `x` or over the epochs."""
    for (name, values), colour, dashes in zip(
        panel.series.items(), COLOURS, DASHES, strict=False
    ):
        unit = 100 if panel.scale == "percent" else 1
        mean, stderr = mean_stderr(unit * np.asarray(values, float))
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


def _legend_right(axes_row: Sequence[Axes], repeated: Iterable[ArrayLike] = ()) -> None:
    """Puts the legend at the right of a row of axes.

    Args:
      axes_row: the axes, of which the last one has all names.
      repeated: what is drawn, arrays [seeds, ...]. If one of them has more than one
        seed, the legend says what bands and errors are.
    """
    with_errors = any(len(np.asarray(values)) > 1 for values in repeated)
    axes_row[-1].legend(
        title="mean ± s.e." if with_errors else None,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
    )
